"""Every command `python -m ...` that a document names is there, and starts: each script once, at tiny size."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_diffusion
import forked
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from committed import ROOT, project
from kinds import run_of
from ruamel.yaml import YAML

from tessera import presets
from tessera.core import files
from tessera.core.errors import InputError, NonFiniteError
from tessera.features import frechet
from tessera.runtime import provenance
from tessera.studies import __main__ as studies
from tessera.studies import queue, sweep
from tessera.training.loop import learning_rate
from tessera.training.settings import Training

SUFFIXES = (".md", ".sh", ".sbatch", ".yaml", ".yml")
DOCUMENTS = [
    *(project() / name for name in ("README.md", "Makefile", "set-up", "params.yaml", "dvc.yaml")),
    *(path for name in ("docs", "benchmarks", "examples", "presets", "studies", "findings", "data")
      for path in sorted((project() / name).rglob("*")) if path.suffix in SUFFIXES),
]  # fmt: skip
OTHERS = {"venv", "pip", "pytest"}  # modules of no file here
COMMANDS: dict[tuple[str, str], str] = {  # module, arguments -> the document that names them
    (module, arguments.strip()): path.relative_to(project()).as_posix()
    for path in DOCUMENTS
    for module, arguments in re.findall(r"-m ([a-z](?:[\w.]*\w)?)(?!\w|\.\S)((?: [^\s`()#';|]+)*)", path.read_text())
}
MODULES = sorted({module for module, _ in COMMANDS} - OTHERS)
STAGES = [
    f"stages.{name}" for name in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
]  # test_pipeline runs them


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts are found where a shell in the repository finds them, and set the threads of their process."""
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`start(module, *arguments)`: what the command prints; it must end well."""

    def run(module: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        assert not script(module).main()
        return capsys.readouterr().out

    return run


def script(module: str) -> Any:
    inner = f"{module}.__main__"
    return importlib.import_module(inner if importlib.util.find_spec(module).submodule_search_locations else module)


@pytest.fixture
def artefacts(tiny_run: Any, raw: dict[str, Any], runtime: Any, workspace: Path) -> Callable[..., None]:
    """`artefacts(kind)`: a tiny run in the working folder as `dvc repro` leaves one, with params.yaml, studies and features."""

    def make(kind: str | None = None) -> None:
        run = tiny_run()
        if kind:
            run = run_of(kind, raw, runtime, None)
        with open("params.yaml", "w") as stream:
            YAML(typ="safe").dump(raw, stream)
        for name in ("studies", "presets", "dvc.yaml"):
            Path(name).symlink_to(ROOT / name)
        extractor = run.scorer()
        for of, split in {"reconstruction_train": "train", "reconstruction": "test"}.items():
            features = extractor(torch.from_numpy(run.images(split) / 127.5 - 1).float().movedim(3, 1))
            files.save_array(run.folder("features") / f"{of}.npy", features.detach().numpy())
            files.save_array(run.folder("features") / "families" / f"{of}.npy", run.table(split)["name"].to_numpy(str))
        for made in files.ARTIFACTS.iterdir():
            files.write_json(made / provenance.MADE_FROM, {})

    return make


# the smoke tests


def quantizers(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    benchmark = script("benchmarks.quantizers")
    monkeypatch.setattr(benchmark, "SIZES", ((4, 3),))
    monkeypatch.setattr(benchmark, "MAP", (2, 4, 4))
    assert start("benchmarks.quantizers", "--repeats", "1", "--threads", "1").count("1.00x") >= 2 * len(benchmark.MODES)


def linear(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    monkeypatch.setattr(script("benchmarks.linear"), "LAYERS", {"small": (64, 3, 2)})
    assert "small | 64 | 3 | 2 |" in start("benchmarks.linear", "--repeats", "1", "--threads", "1")


def tokenizers(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    benchmark = script("benchmarks.tokenizers")
    for name, value in {"channels": 8, "outer_channels": 4, "blocks": 1, "block_channels": 4}.items():
        monkeypatch.setitem(benchmark.SHAPE, name, value)
    monkeypatch.setattr(benchmark, "SIZES", ("small",))
    monkeypatch.setattr(benchmark, "CONVOLUTIONS", ((2, 4, 4),))
    monkeypatch.chdir(project())
    size = ("--batch", "4", "--size", "16", "--repeats", "1", "--threads", "1")
    assert re.search(r"^  small .* GFLOP/s", start("benchmarks.tokenizers", *size), re.M)


SIZE = ("--batch", "2", "--grid", "3", "--codebook-size", "8", "--channels", "8", "--repeats", "1", "--threads", "1")


def sampling(start: Callable[..., str], workspace: Path, **_: Any) -> None:
    said = start("benchmarks.sampling", *SIZE, "--layers", "3")
    for name in script("benchmarks.sampling").PRIORS:
        assert len(re.findall(rf"^{name} .*x", said, re.M)) == 4
    start("benchmarks.sampling", "rnn", *SIZE, "--layers", "1", "--plot", "cost.png")
    assert (workspace / "cost.png").stat().st_size > 1000


def speed(start: Callable[..., str], artefacts: Callable[..., None], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    artefacts()
    said = start("benchmarks.speed", "--rounds", "1", "--threads", "1")
    assert re.findall(r"^\| (\S+) \| [\d.]+ \| [\d.]+ \|$", said, re.M) == list(
        script("benchmarks.speed").trained_differently()
    )


def codebooks(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, workspace: Path, **_: Any) -> None:
    benchmark = script("benchmarks.codebooks")
    for name, value in {"SIZES": (4, 8), "DIMENSIONS": (3,), "LATENTS": 20, "SCORES": 16}.items():
        monkeypatch.setattr(benchmark, name, value)
    said = start("benchmarks.codebooks", "--repeats", "1", "--table", "codebooks.csv")
    table = pd.read_csv(workspace / "codebooks.csv")
    assert table[["K", "D"]].to_numpy().tolist() == [[4, 3], [8, 3]]
    assert (table > 0).all(axis=None)
    assert "| times_a_pass |" in said


def decoding(start: Callable[..., str], **_: Any) -> None:
    said = start("benchmarks.decoding", "--images", "70", "--rounds", "1")
    for title in ("PNG, 32x32, folder", "PNG, 32x32, parquet", "JPEG, 256x256, folder", "JPEG, 256x256, parquet"):
        assert re.search(rf"^\| {title} \| \d+ \| \d+ \| [\d.]+ \| [\d.]+ \|$", said, re.M)


def enlarged(start: Callable[..., str], workspace: Path, capsys: pytest.CaptureFixture[str], **_: Any) -> None:
    rng = np.random.default_rng(0)
    for folder, shape in (("dataset", (6, 16, 16, 3)), ("reconstruction", (6, 16, 16, 3))):
        files.save_array(workspace / "artifacts" / folder / "test.npy", rng.integers(0, 256, shape, np.uint8))
    said = start("benchmarks.enlarged", "--images", "4")
    rows = re.findall(r"^\| (\w[\w ]*) \| (\S+) \| (\S+) \| (\S+) \| (\d+) \|$", said, re.M)
    found = {name: (error, float(psnr), count) for name, error, psnr, _, count in rows if name != "enlarged by"}
    assert set(found) == {"not enlarged", "bicubic", "nearest"}
    assert found["nearest"][1] == found["not enlarged"][1]  # each pixel 256 times, the error as large
    assert found["bicubic"][1] > found["nearest"][1] + 0.5  # noise is smoothed away
    assert {count for _, _, count in found.values()} == {"4"}
    (workspace / "artifacts/reconstruction/test.npy").unlink()
    assert script("benchmarks.enlarged").main([]) == 1
    assert "`dvc repro reconstruction` makes it" in capsys.readouterr().err


class Fork:
    """What `benchmarks.growth` asks of a `subprocess.Popen`, of a process that need not load torch."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], stdout: Any, stderr: Any) -> None:
        assert command[0] == sys.executable
        with contextlib.chdir(cwd):
            self._process, self._output, _ = forked.start(*command[1:], **env)
        self.pid, self._log = self._process.pid, stdout

    def poll(self) -> int | None:
        if self.returncode is not None and self._output.exists():
            self._log.write(self._output.read_bytes())
            self._output.unlink()
        return self.returncode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def growth(start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system has no /proc/PID/smaps_rollup")
    monkeypatch.chdir(project())
    monkeypatch.setattr(script("benchmarks.growth").subprocess, "Popen", Fork)
    size = ("--steps", "3", "--threads", "1", "--folder", str(tmp_path))
    said = start(
        "benchmarks.growth", "--images", "40", "80", "--stages", "dataset", *size, "--plot", str(tmp_path / "a.png")
    )
    assert re.search(r"^\| dataset \| ([\d.]+ \| ){4}-?[\d.]+ \| -?[\d.]+ \|$", said, re.M)
    assert (tmp_path / "a.png").stat().st_size > 1000
    before = (tmp_path / "growth.csv").read_text()
    start("benchmarks.growth", "--images", "40", "--stages", "scorer", *size, "--table", str(tmp_path / "b.csv"))
    assert (tmp_path / "growth.csv").read_text().startswith(before)  # dataset is not measured again
    table = pd.read_csv(tmp_path / "b.csv")
    assert list(table["stage"]) == ["dataset", "scorer"]
    assert (table[["seconds", "cpu_seconds", "peak_mib"]] > 0).all(axis=None)
    assert len(files.load_array(tmp_path / "80/artifacts/dataset/train.npy")) == 64
    curve = pd.read_csv(tmp_path / "40/plots/scorer.csv")
    assert list(curve["epoch"]) == [1]  # of 16


def startup(start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, **_: Any) -> None:
    artefacts()
    provenance.write_code(["artifacts/tokenizer"])
    for name in ("src", "stages", "versions.yaml"):
        (workspace / name).symlink_to(ROOT / name)
    before = (files.ARTIFACTS / "codes" / "facts.json").stat().st_mtime_ns
    said = start("benchmarks.startup", "--stages", "codes", "--table", "startup.csv")
    table = pd.read_csv(workspace / "startup.csv").set_index("stage")
    assert list(table.index) == ["validation", "lockfile", "codes", "dvc repro", "make repro"]
    assert all(f"| {name} |" in said for name in table.index)
    codes = table.loc["codes"]
    assert 0 < codes["torch"] < codes["imports"]
    assert min(codes["guard"], codes["work"]) > 0
    parts = ["interpreter", "imports", "guard", "work"]
    assert table[parts].sum(axis=1).to_list() == pytest.approx(table["cpu"].to_list(), abs=0.003)
    assert (files.ARTIFACTS / "codes" / "facts.json").stat().st_mtime_ns == before, "it works in a copy"


def noise(start: Callable[..., str], artefacts: Callable[..., None], **_: Any) -> None:
    artefacts()
    said = start("benchmarks.noise", "--threads", "1")
    for name in ("training images (the floor)", "samples"):
        assert re.search(rf"^\| {re.escape(name)} \| 2 \| 5 \| [\d.]+ ± [\d.]+ \|", said, re.M)


def judges(
    start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, monkeypatch: Any, **_: Any
) -> None:
    benchmark = script("benchmarks.judges")
    artefacts()
    codes = files.load_array(files.ARTIFACTS / "codes" / "train.npy")
    files.save_array(files.ARTIFACTS / "codes" / "augmented.npy", np.stack([codes]))
    files.save_array(files.ARTIFACTS / "samples" / "samples" / "codes.npy", codes)
    monkeypatch.setattr(benchmark, "EPOCHS", (1,))
    monkeypatch.setattr(benchmark, "CRITICISED", 6)
    monkeypatch.setattr(benchmark, "TEMPERATURES", (0.5,))
    monkeypatch.setattr(benchmark.Denoiser, "EPOCHS", 1)
    tiny = (
        "--pool",
        "20",
        "--repetitions",
        "1",
        "--smallest",
        "2",
        "--images",
        "4",
        "--size",
        "32",
        "--table",
        "judges.csv",
    )
    said = start("benchmarks.judges", *tiny, "--classifier", "artifacts/scorer")
    table = pd.read_csv(workspace / "judges.csv")
    for judge in (
        "fd efficientnet",
        "kid classifier",
        "fd denoiser",
        *benchmark.HIGH,
        "two-sample",
        "1-nearest",
        "bits",
    ):
        assert f"| all | 4 | {judge} |" in said
    assert {"train", "halves", "histogram", "temperature 0.5", "copies"} <= set(table["set"])
    table = pd.read_csv(files.ARTIFACTS / "dataset" / "table.csv")  # a ladder needs more images than test has here
    table["split"] = table["split"].map({"train": "test", "test": "train", "val": "val"})
    files.write_table(files.ARTIFACTS / "dataset" / "table.csv", table)
    files.save_array(files.ARTIFACTS / "codes" / "test.npy", codes)
    said = start("benchmarks.judges", "--sizes", "32", "--smallest", "2", "--repetitions", "1")
    assert re.search(r"^\| 32 \| all \| \d+ \| (yes|no: \w+)", said, re.M)


def shape(start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, capsys: Any, **_: Any) -> None:
    artefacts()
    raw = YAML(typ="safe").load((workspace / "params.yaml").read_text())
    images = files.load_array(files.ARTIFACTS / "dataset" / "train.npy")
    files.save_array(files.ARTIFACTS / "reconstruction" / "test.npy", images[:5])
    files.save_array(files.ARTIFACTS / "samples" / "samples" / "images.npy", images)
    for of, group in {"samples": np.arange(12) % 2, "reconstruction": np.arange(5) % 2}.items():
        files.save_array(files.ARTIFACTS / "features" / "groups" / f"{of}.npy", group)
        files.save_array(files.ARTIFACTS / "features" / f"{of}.npy", np.zeros((len(group), 1)))
    files.write_json(
        files.ARTIFACTS / "features" / "facts.json", {"groups": ["people", "rest"], "shown": ["people", "rest"]}
    )
    for run in ("base", "rejection-4"):
        folder = Path(".scratch/studies/shape") / run
        folder.mkdir(parents=True)
        (folder / "artifacts").symlink_to(workspace / "artifacts")
        files.write_json(folder / "params.json", raw)
        files.write_json(folder / "run.json", {"state": "done"})
    start("benchmarks.shape", "--shown", "4", "--folder", "pictures")
    key = pd.read_csv(workspace / "pictures" / "shape-rest-blind.csv")
    assert sorted(key["run"]) == ["base", "rejection-4", "test images"]
    assert list(key["letter"]) == ["A", "B", "C"]
    for name in ("shape-rest.png", "shape-rest-blind.png"):
        assert (workspace / "pictures" / name).stat().st_size > 1000
    found = script("benchmarks.shape").sheets("shape", "rest", 4, ["base"])
    np.testing.assert_array_equal(found["base"], images[1:8:2])  # of group rest, the first, as they came
    assert script("benchmarks.shape").main(["--group", "none"]) == 1
    assert "--group: must be a group" in capsys.readouterr().err


def optimizers(start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, **_: Any) -> None:
    artefacts()
    codes = files.load_array(files.ARTIFACTS / "codes" / "train.npy")
    files.save_array(files.ARTIFACTS / "codes" / "augmented.npy", np.stack([codes]))
    table = workspace / "optimizers.csv"
    trainings = workspace / "trainings.yaml"
    trainings.write_text("- {lr: 0.01, epochs: 2}\n- {lr: 0.02, optimizer: muon, schedule: linear, epochs: 3}\n")
    for kind, mark, beyond in (("tokenizer", "0.5", "99"), ("prior", "99", "0.01")):
        marks = ("--marks", mark, beyond, "--table", str(table), "--batch-size", "4")
        start("benchmarks.optimizers", kind, *marks, "--settings", str(trainings))
        found = pd.read_csv(table)
        assert list(found["optimizer"]) == ["adam", "muon"]
        assert list(found["steps"]) == [6, 9]  # 12 images
        assert (found["seconds"] > 0).all()
        assert list(found[f"steps to {mark}"]) == [3, 3]
        assert found[[f"steps to {beyond}", f"seconds to {beyond}"]].isna().all(axis=None)
        table.rename(workspace / f"{kind}.csv")
    before, given = (
        (workspace / "prior.csv").read_text(),
        ("prior", *marks[:-4], "--batch-size", "4", "--table", "prior.csv"),
    )
    start("benchmarks.optimizers", *given, "--settings", str(trainings))  # nothing is left to train
    assert (workspace / "prior.csv").read_text() == before
    start("benchmarks.optimizers", *given, "--epochs", "1", "--weight-ema", "0.5", "--lr", "0.01")
    assert (workspace / "prior.csv").read_text().startswith(before)
    with pytest.raises(AssertionError):
        start("benchmarks.optimizers", "prior", "--marks", "1", "--table", "prior.csv")


def rates(start: Callable[..., str], artefacts: Callable[..., None], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    artefacts()
    codes = files.load_array(files.ARTIFACTS / "codes" / "train.npy")
    files.save_array(files.ARTIFACTS / "codes" / "augmented.npy", np.stack([codes]))
    benchmark = script("benchmarks.rates")
    monkeypatch.setattr(benchmark, "WARM", 1)
    said = start("benchmarks.rates", "--threads", "1")
    for kind in ("tokenizer", "prior"):
        for precision in benchmark.PRECISIONS:
            for optimizer in benchmark.OPTIMIZERS:
                line = re.search(rf"^\| {kind}, images \| {precision} \| {optimizer} \| ([\d.]+) \|$", said, re.M)
                assert line
                assert float(line[1]) > 0
    assert re.search(r"^\| samples, codes \|  \|  \| [\d.]+ \|$", said, re.M)
    started = []
    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, **given: started.append((command, given)))
    assert benchmark.whole_run()["seconds"] >= 0
    (clone, _), (run, given) = started
    assert clone[:2] == ["git", "clone"]
    assert run[1:] == ["-m", "tessera.runtime.command", "repro"]
    assert given["cwd"] == clone[-1] in given["env"]["PYTHONPATH"]


def playground(start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, **_: Any) -> None:
    artefacts()
    said = start("benchmarks.playground", "--repeats", "1", "--no-browser", "--table", "playground.csv")
    table = pd.read_csv(workspace / "playground.csv")
    assert (table[["bare_ms", "tab_ms"]] > 0).all(axis=None)
    assert len(table) == said.count("first picture") + 3 == 6
    assert "the page was not measured: --no-browser" in said


def playground_pictures(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, **_: Any) -> None:
    script_of = script("benchmarks.playground_pictures")
    assert script_of.main(["--tabs", "Style"]) == 1  # no artifacts/, or no browser
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script_of.main(["--tabs", "Nothing"])


def playground_started(workspace: Path, capsys: Any, **_: Any) -> None:
    assert script("tessera.playground").main(["--port", "0"]) == 1
    assert "--port must be from 1 to 65535" in capsys.readouterr().err


FASHION = {"train": 60, "t10k": 20}  # images of each part


@pytest.fixture
def fashion(workspace: Path, raw: dict[str, Any]) -> Path:
    """A tiny params.yaml in the working folder, and beside it a folder of idx files, as Fashion-MNIST is published."""
    raw["tokenizer"]["training"] |= {"batch_size": 8, "optimizer": "muon", "schedule": "linear", "warmup_steps": 2}
    with open("params.yaml", "w") as stream:
        YAML(typ="safe").dump(raw, stream)
    folder, rng = workspace / "fashion", np.random.default_rng(0)
    folder.mkdir()
    for part, n in FASHION.items():
        for name, values in {
            "images-idx3": rng.integers(0, 256, (n, 28, 28)),
            "labels-idx1": np.arange(n) % 2,
        }.items():
            shape = np.array(values.shape, ">u4").tobytes()
            content = bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


SECOND = ("--minutes", "0.002", "--repeats", "1", "--threads", "1")


def peers(start: Callable[..., str], fashion: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path, **_: Any) -> None:
    benchmark = script("benchmarks.peers")
    given = ("fashion-mnist", "--data", str(fashion), "--table", "peers.csv", *SECOND)
    there = ["tessera", "tessera-fsq", *benchmark.THEIRS, *["pythae"] * (not benchmark.missing("pythae"))]
    said = start("benchmarks.peers", *given)
    table = pd.read_csv(workspace / "peers.csv")
    assert list(table["peer"]) == there
    assert set(table["bits"]) == {7 * 7 * 8}
    assert (table["seconds"] >= 0.12).all()
    assert (table["steps"] > 0).all()
    assert table[[*benchmark.SCORES, "memory_mib"]].notna().all(axis=None)
    assert (
        "fashion-mnist, test split, 0.002 processor minutes of training on 1 thread\n\n| peer | runs | bits |" in said
    )
    assert all(f"\n| {peer} | 1 | 392 |" in said for peer in there)
    before = (workspace / "peers.csv").read_text()
    monkeypatch.setattr(benchmark, "missing", bool)  # of every package that is not tessera
    said = start("benchmarks.peers", *given[:-4], *("--repeats", "2", "--threads", "1"), "--minutes", "0.002")
    assert "pythae is left out: the package pythae is not installed (python -m pip install -e '.[peers]')" in said
    after = (workspace / "peers.csv").read_text()
    assert after.startswith(before), "rows that are there are not made again"
    assert len(after.splitlines()) == len(before.splitlines()) + 2, "of our own peers"


def peers_generation(
    start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, monkeypatch: Any, capsys: Any, **_: Any
) -> None:
    benchmark = script("benchmarks.peers_generation")
    artefacts()
    monkeypatch.setattr(benchmark, "SMALLEST_SET", 4)
    monkeypatch.setitem(sys.modules, benchmark.PACKAGE, None)  # installed or not: an import fails
    tiny = (
        "--peers",
        "tessera",
        "diffusion",
        "--minutes",
        "0.001",
        "--samples",
        "6",
        "--threads",
        "1",
        "--to",
        "result",
    )
    assert benchmark.main(tiny) == 1
    assert benchmark.INSTALL in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, benchmark.PACKAGE, fake_diffusion)
    said = start("benchmarks.peers_generation", *tiny)
    table = pd.read_csv(workspace / "result.csv").set_index(["set", "group"])
    assert set(table["peer"].dropna()) == {"tessera", "diffusion"}
    everything = table.xs("all", level="group")
    assert everything.loc["diffusion, 0.001 min", "seconds"] >= everything.loc["tessera, 0.001 min", "seconds"]
    for noise in ("noise", "diffusion, 0.001 min"):
        assert everything.loc[noise, "kid"] > everything.loc["training images", "kid"]
    measured = table[table["note"].isna()]
    for measure in benchmark.MEASURES:
        assert (measured[f"{measure}_low"] <= measured[f"{measure}_high"]).all()
    page = (workspace / "result.md").read_text()
    assert page.startswith("- 0.001 minutes, all: tessera is **")
    assert said.endswith(page)
    assert (workspace / "result.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in (workspace / ".scratch").rglob("run.json")}
    assert start("benchmarks.peers_generation", *tiny) == page, "nothing is left to run"
    assert before == {path: path.stat().st_mtime_ns for path in (workspace / ".scratch").rglob("run.json")}


def elbo(start: Callable[..., str], artefacts: Callable[..., None], workspace: Path, **_: Any) -> None:
    artefacts("vae, kmeans")
    said = start("benchmarks.elbo")
    rows = [line.split(" | ") for line in said.rpartition("--- |\n")[2].splitlines()]
    assert [row[0].strip("| ") for row in rows] == ["none: N(0, I)", "kmeans, order 0", "geodesic, order 0"]
    for row in rows:
        assert float(row[3].strip("| ")) == pytest.approx(float(row[1]) - float(row[2]), rel=1e-2)
    assert (workspace / "docs/results/elbo.png").exists()


def receptive_fields(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, workspace: Path, **_: Any) -> None:
    benchmark = script("benchmarks.receptive_fields")
    monkeypatch.setattr(benchmark, "SIDE", 5)
    monkeypatch.setattr(benchmark, "DEPTHS", (1, 2))
    assert "gated, layers 2: 12 of 12 seen, 0 in the blind spot" in start("benchmarks.receptive_fields")
    assert (workspace / "docs/results/receptive-fields.png").exists()


def overview(start: Callable[..., str], workspace: Path, **_: Any) -> None:
    for sheet in ("reconstruction/test.png", "samples/samples.png"):
        (workspace / "plots" / sheet).parent.mkdir(parents=True)
        shutil.copy(project() / "plots" / sheet, workspace / "plots" / sheet)
    (workspace / "docs").mkdir()
    assert "wrote docs/overview.png" in start("benchmarks.overview")
    assert (workspace / "docs/overview.png").exists()


def presets_printed(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    monkeypatch.chdir(project())
    assert start("tessera.presets").split() == presets.names()
    for name in named("tessera.presets"):
        assert start("tessera.presets", name).startswith(("-S ", "'-S"))


def studies_listed(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    """What runs something is tested in test_studies.py."""
    monkeypatch.setattr(queue, "dvc", lambda *_: "[]")
    monkeypatch.chdir(project())
    assert [line.split()[0] for line in start("tessera.studies").splitlines()] == sweep.names()
    assert start("tessera.studies", "sizes", "--missing") == "".join(
        f"sizes/{run}: not run yet\n" for run in sweep.load("sizes").runs
    )
    assert "longer/masked-200: failed" in start("tessera.studies", "longer", "--missing")
    assert studies.main(["sizes", "--page"]) == 1


def params_checked(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, module: str, **_: Any) -> None:
    monkeypatch.chdir(project())
    assert "*vqvae" in start(module)


def lock_looked_at(start: Callable[..., str], workspace: Path, **_: Any) -> None:
    assert start("tessera.runtime.lockfile") == ""


def repository_made(start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, workspace: Path, **_: Any) -> None:
    from dvc import dvcfile

    monkeypatch.setattr(dvcfile, "modify_yaml", dvcfile.modify_yaml)  # put back at the end
    start("tessera.runtime.command", "init", "--no-scm", "--quiet")
    assert (workspace / ".dvc").is_dir()


def versions_written(start: Callable[..., str], workspace: Path, **_: Any) -> None:
    """`versions.yaml` anew from the lock: the same packages, and the versions of today."""
    for name in ("versions.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, workspace)
    committed = (workspace / "versions.yaml").read_text()
    (workspace / "versions.yaml").write_text(committed.replace("torch: ", "torch: 0."))
    assert start("tessera.runtime.versions") == ""
    assert (workspace / "versions.yaml").read_text() == committed


def sampled(start: Callable[..., str], tiny_run: Any, **_: Any) -> None:
    """The commands over trained models are tested in test_commands.py and test_release.py."""
    tiny_run()
    assert "16 samples" in start("tessera.sample", "-n", "16", "--seed", "0", "--out", "sheet.png")


def encoded(start: Callable[..., str], tiny_run: Any, **_: Any) -> None:
    files.write_picture(Path("photos/a.png"), tiny_run().images("test")[0])
    assert "1 images" in start("tessera.encode", "photos", "codes.npz")


def decoded(start: Callable[..., str], tiny_run: Any, **_: Any) -> None:
    encoded(start, tiny_run)
    assert "1 images" in start("tessera.decode", "codes.npz", "images")


def words(workspace: Path, capsys: pytest.CaptureFixture[str], **_: Any) -> None:
    """A whole page is made in test_evaluation_words.py."""
    assert script("benchmarks.words").main([]) == 1
    assert "metrics/evaluation/words.json: there is no such file" in capsys.readouterr().err


def exported(workspace: Path, capsys: pytest.CaptureFixture[str], **_: Any) -> None:
    assert script("tessera.export").main(["default"]) == 1
    assert "artifacts has no tokenizer/recipe.json" in capsys.readouterr().err


SMOKE: dict[str, Callable[..., None]] = {
    "benchmarks.quantizers": quantizers,
    "benchmarks.linear": linear,
    "benchmarks.enlarged": enlarged,
    "benchmarks.tokenizers": tokenizers,
    "benchmarks.sampling": sampling,
    "benchmarks.speed": speed,
    "benchmarks.startup": startup,
    "benchmarks.codebooks": codebooks,
    "benchmarks.decoding": decoding,
    "benchmarks.growth": growth,
    "benchmarks.noise": noise,
    "benchmarks.judges": judges,
    "benchmarks.words": words,
    "benchmarks.shape": shape,
    "benchmarks.optimizers": optimizers,
    "benchmarks.rates": rates,
    "benchmarks.peers": peers,
    "benchmarks.peers_generation": peers_generation,
    "benchmarks.elbo": elbo,
    "benchmarks.receptive_fields": receptive_fields,
    "benchmarks.overview": overview,
    "tessera.sample": sampled,
    "tessera.encode": encoded,
    "tessera.decode": decoded,
    "tessera.export": exported,
    "benchmarks.playground": playground,
    "benchmarks.playground_pictures": playground_pictures,
    "tessera.playground": playground_started,
    "tessera.presets": presets_printed,
    "tessera.studies": studies_listed,
    "tessera.runtime.validation": params_checked,
    "tessera.runtime.lockfile": lock_looked_at,
    "tessera.runtime.command": repository_made,
    "tessera.runtime.versions": versions_written,
}


def named(module: str) -> list[str]:
    """Names in the place of the first argument: in capitals they stand for any."""
    return sorted(
        {arguments.split()[0] for of, arguments in COMMANDS if of == module and re.match(r"[a-z]", arguments)}
    )


@pytest.mark.parametrize("module", SMOKE)
def test_the_script_starts(module: str, request: pytest.FixtureRequest) -> None:
    asked = SMOKE[module].__annotations__.keys() - {"_", "return", "module"}
    SMOKE[module](module=module, **{name: request.getfixturevalue(name) for name in asked})


# the documents


@pytest.mark.parametrize("module", MODULES)
def test_a_command_of_a_document_is_there_and_has_a_smoke_test(module: str) -> None:
    where = sorted({path for (of, _), path in COMMANDS.items() if of == module})
    assert importlib.util.find_spec(module), f"{', '.join(where)}: there is no {module}"
    assert module in (*SMOKE, *STAGES), f"{', '.join(where)}: {module} has no smoke test"
    source = Path(script(module).__file__).read_text()
    assert 'if __name__ == "__main__":' in source


def test_documents_name_every_benchmark() -> None:
    own = {f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert own - {"benchmarks.__init__", "benchmarks.memory", "benchmarks.clock", "benchmarks.browser"} == {
        name for name in MODULES if name.startswith("benchmarks")
    }


def test_studies_are_yaml_alone() -> None:
    assert {path.suffix for path in (ROOT / "studies").iterdir() if path.name != "__pycache__"} == {".yaml"}


@pytest.mark.parametrize(
    ("arguments", "path"), [(a, p) for (module, a), p in COMMANDS.items() if module == "tessera.studies"]
)
def test_documented_arguments_of_studies_are_understood(
    arguments: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project())
    options = studies.options_of(shlex.split(arguments))
    if options.name and options.name.islower():
        study = sweep.load(options.name)
        assert set(options.again) <= set(sweep.pool_of(options.name, study)[1].runs)


# what they say


@pytest.mark.parametrize("images", [5, 12])
def test_the_frechet_distance_of_few_images_is_that_of_torch_fidelity(images: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(images, 20)), 1.5 * rng.normal(size=(images + 1, 20)) + 0.5
    assert script("benchmarks.judges").frechet(a, b) == pytest.approx(frechet.distance(a, b), rel=1e-4)


@pytest.mark.parametrize(("values", "said"), [([1, 2, 3], "yes"), ([1, 3, 2], "no: c < b")])
def test_an_order_is_kept_where_each_set_is_worse_than_the_one_before(values: list[int], said: str) -> None:
    worse = pd.DataFrame([values, values], columns=["a", "b", "c"], dtype=float)
    assert script("benchmarks.judges").order(worse, ["a", "b", "c"]) == said


def test_an_order_that_one_draw_breaks_is_kept_in_the_mean_alone() -> None:
    worse = pd.DataFrame({"a": [1.0, 1.0], "b": [0.9, 2.0]})
    assert script("benchmarks.judges").order(worse, ["a", "b"]) == "mean"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--layers", "0"), "--layers must be at least 1, got 0"),
        (("pixelsnail", "--channels", "6"), "pixelsnail has no such size, of --channels 6"),
        (("transformer", "--kv-heads", "3"), "kv_heads must divide heads 4, got 3"),
        (("ngram",), "there is no prior ngram to time; there are gated_pixelcnn"),
    ],
)
def test_a_size_that_cannot_be_timed_is_named(
    given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script("benchmarks.sampling").main(given)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("layers", range(1, 13))
def test_every_number_of_layers_is_that_of_the_prior(layers: int) -> None:
    own = script("benchmarks.sampling").values("pixelsnail", 8, layers, 1)
    assert own["blocks"] * own["layers"] == layers


def test_the_profiler_prints_nothing_into_a_table() -> None:
    command = [sys.executable, "-m", "benchmarks.sampling", "rnn", *SIZE, "--layers", "1"]
    done = forked.run(command, cwd=ROOT, env=os.environ, capture_output=True, timeout=100, check=False)
    assert "one full forward pass" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.zeros((3, 2, 2)), "must be integers, got float64"),
        (np.zeros((3, 4, 1), int), r"must have the grid (2, 2), got (4, 1)"),
        (np.full((3, 2, 2), 8), "must be 0 to 7, got 8 to 8"),
        (np.full((3, 2, 2), -1), "must be 0 to 7, got -1 to -1"),
    ],
)
def test_codes_of_a_peer_that_cost_other_bits_are_refused(codes: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"vq: codes {said}")):
        script("benchmarks.peers").require_bits(codes, (2, 2), 8, "vq")
    script("benchmarks.peers").require_bits(np.full((3, 2, 2), 7), (2, 2), 8, "vq")


