"""What every diagnostic promises, and the mathematics of each."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tessera.core import files, seams
from tessera.core.run import SPLITS, Run
from tessera.diagnostics import autocorrelation, usage

NAMES = seams.names("diagnostics")


def write_codes(run: Run, codes: dict[str, np.ndarray], grids: tuple, sizes: tuple[int, ...]) -> None:
    for split in SPLITS:
        files.save_array(run.folder("codes") / f"{split}.npy", codes[split])
    files.write_json(run.folder("codes") / "facts.json", {"grids": grids, "codebook_sizes": sizes})


def leaves(metrics: dict) -> list[float]:
    return [number for value in metrics.values() for number in (leaves(value) if isinstance(value, dict) else [value])]


# the contract


@pytest.mark.parametrize("name", NAMES)
def test_report_has_finite_metrics_and_can_be_written(tiny_run, name):
    run = tiny_run(name)
    report = run.measure("diagnostics")
    assert leaves(report.metrics)
    assert all(math.isfinite(number) for number in leaves(report.metrics))
    run.write("diagnostics", report)
    assert json.loads(Path(f"metrics/diagnostics/{name}.json").read_text())
    written = {path.name for path in Path(f"plots/diagnostics/{name}").iterdir()}
    assert written == {f"{t}.csv" for t in report.tables} | {f"{p}.png" for p in report.pictures}


@pytest.mark.parametrize("name", NAMES)
def test_report_is_the_same_twice(tiny_run, name):
    def written() -> dict[str, bytes]:
        run = tiny_run(name)
        run.write("diagnostics", run.measure("diagnostics"))
        folders = (Path("metrics"), Path("plots"))
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*.*")}

    first = written()
    assert len(first) > 1
    assert written() == first


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("grids", "sizes"), [(((2, 2), (4, 4)), (3, 8)), (((1, 1),), (4,))], ids=["two grids", "one code an image"]
)
def test_other_grids(tiny_run, name, grids, sizes):
    """VQ-VAE-2's two, and an image of one single code, which has no neighbours."""
    draws, run = np.random.default_rng(0), tiny_run(name)
    codes = {
        split: np.concatenate(
            [draws.integers(0, k, (len(run.codes(split)), h * w)) for (h, w), k in zip(grids, sizes, strict=True)],
            axis=1,
        )
        for split in SPLITS
    }
    write_codes(run, codes, grids, sizes)
    report = run.measure("diagnostics")
    assert all(math.isfinite(number) for number in leaves(report.metrics))
    run.write("diagnostics", report)


@pytest.mark.parametrize("name", NAMES)
def test_one_single_code_everywhere(tiny_run, name):
    """A collapsed codebook is what a diagnostic is for."""
    run = tiny_run(name)
    codes = {split: np.zeros((len(run.codes(split)), 4), np.int32) for split in SPLITS}
    write_codes(run, codes, ((2, 2),), (8,))
    report = run.measure("diagnostics")
    assert all(math.isfinite(number) for number in leaves(report.metrics))
    run.write("diagnostics", report)


TORCHLESS = """
import sys
import matplotlib
from tessera.core.params import Params, read
from tessera.core.run import Run
params = Params(read("params.yaml"))
MODELS = {"geometry", "robustness", "equivariance"}
for name in set(params.keys("diagnostics")) - MODELS:
    run = Run(params.restrict(frozenset({"diagnostics", "seed"})), name)
    run.write("diagnostics", run.measure("diagnostics"))
print(sorted(name for name in sys.modules if name in ("torch", "accelerate", "torchvision")))
"""


