"""Rejection by a critic: the law of acceptance on what can be enumerated, and the stage `samples`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import example
from hypothesis import given
from hypothesis import strategies as st

from stages import samples as stage
from tessera import conditions, critic, rejection
from tessera.core import files, models
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.core.space import CodeSpace

STARTS = (np.arange(1000) + 0.5) / 1000
PRIOR = np.array([0.4, 0.3, 0.2, 0.1])  # of four outcomes, and what is wanted of them
REAL = np.array([0.1, 0.2, 0.3, 0.4])


def expected_of(chances: np.ndarray, count: int) -> np.ndarray:
    """How often each candidate is accepted, over all starts."""
    chosen = np.concatenate([rejection.systematic(chances, count, start) for start in STARTS])
    return np.bincount(chosen, minlength=len(chances)) / len(STARTS)


# the law


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=40), st.data())
def test_probabilities_are_odds_up_to_one_and_add_up(odds, data):
    count = data.draw(st.integers(1, len(odds)))
    found = rejection.probabilities(np.array(odds), count)
    assert found.sum() == pytest.approx(count)
    assert (found > 0).all()
    assert (found <= 1).all()
    free = found < 1
    scale = np.log(found[free]) - np.array(odds)[free]
    assert len(scale) == 0 or np.ptp(scale) == pytest.approx(0, abs=1e-6)  # one factor of the odds
    assert (np.log(found)[~free] <= np.array(odds)[~free] + (scale[0] if len(scale) else np.inf) + 1e-6).all()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.data())
def test_so_many_different_candidates_are_accepted_each_with_its_probability(odds, data):
    count = data.draw(st.integers(1, len(odds)))
    chances = rejection.probabilities(np.array(odds), count)
    for start in (0.0, 0.3, 1 - 2**-53):
        assert len(set(rejection.systematic(chances, count, start))) == count
    assert expected_of(chances, count) == pytest.approx(chances, abs=2 / len(STARTS))


def test_the_accepted_have_exactly_the_distribution_of_real_images():
    """All candidates of a pool in which each outcome is as often as the prior says. Of 8 for 1 none reaches 1: 4 / 8 < 1."""
    outcomes = np.repeat(np.arange(4), (PRIOR * 80).astype(int))
    chances = rejection.probabilities(np.log(REAL / PRIOR)[outcomes], 10)
    accepted = np.bincount(outcomes, weights=expected_of(chances, 10), minlength=4)
    assert accepted / 10 == pytest.approx(REAL, abs=1e-3)


def test_where_candidates_are_too_few_the_law_ends_at_one():
    """Of 2 for 1 the outcome that is too rare is accepted whenever it comes, and the others keep their odds."""
    outcomes = np.repeat(np.arange(4), (PRIOR * 80).astype(int))
    chances = rejection.probabilities(np.log(REAL / PRIOR)[outcomes], 40)
    accepted = np.bincount(outcomes, weights=expected_of(chances, 40), minlength=4)
    assert accepted[3] == pytest.approx(8)
    assert accepted[:3] / REAL[:3] == pytest.approx(np.full(3, accepted[0] / REAL[0]), rel=1e-2)


def test_samples_of_an_enumerable_prior_keep_it_too():
    """Pearson's statistic over 3 degrees of freedom: above 16.3 once in 1000 right programs; the seed is fixed."""
    random = np.random.default_rng(0)
    outcomes = random.choice(4, 40_000, p=PRIOR)
    found = rejection.accepted(np.log(REAL / PRIOR)[outcomes], np.zeros(5000, np.int64), random)
    assert found.certain == 0
    counts = np.bincount(outcomes[found.indices], minlength=4)
    assert ((counts - 5000 * REAL) ** 2 / (5000 * REAL)).sum() < 16.3


def test_each_stratum_keeps_its_places_and_odds_are_compared_within_it():
    strata = np.array([0, 1, 1, 0, 2, 1])
    of_candidate = np.tile(strata, 4)
    log_odds = np.random.default_rng(0).normal(size=24) + 10 * of_candidate
    found = rejection.accepted(log_odds, strata, np.random.default_rng(1))
    np.testing.assert_array_equal(of_candidate[found.indices], strata)
    assert len(set(found.indices)) == 6


# the critic


