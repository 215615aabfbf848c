"""How time and memory of every stage grow with the data set: `python -m benchmarks.growth --images 3000 30000 300000`.

Makes sets of synthetic images of 16x16 pixels (smooth colours, ten labels) and runs all stages on each, as params.yaml has
them, but with small networks, one copy of the codes, and the feature network `classifier`. Trainings take `--steps` steps on
the first images of the train split, so that what grows is seen: reading, encoding, evaluation, search. A stage is a process of
its own. Its seconds are those of its work, without the start of Python; CPU seconds are those of all its processes. Its memory
is the most that these held at once, files that are mapped into memory left out, since the system can drop these; it is looked
up ten times a second.

Everything lies in `--folder`: the sets, the artefacts, and `growth.csv`, which gets a row when a stage has ended. A row is not
measured again, so a run that was killed goes on where it was. Prints a Markdown table: CPU seconds and MiB by number of images;
the exponent p of seconds ~ images^p, and kB an image, both between the two largest sets. `--plot` draws it. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from PIL import Image
from ruamel.yaml import YAML

from tessera import presets
from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.runtime import pipeline, process
from tessera.studies.pages import markdown

ROOT = Path(__file__).resolve().parent.parent
SIDE, LABELS, BLOCK = 16, 10, 10_000  # pixels; labels; images that are made at once
SMALL: dict[str, Any] = {
    "dataset.name": "huggingface",
    "dataset.huggingface.label_column": "label",
    "dataset.image_size": SIDE,
    "dataset.target_size": 2 * SIDE,
    "scorer.name": "classifier",
    "tokenizer.snapshot_epochs": [0, 1],
    "tokenizer.vqvae.channels": 32,
    "tokenizer.vqvae.outer_channels": 16,
    "tokenizer.vqvae.blocks": 1,
    "tokenizer.vqvae.block_channels": 16,
    "codes.copies": 1,
    "prior.pixelsnail.channels": 32,
    "prior.pixelsnail.blocks": 1,
    "upsampler.bicubic_residual.channels": 32,
    "upsampler.bicubic_residual.outer_channels": 16,
    "runtime.device": "cpu",
}
COLUMNS = ["images", "stage", "threads", "steps", "seconds", "cpu_seconds", "peak_mib"]
SHOWN = 8  # stages that have a colour of their own in the figure


# what is measured


def photographs(count: int, seed: int) -> Iterator[bytes]:
    """Encoded images: blurred noise of random brightness and contrast, about as alike as photographs."""
    rng = np.random.default_rng(seed)
    for coarse, middle in zip(rng.normal(0, 45, (count, 4, 4, 3)), rng.normal(120, 55, (count, 1, 1, 3)), strict=True):
        image = Image.fromarray((coarse + middle).clip(0, 255).astype(np.uint8))
        stream = io.BytesIO()
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "PNG", compress_level=1)
        yield stream.getvalue()


def make(path: Path, count: int) -> None:
    """A parquet file of `count` images; those of a smaller set are the first of a larger one."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    with (
        files.replacing(path) as temporary,
        pq.ParquetWriter(temporary, pa.schema({"image": image, "label": pa.int64()})) as writer,
    ):
        for block, first in enumerate(range(0, count, BLOCK)):
            images = [{"bytes": data, "path": None} for data in photographs(min(BLOCK, count - first), block)]
            labels = [(first + i) % LABELS for i in range(len(images))]
            writer.write_table(pa.table({"image": pa.array(images, image), "label": labels}))


def raw_params(source: Path, threads: int) -> dict[str, Any]:
    return presets.applied(read(), SMALL | {"dataset.source": str(source), "runtime.threads": threads})


