"""Variations: which codes are drawn anew, and what stays; sheets of the labels of a conditional prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tessera import scores
from tessera.autoregression import sampling
from tessera.core.contracts import Sampling
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.extensions import variations
from tessera.images import arrays

KINDS = kinds.GRIDS


@pytest.fixture
def variations_run(raw, tiny, tiny_run):
    def make(kind: str = "one grid", prior: str = "pixelsnail", conditional: bool = False, **values: Any) -> Run:
        raw["extensions"]["variations"] = tiny(variations.Config, **values).model_dump()
        return kinds.untrained(KINDS[kind], raw, tiny_run().runtime, "variations", prior, conditional)

    return make


def given(run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    codes = torch.from_numpy(run.codes("test").astype(np.int64))
    labels = torch.from_numpy(run.labels("test").copy())[:, None] if run.prior().conditioning else None
    return codes, variations.places(*codes.shape, 0), labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prior", "conditional"), [("pixelsnail", True), ("masked", False)])
def test_only_the_chosen_fraction_is_drawn(variations_run, kind, prior, conditional):
    run = variations_run(kind, prior, conditional)
    codes, ranks, labels = given(run)
    model, length, changed = run.prior(), codes.shape[1], []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        found = variations.varied(model, codes, ranks, fraction, labels, 2, 0)
        drawn = ranks < round(fraction * length)
        assert (drawn.sum(1) == round(fraction * length)).all()
        assert torch.equal(found[~drawn], codes[~drawn])
        changed.append(float((found != codes).float().mean()))
    assert changed[0] == 0
    assert changed[-1] > 0.5


def test_the_whole_fraction_is_a_sample(variations_run):
    run = variations_run()
    codes, ranks, _ = given(run)
    found = variations.varied(run.prior(), codes, ranks, 1.0, None, 5, 0)
    assert torch.equal(found, sampling.naive_sample(run.prior(), 5, generator(0, "variations", 0), Sampling()))


def test_fraction_0_is_the_reconstruction(variations_run):
    run = variations_run(fractions=[0.0], images=5, shown=5)
    report = run.measure("extensions")
    row = report.tables["variations"].iloc[0]
    with torch.no_grad():
        rebuilt = arrays.to_pixels(run.tokenizer().decode(torch.from_numpy(run.codes("test").astype(np.int64))))
    pixels = run.images("test")
    assert row["codes_changed"] == 0
    assert row["psnr_db"] == pytest.approx(float(scores.psnr_db(scores.mse(pixels, rebuilt).mean())), abs=0.01)
    assert row["ssim"] == pytest.approx(scores.ssim(pixels, rebuilt).mean(), abs=1e-3)
    sheet = report.pictures["variations"]
    assert sheet.shape == (5 * 68 + 4, 3 * 68 + 4, 3)
    np.testing.assert_array_equal(sheet[4:68:8, 4:68:8], pixels[0])
    np.testing.assert_array_equal(sheet[:, 68 + 4 : 136], sheet[:, 136 + 4 : 204])  # reconstruction and fraction 0


def test_places_are_an_order_for_each_image_chosen_by_the_seed():
    first, again, other = (variations.places(6, 20, seed) for seed in (0, 0, 1))
    assert (first.sort(1).values == torch.arange(20)).all()
    assert len(first.unique(dim=0)) == 6
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_a_smaller_fraction_draws_first_a_larger_one_draws_alike(variations_run):
    """The same random numbers: positions before which nothing else has changed get the same code."""
    run = variations_run()
    codes, _, _ = given(run)
    ranks = torch.arange(4).expand(len(codes), -1)  # in raster order, the prior's own
    half, whole = (variations.varied(run.prior(), codes, ranks, fraction, None, 2, 0) for fraction in (0.5, 1.0))
    assert torch.equal(half[:, :2], whole[:, :2])


def test_labels_reach_the_prior(variations_run, monkeypatch):
    """Variations know the image's own label; the sheet goes label by label, with the guidance of params."""
    run = variations_run("one grid", "pixelsnail", True, images=5, batch_size=3, per_label=3, guidance=[2.0, 0.5])
    seen: list[tuple[list[int], Sampling]] = []
    prior = run.prior()
    original = prior.sample

    def watched(n: int, draws: Any, how: Sampling, conditions: torch.Tensor, **known: Any) -> torch.Tensor:
        seen.append((conditions[:, 0].tolist(), how))
        return original(n, draws, how, conditions, **known)

    prior.sample = watched
    monkeypatch.setattr(run, "prior", lambda: prior)
    report = variations.measure(run.params.config("extensions", "variations"), run)
    own = run.labels("test").tolist()
    plain = [(own[:3], Sampling()), (own[3:], Sampling())] * 2
    sheets = [([label] * 3, Sampling(guidance={"label": strength})) for strength in (0.5, 2.0) for label in (0, 1)]
    assert seen == plain + sheets
    assert report.metrics["conditional"] == 1
    assert set(report.pictures) == {"variations", "distances", "labels"}
    axes = report.pictures["labels"].axes  # row by row, the weaker guidance first
    assert [axis.get_ylabel() for axis in axes] == [run.label_names[0], "", run.label_names[1], ""]
    assert [axis.get_title() for axis in axes] == ["guidance 0.5", "guidance 2", "", ""]


