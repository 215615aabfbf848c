"""fit(): schedule, stopping, averaging, refusal of what is not finite, and exact resume through a real scratch."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import examples, labelled
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stages import prior as prior_training
from stages import tokenizer as tokenizer_training
from stages.prior import Settings as PriorSection
from tessera.core import models, seams
from tessera.core.conditioning import UNCONDITIONAL, Conditioning
from tessera.core.contracts import Likelihood
from tessera.core.errors import InputError, NonFiniteError
from tessera.core.params import Params
from tessera.core.seeding import seed_globally
from tessera.core.space import CodeSpace
from tessera.images.arrays import to_model
from tessera.losses import mse
from tessera.negatives import Negatives
from tessera.runtime import scratch as scratches
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch
from tessera.runtime.settings import Settings
from tessera.runtime.stage import _signals
from tessera.training.loop import Fitted, Task, averaging_decay, fit, learning_rate, suited
from tessera.training.settings import Training

PLAIN = {
    "epochs": 3,
    "batch_size": 4,
    "optimizer": "adam",
    "lr": 0.1,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "schedule": "constant",
    "restart_epochs": 1,
    "clip_norm": 0.0,
    "weight_ema": 0.0,
    "evaluate_every": 1,
    "patience": 0,
    "precision": "float32",
}


def training(**values: Any) -> Training:
    return Training.model_validate(PLAIN | values)


class Line(nn.Module):
    """y = 2 x - 1, to be found by least squares. `forward` may be told to go wrong at a step."""

    def __init__(self, wrong: Callable[[int], float] = lambda step: 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.wrong, self.calls = wrong, 0
        self.batches: list[list[float]] = []
        self.trajectory: list[tuple[float, float]] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batches.append(x.tolist())
        self.trajectory.append((self.weight.item(), self.bias.item()))
        error = (self.weight * x + self.bias - (2 * x - 1)).square().mean()
        self.calls += 1
        return {"error": error, "other": self.weight * self.wrong(self.calls - 1)}


X = torch.linspace(-1, 1, 10)


def task(line: nn.Module, score: Callable[[dict], float] = lambda row: -row["val"], **values: Any) -> Task:
    def evaluate(model: Any) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"val": float((model.weight * X + model.bias - (2 * X - 1)).square().mean())}

    return Task("prior", line, len(X), lambda indices, generator, done: (X[indices],), evaluate, score, **values)


# small sets


@pytest.mark.parametrize(
    ("examples", "ranks", "batch", "warmup"),
    [  # of batches of 64, 100 steps of warm-up and 10 epochs
        (2933, 1, 64, 45),  # 450 steps
        (512, 1, 64, 8),  # 8 steps an epoch
        (511, 1, 32, 15),
        (64, 1, 8, 8),
        (40, 1, 4, 10),
        (40, 2, 4, 10),  # however many compute
        (40, 8, 16, 2),  # each needs two, for batch normalisation
        (12, 8, 8, 1),
        (12, 1, 4, 3),
        (4, 1, 4, 1),
        (3, 1, 3, 1),
        (3, 2, 2, 1),
    ],
)
def test_batch_and_warm_up_suit_the_examples(examples, ranks, batch, warmup):
    given_by = training(epochs=10, batch_size=64, warmup_steps=100)
    found, notes = suited(task(Line())._replace(examples=examples), given_by, ranks)
    assert (found.batch_size, found.warmup_steps) == (batch, warmup)
    assert found == given_by.model_copy(update={"batch_size": batch, "warmup_steps": warmup})
    named = [note.partition(":")[0] for note in notes]
    assert named == [
        *(["prior.training.batch_size"] if batch < 64 else []),
        "prior.training.warmup_steps",
        *(["prior.training.epochs"] if 10 * (examples // batch) < 100 else []),
    ]


def test_what_suits_is_left_as_it_is():
    given_by = training(epochs=20, batch_size=32, warmup_steps=16)
    assert suited(task(Line())._replace(examples=256), given_by, 2) == (given_by, ())


def test_what_is_made_smaller_is_in_the_log_of_the_first_process_alone(runtime, capsys):
    given_by = training(epochs=4, batch_size=11, warmup_steps=100000)
    line = Line()
    fit(task(line), given_by, 0, runtime)
    assert [len(batch) for batch in line.batches] == [4] * 8
    assert capsys.readouterr().out.splitlines() == [
        "prior.training.batch_size: 4 instead of 11, since the train split has 10 images",
        "prior.training.warmup_steps: 0 instead of 100000, since there are 8 steps",
        "prior.training.epochs: 4 are 8 steps in all, hardly a training; raise epochs",
    ]
    runtime.main = False
    fit(task(Line()), given_by, 0, runtime)
    assert not capsys.readouterr().out


def test_more_processes_than_images(runtime):
    with pytest.raises(InputError, match="must not be more than the 10 images of the train split"):
        suited(task(Line()), training(batch_size=16), 16)


@pytest.mark.parametrize("decay", [0.9, 0.995, 0.9999])
@pytest.mark.parametrize("epochs", [3, 10, 48])
def test_averaged_weights_of_a_short_training_are_trained_ones(runtime, epochs, decay):
    """Loss of the last epoch, against that of the very same training without an average, and that of no training."""
    values = {"epochs": epochs, "lr": 0.2, "schedule": "cosine", "weight_ema": decay}
    averaged = fit(task(Line(), lambda row: row["epoch"]), training(**values), 0, runtime).history[-1]["val"]
    plain = fit(task(Line(), lambda row: row["epoch"]), training(**values | {"weight_ema": 0.0}), 0, runtime)
    untrained = float((2 * X - 1).square().mean())
    assert averaged < plain.history[-1]["val"] + 0.1 * untrained


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [(1, 0.995, 2 / 11), (8, 0.995, 0.5), (96, 0.995, 97 / 106), (1790, 0.995, 0.995), (5, 0.3, 0.3), (10**6, 0.9999, 0.9999)],
)  # fmt: skip
def test_averaging_warms_up(step, decay, expected):
    assert averaging_decay(step, decay) == pytest.approx(expected)


# the schedule


@pytest.mark.parametrize(("epochs", "warmup"), [(2, 0), (2, 3), (5, 0), (5, 10), (9, 1)])
def test_a_cycle_is_no_longer_than_the_training(epochs, warmup):
    """10 epochs of a cycle: one that was cut off in its middle would end at a high rate."""
    given_by = training(epochs=epochs, schedule="restarts", restart_epochs=10, lr=1.0, warmup_steps=warmup)
    assert learning_rate(epochs * 8 - 1, given_by, 8) < 0.05


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # 8 steps are left after the warm-up: 1 - i / 8
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        # (1 + cos(pi i / 8)) / 2
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]),
        # cycles of one epoch = 4 steps: (1 + cos(pi i / 4)) / 2
        ("restarts", [0.25, 0.5, 0.75, 1.0, 1.0, 0.8535534, 0.5, 0.1464466, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rate_by_hand(schedule, expected):
    """3 epochs of 4 steps, 4 steps of warm-up, peak 1."""
    given_by = training(lr=1.0, warmup_steps=4, schedule=schedule, restart_epochs=1)
    found = [learning_rate(step, given_by, 4) for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_linear_and_cosine_end_at_zero(schedule):
    assert learning_rate(12, training(lr=1.0, schedule=schedule), 4) == 0


def test_restarts_of_two_epochs():
    found = [learning_rate(step, training(lr=1.0, schedule="restarts", restart_epochs=2), 2) for step in range(6)]
    assert found == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 1, 0.8535534], abs=1e-6)


SCHEDULES = st.sampled_from(["constant", "linear", "cosine", "restarts"])


@given(st.integers(0, 30), st.integers(0, 20), SCHEDULES, st.integers(1, 4), st.integers(1, 4))
def test_learning_rate_lies_between_0_and_its_peak(step, warmup, schedule, epochs, steps_per_epoch):
    """Also where the warm-up is longer than the training."""
    given_by = training(lr=0.5, warmup_steps=warmup, schedule=schedule, epochs=epochs)
    assert 0 <= learning_rate(step, given_by, steps_per_epoch) <= 0.5


# the loop


def test_fit_finds_the_line(runtime):
    line = Line()
    fitted = fit(task(line), training(epochs=60, schedule="cosine"), 0, runtime)
    assert line.weight.item() == pytest.approx(2, abs=1e-2)
    assert line.bias.item() == pytest.approx(-1, abs=1e-2)
    assert not line.training
    first, last = fitted.history[0], fitted.history[-1]
    assert last["val"] < 1e-3 < first["val"]
    assert [row["epoch"] for row in fitted.history] == list(range(1, 61))


def test_history_holds_the_means_over_the_steps_since_the_last_evaluation(runtime):
    line = Line()
    given_by = training(epochs=2, evaluate_every=2, lr=1e-9, clip_norm=0.0)
    fitted = fit(task(line), given_by, 0, runtime)
    errors = [np.square(2 * np.array(batch) - 1).mean() for batch in line.batches]
    assert len(errors) == 4
    (row,) = fitted.history
    assert row["train_error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert row["train_total"] == pytest.approx(row["train_error"] + row["train_other"])
    assert row["lr"] == 1e-9


def test_every_example_at_most_once_an_epoch_in_another_order_each_time(runtime):
    line = Line()
    fit(task(line), training(epochs=2), 0, runtime)
    first, second, third, fourth = line.batches
    epochs = [first + second, third + fourth]
    for seen in epochs:
        assert len(set(seen)) == 8
        assert set(seen) < set(X.tolist())
    assert epochs[0] != epochs[1]


def test_seed_and_name_decide_the_order(runtime):
    def order(seed: int, name: str) -> list[list[float]]:
        line = Line()
        fit(task(line)._replace(name=name), training(epochs=1), seed, runtime)
        return line.batches

    assert order(0, "prior") == order(0, "prior")
    assert order(0, "prior") != order(1, "prior")
    assert order(0, "prior") != order(0, "scorer")


def test_batch_draws_differ_from_step_to_step_and_not_from_run_to_run(runtime):
    def drawn() -> list[float]:
        found = []

        def batch(indices: np.ndarray, generator: torch.Generator, done: float) -> tuple[torch.Tensor]:
            found.append(float(torch.rand((), generator=generator)))
            return (X[indices],)

        fit(task(Line())._replace(batch=batch), training(), 0, runtime)
        return found

    first = drawn()
    assert len(set(first)) == 6
    assert drawn() == first


@pytest.mark.parametrize(("optimizer", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_updates_are_those_of_the_optimizer(runtime, optimizer, reference):
    line = Line()
    given_by = training(epochs=15, optimizer=optimizer, weight_decay=0.3, warmup_steps=3, clip_norm=0.05)
    fit(task(line, score=lambda row: row["epoch"]), given_by, 0, runtime)
    weight, bias = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    theirs = reference([weight, bias], lr=1.0, weight_decay=0.3)
    for step, batch in enumerate(line.batches):
        theirs.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 3)
        x = torch.tensor(batch)
        loss = (weight * x + bias - (2 * x - 1)).square().mean()
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
        scale = min(1.0, 0.05 / math.hypot(weight.grad, bias.grad))
        weight.grad, bias.grad = weight.grad * scale, bias.grad * scale
        theirs.step()
    assert line.weight.item() == pytest.approx(weight.item(), rel=1e-4)
    assert line.bias.item() == pytest.approx(bias.item(), rel=1e-4)


def test_gradient_is_clipped_only_where_asked(runtime):
    """The norm that is logged is that before clipping."""
    free = fit(task(Line()), training(epochs=1, clip_norm=0.0), 0, runtime).history[0]["train_gradient_norm"]
    norms = []
    runtime.clip_gradients = lambda parameters, norm: norms.append(norm) or torch.tensor(1.0)
    fit(task(Line()), training(epochs=1, clip_norm=0.0), 0, runtime)
    fit(task(Line()), training(epochs=1, clip_norm=0.25), 0, runtime)
    assert free > 1
    assert norms == [math.inf, math.inf, 0.25, 0.25]


# what is kept


def test_best_epoch_is_kept_or_the_last(runtime):
    """The score here is highest after epoch 2; the weights of that epoch come back."""

    def score(row: dict) -> float:
        return {1: 0.0, 2: 5.0, 3: 1.0, 4: 2.0}[row["epoch"]]

    best, last = Line(), Line()
    kept = fit(task(best, score), training(epochs=4), 0, runtime)
    final = fit(task(last, lambda row: row["epoch"]), training(epochs=4), 0, runtime)
    assert (kept.epoch, final.epoch) == (2, 4)
    assert (best.weight.item(), best.bias.item()) == last.trajectory[4]  # before the first step of epoch 3
    assert (last.weight.item(), last.bias.item()) not in last.trajectory


def test_early_stopping_counts_evaluations_without_improvement(runtime):
    scores = {1: 1.0, 2: 2.0, 3: 1.5, 4: 2.0, 5: 3.0}
    fitted = fit(task(Line(), lambda row: scores[row["epoch"]]), training(epochs=5, patience=2), 0, runtime)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4]  # 2.0 again is no improvement
    assert fitted.epoch == 2


def test_patience_0_never_stops(runtime):
    fitted = fit(task(Line(), lambda row: -row["epoch"]), training(epochs=5, patience=0), 0, runtime)
    assert len(fitted.history) == 5
    assert fitted.epoch == 1


def test_evaluation_every_n_epochs_and_after_the_last(runtime):
    fitted = fit(task(Line()), training(epochs=5, evaluate_every=2), 0, runtime)
    assert [row["epoch"] for row in fitted.history] == [2, 4, 5]


def test_no_finite_score_is_an_error(runtime):
    with pytest.raises(NonFiniteError, match=r"prior: no evaluation gave a finite score; .*'val': "):
        fit(task(Line(), lambda row: math.nan), training(), 0, runtime)


def test_snapshots_of_the_chosen_epochs(runtime):
    line = Line()
    taken = task(line, snapshot=lambda model, epoch: {"weight": model.weight}, snapshot_epochs=[0, 2])
    fitted = fit(taken, training(), 0, runtime)
    assert list(fitted.snapshots) == ["0/weight", "2/weight"]
    assert fitted.snapshots["0/weight"].item() == 0
    assert fitted.snapshots["2/weight"].item() == line.trajectory[4][0]


def test_weight_average_by_numpy(runtime):
    """The average starts at the weights after the first step, hears more of new ones at first (1 - 3/12 and so on), and is
    what is evaluated, kept and given to snapshots."""
    line = Line()
    taken = task(line, lambda row: row["epoch"], snapshot=lambda m, e: {"w": m.weight}, snapshot_epochs=[3])
    fitted = fit(taken, training(weight_ema=0.35), 0, runtime)
    steps = np.array(line.trajectory[1:])  # after each step but the last
    again = Line()
    fit(task(again, lambda row: row["epoch"]), training(), 0, runtime)
    steps = np.vstack([steps, [again.weight.item(), again.bias.item()]])
    average = steps[0]
    for values, decay in zip(steps[1:], [3 / 12, 4 / 13, 0.35, 0.35, 0.35], strict=True):
        average = decay * average + (1 - decay) * values
    np.testing.assert_allclose([line.weight.item(), line.bias.item()], average, rtol=1e-5)
    assert fitted.history[-1]["val"] == pytest.approx(
        float((average[0] * X + average[1] - (2 * X - 1)).square().mean()), rel=1e-5
    )
    assert fitted.snapshots["3/w"].item() == line.weight.item()


# refusals


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_before_the_update(runtime, value):
    line = Line(wrong=lambda step: value if step == 3 else 0.0)
    line.weight.data.fill_(0.5)
    with pytest.raises(
        NonFiniteError, match=rf"prior, step 3: other = {value}, total = {value} is not finite; nothing"
    ):
        fit(task(line), training(), 0, runtime)
    assert line.calls == 4
    assert (line.weight.item(), line.bias.item()) == line.trajectory[3]


def test_gradient_that_is_not_finite_stops_before_the_update(runtime):
    class Root(Line):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward(x) | {"root": (self.weight - self.weight.detach()).sqrt()}  # slope infinite at 0

    line = Root()
    with pytest.raises(NonFiniteError, match=r"prior, step 0: gradient_norm = (nan|inf) is not finite"):
        fit(task(line), training(), 0, runtime)
    assert (line.weight.item(), line.bias.item()) == (0, 0)


def tokenizer_objective(raw: dict[str, Any]) -> tokenizer_training.Objective:
    tokenizer = models.build(models.tokenizer_recipe(Params(raw), (3, 8, 8)))
    return tokenizer_training.Objective(tokenizer, {"mse": (1.0, mse.MSE())})


def test_latents_that_are_not_finite_stop_before_the_codebook_moves(runtime, raw, images):
    objective = tokenizer_objective(raw)
    x = to_model(images)

    def batch(indices: np.ndarray, generator: torch.Generator, done: float) -> tuple[torch.Tensor]:
        before.update({name: value.clone() for name, value in objective.tokenizer.quantizer.state_dict().items()})
        before["steps"] += 1
        return (x[indices] * (math.nan if before["steps"] == 3 else 1),)

    before: dict[str, Any] = {"steps": 0}
    broken = Task("tokenizer", objective, 12, batch, lambda _: {}, lambda _: 0.0)
    with pytest.raises(
        NonFiniteError, match=r"tokenizer, step 2: .*commitment = nan.* is not finite; nothing was\s+updated"
    ):
        fit(broken, training(), 0, runtime)
    after = objective.tokenizer.quantizer.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_batch_that_the_processes_cannot_share(runtime):
    runtime.ranks = 3
    with pytest.raises(InputError, match=r"scorer\.training\.batch_size must be divisible by the 3 training processes"):
        fit(task(Line())._replace(name="scorer"), training(), 0, runtime)


def test_processes_share_a_batch_without_overlap(runtime):
    """The same order on every rank; together they see what one process sees."""
    seen = []
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        runtime.rank, runtime.ranks, line = rank, ranks, Line()
        fit(task(line), training(epochs=1), 0, runtime)
        seen.append(line.batches)
    for whole, first, second in zip(*seen, strict=True):
        assert sorted(first + second) == sorted(whole)
        assert len(first) == len(second) == 2


# exact resume

SETTINGS = Settings(device="cpu", devices=1, nodes=1, threads=1, checkpoint_seconds=0.0, keep_scratch=2)


class Stopping(Runtime):
    """A runtime that is told to stop once `steps` more steps are done, as a signal would."""

    def __init__(self, scratch: Scratch, steps: int) -> None:
        super().__init__(SETTINGS, scratch)
        self.left = steps

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        self.left -= 1
        if self.left == 0:
            self.stopping = signal.SIGTERM


def train_tokenizer(raw: dict[str, Any], pixels: np.ndarray, runtime: Any) -> tuple[dict[str, torch.Tensor], Fitted]:
    """With all that has a state or draws: dropout, augmentation, averages of weights, codebook and batch statistics."""
    seed_globally(0, "tokenizer", "initialisation")
    objective = tokenizer_objective(raw)
    section = Params(raw).section("tokenizer", tokenizer_training.Settings)
    data = tokenizer_training.Data({"train": pixels[:13], "val": pixels[13:]}, section.augmentation, 3, runtime.device)
    fitted = fit(tokenizer_training.task(objective, data, section), section.training, 0, runtime)
    return objective.state_dict(), fitted


@pytest.fixture
def everything_moves(raw: dict[str, Any]) -> dict[str, Any]:
    raw["tokenizer"]["vqvae"] |= {"dropout": 0.3, "normalisation": "batch"}
    raw["tokenizer"] |= {"keep": "best", "keep_every": 2, "snapshot_epochs": [0, 1, 3]}
    raw["tokenizer"]["augmentation"] |= {"flip": 0.5, "shift": 1, "recolour": 0.5}
    raw["tokenizer"]["training"] = PLAIN | {
        "batch_size": 3, "lr": 0.01, "schedule": "cosine", "weight_ema": 0.5, "evaluate_every": 2, "optimizer": "adamw"
    }  # fmt: skip
    raw["quantizer"]["ema"] |= {"restart": "dead", "restart_below": 0.5, "initialisation": "latents"}
    return raw


def assert_same(one: tuple[dict[str, torch.Tensor], Fitted], other: tuple[dict[str, torch.Tensor], Fitted]) -> None:
    assert one[0].keys() == other[0].keys()
    assert [name for name in one[0] if not torch.equal(one[0][name], other[0][name])] == []
    assert one[1].history == other[1].history
    assert one[1].epoch == other[1].epoch
    assert one[1].snapshots.keys() == other[1].snapshots.keys()
    assert all(torch.equal(value, other[1].snapshots[name]) for name, value in one[1].snapshots.items())


@pytest.mark.parametrize(("optimizer", "every"), [("adamw", 1), ("adamw", 2), ("adamw", 5), ("muon", 2)])
def test_interrupted_every_few_steps_ends_with_the_same_bits(
    workspace, everything_moves, make_images, optimizer, every, capsys
):
    """12 steps in 3 epochs. Stopped and resumed again and again, until it gets through."""
    everything_moves["tokenizer"]["training"]["optimizer"] = optimizer
    pixels = make_images(17)
    whole = train_tokenizer(everything_moves, pixels, Runtime(SETTINGS))

    def go_on() -> tuple[dict[str, torch.Tensor], Fitted]:
        with Scratch("tokenizer", "abc", 2) as scratch:
            return train_tokenizer(everything_moves, pixels, Stopping(scratch, every))

    stops = {1: 12, 2: 6, 5: 2}[every]  # a stop in the very last step is still a stop
    for _ in range(stops):
        with pytest.raises(Interrupted) as stopped:
            go_on()
        assert stopped.value.code == 128 + signal.SIGTERM
    assert_same(whole, go_on())
    assert capsys.readouterr().err.count("resuming tokenizer at step") == stops
    assert len(whole[1].history) == 2
    assert {"0/reconstruction", "3/codebook_0"} <= set(whole[1].snapshots)


def test_resume_remembers_the_best_epoch_and_how_long_it_has_waited(workspace):
    """Stopped after each of the 8 steps of 4 epochs; the scores say: stop early, and keep epoch 2."""
    scores = {1: 1.0, 2: 3.0, 3: 2.0, 4: 2.5, 5: 4.0}
    given_by = training(epochs=5, patience=2)
    whole, resumed = Line(), Line()
    expected = fit(task(whole, lambda row: scores[row["epoch"]]), given_by, 0, Runtime(SETTINGS))
    for _ in range(8):
        resumed = Line()
        with pytest.raises(Interrupted), Scratch("prior", "abc", 2) as scratch:
            fit(task(resumed, lambda row: scores[row["epoch"]]), given_by, 0, Stopping(scratch, 1))
    with Scratch("prior", "abc", 2) as scratch:
        fitted = fit(task(resumed, lambda row: scores[row["epoch"]]), given_by, 0, Runtime(SETTINGS, scratch))
    assert fitted == expected
    assert (fitted.epoch, len(fitted.history)) == (2, 4)
    assert (resumed.weight.item(), resumed.bias.item()) == (whole.weight.item(), whole.bias.item())


RANK = """
import signal, sys
from pathlib import Path
import torch
from torch import nn
from tessera.core.models import save_weights
from tessera.runtime.settings import Settings
from tessera.training.settings import Training
from tessera.training.loop import Task, fit
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch

