"""The stage `probe`: what it measures, and that it trains as the other stages do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FakeRuntime, example

from stages import probe
from tessera.core import files
from tessera.core.contracts import Grids
from tessera.core.params import Params
from tessera.core.run import SPLITS, Run
from tessera.core.space import CodeSpace

BUDGET = {"channels": 16, "layers": 2, "dropout": 0.0, "count": 1000}
TRAINING = {"epochs": 20, "batch_size": 32, "lr": 0.02, "optimizer": "adamw", "warmup_steps": 0, "evaluate_every": 5}
Codes = dict[str, np.ndarray]
Found = tuple[dict[str, float], pd.DataFrame, pd.DataFrame]


@pytest.fixture
def measured(tiny_run: Callable[..., Run], raw: dict[str, Any]) -> Callable[..., Found]:
    """`measured(codes, grids, sizes, epochs=3, count=5)`: metrics, curve and positions of the stage on these codes."""

    def measure(codes: Codes | None = None, grids: Grids = (), sizes: tuple[int, ...] = (), **values: Any) -> Found:
        run = tiny_run()
        if codes is not None:
            for split in SPLITS:
                files.save_array(run.folder("codes") / f"{split}.npy", codes[split].astype(np.int32))
            files.write_json(run.folder("codes") / "facts.json", {"grids": grids, "codebook_sizes": sizes})
        for name, value in values.items():
            (raw["probe"] if name in raw["probe"] else raw["probe"]["training"])[name] = value
        probe.main(run)
        tables = [files.read_table(Path(f"plots/probe/{name}.csv")) for name in ("curve", "positions")]
        assert Path("plots/probe/probe.png").stat().st_size > 1000
        return files.read_json(Path("metrics/probe.json")), *tables

    return measure


def test_it_learns_a_rule(measured: Callable[..., Found]) -> None:
    """Each code is the one before it plus 1, but for the first: 3 bits an image, of an entropy of 16 times 3."""
    draws, step = np.random.default_rng(0), np.arange(16)
    codes = {split: (draws.integers(0, 8, (200, 1)) + step) % 8 for split in SPLITS}
    metrics, curve, places = measured(codes, ((4, 4),), (8,), **BUDGET, **TRAINING)
    assert 0.8 < metrics["fraction_saved"] < 1 - 1 / 16 + 0.01
    assert 2.9 < metrics["nll_bits_per_image"] < 9
    assert metrics["nll_bits_per_image"] == pytest.approx(16 * metrics["nll_bits_per_code"], rel=1e-5)
    assert places["val_nll_bits"][0] > 2.9  # nothing says the first one
    assert places["val_nll_bits"].mean() == pytest.approx(metrics["nll_bits_per_code"], rel=1e-4)
    assert list(curve["epoch"]) == [5, 10, 15, 20]
    assert curve["val_nll_bits_per_code"].min() == pytest.approx(metrics["nll_bits_per_code"], rel=1e-5)


def test_it_is_judged_by_the_best_epoch_of_the_validation_split() -> None:
    """Whole, against the entropy of that split."""
    found = {"val": np.full((8, 4), 0.5), "train": np.full((8, 4), 3.0)}
    history = [{"epoch": 1, "train_nll_bits_per_code": 3.0, "val_nll_bits_per_code": 0.5}]
    report = probe.report(found, np.ones(4), history, ((2, 2),))
    assert report.metrics == {
        "nll_bits_per_code": 0.5, "nll_bits_per_image": 2.0, "fraction_saved": 0.5, "gap_bits_per_code": -2.5,
    }  # fmt: skip
    report = probe.report(found, np.zeros(4), history, ((2, 2),))
    assert report.metrics["fraction_saved"] == 0  # one code everywhere: there is nothing to save


def test_weights_are_those_of_the_best_epoch(measured: Callable[..., Found]) -> None:
    """A large rate on noise: the first evaluation is better than the last, and it counts."""
    draws = np.random.default_rng(0)
    codes = {split: draws.integers(0, 8, (64, 16)) for split in SPLITS}
    metrics, curve, _ = measured(codes, ((4, 4),), (8,), **BUDGET, **TRAINING | {"evaluate_every": 1, "epochs": 12})
    bits = curve["val_nll_bits_per_code"]
    assert bits.min() < bits.iloc[-1] - 0.1
    assert metrics["nll_bits_per_code"] == pytest.approx(bits.min(), rel=1e-5)


def test_it_trains_on_so_many_images_at_most(tiny_run: Callable[..., Run], raw: dict[str, Any]) -> None:
    run, every = tiny_run(), tiny_run().codes("train")
    for count, expected in [(100, len(every)), (5, 5)]:
        data = probe.Data(run, example(probe.Settings, count=count))
        assert len(data.train) == expected
        assert all((row == every).all(1).any() for row in data.train.numpy())
    assert torch.equal(data.batch(np.array([2, 0]), torch.Generator(), 0.5)[0], data.train[[2, 0]])


def test_it_finds_nothing_in_noise(measured: Callable[..., Found]) -> None:
    draws = np.random.default_rng(0)
    codes = {split: draws.choice(8, (400, 16), p=np.arange(1, 9) / 36) for split in SPLITS}
    metrics, *_ = measured(codes, ((4, 4),), (8,), **BUDGET, **TRAINING | {"epochs": 10, "evaluate_every": 2})
    assert abs(metrics["fraction_saved"]) < 0.03


def test_it_sees_earlier_grids(measured: Callable[..., Found]) -> None:
    """The second grid repeats the first: half of the bits."""
    draws = np.random.default_rng(0)
    codes = {split: np.tile(draws.integers(0, 4, (200, 4)), 2) for split in SPLITS}
    _, _, places = measured(codes, ((2, 2), (2, 2)), (4, 5), **BUDGET, **TRAINING)
    bits = places.groupby("grid")["val_nll_bits"].sum()
    assert bits[0] == pytest.approx(8, abs=0.4)
    assert bits[1] < 1
    assert list(places["entropy_bits"]) == pytest.approx([2] * 8, abs=0.02)


def test_bits_are_the_likelihood() -> None:
    grids = ((2, 2), (3, 1))
    network = probe.build(example(probe.Settings), CodeSpace(grids, (3, 5))).eval()
    codes = torch.cat([torch.randint(3, (7, 4)), torch.randint(5, (7, 3))], dim=1)
    found = probe.bits(network, codes, batch_size=4)
    assert found.shape == (7, 7)
    assert found.sum(1) == pytest.approx(network.log_prob(codes, None).detach().numpy() / -math.log(2), rel=1e-5)


def test_it_depends_on_the_seed_alone(measured: Callable[..., Found], raw: dict[str, Any]) -> None:
    """Not on what torch's global generator was left at, nor on the prior of params.yaml."""
    torch.manual_seed(5)
    first, *_ = measured()
    raw["prior"]["gated_pixelcnn"]["channels"] = 12
    torch.manual_seed(6)
    again = copy.deepcopy(raw)
    probe.main(Run(Params(again), runtime=FakeRuntime()))
    assert files.read_json(Path("metrics/probe.json")) == first
    again["seed"] += 1
    probe.main(Run(Params(again), runtime=FakeRuntime()))
    assert files.read_json(Path("metrics/probe.json")) != first
