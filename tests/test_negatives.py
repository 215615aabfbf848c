"""A prior that is tuned against its own samples: the loss, its optimum, the examples of a round, and the stage."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example, labelled

from stages import prior as stage
from tessera import negatives
from tessera.core import files, models, seams
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.space import CodeSpace
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch
from tessera.runtime.settings import Settings
from tessera.runtime.validation import problems

SPACE = CodeSpace(((1, 2), (2, 2)), (3, 5))
SETTINGS = Settings(device="cpu", devices=1, nodes=1, threads=1, checkpoint_seconds=0.0, keep_scratch=2)


def built(name: str = "gated_pixelcnn", classes: int = 0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    module = seams.plugin("priors", name)
    return module.build(example(module.Config), SPACE, labelled(classes, 0.5))


def codes_of(n: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return SPACE.join(torch.randint(size, (n, *grid), generator=rng)
                      for grid, size in zip(SPACE.grids, SPACE.sizes, strict=True))  # fmt: skip


def log_prob_by_numpy(prior: Any, codes: torch.Tensor) -> np.ndarray:
    """The sum over codes of the logits less their logarithmic sum of exponentials, in float64."""
    with torch.no_grad():
        grids = [grid.double().numpy() for grid in prior.logits(codes, None)]
    parts = np.split(codes.numpy(), np.cumsum([grid.shape[1] for grid in grids])[:-1], axis=1)
    total = np.zeros(len(codes))
    for grid, part in zip(grids, parts, strict=True):
        log_p = grid - np.log(np.exp(grid).sum(-1, keepdims=True))
        total += np.take_along_axis(log_p, part[..., None], -1)[..., 0].sum(1)
    return total


# the loss


def test_the_loss_is_that_of_the_formula():
    prior, reference = built(seed=0), built(seed=1)
    real, false, alpha, beta = codes_of(5, 0), codes_of(5, 1), 2.0, 0.3
    ratios = [log_prob_by_numpy(prior, codes) - log_prob_by_numpy(reference, codes) for codes in (real, false)]
    probability = [1 / (1 + np.exp(-beta * ratio)) for ratio in ratios]
    both = torch.cat([real, false])
    with torch.no_grad():
        found = negatives.Discriminator(prior, alpha, beta).train()(both, None, reference.log_prob(both, None))
    assert found["real"].item() == pytest.approx(-np.log(probability[0]).mean(), rel=1e-4)
    assert found["negatives"].item() == pytest.approx(-alpha * np.log(1 - probability[1]).mean(), rel=1e-4)
    assert max(abs(ratio).max() for ratio in ratios) > 0.1


@pytest.mark.parametrize("misspecified", ["independent", "uniform", "opposite"])
def test_the_law_of_the_images_is_the_optimum_whatever_the_reference(misspecified):
    """Three codes of three: 27 images. The laws are counts, so the means of the loss are expectations, and a table of log p is
    minimised (theorem 3.1)."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 40, 27)
    table = (images / images.sum()).reshape(3, 3, 3)
    marginals = [table.sum(axis=(1, 2)), table.sum(axis=(0, 2)), table.sum(axis=(0, 1))]
    law = {
        "independent": np.einsum("i,j,k->ijk", *marginals).ravel(),
        "uniform": np.full(27, 1 / 27),
        "opposite": (1 / images) / (1 / images).sum(),
    }[misspecified]
    samples = np.maximum(1, np.round(law * 3000)).astype(int)
    log_reference = torch.from_numpy(np.log(samples / samples.sum()))
    real, false = (torch.from_numpy(np.repeat(np.arange(27), counts)) for counts in (images, samples))
    logits = log_reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        ratio = logits.log_softmax(0) - log_reference
        total = sum(negatives.losses(ratio[real], ratio[false], 1.0, 1.0).values())
        total.backward()
        return total

    before = loss().item()
    optimizer.step(loss)
    assert before == pytest.approx(negatives.untrained_loss(1.0))
    np.testing.assert_allclose(logits.detach().softmax(0).numpy(), images / images.sum(), atol=1e-5)


def test_a_beta_below_1_goes_beyond_the_law_of_the_images():
    """Two images, and p_ref uniform: in proportion to the square of the law at beta = 1/2 (theorem 3.3), by a search on a line."""
    images, beta = torch.tensor([0.7, 0.3], dtype=torch.float64), 0.5
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    ratio = torch.stack([p, 1 - p]).log() - np.log(0.5)
    loss = -(images @ torch.nn.functional.logsigmoid(beta * ratio)) - (
        torch.full((2,), 0.5, dtype=torch.float64) @ torch.nn.functional.logsigmoid(-beta * ratio)
    )
    assert float(p[loss.argmin()]) > 0.75  # the law itself is .7


