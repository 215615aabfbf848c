"""What a prior may be trained on otherwise: images by weight, and corrupted codes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example, labelled

from stages import prior as stage
from tessera import sequences
from tessera.attention import masking
from tessera.core import models, seams
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.space import CodeSpace

SPACE = CodeSpace(((1, 2), (2, 2)), (3, 5))
FAMILIES = np.array([*"aaaa", "b", *"ccccccccc"])
LEVERS = {"example_weights": "inverse_sqrt_family", "corruption": 0.3}


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(n: int, weights: Any, **values: Any) -> stage.Data:
    """Codes name their image; the codes of the one copy are 1000 larger, labels are 100 larger."""
    plain = np.arange(n)[:, None].repeat(2, 1)
    training = SimpleNamespace(batch_size=4)
    own = SimpleNamespace(augmented=0.5, annealing=0.0, training=training, **values)
    told = {split: np.arange(n)[:, None] + 100 for split in ("train", "val")}
    return stage.Data({"train": plain, "val": plain}, plain[None] + 1000, told, labelled(200, 0.0), own, "cpu", weights)


def codes_of(space: CodeSpace, n: int, seed: int = 0) -> torch.Tensor:
    return space.join(torch.randint(size, (n, *grid), generator=random(seed + at))
                      for at, (grid, size) in enumerate(zip(space.grids, space.sizes, strict=True)))  # fmt: skip


# weights


def test_a_family_weighs_as_the_root_of_its_images():
    weights = stage.inverse_sqrt_family(FAMILIES)
    assert [weights[name == FAMILIES].sum() for name in "abc"] == pytest.approx([2, 1, 3])
    shuffled = np.random.default_rng(0).permutation(len(FAMILIES))
    np.testing.assert_array_equal(stage.inverse_sqrt_family(FAMILIES[shuffled]), weights[shuffled])


def test_images_come_with_their_expected_frequencies():
    """Over epochs of all strata in any order and in batches. Each count of an epoch deviates by less than 2, so that the mean over
    4,000 epochs is within .06 of the expected one but once in thousands; the seed is fixed."""
    weights, generator, epochs = stage.inverse_sqrt_family(FAMILIES), random(), 4000
    expected, n = len(FAMILIES) * weights / weights.sum(), len(FAMILIES)
    counts = np.zeros(n)
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(n)
        chosen = np.concatenate([stage.weighted(part, weights, generator) for part in (order[:5], order[5:])])
        own = np.bincount(chosen, minlength=n)
        assert (abs(own - expected) < 2).all()
        counts += own
    assert counts / epochs == pytest.approx(expected, abs=0.06)


def test_images_of_a_stratum_are_those_of_its_part_of_the_weights():
    """Whoever takes a stratum, and with whatever numbers: so ranks that divide a batch take what one process would."""
    weights = np.array([1.0, 1.0, 2.0, 4.0])  # quarters of 2: images 0 and 1; 2; 3; 3
    allowed = [{0, 1}, {2}, {3}, {3}]
    for seed in range(20):
        chosen = stage.weighted(np.array([3, 0, 2, 1]), weights, random(seed))
        assert all(image in allowed[stratum] for stratum, image in zip([3, 0, 2, 1], chosen, strict=True))


def test_equal_weights_leave_the_epoch_as_it_is():
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(stage.weighted(order, np.full(50, 0.1), random()), order)


def test_the_last_image_is_reached_and_no_other_behind_it(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.full(shape, 1 - 2**-53, dtype=torch.float64))
    assert stage.weighted(np.arange(3), np.array([0.1, 0.2, 0.3]), random())[-1] == 2


def test_copies_and_labels_go_with_the_images_that_are_taken():
    data = data_of(14, stage.inverse_sqrt_family(FAMILIES))
    order = np.random.default_rng(0).permutation(14)
    codes, labels, _ = data.batch(order, random(), 0.0)
    taken = stage.weighted(order, data.weights, random())
    assert (codes[:, 0] % 1000).tolist() == taken.tolist() != order.tolist()
    assert labels[:, 0].tolist() == (taken + 100).tolist()
    assert {0, 1} == set((codes[:, 0] // 1000).tolist())


def test_without_weights_no_number_is_taken_for_them():
    """The batch is that of former versions, to the bit: copies are chosen by the first numbers of the generator."""
    codes, _, _ = data_of(14, None).batch(np.arange(14), random(), 0.0)
    generator = random()
    torch.randint(1, (14,), generator=generator)
    assert torch.equal(codes[:, 0] >= 1000, torch.rand(14, generator=generator) < 0.5)


# corruption


def test_codes_are_replaced_with_their_probability_by_any_code_of_their_codebook():
    codes = codes_of(SPACE, 20_000)
    torch.manual_seed(1)
    found = stage.corrupted(codes, 0.4, SPACE)
    for before, after, size in zip(SPACE.split(codes), SPACE.split(found), SPACE.sizes, strict=True):
        assert 0 <= int(after.min()) <= int(after.max()) < size
        other = before != after
        assert other.double().mean() == pytest.approx(0.4 * (1 - 1 / size), abs=0.01)
        steps = (after - before)[other] % size  # to each other code alike
        assert torch.bincount(steps)[1:] / other.sum() == pytest.approx(np.full(size - 1, 1 / (size - 1)), abs=0.02)


class Watched(torch.nn.Module):
    space = SPACE

    def losses(self, *given: Any) -> Any:
        self.given = given
        return {"nll": torch.zeros(())}


def test_the_prior_sees_corrupted_codes_in_training_alone_and_its_loss_is_of_the_true_ones():
    prior, codes = Watched(), codes_of(SPACE, 50)
    objective = stage.Objective(prior, 0.5).train()
    torch.manual_seed(3)
    objective(codes, None, 0.25)
    true, labels, done, seen = prior.given
    assert torch.equal(true, codes)
    assert (labels, done) == (None, 0.25)
    assert 0.2 < (seen != codes).float().mean() < 0.5
    torch.manual_seed(3)
    objective(codes, None, 0.25)
    assert torch.equal(prior.given[3], seen)  # the loop's seed of a step decides
    objective.eval()(codes, None, 0.25)
    assert len(prior.given) == 3


def test_without_corruption_no_number_is_taken_for_it():
    prior, before = Watched(), torch.get_rng_state()
    stage.Objective(prior).train()(codes_of(SPACE, 5), None, 0.0)
    assert len(prior.given) == 3
    assert torch.equal(torch.get_rng_state(), before)


def built(name: str, **values: Any) -> Any:
    module = seams.plugin("priors", name)
    return module.build(example(module.Config, **values), SPACE, UNCONDITIONAL)


@pytest.mark.parametrize("name", ["rnn", "gated_pixelcnn", "pixelcnn", "pixelsnail", "transformer"])
def test_the_loss_is_of_the_true_codes_given_the_seen_ones(name):
    prior = built(name).eval()
    codes, seen = codes_of(SPACE, 4), codes_of(SPACE, 4, seed=7)
    found = prior.losses(codes, None, 1.0, seen)["nll"]
    assert found.item() == pytest.approx(sequences.nll(prior.logits(seen, None), codes).item(), rel=1e-6)
    assert prior.losses(codes, None)["nll"].item() == pytest.approx(
        -prior.log_prob(codes, None).mean().item() / 6, rel=1e-5
    )


def test_in_random_orders_too():
    prior = built("transformer", random_order=0.9, dropout=0.0).train()
    codes, seen = codes_of(SPACE, 4), codes_of(SPACE, 4, seed=7)
    torch.manual_seed(0)
    found = prior.losses(codes, None, 0.0, seen)["nll"]
    torch.manual_seed(0)
    order = prior.random_orders(4, 1.0, codes.device)
    logits = prior.ordered(seen.gather(1, order), None, order, 0.0)
    assert torch.equal(found, sequences.nll(logits, codes.gather(1, order)))


def test_of_masked_too():
    prior = built("masked", dropout=0.0).train()
    codes, seen = codes_of(SPACE, 4), codes_of(SPACE, 4, seed=7)
    torch.manual_seed(0)
    found = prior.losses(codes, None, 1.0, seen)["nll"]
    torch.manual_seed(0)
    keys = torch.rand(codes.shape)
    masked = masking.masks(torch.rand(()), keys)
    expected = -masking.mean(sequences.code_log_prob(prior.network(seen, None, masked, 0.0), codes), masked).mean()
    assert torch.equal(found, expected)


# the stage


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    run.folder("codes").joinpath("augmented.npy").unlink(missing_ok=True)
    np.save(run.folder("codes") / "augmented.npy", np.zeros((0, 12, run.space.length), np.uint8))
    stage.main(run)
    return models.load_weights(run.folder("prior") / models.WEIGHTS)


def test_each_lever_changes_what_is_learnt_and_a_run_repeats_it(tiny_run, raw, runtime):
    path = tiny_run().folder("dataset") / "table.csv"
    pd.read_csv(path).assign(family=lambda table: table.index // 4 * (table.index > 5)).to_csv(path, index=False)
    found = {}
    for name, values in {"off": {}, "off again": {}, **{key: {key: LEVERS[key]} for key in LEVERS}}.items():
        changed = {**raw, "prior": {**raw["prior"], **values}}
        found[name] = weights_of(Run(Params(changed), None, runtime))
    same = {name: all(torch.equal(of[key], found["off"][key]) for key in of) for name, of in found.items()}
    assert same == {"off": True, "off again": True, "example_weights": False, "corruption": False}


@pytest.mark.parametrize("values", [{"example_weights": "by size"}, {"corruption": 1.0}, {"corruption": -0.1}])
def test_impossible_params_are_refused(raw, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        stage.Settings.model_validate({key: raw["prior"][key] for key in stage.Settings.model_fields} | values)
