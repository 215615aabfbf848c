"""Temperature: what is drawn at each, and by what it is judged."""

from __future__ import annotations

import itertools
from typing import Any

import kinds
import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from tessera.autoregression import sampling
from tessera.core.contracts import Sampling
from tessera.core.run import Run
from tessera.core.seeding import derive, generator, numpy_generator
from tessera.extensions import temperature
from tessera.features import clipped, frechet, kernel
from tessera.images import arrays

KINDS = kinds.GRIDS


@pytest.fixture
def temperature_run(raw, tiny, tiny_run):
    def make(kind: str = "one grid", prior: str = "pixelsnail", conditional: bool = False, **values: Any) -> Run:
        raw["extensions"]["temperature"] = tiny(temperature.Config, **values).model_dump()
        return kinds.untrained(KINDS[kind], raw, tiny_run().runtime, "temperature", prior, conditional)

    return make


@pytest.mark.parametrize("degrees", [0.3, 1.0, 2.0])
def test_codes_are_drawn_at_the_given_temperature(temperature_run, degrees):
    prior = temperature_run().prior()
    found = temperature.sampled_codes(prior, 5, Sampling(temperature=degrees), None, 5, 0, "cpu")
    expected = sampling.naive_sample(prior, 5, generator(0, "temperature", 0), Sampling(temperature=degrees))
    assert torch.equal(found, expected)


def test_the_prior_is_given_each_temperature_and_nothing_else(temperature_run, monkeypatch):
    run = temperature_run(temperatures=[1.2, 0.5], count=5, batch_size=3)
    prior, seen = run.prior(), []
    original = prior.sample

    def watched(n: int, draws: torch.Generator, how: Sampling, conditions: Any = None) -> torch.Tensor:
        seen.append((n, draws.initial_seed(), how, conditions))
        return original(n, draws, how, conditions)

    prior.sample = watched
    monkeypatch.setattr(run, "prior", lambda: prior)
    temperature.measure(run.params.config("extensions", "temperature"), run)
    seeds = [derive(0, "temperature", index) for index in (0, 1)]
    assert seen == [
        (n, seed, Sampling(temperature=degrees), None)
        for degrees, (n, seed) in itertools.product((0.5, 1.2), zip((3, 2), seeds, strict=True))
    ]


def test_cold_samples_are_alike_and_hot_ones_differ(temperature_run):
    prior = temperature_run().prior()
    cold, hot = (
        temperature.sampled_codes(prior, 12, Sampling(temperature=t), None, 12, 0, "cpu") for t in (1e-3, 10.0)
    )
    assert temperature.distinct(cold) == 1 / 12
    assert temperature.distinct(hot) == 1


def test_distinct_counts_different_rows():
    assert temperature.distinct(torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1]])) == 0.5


def test_measures_are_those_of_evaluation(temperature_run):
    """By hand from the same codes: Fréchet distance, KID, clipped coverage against as many reconstructions of test images."""
    run = temperature_run(temperatures=[1.0], count=5, batch_size=5, neighbours=2)
    report = run.measure("extensions")
    row, real = report.tables["temperatures"].iloc
    tokenizer, extractor = run.tokenizer(), run.scorer()
    with torch.no_grad():
        codes = run.prior().sample(5, generator(0, "temperature", 0))
        fake = extractor(arrays.to_model(arrays.to_pixels(tokenizer.decode(codes)))).numpy()
        decoded = tokenizer.decode(torch.from_numpy(run.codes("test").astype(np.int64)))
        test = extractor(arrays.to_model(arrays.to_pixels(decoded))).numpy()
    assert extractor.distance == "fd_classifier"
    assert row["fd_classifier"] == pytest.approx(frechet.distance(fake, test), rel=1e-5)
    families = run.table("test")["family"].to_numpy(str)
    kid = kernel.kid(test, fake, (families, np.arange(5)), 20, numpy_generator(0, "temperature", "kid"))
    assert tuple(row[["kid_classifier", "kid_classifier_low", "kid_classifier_high"]]) == pytest.approx(kid, abs=1e-5)
    assert row["clipped_coverage"] == pytest.approx(clipped.coverage(test, fake, families, 2))
    assert real["of"] == "train"
    assert report.metrics["fd_classifier"] == {"at_1": row["fd_classifier"], "train": real["fd_classifier"]}
    assert set(report.metrics["distinct"]) == {"at_1"}