def test_accuracy_counts_both_sides_alike_and_halves_what_is_undecided():
    assert negatives.accuracy(torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, 1.0])) == pytest.approx(0.625)
    assert negatives.accuracy(torch.zeros(3), torch.zeros(5)) == 0.5


@pytest.mark.parametrize("name", ["rnn", "gated_pixelcnn", "pixelcnn", "pixelsnail", "transformer"])
def test_there_is_no_dropout_in_the_likelihood_and_a_prior_equals_its_reference_at_the_start(name):
    prior, both = built(name), torch.cat([codes_of(3, 0), codes_of(3, 1)])
    before = torch.get_rng_state()
    terms = negatives.Discriminator(prior, 3.0, 0.3).train()(both, None, prior.log_prob(both, None).detach())
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(terms.values()).item() == pytest.approx(negatives.untrained_loss(3.0))
    sum(terms.values()).backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in prior.parameters())


# the stage


def changed(raw: dict[str, Any], **values: Any) -> dict[str, Any]:
    prior = {**raw["prior"], "negatives": {**raw["prior"]["negatives"], **values}}
    return {**raw, "prior": {**prior, "augmented": 0.0}}


def trained(raw: dict[str, Any], runtime: Any) -> tuple[dict[str, torch.Tensor], pd.DataFrame, dict[str, Any]]:
    run = Run(Params(raw), None, runtime)
    copies = np.zeros((0, 12, run.space.length), np.uint8)
    files.save_array(run.folder("codes") / "augmented.npy", copies)
    stage.main(run)
    weights = models.load_weights(run.folder("prior") / models.WEIGHTS)
    return weights, pd.read_csv(files.PLOTS / "prior.csv"), files.read_json(files.METRICS / "prior.json")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def learning(monkeypatch):
    """Each round counts as one that has learned something."""
    monkeypatch.setattr(negatives, "untrained_loss", lambda alpha: np.inf)


def test_without_rounds_nothing_of_it_happens(tiny_run, raw, runtime, monkeypatch):
    tiny_run()

    def fail(*_: object) -> None:
        raise AssertionError("a round")

    monkeypatch.setattr(stage, "Round", fail)
    weights, rows, metrics = trained(changed(raw, samples=99), runtime)
    again, _, _ = trained(changed(raw, samples=7, alpha=9.0), runtime)
    assert same(weights, again)
    assert not {"round", "discriminator_accuracy"} & set(rows)
    assert set(metrics) == {"epoch", "val", "train"}


@pytest.mark.parametrize("label", ["none", 0.5])
def test_rounds_change_the_prior_and_a_run_repeats_them(tiny_run, raw, runtime, learning, label):
    tiny_run()
    raw["prior"]["conditions"]["label"] = label
    off, rows_off, _ = trained(changed(raw), runtime)
    on = changed(raw, rounds=2)
    weights, rows, metrics = trained(on, runtime)
    again, rows_again, _ = trained(on, runtime)
    assert not same(weights, off)
    assert same(weights, again)
    pd.testing.assert_frame_equal(rows, rows_again)
    pd.testing.assert_frame_equal(rows[: len(rows_off)][rows_off.columns], rows_off)
    assert rows["epoch"].is_monotonic_increasing
    assert rows["epoch"].is_unique
    assert rows["round"].dropna().unique().tolist() == [1, 2]
    assert metrics["epoch"] in rows.loc[rows["round"] == 2, "epoch"].tolist()
    assert 0 <= metrics["negatives"]["accuracy"] <= 1


def test_a_round_that_learns_nothing_leaves_the_weights_and_is_the_last(tiny_run, raw, runtime, monkeypatch, capsys):
    tiny_run()
    off, _, metrics_off = trained(changed(raw), runtime)
    monkeypatch.setattr(negatives, "untrained_loss", lambda alpha: 0.0)
    weights, rows, metrics = trained(changed(raw, rounds=3), runtime)
    assert same(weights, off)
    assert metrics == metrics_off
    assert rows["round"].dropna().unique().tolist() == [1]
    assert "round 1 of 3 has learned nothing" in capsys.readouterr().out


def data_of(prior: Any, raw: dict[str, Any], dropped: float) -> stage.Data:
    """12 training and 6 validation images; conditions are as `prior` is told."""
    own = stage.Settings.model_validate({key: raw["prior"][key] for key in stage.Settings.model_fields})
    codes = {"train": codes_of(12, 0).numpy(), "val": codes_of(6, 1).numpy()}
    told = {split: np.arange(len(of))[:, None] % 3 if prior.conditioning else None for split, of in codes.items()}
    conditioning = labelled(3, dropped) if prior.conditioning else UNCONDITIONAL
    return stage.Data(codes, np.zeros((0, 12, SPACE.length), np.uint8), told, conditioning, own, "cpu")


