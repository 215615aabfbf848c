"""benchmarks/peers_generation.py: how epochs fit into minutes, how the other side ends in time, what the page says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import example

from benchmarks import peers_generation as benchmark
from tessera.core import files
from tessera.core.errors import InputError
from tessera.training.settings import Training

PACE = benchmark.Pace(epoch=10.0, evaluation=2.0, once=5.0)
TINY = benchmark.Setting(8, (1, 2), 16, 1, 1e-3, 1)


@pytest.mark.parametrize(("seconds", "expected"), [(115, (10, 2)), (114, (9, 2)), (1015, (100, 20)), (3, (1, 1))])
def test_as_many_epochs_as_fit_with_the_evaluations_of_the_recipe(seconds: float, expected: tuple[int, int]) -> None:
    training = example(Training, epochs=50, evaluate_every=10)  # five evaluations
    epochs, every = benchmark.fitting(PACE, seconds, training)
    assert (epochs, every) == expected
    if epochs > 1:
        assert PACE.once + 5 * PACE.evaluation + epochs * PACE.epoch <= seconds


def test_the_update_at_which_the_time_ends_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(1)  # one passes with each batch
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    trainer = SimpleNamespace(step=0, train_num_steps=10**9)
    batches = benchmark.until(5, trainer, itertools.repeat("batch"))
    while trainer.step < trainer.train_num_steps:
        assert [next(batches), next(batches)] == ["batch", "batch"]  # two per update
        trainer.step += 1
    assert trainer.step == 3
    assert next(seconds) == 7, "the update is not cut"


def row(peer: str, group: str, accuracy: float, kid: float) -> dict[str, Any]:
    found = {"accuracy": accuracy, "kid": kid}
    intervals = {
        f"{name}{end}": value + by for name, value in found.items() for end, by in (("_low", -0.1), ("_high", 0.1))
    }
    return {"peer": peer, "minutes": 10.0, "group": group, **found, **intervals}


def test_who_is_ahead_is_said_first() -> None:
    rows = [row("tessera", "all", 0.7, 0.1), row("diffusion", "all", 1.0, 0.15), row("diffusion-small", "all", 0.65, 0.05),
            {"peer": None, "group": "all", "accuracy": 0.5, "kid": 0.0}]  # fmt: skip
    said = list(benchmark.verdicts(pd.DataFrame(rows)))
    assert (
        "**ahead of diffusion on both**, beyond the intervals on 1 (two-sample accuracy 0.700 against 1.000" in said[0]
    )
    assert "**behind diffusion-small on both** (" in said[1]
    assert len(said) == 2


def test_sizes_that_the_package_refuses_are_named_before_anything_runs() -> None:
    with pytest.raises(InputError, match="at least 100 training images, got 99"):
        benchmark.require_fit(np.zeros((99, 32, 32, 3), np.uint8), benchmark.README)
    with pytest.raises(InputError, match=r"dataset\.image_size: must be divisible by 8 for this U-Net, got 28"):
        benchmark.require_fit(np.zeros((100, 28, 28, 3), np.uint8), benchmark.README)


def test_the_package_itself_trains_and_samples_in_time(workspace: Path, make_images: Callable[..., np.ndarray]) -> None:
    pytest.importorskip(benchmark.PACKAGE, reason="the extra `peers` is not installed")
    images = make_images(100)
    files.save_array(files.ARTIFACTS / "dataset" / "train.npy", images)
    case = benchmark.Case({"seed": 0}, threads=1, samples=20, passes=3)
    folder = workspace / "run"
    folder.mkdir()
    made = benchmark.diffusion(TINY, case, 0.2, folder)
    assert made.samples.shape == (20, *images.shape[1:])
    assert made.samples.dtype == np.uint8
    assert made.samples.std() > 0
    assert made.training.seconds >= 0.2
    assert "updates of 16, DDIM 3" in made.setting