def test_a_peer_is_scored_by_its_codes_alone(images: np.ndarray) -> None:
    """One that remembers the images which it encoded, and emits zeros, has no more than the zeros say."""
    benchmark, seen = script("benchmarks.peers"), {}

    def encode(x: torch.Tensor) -> torch.Tensor:
        seen["x"] = x
        return torch.zeros(len(x), 2, 2, dtype=torch.long)

    case = benchmark.Case(None, {"test": images}, 8, (2, 2))
    made = benchmark.Trained(encode, lambda codes: codes[:, None].float().expand(-1, 3, -1, -1).repeat(1, 1, 4, 4), 0)
    found = benchmark.scored(made, case, "test", "zeros")
    grey = np.full_like(images, 128)
    assert found["psnr_db"] == pytest.approx(-10 * np.log10(((images / 255 - grey / 255) ** 2).mean()), rel=1e-5)
    assert found["perplexity"] == 1
    assert found["usage"] == 1 / 8
    assert len(seen["x"]) == len(images)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_by_the_time_is_that_by_steps(schedule: str, raw: dict[str, Any]) -> None:
    """At a constant speed, where the fraction of the time is that of the steps."""
    training = Training.model_validate(
        {**raw["tokenizer"]["training"], "schedule": schedule, "warmup_steps": 5, "epochs": 100}
    )
    rate = script("benchmarks.peers").Rate(training)
    for taken in range(100):
        assert rate(taken, taken / 100) == pytest.approx(learning_rate(taken, training, 1), rel=1e-4)