class Tokenizer:
    """A code's vector is its value."""

    space = CodeSpace(((2, 2),), (8,))

    def vectors(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (codes.unflatten(1, (1, 2, 2)).float(),)


def test_the_critic_finds_what_the_prior_has_too_seldom_among_samples_that_it_has_not_seen():
    """Codes of real images are 4 to 7, those of the prior 0 to 7."""
    random = np.random.default_rng(0)
    real, seen, candidates = (random.integers(low, 8, (200, 4)) for low in (4, 0, 0))
    config = example(critic.Config, epochs=20, batch_size=20, lr=0.03, channels=8)
    odds = rejection.log_odds(real, seen, candidates, Tokenizer(), config, 0, "cpu")
    found = rejection.accepted(odds, np.zeros(25, np.int64), random)
    assert candidates.min(1).mean() < 2
    assert candidates[found.indices].min(1).mean() > 3
    again = rejection.log_odds(real, seen, candidates, Tokenizer(), config, 0, "cpu")
    np.testing.assert_array_equal(again, odds)


# the stage


def sampled(raw: dict[str, Any], runtime: Any, **values: Any) -> tuple[Run, stage.Sampled]:
    own = {**raw["samples"], "rejection": {**raw["samples"]["rejection"], **values}, "count": 6, "batch_size": 4}
    run = Run(Params({**raw, "samples": own}), None, runtime)
    if run.params.conditions:
        recipe = models.prior_recipe(run.params, run.space, conditions.wanted(run))
        torch.manual_seed(0)
        models.save(run.folder("prior"), models.build(recipe), recipe, "")
    return run, stage.sample_set("samples", run.prior(), run.tokenizer(), run)


def test_without_rejection_samples_are_those_of_the_prior(tiny_run, raw, runtime):
    tiny_run()
    run, found = sampled(raw, runtime)
    with torch.no_grad():
        codes = torch.cat([run.prior().sample(n, generator(0, "samples", at)) for at, n in enumerate((4, 2))])
    np.testing.assert_array_equal(found.codes, codes)
    assert found.codes.dtype == np.int32
    assert found.images.shape == (6, 8, 8, 3)


def test_the_accepted_are_among_the_candidates_and_their_images_belong_to_them(tiny_run, raw, runtime, capsys):
    tiny_run()
    run, found = sampled(raw, runtime, candidates=3)
    assert "6 of 18 candidates are accepted" in capsys.readouterr().out
    with torch.no_grad():
        candidates = [run.prior().sample(n, generator(0, "samples", at)) for at, n in enumerate((4, 4, 4, 4, 2))]
        images = run.tokenizer().decode(torch.from_numpy(found.codes).long())
    rows = {tuple(row) for row in torch.cat(candidates).tolist()}
    assert all(tuple(row) in rows for row in found.codes.tolist())
    np.testing.assert_allclose(found.images, (images.clamp(-1, 1) + 1).mul(127.5).permute(0, 2, 3, 1), atol=1)
    _, again = sampled(raw, runtime, candidates=3)
    np.testing.assert_array_equal(again.codes, found.codes)


def test_the_baseline_is_not_judged_and_labels_stay_what_they_were(tiny_run, raw, runtime, monkeypatch):
    tiny_run()
    raw["prior"]["conditions"]["label"] = 0.1
    _, plain = sampled(raw, runtime)
    _, found = sampled(raw, runtime, candidates=2)
    np.testing.assert_array_equal(found.conditions, plain.conditions)
    raw["prior"]["conditions"]["label"] = "none"
    monkeypatch.setattr(stage, "log_odds", lambda *given: pytest.fail("the baseline has no critic"))
    run = Run(Params({**raw, "samples": {**raw["samples"], "rejection": {**raw["samples"]["rejection"], "candidates": 2}}}),
              None, runtime)  # fmt: skip
    stage.sample_set("baseline", stage.baseline(run), run.tokenizer(), run)


def test_the_vectors_of_a_tokenizer_are_what_the_critic_sees(tiny_run):
    run = tiny_run()
    codes = run.codes("val")
    vectors = critic.code_vectors(run.tokenizer(), codes, "cpu")
    assert len(vectors) == len(codes)
    assert CodeSpace.of_facts(files.read_json(run.folder("codes") / "facts.json")).grids[0] == tuple(vectors.shape[2:])