def test_a_batch_is_of_training_examples_and_of_samples_with_their_conditions(raw, runtime):
    prior = built(classes=3).eval()
    raw = changed(raw, rounds=1, samples=10)
    data = data_of(prior, raw, 0.5)
    found = stage.Round(prior, data, 1, 0, runtime)
    codes, told, reference = found.batch(np.arange(4), torch.Generator().manual_seed(3), 0.5)
    plain, own, _ = data.batch(np.arange(4), torch.Generator().manual_seed(3), 0.0)
    assert torch.equal(codes[:4], plain)
    assert torch.equal(told[:4], own)
    samples = {(*one, *of) for one, of in zip(found.codes.tolist(), found.conditions.tolist(), strict=True)}
    assert {(*one, *of) for one, of in zip(codes[4:].tolist(), told[4:].tolist(), strict=True)} <= samples
    with torch.no_grad():
        assert torch.equal(reference, prior.log_prob(codes, told))
    assert not any(parameter.requires_grad for parameter in found.reference.parameters())


def test_samples_are_of_the_reference_and_their_conditions_as_often_left_out_as_in_training(raw, runtime):
    prior = built(classes=3).eval()
    found = stage.Round(prior, data_of(prior, changed(raw, samples=600), 0.5), 1, 0, runtime)
    counts = torch.bincount(found.conditions[:, 0], minlength=4) / 600
    assert counts.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=0.06)  # 3: nothing is said
    first = codes_of(2000, 5)[:1]  # frequencies of the first code, against those that the prior gives it
    for label in range(4):
        own = found.codes[found.conditions[:, 0] == label, 0]
        with torch.no_grad():
            expected = prior.logits(first, torch.tensor([[label]]))[0][0, 0].softmax(-1)
        frequencies = torch.bincount(own, minlength=3) / len(own)
        assert frequencies.tolist() == pytest.approx(expected.tolist(), abs=0.17)


def test_validation_compares_samples_that_are_not_trained_against(raw, runtime):
    prior = built().eval()
    found = stage.Round(prior, data_of(prior, changed(raw, samples=6), 0.0), 1, 0, runtime)
    assert len(found.held_out) == len(found.val) == 6
    assert not torch.equal(found.held_out, found.codes)
    with torch.no_grad():
        row = found.evaluate(negatives.Discriminator(prior, 1.0, 0.3))
    assert row["val_discriminator"] == pytest.approx(negatives.untrained_loss(1.0))
    assert row["discriminator_accuracy"] == 0.5


class Stopping(Runtime):
    """A runtime that is told to stop once `left` more steps are done, as a signal would."""

    def __init__(self, scratch: Scratch, left: int) -> None:
        super().__init__(SETTINGS, scratch)
        self.left = left

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        self.left -= 1
        if self.left == 0:
            self.stopping = signal.SIGTERM


def resumed(raw: dict[str, Any]) -> tuple[dict[str, torch.Tensor], pd.DataFrame, int]:
    """What is left by a training that is stopped after every 5 steps, and how often it was."""
    for stops in range(9):
        try:
            with Scratch("prior", "abc", 2) as scratch:
                return *trained(raw, Stopping(scratch, 5))[:2], stops
        except Interrupted:
            continue
    raise AssertionError("it never ended")


def test_interrupted_every_few_steps_ends_with_the_same_bits(tiny_run, raw, learning):
    tiny_run()
    on = changed(raw, rounds=2)
    on["prior"]["negatives"]["training"] = {**on["prior"]["training"], "epochs": 2, "weight_ema": 0.5}
    weights, rows, _ = trained(on, Runtime(SETTINGS))
    found, found_rows, stops = resumed(on)
    assert stops == 3  # of 18 steps, after 5, 10 and 15
    assert same(found, weights)
    pd.testing.assert_frame_equal(found_rows, rows)


@pytest.mark.parametrize(("name", "why"), [("masked", "bound"), ("histogram", "closed form")])
def test_a_prior_without_an_exact_likelihood_or_training_is_refused(raw, name, why):
    raw["prior"]["name"] = name
    assert problems(raw) == []
    raw["prior"]["negatives"]["rounds"] = 1
    (found,) = problems(raw)
    assert found.startswith(f"prior.negatives.rounds: must be 0 under prior.name {name}")
    assert why in found


@pytest.mark.parametrize("values", [{"rounds": -1}, {"samples": 0}, {"alpha": 0.0}, {"beta": 0.0}])
def test_impossible_params_are_refused(raw, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        negatives.Negatives.model_validate(raw["prior"]["negatives"] | values)