def test_warm_up_ends_after_a_tenth_of_the_time(raw: dict[str, Any]) -> None:
    training = Training.model_validate({**raw["tokenizer"]["training"], "schedule": "constant", "warmup_steps": 1000})
    rate = script("benchmarks.peers").Rate(training)
    assert rate(0, 0.0) == training.lr / 1000
    assert rate(3, 0.05) == training.lr / 2
    assert rate(7, 0.11) == training.lr


def test_a_clock_counts_neither_the_first_step_nor_pauses() -> None:
    now = iter([10.0, 14.0, 20.0, 21.0, 21.0])
    clock = script("benchmarks.peers").Clock(5.0, now=lambda: next(now))
    clock.go_on()
    clock.count(8)  # at 10 s: the first step has ended
    clock.stop()  # at 14 s
    clock.go_on()  # at 20 s
    clock.count(8)
    assert clock.seconds == 5  # at 21 s
    assert clock.over  # likewise
    assert (clock.steps, clock.images) == (1, 8)


@pytest.mark.parametrize(("name", "wrong"), [("schedule", "restarts"), ("weight_ema", 0.5), ("precision", "fp16")])
def test_training_that_the_time_cannot_end_is_refused(name: str, wrong: Any, raw: dict[str, Any]) -> None:
    training = Training.model_validate({**raw["tokenizer"]["training"], "weight_ema": 0.0, name: wrong})
    with pytest.raises(InputError, match=f"tokenizer.training.{name}: must"):
        script("benchmarks.peers").require_done_here(training)