def test_what_reads_only_codes_imports_no_torch(tiny_run, raw):
    """Each is a process of its own, and torch takes ten times as long as they do."""
    from ruamel.yaml import YAML

    tiny_run()
    with open("params.yaml", "w") as stream:
        YAML().dump(raw, stream)
    environment = {**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", TORCHLESS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


# usage


def test_usage_by_counting(tiny_run):
    """5 of 8 codes in val; what the other splits use does not matter."""
    draws, run = np.random.default_rng(0), tiny_run("usage")
    codes = {split: draws.integers(0, 8, (20, 4)) for split in SPLITS} | {"val": draws.choice([1, 2, 4, 6, 7], (20, 4))}
    write_codes(run, codes, ((2, 2),), (8,))
    report = usage.measure(usage.Config(), run)
    counts = np.array([(codes["val"] == k).sum() for k in range(8)])
    shares = counts[counts > 0] / counts.sum()
    assert report.metrics["grid_0"]["active"] == 5
    assert report.metrics["grid_0"]["usage"] == 5 / 8
    assert report.metrics["grid_0"]["perplexity"] == pytest.approx(np.prod(shares**-shares))
    table = report.tables["splits"].set_index("split")
    assert list(table["codebook_size"]) == [8, 8, 8]
    assert table.loc["val", "entropy_bits"] == pytest.approx(np.log2(np.prod(shares**-shares)))
    histogram = report.tables["histogram"]
    val = histogram[histogram["split"] == "val"]
    assert list(val["p"]) == sorted(val["p"], reverse=True)
    assert all(row.p == counts[row.code] / counts.sum() for row in val.itertuples())


def test_usage_of_each_grid(tiny_run):
    run = tiny_run("usage")
    codes = np.concatenate([np.zeros((6, 1)), np.tile([0, 1, 2, 3], (6, 1))], axis=1).astype(int)
    write_codes(run, dict.fromkeys(SPLITS, codes), ((1, 1), (2, 2)), (5, 4))
    metrics = usage.measure(usage.Config(), run).metrics
    assert metrics["grid_0"] == {"usage": 1 / 5, "active": 1, "perplexity": 1}
    assert metrics["grid_1"] == {"usage": 1, "active": 4, "perplexity": pytest.approx(4)}


# autocorrelation


def test_autocorrelation_by_brute_force(tiny_run):
    draws, run = np.random.default_rng(0), tiny_run("autocorrelation")
    codes = {split: draws.integers(0, 3, (5, 12)) for split in SPLITS}
    write_codes(run, codes, ((3, 4),), (3,))
    report = autocorrelation.measure(autocorrelation.Config(distance=5), run)
    steps = {"horizontal": (0, 1), "vertical": (1, 0), "diagonal": (1, 1)}
    table = report.tables["neighbours"].set_index(["split", "direction", "distance"])["equal"]
    for split in SPLITS:
        grid = codes[split].reshape(5, 3, 4)
        for name, (dy, dx) in steps.items():
            for far in range(1, 6):
                pairs = [
                    grid[n, y, x] == grid[n, y + dy * far, x + dx * far]
                    for n in range(5)
                    for y in range(3 - dy * far)
                    for x in range(4 - dx * far)
                ]
                if pairs:
                    assert table[split, name, far] == pytest.approx(np.mean(pairs))
                    if split == "val" and far == 1:
                        assert report.metrics["grid_0"][name] == pytest.approx(np.mean(pairs))
                else:
                    assert (split, name, far) not in table.index
        chance = sum(np.mean(grid == k) ** 2 for k in range(3))
        assert table[split, "chance", 1] == pytest.approx(chance)
    assert set(report.metrics["grid_0"]) == {*steps, "chance"}


def test_autocorrelation_of_a_checkerboard(tiny_run):
    """No neighbour is equal, every diagonal one is; two codes drawn by chance are equal half of the time."""
    run = tiny_run("autocorrelation")
    board = np.tile((np.indices((4, 4)).sum(0) % 2).reshape(-1), (3, 1))
    write_codes(run, dict.fromkeys(SPLITS, board), ((4, 4),), (2,))
    metrics = autocorrelation.measure(autocorrelation.Config(distance=1), run).metrics
    assert metrics == {"grid_0": {"horizontal": 0, "vertical": 0, "diagonal": 1, "chance": 0.5}}