def test_best_has_the_smallest_distance_among_the_temperatures(temperature_run):
    report = temperature_run(temperatures=[0.2, 1.0, 3.0]).measure("extensions")
    table = report.tables["temperatures"]
    drawn = table[table["of"] != "train"]
    assert report.metrics["best"] == drawn.sort_values("fd_classifier")["temperature"].iloc[0]


def test_each_top_p_stands_beside_each_temperature(temperature_run):
    run = temperature_run(temperatures=[1.0, 0.5], top_p=[0.3, 1.0], count=5)
    report = run.measure("extensions")
    table = report.tables["temperatures"]
    assert list(table["of"]) == ["at_0_5", "at_0_5_top_p_0_3", "at_1", "at_1_top_p_0_3", "train"]
    assert report.metrics["best_top_p"] == table.loc[table["fd_classifier"][:4].idxmin(), "top_p"]
    alone = temperature_run(temperatures=[1.0], count=5).measure("extensions")
    assert report.metrics["fd_classifier"]["at_1"] == alone.metrics["fd_classifier"]["at_1"]
    narrow = temperature.sampled_codes(run.prior(), 9, Sampling(top_p=1e-9), None, 9, 0, "cpu")
    assert temperature.distinct(narrow) == 1 / 9  # only the likeliest code is left


def test_samples_are_compared_with_the_split_that_is_named(temperature_run):
    """The tiny data set has 6 validation images and 5 test images; with `count` above both, all are taken."""
    counts = {
        split: temperature_run(split=split, count=9).measure("extensions").metrics["images"]
        for split in ("val", "test")
    }
    assert counts == {"val": 6, "test": 5}


def test_what_too_few_images_do_not_allow_is_left_out(temperature_run):
    """All test images are of one family: there is no other for a ball to reach to."""
    run = temperature_run(temperatures=[1.0], count=5)
    table = pd.read_csv(run.folder("dataset") / "table.csv").assign(family="one")
    table.to_csv(run.folder("dataset") / "table.csv", index=False)
    report = run.measure("extensions")
    assert report.metrics["clipped_coverage"] == {}
    assert set(report.metrics["fd_classifier"]) == {"at_1", "train"}


@pytest.mark.parametrize(
    ("kind", "prior", "conditional"),
    [("two levels", "pixelsnail", True), ("residual", "masked", False), ("one grid", "uniform", False)],
)
def test_report(temperature_run, kind, prior, conditional):
    run = temperature_run(kind, prior, conditional)
    report = run.measure("extensions")
    assert list(report.tables["temperatures"]["of"]) == ["at_0_5", "at_1", "train"]
    assert report.metrics["images"] == 5  # as many as there are test images
    assert set(report.pictures) == {"samples", "curves"}


def test_labels_have_the_frequencies_of_the_training_images(temperature_run, monkeypatch):
    run = temperature_run(conditional=True, count=5, temperatures=[1.0])
    table = run.table("train").assign(label=1)
    monkeypatch.setattr(run, "table", lambda split: table if split == "train" else Run.table(run, split))
    seen = []
    original = temperature.sampled_codes

    def watched(prior: Any, count: int, how: Sampling, told: np.ndarray, *rest: Any) -> torch.Tensor:
        seen.append(told[:, 0])
        return original(prior, count, how, told, *rest)

    monkeypatch.setattr(temperature, "sampled_codes", watched)
    temperature.measure(run.params.config("extensions", "temperature"), run)
    np.testing.assert_array_equal(seen, [[1] * 5])


def test_report_is_the_same_whatever_the_global_generators_hold(temperature_run):
    run, found = temperature_run(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(run.measure("extensions"))
    assert found[0].metrics == found[1].metrics
    assert found[0].tables["temperatures"].equals(found[1].tables["temperatures"])


@pytest.mark.parametrize(
    "values",
    [
        {"temperatures": []},
        {"temperatures": [0.0]},
        {"top_p": []},
        {"top_p": [0.0]},
        {"top_p": [1.1]},
        {"split": "train"},
        {"count": 3},
        {"neighbours": 0},
    ],
)
def test_impossible_params_are_refused(tiny, values):
    with pytest.raises(ValidationError):
        tiny(temperature.Config, **values)
