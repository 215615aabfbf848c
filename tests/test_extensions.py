"""What every extension promises, and the mathematics of each."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from stages import infiller, upsampler
from tessera.core import seams

NAMES = seams.names("extensions")
TRAINED = {"inpainting": infiller, "super_resolution": upsampler}  # the stage whose network an extension uses


@pytest.fixture
def extension_run(tiny_run):
    """`extension_run(key)`: a tiny run, in which the network that the extension uses is trained."""

    def made(name):
        if name in TRAINED:
            TRAINED[name].main(tiny_run(None))
        return tiny_run(name)

    return made


def leaves(metrics: dict) -> list[float]:
    return [number for value in metrics.values() for number in (leaves(value) if isinstance(value, dict) else [value])]


# the contract


@pytest.mark.parametrize("name", NAMES)
def test_report_has_finite_metrics_and_can_be_written(extension_run, name):
    run = extension_run(name)
    report = run.measure("extensions")
    assert leaves(report.metrics)
    assert all(math.isfinite(number) for number in leaves(report.metrics))
    run.write("extensions", report)
    assert json.loads(Path(f"metrics/extensions/{name}.json").read_text())
    written = {path.name for path in Path(f"plots/extensions/{name}").iterdir()}
    assert written == {f"{t}.csv" for t in report.tables} | {f"{p}.png" for p in report.pictures}


@pytest.mark.parametrize("name", NAMES)
def test_report_is_the_same_twice(extension_run, name):
    """Whatever the global generators hold."""

    def written() -> dict[str, bytes]:
        torch.rand(3)
        run = extension_run(name)
        run.write("extensions", run.measure("extensions"))
        folders = (Path("metrics"), Path("plots"))
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*.*")}

    first = written()
    assert len(first) > 1
    assert written() == first


@pytest.mark.parametrize("name", NAMES)
def test_models_are_left_as_they_are(extension_run, name):
    def models() -> dict[str, bytes]:
        return {path.as_posix(): path.read_bytes() for path in Path("artifacts").rglob("*") if path.is_file()}

    run = extension_run(name)
    before = models()
    run.measure("extensions")
    assert models() == before
