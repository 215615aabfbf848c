"""How much faster the stage `dataset` decodes with several processes: `python -m benchmarks.decoding`.

Makes photographs of its own in a temporary folder (smooth colours with noise), PNG of 32x32 and JPEG of 256x256 pixels, each as a
folder of files and as one parquet file, and lets the stage decode them by one process and by `--processes`, in turns. `times` is
the median over `--rounds` of the ratio of wall seconds, which others on the cores distort. So there is a second ratio, `by CPU
time`: the CPU seconds of the one process to those of all the several, divided by their number. That is the ratio on free cores.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages import dataset as stage
from tessera.core import seams
from tessera.core.contracts import Source
from tessera.core.seeding import numpy_generator
from tessera.decoding.forks import spread
from tessera.studies.pages import markdown

KINDS = {"PNG": (32, 32), "JPEG": (256, 64)}  # side of the images, and of what they become


def photographs(count: int, kind: str, side: int) -> Iterator[bytes]:
    """Encoded images: blurred noise with noise."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        pixels = (smooth + rng.integers(-12, 13, smooth.shape, np.int16)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        yield stream.getvalue()


def sources(folder: Path, kind: str, count: int) -> dict[str, tuple[Source, stage.Settings]]:
    """The same images as a folder of files and as a parquet file, with the section that reads them."""
    images = list(photographs(count, kind, KINDS[kind][0]))
    files, table = folder / kind, folder / f"{kind}.parquet"
    files.mkdir()
    for number, image in enumerate(images):
        (files / f"{number:06}.{kind.lower()}").write_bytes(image)
    pq.write_table(pa.table({"image": [{"bytes": image, "path": None} for image in images]}), table)
    found = {}
    for title, name, path, own in (
        ("folder", "folder", files, {"labels": False, "extensions": [kind.lower()]}),
        ("parquet", "huggingface", table, {}),
    ):
        config = seams.plugin("datasets", name).Config
        values = {key: field.examples[0] for key, field in config.model_fields.items()} | own
        source = seams.plugin("datasets", name).load(config(**values), path, numpy_generator(0, "dataset", "load"))
        found[title] = source, section(name, path, KINDS[kind][1])
    return found


def section(name: str, path: Path, side: int) -> stage.Settings:
    split = {"by": "random", "train": 0.8, "val": 0.1, "test": 0.1, "withheld": []}
    return stage.Settings(name=name, source=str(path), image_size=side, target_size=side, colour="rgb", aspect="crop",
                          near_duplicate_rmse=6.0, split=split)  # fmt: skip


def decode(source: Source, settings: stage.Settings, processes: int) -> tuple[float, float]:
    """Wall seconds, and CPU seconds for each process, those of handing out the work included."""

    def work(i: int) -> float:
        before = time.process_time()
        stage.render(source.images[i], settings)
        return time.process_time() - before

    begun, before = time.perf_counter(), time.process_time()
    taken = sum(spread(work, len(source.images), processes))
    own = time.process_time() - before
    return time.perf_counter() - begun, (own if processes == 1 else own + taken) / processes


def measured(folder: Path, count: int, processes: int, rounds: int) -> pd.DataFrame:
    rows = []
    for kind, (side, _) in KINDS.items():
        for form, (source, settings) in sources(folder, kind, count).items():
            decode(source._replace(images=[source.images[0]]), settings, 1)  # Pillow loads its decoders
            turns = np.array([[decode(source, settings, n) for n in (1, processes)] for _ in range(rounds)])
            (one, _), (several, _) = np.median(turns, axis=0)
            wall, cpu = np.median(turns[:, 0] / turns[:, 1], axis=0)
            title = f"{kind}, {side}x{side}, {form}"
            rows.append([title, f"{count / one:.0f}", f"{count / several:.0f}", f"{wall:.2f}", f"{cpu:.2f}"])
    columns = ["images", "a second, 1 process", f"{processes} processes", "times", "by CPU time"]
    return pd.DataFrame(rows, columns=columns)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="of each kind; default 20,000")
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(markdown(measured(Path(folder), options.images, options.processes, options.rounds)))


if __name__ == "__main__":
    sys.exit(main())
