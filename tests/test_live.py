"""A training shows itself while it goes on: its rows in plots/, how far it is in the scratch, and the tab that reads both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_training import SETTINGS, Line, Stopping, task, training

from tessera.core import files
from tessera.playground import training as tab
from tessera.runtime import live
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.live import Live, Progress
from tessera.runtime.scratch import Scratch, held
from tessera.training.loop import Fitted, fit

CURVE = files.PLOTS / "prior.csv"


class Watched(Runtime):
    """Reads at each step what stands in the folder, as somebody who watches."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__(SETTINGS, scratch)
        self.epochs: list[list[int]] = []
        self.found: list[Progress] = []

    def backward(self, loss: Any) -> None:
        super().backward(loss)
        self.epochs.append(pd.read_csv(CURVE)["epoch"].tolist() if CURVE.exists() else [])
        self.found += live.trainings()


def trained(runtime: Runtime, epochs: int = 3) -> Fitted:
    return fit(task(Line()), training(epochs=epochs), 0, runtime)


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "NEWS", 0.0)


def test_rows_grow_while_it_trains_and_end_as_the_stage_writes_them(workspace: Path) -> None:
    with Scratch("prior", "abc", 2) as scratch:
        runtime = Watched(scratch)
        fitted = trained(runtime)
    assert runtime.epochs == [[], [], [1], [1], [1, 2], [1, 2]]  # two steps an epoch
    grown = CURVE.read_bytes()
    files.write_history("prior", fitted.history)
    assert CURVE.read_bytes() == grown