settings = Settings(device="cpu", devices=2, nodes=1, threads=1, checkpoint_seconds=0.0, keep_scratch=2)
x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))

class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1))

    def forward(self, x):
        return {"loss": (self.net(x)[:, 0] - x.sum(1)).square().mean()}

def train(scratch=None, stop=0):
    runtime, objective, calls = Runtime(settings, scratch), Objective(), []
    backward = runtime.backward

    def stopping(loss):
        backward(loss)
        calls.append(1)
        runtime.stopping = signal.SIGTERM if len(calls) == stop else 0

    runtime.backward = stopping
    task = Task("prior", objective, 12, lambda indices, draws, done: (x[indices],), lambda o: {"val": o(x)["loss"].item()},
                lambda row: -row["val"])
    fitted = fit(task, Training.model_validate_json(sys.argv[1]), 0, runtime)
    return {**objective.state_dict(), "history": torch.tensor([row["val"] for row in fitted.history])}

whole = train()
scratch = Scratch("prior", "ranks", 2)
try:
    train(scratch, stop=4)
except Interrupted:
    torch.distributed.barrier()  # rank 0 has saved; a stage that is started again is long past that
resumed = train(scratch)
rank = Runtime(settings).rank
found = {f"whole/{n}": v for n, v in whole.items()} | {f"resumed/{n}": v for n, v in resumed.items()}
save_weights(Path(f"{rank}.safetensors"), found)
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_two_ranks_agree_and_resume(workspace, optimizer):
    """Batch statistics are each rank's own until they are shared: ranks that score differently would stop at different
    epochs, and wait for each other for ever."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
                   "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # fmt: skip
    given_by = training(epochs=3, weight_ema=0.5, lr=0.05, optimizer=optimizer).model_dump_json()
    ranks = [forked.start("-c", RANK, given_by, **environment, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
    errors = forked.ended(*ranks, timeout=100)
    assert all("resuming prior at step 4" in error for error in errors)
    first, second = (models.load_weights(Path(f"{rank}.safetensors")) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, first[name.replace("resumed/", "whole/")]), name
    assert len(first["whole/history"]) == 3


def test_a_signal_lets_the_step_end_and_saves_it(workspace, everything_moves, make_images):
    """A real TERM, by way of the handler of every stage."""
    pixels = make_images(17)
    whole = train_tokenizer(everything_moves, pixels, Runtime(SETTINGS))
    with Scratch("tokenizer", "abc", 2) as scratch:
        pass
    runtime = Runtime(SETTINGS.model_copy(update={"checkpoint_seconds": 1e6}), scratch)
    backward, calls = runtime.backward, []

    def signalled(loss: torch.Tensor) -> None:
        calls.append(loss)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        backward(loss)

    runtime.backward = signalled
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), _signals(runtime):
        train_tokenizer(everything_moves, pixels, runtime)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(calls) == 6
    assert scratch.load("tokenizer")[1]["step"] == 6
    assert_same(whole, train_tokenizer(everything_moves, pixels, Runtime(SETTINGS, scratch)))


def test_bf16_trains_too(everything_moves, make_images):
    """With Accelerate's autocast; weights, codebook and history stay float32."""
    from accelerate.state import AcceleratorState

    everything_moves["tokenizer"]["training"] |= {"precision": "bf16", "epochs": 6, "weight_ema": 0.0}
    AcceleratorState._reset_state(True)  # one precision per process, says Accelerate
    try:
        state, fitted = train_tokenizer(everything_moves, make_images(17), Runtime(SETTINGS))
    finally:
        AcceleratorState._reset_state(True)
    assert fitted.history[-1]["train_mse"] < fitted.history[0]["train_mse"]
    assert all(value.dtype == torch.float32 for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("name", ["tokenizer", "prior", "scorer", "infiller", "upsampler"])
def test_fp16_is_refused_on_a_cpu_before_any_step(name):
    """Accelerate would compute in float32, and the card would say fp16."""
    line = Line()
    message = rf"^{name}\.training\.precision: must be float32 or bf16 on a CPU, got 'fp16'"
    with pytest.raises(InputError, match=message):
        fit(task(line)._replace(name=name), training(precision="fp16"), 0, Runtime(SETTINGS))
    assert not line.batches


@pytest.mark.parametrize("precisions", [("float32", "bf16"), ("bf16", "float32"), ("bf16", "bf16")])
def test_each_training_of_a_process_has_its_own_precision(precisions):
    """As where a study calls one stage after another."""

    class Typed(Line):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            types.append((x[:, None] @ x[None]).dtype)
            return super().forward(x)

    for precision in precisions:
        types: list[torch.dtype] = []
        fit(task(Typed()), training(epochs=1, precision=precision), 0, Runtime(SETTINGS))
        assert set(types) == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_second_signal_stops_at_once(runtime):
    runtime.stopping = signal.SIGINT
    with pytest.raises(KeyboardInterrupt), _signals(runtime):
        os.kill(os.getpid(), signal.SIGTERM)


def test_before_and_after_a_training_a_signal_stops_at_once():
    runtime = Runtime(SETTINGS)
    with pytest.raises(KeyboardInterrupt), _signals(runtime):
        os.kill(os.getpid(), signal.SIGTERM)
    fit(task(Line()), training(), 0, runtime)
    with pytest.raises(KeyboardInterrupt), _signals(runtime):
        os.kill(os.getpid(), signal.SIGTERM)


def test_checkpoints_are_saved_when_they_are_due(workspace):
    with Scratch("prior", "abc", 2) as scratch:
        saved = []
        scratch.save = lambda task, tensors, values: saved.append(values["step"])
        fit(task(Line()), training(), 0, Runtime(SETTINGS, scratch))
        assert saved == [1, 2, 3, 4, 5, 6]
        saved.clear()
        fit(task(Line()), training(), 0, Runtime(SETTINGS.model_copy(update={"checkpoint_seconds": 1e6}), scratch))
        assert saved == [6]  # the last one always: another workspace takes its result


# the scratch folder


def train(scratch: Scratch) -> Line:
    line = Line()
    fit(task(line), training(), 0, Runtime(SETTINGS, scratch))
    return line


def test_another_fingerprint_starts_anew(workspace):
    with pytest.raises(Interrupted), Scratch("prior", "one", 2) as scratch:
        fit(task(Line()), training(), 0, Stopping(scratch, 6))
    with Scratch("prior", "two", 2) as scratch:
        assert scratch.load("prior") is None
        assert train(scratch).calls == 6
    with Scratch("prior", "one", 2) as scratch:
        assert train(scratch).calls == 0


def test_finished_in_this_workspace_starts_anew(workspace):
    """DVC runs a finished stage again only when it is forced to, and then it shall train."""
    for _ in range(2):
        with Scratch("prior", "abc", 2) as scratch:
            assert train(scratch).calls == 6


def test_finished_for_another_whole_is_used(workspace):
    """A codebook of another size, fitted to the same autoencoder; forced to run again, that one trains too."""
    with Scratch("tokenizer", "abc", 2, whole="K = 8") as scratch:
        assert train(scratch).calls == 6
    with Scratch("tokenizer", "abc", 2, whole="K = 4") as scratch:
        assert train(scratch).calls == 0
    with Scratch("tokenizer", "abc", 2, whole="K = 4") as scratch:
        assert train(scratch).calls == 6


def test_finished_in_another_workspace_is_used(workspace, tmp_path_factory, monkeypatch):
    """Queue workers share the scratch of their repository; the one that waited takes the result of the other."""
    with Scratch("prior", "abc", 2) as scratch:
        trained = train(scratch)
    monkeypatch.chdir(tmp_path_factory.mktemp("worker"))
    with Scratch("prior", "abc", 2) as scratch:
        taken = train(scratch)
    assert (trained.calls, taken.calls) == (6, 0)
    assert torch.equal(trained.weight, taken.weight)


def test_trainings_of_one_stage_do_not_mix(workspace):
    with Scratch("scorer", "abc", 2) as scratch:
        scratch.save("scorer", {"a": torch.ones(1)}, {"step": 1})
        scratch.save("perceptual", {"a": torch.zeros(1)}, {"step": 2})
        assert float(scratch.load("scorer")[0]["a"]) == 1
        assert scratch.load("perceptual")[1] == {"step": 2}


def test_values_of_a_checkpoint_come_back_exactly(workspace):
    values = {"step": 3, "best_score": -math.inf, "history": [{"epoch": 1, "loss": 0.1 + 0.2}], "stopped": False}
    with Scratch("prior", "abc", 2) as scratch:
        scratch.save("prior", {"w": torch.tensor([0.1], dtype=torch.float64)}, values)
        tensors, loaded = scratch.load("prior")
    assert loaded == values
    assert tensors["w"].dtype == torch.float64


@pytest.mark.parametrize("kind", ["empty", "cut short", "foreign", "text"])
def test_checkpoint_that_cannot_be_read_is_named_and_ignored(workspace, kind, capsys):
    with Scratch("prior", "abc", 2) as scratch:
        path = scratch.folder / "prior.safetensors"
        scratch.save("prior", {"w": torch.ones(100)}, {"step": 1})
        whole = path.read_bytes()
        if kind == "foreign":
            models.save_weights(path, {"w": torch.ones(3)})
        else:
            path.write_bytes({"empty": b"", "cut short": whole[:-10], "text": b"x" * 100}[kind])
        assert train(scratch).calls == 6
    printed = capsys.readouterr().err
    assert str(path) in printed
    assert "is no whole checkpoint" in printed
    assert "prior starts anew" in printed


def test_lock_makes_a_second_process_wait(workspace):
    code = (
        "import sys; from tessera.runtime.scratch import Scratch\n"
        "with Scratch('prior', 'abc', 2): print('in', flush=True)"
    )
    with Scratch("prior", "abc", 2):
        second = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr.readline() == "waiting for another process that trains the same thing ...\n"
        time.sleep(0.1)
        assert second.poll() is None
    out, err = second.communicate(timeout=30)
    assert (out, err, second.returncode) == ("in\n", "", 0)


def test_pruning_keeps_the_newest_and_whatever_is_held(workspace):
    for age, name in enumerate(["oldest", "held", "old", "new"]):
        with Scratch("prior", name, 100) as scratch:
            pass
        os.utime(scratch.folder, (1000 + age, 1000 + age))
    with Scratch("prior", "held", 100):
        os.utime(workspace / ".scratch/prior/held", (1001, 1001))
        with Scratch("prior", "mine", 2):
            pass
        assert {path.name for path in (workspace / ".scratch/prior").iterdir()} == {"held", "new", "mine"}


def test_pruning_by_several_at_once_fails_none(workspace, monkeypatch):
    """Another process removes a folder between the listing and the look at it."""
    for name in ("a", "b", "c"):
        with Scratch("prior", name, 100):
            pass
    stat = Path.stat

    def vanishing(path: Path, **how: Any) -> os.stat_result:
        if path.name == "b":
            shutil.rmtree(path, ignore_errors=True)
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", vanishing)
    with Scratch("prior", "mine", 1) as scratch:
        pass
    assert [path.name for path in (workspace / ".scratch/prior").iterdir()] == ["mine"]
    assert (scratch.folder / scratches.FINISHED).exists()


def test_what_fails_at_the_end_is_not_finished(workspace, monkeypatch):
    """A finished scratch is trained anew; one whose stage failed goes on from its checkpoint."""
    with monkeypatch.context() as broken:
        broken.setattr(Scratch, "_prune", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError), Scratch("prior", "abc", 2) as scratch:
            assert train(scratch).calls == 6
    with Scratch("prior", "abc", 2) as scratch:
        assert train(scratch).calls == 0


def test_an_interrupted_stage_prunes_nothing_and_is_not_finished(workspace):
    for name in ("a", "b"):
        with pytest.raises(RuntimeError), Scratch("prior", name, 1):
            raise RuntimeError
    folders = list((workspace / ".scratch/prior").iterdir())
    assert len(folders) == 2
    assert not any((folder / scratches.FINISHED).exists() for folder in folders)


def test_scratch_lies_in_the_repository_that_dvc_names(workspace, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("temporary"))
    assert scratches.root() == workspace / ".scratch"
    monkeypatch.delenv("DVC_ROOT")
    assert scratches.root() == Path.cwd() / ".scratch"


# the prior's


class Known(nn.Module):
    """p(code) = shares, at every position; whatever the conditions."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.log_shares = nn.Parameter(torch.tensor(shares).log())
        self.seen: list[int] = []
        self.exact = True

    def losses(
        self, codes: torch.Tensor, conditions: torch.Tensor | None, done: float = 1.0
    ) -> dict[str, torch.Tensor]:
        self.seen += codes[:, 0].tolist()
        return {"nll": -self.log_shares[codes].mean()}

    def likelihood(self, codes: torch.Tensor, conditions: torch.Tensor | None) -> Likelihood:
        return Likelihood(self.log_shares[codes].sum(1), (codes == self.log_shares.argmax()).float().mean(1))


def prior_data(
    codes: dict[str, np.ndarray],
    batch_size: int = 3,
    copies: Any = None,
    told: Any = None,
    conditioning: Conditioning = UNCONDITIONAL,
    **values: Any,
) -> prior_training.Data:
    copies = np.zeros((0, 0, 0), np.int32) if copies is None else copies
    section = {"augmented": 0.0, "annealing": 0.0, "example_weights": "uniform", "corruption": 0.0} | values
    section |= {"conditions": examples(prior_training.Told), "words": examples(prior_training.Words)}
    section |= {"negatives": examples(Negatives)}
    own = PriorSection.model_validate({"name": "any", "training": training(batch_size=batch_size), **section})
    return prior_training.Data(codes, copies, told or dict.fromkeys(codes), conditioning, own, "cpu")


CODES = {"train": np.array([[0, 0], [0, 1], [1, 1], [0, 2], [0, 0]]), "val": np.array([[0, 2], [2, 2], [0, 0], [1, 0]])}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_likelihood_of_a_prior_by_hand(batch_size):
    """Shares 1/2, 1/4, 1/4 cost 1, 2 and 2 bits; of the 8 validation codes 4 are the likeliest one."""
    objective = prior_training.Objective(Known([0.5, 0.25, 0.25]))
    data = prior_data(CODES, batch_size)
    with torch.no_grad():
        row = prior_training._evaluate(objective, data, data.looked_at)
    assert row["val_nll_bits_per_code"] == pytest.approx(12 / 8)
    assert row["val_nll_bits_per_image"] == pytest.approx(12 / 4)
    assert row["val_accuracy"] == pytest.approx(4 / 8)
    looked_at = CODES["train"][data.looked_at["train"]]
    assert len(looked_at) == 4  # as many as validation images
    assert row["train_nll_bits_per_code"] == pytest.approx(1 + (looked_at > 0).mean())
    metrics = prior_training.metrics(Fitted([{"epoch": 4, **row}], 4, {}))
    assert metrics["epoch"] == 4
    assert metrics["val"]["nll_bits_per_code"] == row["val_nll_bits_per_code"]


def test_prior_is_trained_on_train_and_chosen_by_val(runtime):
    """The shares that are learnt are those of the training codes."""
    objective = prior_training.Objective(Known([0.4, 0.3, 0.3]))
    given_to_prior = prior_training.task(objective, prior_data(CODES, 5))
    assert given_to_prior.score({"val_nll_bits_per_code": 2.0}) < given_to_prior.score({"val_nll_bits_per_code": 1.0})
    fitted = fit(given_to_prior, training(epochs=1, batch_size=1, lr=1e-9), 0, runtime)  # each example is a step
    assert sorted(objective.prior.seen) == sorted(CODES["train"][:, 0])
    assert fitted.history[0]["train_nll"] == pytest.approx(-np.log(np.array([0.4, 0.3, 0.3]))[CODES["train"]].mean())


def test_closed_form_prior_is_not_trained(raw):
    name = raw["samples"]["baseline"]
    prior = models.build(models.prior_recipe(Params(raw), CodeSpace(((1, 2),), (3,)), UNCONDITIONAL, name))
    objective, data = prior_training.Objective(prior), prior_data(CODES)
    fitted = prior_training.in_closed_form(objective, data)
    assert (fitted.epoch, len(fitted.history)) == (0, 1)
    assert math.isfinite(fitted.history[0]["val_nll_bits_per_code"])
    assert prior_training.in_closed_form(prior_training.Objective(Known([0.5, 0.5])), data) is None


def test_a_bound_says_so_in_the_names_of_metrics():
    prior = Known([0.5, 0.25, 0.25])
    prior.exact = False
    data = prior_data(CODES)
    with torch.no_grad():
        row = prior_training._evaluate(prior_training.Objective(prior), data, data.looked_at)
    assert row["bound"] == 1
    metrics = prior_training.metrics(Fitted([{"epoch": 1, **row}], 1, {}))
    assert set(metrics["val"]) == {"nll_bound_bits_per_code", "accuracy"}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_augmented_codes_stand_in_for_their_own_image(share):
    """Codes of 400 images say which image they are of; copies add 1000 for the first and 2000 for the second."""
    plain = np.arange(400)[:, None].repeat(2, 1)
    copies = np.stack([plain + 1000, plain + 2000])
    data = prior_data({"train": plain, "val": plain}, copies=copies, augmented=share)
    indices = np.random.default_rng(0).permutation(400)
    codes, _, _ = data.batch(indices, torch.Generator().manual_seed(0), 0.0)
    assert (codes[:, 0] % 1000).tolist() == indices.tolist()
    assert torch.equal(codes[:, 0], codes[:, 1])
    changed = codes[:, 0] >= 1000
    assert abs(changed.float().mean() - share) < 0.08
    assert share == 0 or {1, 2} == set((codes[changed, 0] // 1000).tolist())


def test_a_conditional_prior_is_refused_without_labels():
    params = Params({"prior": {"conditions": {"label": 0.1}}})
    with pytest.raises(InputError, match=r"prior\.conditions\.label: must be none where the data set has no labels"):
        prior_training.Data.of(SimpleNamespace(params=params, class_names={}))


def test_labels_go_with_their_codes():
    plain, labels = np.arange(10)[:, None], np.arange(10)[:, None] + 100
    data = prior_data(
        {"train": plain, "val": plain}, told={"train": labels, "val": labels}, conditioning=labelled(200, 0.0)
    )
    codes, drawn, _ = data.batch(np.array([7, 2]), torch.Generator(), 0.0)
    assert (codes[:, 0].tolist(), drawn.tolist()) == ([7, 2], [[107], [102]])


def test_labels_are_dropped_with_their_probability():
    """A lost label is the one past the last."""
    plain = np.arange(4000)[:, None]
    labels = dict.fromkeys(("train", "val"), (np.arange(4000) % 5)[:, None])
    data = prior_data({"train": plain, "val": plain}, told=labels, conditioning=labelled(5, 0.25))
    codes, drawn, _ = data.batch(np.arange(4000), torch.Generator().manual_seed(0), 0.5)
    lost = drawn[:, 0] == 5
    assert abs(lost.float().mean() - 0.25) < 0.03
    assert torch.equal(drawn[~lost, 0], codes[~lost, 0] % 5)


def test_augmentation_narrows_to_none():
    """Of 4 copies, weak to strong, over the last half of the training; without annealing all stay to the end."""
    moments = [0.0, 0.5, 0.51, 0.7, 0.8, 0.9, 0.99]
    assert [prior_training.weak_enough(4, done, 0.5) for done in moments] == [4, 4, 3, 2, 1, 0, 0]
    assert [prior_training.weak_enough(4, done, 0.0) for done in moments] == [4] * 7
    plain = np.zeros((300, 1), np.int64)
    copies = np.stack([plain + strength for strength in (1, 2, 3, 4)])
    data = prior_data({"train": plain, "val": plain}, copies=copies, augmented=1.0, annealing=0.5)
    for done, expected in [(0.2, {1, 2, 3, 4}), (0.7, {1, 2}), (0.95, {0})]:
        codes, _, told = data.batch(np.arange(300), torch.Generator().manual_seed(0), done)
        assert set(codes[:, 0].tolist()) == expected
        assert told == done