def test_guidance_changes_what_is_drawn_and_one_is_the_plain_label(variations_run):
    run = variations_run("one grid", "pixelsnail", True)
    prior = run.prior()
    with torch.no_grad():  # labels that say something
        for condition in prior.conditions:
            condition.given.tables[0].weight.mul_(5)
    plain, strong = (variations.of_labels(run, prior, ["round", "square"], 8, 16, guidance) for guidance in (1.0, 6.0))
    labels = torch.tensor([[0]] * 8 + [[1]] * 8)
    assert torch.equal(plain, prior.sample(16, generator(0, "variations", "labels", 0), conditions=labels))
    assert not torch.equal(plain, strong)


@pytest.mark.parametrize(
    ("kind", "prior", "conditional"),
    [("one grid", "pixelsnail", False), ("two levels", "pixelsnail", True), ("residual", "masked", True)],
)
def test_report(variations_run, kind, prior, conditional, capsys):
    run = variations_run(kind, prior, conditional)
    report = run.measure("extensions")
    table = report.tables["variations"]
    assert list(table["variation"]) == ["fraction_50", "fraction_100", "another_image"]
    assert ("labels" in report.pictures) == conditional
    assert ("is told no labels" in capsys.readouterr().out) != conditional
    for column in ("codes_changed", "feature_distance", "psnr_db", "ssim"):
        assert report.metrics[column] == dict(zip(table["variation"], table[column], strict=True))
        assert np.isfinite(table[column]).all()
    assert set(report.pictures) == {"variations", "distances", *(["labels"] if conditional else [])}
    if prior == "masked":
        run.write("extensions", report)
        written = {path.name for path in Path("plots/extensions/variations").iterdir()}
        assert written == {"variations.csv", "variations.png", "distances.png", "labels.png"}


def test_another_image_is_the_measure_of_far(variations_run):
    run = variations_run(images=5)
    row = run.measure("extensions").tables["variations"].iloc[-1]
    pixels, codes = run.images("test"), run.codes("test")
    order = [4, 0, 1, 2, 3]
    assert row["codes_changed"] == pytest.approx((codes != codes[order]).mean())
    assert row["ssim"] == pytest.approx(scores.ssim(pixels, pixels[order]).mean())


def test_report_is_the_same_whatever_the_global_generators_hold(variations_run):
    run, found = variations_run(conditional=True), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(run.measure("extensions"))
    assert found[0].metrics == found[1].metrics
    assert found[0].tables["variations"].equals(found[1].tables["variations"])


@pytest.mark.parametrize("values", [{"fractions": []}, {"fractions": [1.1]}, {"images": 1}, {"guidance": [-1.0]}])
def test_impossible_params_are_refused(tiny, values):
    with pytest.raises(ValidationError):
        tiny(variations.Config, **values)