def test_a_training_that_diverges_is_a_row_without_scores(
    fashion: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = script("benchmarks.peers")

    def diverges(case: Any, clock: Any, seed: int) -> Any:
        raise NonFiniteError("step 0: the loss is nan")

    monkeypatch.setitem(benchmark.PEERS, "vq-ema", benchmark.PEERS["tessera"]._replace(train=diverges))
    given = ("fashion-mnist", "--data", str(fashion), "--table", "peers.csv", "--peers", "vq-ema", "tessera", *SECOND)
    assert benchmark.main(given) == 0
    said = capsys.readouterr().out
    assert "vq-ema diverged: step 0: the loss is nan" in said
    assert re.search(r"^\| vq-ema \| 1 \| 392 \|.* - \| - \| - \| - \|", said, re.M)
    table = pd.read_csv(workspace / "peers.csv").set_index("peer")
    assert table.loc["vq-ema", list(benchmark.SCORES)].isna().all()
    assert table.loc["tessera", list(benchmark.SCORES)].notna().all()


def test_rows_of_other_values_are_refused(
    fashion: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = script("benchmarks.peers")
    given = ("fashion-mnist", "--data", str(fashion), "--table", "peers.csv", "--peers", "tessera", *SECOND)
    assert benchmark.main(given) == 0
    monkeypatch.setattr(benchmark, "digest", lambda *_: "other")
    assert benchmark.main(given) == 1
    assert "has a row of tessera that was made with other values; name another file" in capsys.readouterr().err
    (fashion / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"))
    assert benchmark.main(given) == 1
    assert "t10k-images-idx3-ubyte.gz must be an idx file of bytes in 3 dimensions" in capsys.readouterr().err