def test_a_resumed_training_repeats_no_row(workspace: Path) -> None:
    """Stopped after each step; between two processes DVC removes the file, or nobody does."""
    expected = trained(Runtime(SETTINGS)).history
    for number in range(6):
        with pytest.raises(Interrupted), Scratch("prior", "abc", 2) as scratch:
            trained(Stopping(scratch, 1))
        assert pd.read_csv(CURVE)["epoch"].tolist() == [1, 2, 3][: (number + 1) // 2] if number else not CURVE.exists()
        if number % 2:
            CURVE.unlink()
    with Scratch("prior", "abc", 2) as scratch:
        trained(Runtime(SETTINGS, scratch))
    grown = CURVE.read_bytes()
    files.write_history("prior", expected)
    assert CURVE.read_bytes() == grown


def test_rows_of_the_training_before_do_not_stand_for_this_one(workspace: Path) -> None:
    files.write_history("prior", [{"epoch": 99}])
    Live(workspace, "prior", 1, 0.0)
    assert not CURVE.exists()


def test_without_a_scratch_the_plots_of_the_last_run_stay(workspace: Path) -> None:
    files.write_history("prior", [{"epoch": 99}])
    trained(Runtime(SETTINGS))
    assert pd.read_csv(CURVE)["epoch"].tolist() == [99]
    assert [path.name for path in workspace.iterdir()] == ["plots"]


def test_how_far_it_is(workspace: Path, at_every_step: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "wide")
    now = iter(range(100, 200))
    monkeypatch.setattr(live.time, "monotonic", lambda: next(now))
    with Scratch("prior", "abc", 2) as scratch:
        told = Live(scratch.folder, "prior", 1000, 0.5)  # resumed in the middle
        told.update(0.6)  # two seconds after the beginning
        (found,) = live.trainings()
    assert found[:4] == (str(workspace), "wide", "prior", 0.6)
    assert found[4:] == pytest.approx((50, 8))  # a tenth of 1000 images in two seconds
    assert list(live.trainings()) == [], "nobody trains there any more"


def test_only_trainings_under_way_are_found(workspace: Path, at_every_step: None) -> None:
    with Scratch("prior", "abc", 2) as scratch:
        runtime = Watched(scratch)
        trained(runtime)
        (scratch.folder / live.FILE).write_text("{")
        assert list(live.trainings()) == []
        (scratch.folder / live.FILE).write_text("{}")
        assert list(live.trainings()) == []
    assert [each.done for each in runtime.found] == pytest.approx(np.arange(6) / 6)
    assert runtime.found[0].seconds_left == -1
    assert all(each.images_per_second > 0 for each in runtime.found[1:])
    assert not held(scratch.folder)


# the tab


def shown(folder: Path, curve: str, rows: list[dict[str, float]]) -> None:
    files.write_table(folder / files.PLOTS / f"{curve}.csv", pd.DataFrame(rows))


def test_trainings_of_experiments_and_of_the_workspace_are_listed(workspace: Path, tmp_path_factory: Any) -> None:
    assert tab.listed() == []
    other = tmp_path_factory.mktemp("experiment")
    shown(workspace, "tokenizer", [{"epoch": 1, "val_mse": 2.0}])
    shown(workspace, "scorer", [{"epoch": 0}])  # was not trained here
    shown(workspace, "probe/curve", [{"epoch": 1, "val_nll_bits_per_code": 2.0}])
    shown(workspace, "evaluation/curve", [{"x": 1}])
    with Scratch("tokenizer", "abc", 2) as scratch:
        files.write_json(
            scratch.folder / live.FILE, Progress(str(other), "wide", "tokenizer", 0.25, 1000, 90)._asdict()
        )
        found = tab.listed()
        assert found[0].title == "tokenizer, under way in wide"
        assert {each.title for each in found[1:]} == {"tokenizer, of the workspace", "probe, of the workspace"}
        assert len({each.key for each in found}) == 3
        assert tab.sentence(found[0]) == (
            "**tokenizer**: 25% of all steps are taken, 1,000 images per second, about 90 s left."
        )
        assert tab.table(found[0]).empty, "before its first evaluation"
        shown(other, "tokenizer", [{"epoch": 5, "val_mse": 1.0}])
        assert tab.table(found[0])["value"].tolist() == [1.0]
        files.write_json(scratch.folder / live.FILE, Progress(str(workspace), "", "tokenizer", 0.0, 0, -1)._asdict())
        going = tab.listed()[0]
        assert (going.title, going.key) == ("tokenizer, under way", f"{workspace}:tokenizer")
        assert "begins" in tab.sentence(going)
    over = next(each for each in tab.listed() if each.curve == "tokenizer")
    assert over.key == going.key, "who watches it goes on watching it"
    assert "is over" in tab.sentence(over)


def test_each_measure_stands_in_its_chart(workspace: Path) -> None:
    row = {"epoch": 2, "lr": 0.1, "train_mse": 1, "train_gradient_norm": 3, "bound": 0, "val_mse": 2, "val_psnr_db": 20,
           "val_psnr_db_per_image": 21, "val_usage": 1, "train_perplexity": 9, "val_nll_bits_per_code": 4,
           "val_nll_bits_per_image": 256, "val_ssim": 0.5, "val_accuracy": 0.2, "val_commitment": float("nan")}  # fmt: skip
    shown(workspace, "prior", [row])
    (training,) = tab.listed()
    found = tab.table(training)
    assert set(found["epoch"]) == {2}
    assert {name: set(part["line"]) for name, part in found.groupby("chart")} == {
        "Loss terms": {"train_mse", "val_mse"},
        "PSNR, dB": {"val_psnr_db", "val_psnr_db_per_image"},
        "SSIM": {"val_ssim"},
        "Perplexity": {"train_perplexity"},
        "Usage": {"val_usage"},
        "Bits per code": {"val_nll_bits_per_code"},
        "Accuracy": {"val_accuracy"},
        "Gradient norm": {"train_gradient_norm"},
        "Learning rate": {"lr"},
    }


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 hours"), (250_000, "3 days")]
)
def test_a_time_is_said_in_a_unit_that_fits(seconds: float, said: str) -> None:
    assert tab.duration(seconds) == said