def prepare(folder: Path, count: int, threads: int) -> dict[str, Any]:
    """A working folder for all stages with its data set. Returns its params.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images.parquet").exists():
        make(folder / "images.parquet", count)
    for name in ("dvc.yaml", "versions.yaml", "presets"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    raw = raw_params(folder / "images.parquet", threads)
    with files.writing(folder / "params.yaml") as stream:
        YAML(typ="safe").dump(raw, stream)
    return raw


# one stage, in a process of its own


def one(stage: str, key: str | None, steps: int) -> None:
    """Run a stage in the working folder, and write its seconds to `measured.json`."""
    sys.path.insert(0, str(ROOT))
    process.prepare()
    params = Params(read())
    process.use_threads(params.value("runtime.threads"))
    place = (
        f"stages.{stage}.__main__"
        if importlib.util.find_spec(f"stages.{stage}").submodule_search_locations
        else f"stages.{stage}"
    )
    main = importlib.import_module(place).main
    from tessera.core.run import Run
    from tessera.runtime.devices import Runtime
    from tessera.runtime.settings import Settings

    shorten_trainings(steps)
    run = Run(params, key, Runtime(params.section("runtime", Settings)))
    before, begun = cpu_seconds(), time.perf_counter()
    main(run)
    found = {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu_seconds() - before}
    files.write_json(Path("measured.json"), found)


def shorten_trainings(steps: int) -> None:
    """Let each module that trains take `steps` steps: one epoch of the first images."""
    if "tessera.training.loop" not in sys.modules:
        return
    from tessera.training import loop

    fit = loop.fit

    def shortened(task: Any, training: Any, seed: int, runtime: Any) -> Any:
        brief = training.model_copy(update={"epochs": 1, "evaluate_every": 1})
        return fit(task._replace(examples=min(task.examples, steps * training.batch_size)), brief, seed, runtime)

    for module in list(sys.modules.values()):
        if getattr(module, "fit", None) is fit:
            module.fit = shortened  # type: ignore[attr-defined]


def cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(folder: Path, stage: pipeline.Stage, steps: int) -> dict[str, float]:
    """Seconds, CPU seconds and the largest memory of a stage.

    Raises:
        InputError: the stage fails.
    """
    command = [sys.executable, "-m", "benchmarks.growth", "--one", stage.stage, *([stage.key] if stage.key else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "DVC_ROOT": str(folder)}
    peak = 0.0
    with open(folder / "log.txt", "wb") as log:
        child = subprocess.Popen([*command, "--steps", str(steps)], cwd=folder, env=environment, stdout=log, stderr=log)
        while child.poll() is None:
            peak = max(peak, held_mib(child.pid))
            time.sleep(0.1)
    if child.returncode:
        said = (folder / "log.txt").read_text(errors="replace")[-2000:]
        raise InputError(f"{stage.name} failed in {folder} ({child.returncode}); its last lines: {said}")
    return {**json.loads((folder / "measured.json").read_text()), "peak_mib": peak}


def held_mib(pid: int) -> float:
    """Memory of a process and of those that it started, without mapped files; what they share counts once."""
    total = 0
    try:
        for running in (own := psutil.Process(pid), *own.children(recursive=True)):
            for line in Path(f"/proc/{running.pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Pss_Anon:") else 0
    except (OSError, psutil.Error):  # it has ended meanwhile
        return 0.0
    return total / 1024


# all stages


def rows_of(table: Path) -> list[dict[str, Any]]:
    return pd.read_csv(table).to_dict("records") if table.exists() else []


def add(folder: Path, counts: Sequence[int], names: Sequence[str], threads: int, steps: int) -> None:
    """Add a row to growth.csv for each stage that has none, set by set, in the order of dvc.yaml."""
    table = folder / "growth.csv"
    for count in counts:
        work = folder / str(count)
        raw = prepare(work, count, threads)
        for stage in pipeline.of(names, raw, ROOT) if names else pipeline.instances(raw, ROOT):
            rows = rows_of(table)
            own = {"images": count, "stage": stage.name, "threads": threads, "steps": steps}
            if any(all(row[key] == value for key, value in own.items()) for row in rows):
                continue
            found = own | measured(work, stage, steps)
            print(f"{count} {stage.name}: {found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB", file=sys.stderr)
            files.write_table(table, pd.DataFrame([*rows, found], columns=COLUMNS))


# what is shown


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each stage: CPU seconds and MiB by number of images, and how they grow between the two largest sets."""
    counts = sorted(rows["images"].unique())
    seconds, memory = (rows.pivot(index="stage", columns="images", values=name) for name in ("cpu_seconds", "peak_mib"))
    order = list(dict.fromkeys(rows["stage"]))
    shown = pd.DataFrame({"stage": order})
    for count in counts:
        shown[f"{count:,}, s"] = [f"{seconds.at[name, count]:.2f}" for name in order]
    for count in counts:
        shown[f"{count:,}, MiB"] = [f"{memory.at[name, count]:.0f}" for name in order]
    if len(counts) > 1:
        few, many = counts[-2:]
        power = np.log(seconds[many] / seconds[few]) / math.log(many / few)
        kilobytes = (memory[many] - memory[few]) * 2**20 / 1000 / (many - few)
        shown["p"] = [f"{power[name]:.2f}" for name in order]
        shown["kB an image"] = [f"{kilobytes[name]:.2f}" for name in order]
    return shown.replace("nan", "")


def plotted(rows: pd.DataFrame) -> Figure:
    """CPU seconds and memory by the number of images. The stages that take longest have a colour."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    counts = sorted(rows["images"].unique())
    last = rows[rows["images"] == counts[-1]].nlargest(SHOWN, "cpu_seconds")["stage"].tolist()
    for axes, column, title in zip(
        figure.subplots(1, 2), ("cpu_seconds", "peak_mib"), ("CPU seconds", "memory, MiB"), strict=True
    ):
        for name, own in rows.groupby("stage", sort=False):
            line = {"label": name, "zorder": 3} if name in last else {"color": "0.85"}
            axes.plot(own["images"], own[column], marker=".", **line)
        axes.set(xscale="log", yscale="log", xlabel="images", title=title)
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.xaxis.minorticks_off()
    begin = rows[rows["images"] == counts[0]]["cpu_seconds"].max()
    linear = [begin * count / counts[0] for count in counts]
    figure.axes[0].plot(counts, linear, color="black", linestyle=":", label="linear")
    figure.axes[0].legend(fontsize="small")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[3000, 30_000], help="default 3,000 and 30,000")
    parser.add_argument("--stages", nargs="+", default=[], help="these and those that they need; default: all")
    parser.add_argument("--steps", type=int, default=50, help="of each training; default 50")
    parser.add_argument("--threads", type=int, default=process.COMMITTED_THREADS, help="default 2")
    parser.add_argument("--folder", type=Path, default=Path(".scratch/growth"), help="default .scratch/growth")
    parser.add_argument("--table", type=Path, help="a CSV file to write")
    parser.add_argument("--plot", type=Path, help="a PNG file to write")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # a stage, and its key
    options = parser.parse_args(argv)
    if options.one:
        one(options.one[0], options.one[1] if len(options.one) > 1 else None, options.steps)
        return 0
    folder = options.folder.resolve()
    try:
        if not Path("/proc/self/smaps_rollup").exists():
            raise InputError("this benchmark reads /proc/PID/smaps_rollup, which this system lacks: run it on Linux")
        add(folder, options.images, options.stages, options.threads, options.steps)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = pd.DataFrame(rows_of(folder / "growth.csv"))
    rows = rows[
        rows["images"].isin(options.images) & (rows["threads"] == options.threads) & (rows["steps"] == options.steps)
    ]
    if options.table:
        files.write_table(options.table, rows)
    if options.plot:
        files.write_picture(options.plot, plotted(rows))
    print(markdown(summary(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
