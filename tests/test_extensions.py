"""What every extension promises, and the mathematics of each."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.core import images, seams
from tessera.extensions import interpolation
from tessera.nn import scores

NAMES = seams.names("extensions")


def leaves(metrics: dict) -> list[float]:
    return [number for value in metrics.values() for number in (leaves(value) if isinstance(value, dict) else [value])]


# the contract


@pytest.mark.parametrize("name", NAMES)
def test_report_has_finite_metrics_and_can_be_written(tiny_run, name):
    run = tiny_run(name)
    report = run.measure("extensions")
    assert leaves(report.metrics)
    assert all(math.isfinite(number) for number in leaves(report.metrics))
    run.write("extensions", report)
    assert json.loads(Path(f"metrics/extensions/{name}.json").read_text())
    written = {path.name for path in Path(f"plots/extensions/{name}").iterdir()}
    assert written == {f"{t}.csv" for t in report.tables} | {f"{p}.png" for p in report.pictures}


@pytest.mark.parametrize("name", NAMES)
def test_report_is_the_same_twice(tiny_run, name):
    """Whatever the global generators hold."""

    def written() -> dict[str, bytes]:
        torch.rand(3)
        run = tiny_run(name)
        run.write("extensions", run.measure("extensions"))
        folders = (Path("metrics"), Path("plots"))
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*.*")}

    first = written()
    assert len(first) > 1
    assert written() == first


@pytest.mark.parametrize("name", NAMES)
def test_models_are_left_as_they_are(tiny_run, name):
    def models() -> dict[str, bytes]:
        return {path.as_posix(): path.read_bytes() for path in Path("artifacts").rglob("*") if path.is_file()}

    run = tiny_run(name)
    before = models()
    run.measure("extensions")
    assert models() == before


# interpolation


@pytest.mark.parametrize("frames", [2, 3, 10])
def test_interpolation_goes_from_one_reconstruction_to_the_other(tiny_run, frames):
    run = tiny_run("interpolation")
    tokenizer = run.tokenizer()
    x = images.to_model(run.images("test")[:2])
    between = interpolation.between(tokenizer, x, frames)
    assert between.shape == (frames, 8, 8, 3)
    assert between.dtype == np.uint8
    with torch.no_grad():
        ends = images.to_pixels(tokenizer(x).reconstruction).astype(int)
    assert abs(ends[0] - ends[1]).max() > 50
    assert abs(between[[0, -1]].astype(int) - ends).max() <= 1  # rounding of 8-bit values


def test_frames_between_are_quantized_blends(tiny_run):
    run = tiny_run("interpolation")
    tokenizer = run.tokenizer()
    x = images.to_model(run.images("test")[:2])
    between = interpolation.between(tokenizer, x, 5)
    assert len(np.unique(between, axis=0)) > 2
    with torch.no_grad():
        (z,) = tokenizer.latents(x)
        for index, share in enumerate([0, 0.25, 0.5, 0.75, 1]):
            quantized = tokenizer.quantize(((1 - share) * z[:1] + share * z[1:],))
            expected = images.to_pixels(tokenizer.decode_vectors((quantized[0].z_q,)))[0]
            assert abs(between[index].astype(int) - expected).max() <= 1


def test_an_image_to_itself_stays(tiny_run):
    run = tiny_run("interpolation")
    x = images.to_model(run.images("test")[[0, 0]])
    between = interpolation.between(run.tokenizer(), x, 4)
    assert (between == between[0]).all()


def test_interpolation_report_by_hand(tiny_run):
    """One strip per pair; smoothness is the mean SSIM of neighbouring frames."""
    run = tiny_run("interpolation")
    report = interpolation.measure(interpolation.Config(frames=4, pairs=3), run)
    table, sheet = report.tables["pairs"], report.pictures["frames"]
    assert sheet.shape == (3 * 68 + 4, 4 * 68 + 4, 3)
    names, pixels = list(run.table("test")["name"]), run.images("test")
    roughest, means = [], []
    for row, pair in enumerate(table.itertuples()):
        assert pair.first != pair.last
        x = images.to_model(pixels[[names.index(pair.first), names.index(pair.last)]])
        frames = interpolation.between(run.tokenizer(), x, 4)
        steps = [scores.ssim(a[None], b[None])[0] for a, b in itertools.pairwise(frames)]
        means.append(np.mean(steps))
        roughest.append(min(steps))
        assert pair.smoothness == pytest.approx(means[-1])
        top = 4 + 68 * row
        np.testing.assert_array_equal(sheet[top : top + 64 : 8, 4:68:8], frames[0])
    assert report.metrics["smoothness"] == pytest.approx(np.mean(means))
    assert report.metrics["smoothness_min"] == pytest.approx(min(roughest))


def test_pairs_are_drawn_by_the_seed(tiny_run):
    run = tiny_run("interpolation")
    config = interpolation.Config(frames=2, pairs=4)
    first = interpolation.measure(config, run).tables["pairs"]
    assert first.equals(interpolation.measure(config, run).tables["pairs"])
    run.params.raw["seed"] = 1
    again = tiny_run("interpolation")
    vars(again.params).pop("seed", None)  # kept from the first reading
    assert list(interpolation.measure(config, again).tables["pairs"]["first"]) != list(first["first"])


def test_picture_is_written_as_it_is(tiny_run):
    run = tiny_run("interpolation")
    report = run.measure("extensions")
    run.write("extensions", report)
    stored = np.asarray(Image.open("plots/extensions/interpolation/frames.png"))
    np.testing.assert_array_equal(stored, report.pictures["frames"])
