"""Inpainting: what is hidden, what each method may change, and that Gibbs sweeps keep the prior's own distribution."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages import infiller
from tessera import scores
from tessera.autoregression import sampling
from tessera.autoregression.base import Autoregressive
from tessera.core import files
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.core.space import CodeSpace
from tessera.extensions import inpainting
from tessera.extensions.inpainting import figures, mask_scores, masks, metropolis
from tessera.images import arrays

KINDS = {
    **kinds.GRIDS,
    "one code": ("vae", "kmeans", {"latent": "vector"}),
    "pixels": ("pixels", "ema", {"levels": 4}),
}


@pytest.fixture
def config(tiny):
    return lambda **values: tiny(inpainting.Config, **values)


@pytest.fixture
def inpainting_run(raw, tiny, tiny_run):
    """`inpainting_run(kind="residual", prior="masked", conditional=True)`: a run whose models are not trained, but for a moment
    the infiller."""

    def make(kind: str = "one grid", prior: str = "pixelsnail", conditional: bool = False, **values: Any) -> Run:
        raw["extensions"]["inpainting"] = tiny(inpainting.Config, **values).model_dump()
        run = kinds.untrained(KINDS[kind], raw, tiny_run().runtime, "inpainting", prior, conditional)
        infiller.main(run)
        return run

    return make


class Table(Autoregressive):
    """Three codes of K values with arbitrary dependence, small enough to be enumerated. The first grid has a smaller
    codebook."""

    def __init__(self, sizes: tuple[int, int] = (3, 4)) -> None:
        super().__init__(CodeSpace(((1, 1), (1, 2)), sizes), UNCONDITIONAL)
        draws = generator(0, "table")
        first, k = sizes
        self.tables = [torch.randn(*shape, generator=draws) for shape in ((first,), (first, k), (first, k, k))]
        self.register_buffer("nothing", torch.zeros(0))

    def predict(self, codes: Tensor, conditions: Tensor | None, dropout: float) -> tuple[Tensor, ...]:
        a, b, _ = codes.unbind(1)
        first, second, third = self.tables
        return first.expand(len(codes), 1, -1), torch.stack([second[a], third[a, b]], dim=1)

    def walk(self, n: int, conditions: Tensor | None) -> sampling.CodeWalk:
        return sampling.naive_walk(self, n, conditions)

    def joint(self) -> np.ndarray:
        """p of all codes, [K0,K1,K1]."""
        sizes = (self.space.sizes[0], self.space.sizes[1], self.space.sizes[1])
        codes = torch.tensor(list(itertools.product(*map(range, sizes))))
        return self.log_prob(codes, None).exp().reshape(sizes).double().numpy()


# what is hidden


def test_masks_cover_what_their_names_say(config):
    own = config(
        centre=[0.2, 0.25], bottom=[0.3], random=[0.3], patches=[0.3], tiles=8, square=[0.25],
        structured={"eyes": [0.25, 0.125, 0.5, 0.875]},
    )  # fmt: skip
    found = masks.masks(own, 5, 32, 32, seed=0)
    assert list(found) == ["centre_20", "centre_25", "bottom_30", "random_30", "patches_30", "square_25", "eyes"]
    counts = {name: set(mask.sum(axis=(1, 2)).tolist()) for name, mask in found.items()}
    assert counts == {
        "centre_20": {14 * 14}, "centre_25": {256}, "bottom_30": {10 * 32}, "random_30": {307}, "patches_30": {19 * 16},
        "square_25": {64}, "eyes": {8 * 24},
    }  # fmt: skip
    assert found["centre_25"][:, 8:24, 8:24].all()
    assert found["bottom_30"][:, 22:].all()
    assert found["eyes"][:, 8:16, 4:28].all()
    tiles = found["patches_30"].reshape(5, 8, 4, 8, 4)
    assert (tiles.all(axis=(2, 4)) == tiles.any(axis=(2, 4))).all()
    for mask in found["square_25"]:
        rows, columns = np.nonzero(mask)
        assert np.ptp(rows) == np.ptp(columns) == 7


def test_masks_at_random_differ_between_images_and_follow_the_seed(config):
    own = config(random=[0.3], patches=[0.3], square=[0.25])
    first, again, other = (masks.masks(own, 6, 16, 16, seed) for seed in (0, 0, 1))
    for name in ("random_30", "patches_30", "square_25"):
        assert len(np.unique(first[name], axis=0)) > 1
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()


def test_a_mask_that_leaves_nothing_is_named(config):
    with pytest.raises(InputError, match="mask centre_99 leaves nothing of images of 8x8"):
        masks.masks(config(centre=[0.99]), 2, 8, 8, seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"structured": {"eyes": [0.5, 0.1, 0.4, 0.9]}}, "structured.eyes must have top < bottom"),
        ({"centre": [0.2, 0.201]}, "centre must have fractions that differ in whole percent"),
        ({kind: [] for kind in masks.KINDS} | {"structured": {}}, "at least one mask"),
        ({"exploration": 0.0}, "greater than 0"),
    ],
)
def test_impossible_params_are_named(config, values, message):
    with pytest.raises(ValidationError, match=message):
        config(**values)


def test_a_code_is_hidden_where_its_cell_has_a_masked_pixel():
    """By hand, on grids that divide the image and one that does not."""
    mask = np.zeros((2, 6, 6), bool)
    mask[0, 2, 4] = True
    mask[1, 5, :2] = True
    grids = ((1, 1), (2, 3), (4, 4), (6, 6))
    found = masks.cells(mask, CodeSpace(grids, (2,) * len(grids)))
    for image, row in zip(mask, found, strict=True):
        expected = []
        for h, w in grids:
            for y, x in itertools.product(range(h), range(w)):
                top, bottom, left, right = 6 * y // h, -(-6 * (y + 1) // h), 6 * x // w, -(-6 * (x + 1) // w)
                expected.append(image[top:bottom, left:right].any())
        np.testing.assert_array_equal(row, expected)
    assert found[0].sum() == 1 + 1 + 2 + 1  # of cells of 1.5 pixels, column 4 is a part of two


# the mathematics of gibbs


def _chains(config: Any, start: list[int], hidden: list[bool], n: int = 10000) -> np.ndarray:
    """Shares of all hidden values, in the order of `itertools.product`, after the sweeps, over n chains."""
    prior = Table()
    codes = torch.tensor(start).expand(n, -1)
    found = metropolis.gibbs(prior, codes, torch.tensor(hidden).expand(n, -1), None, config, generator(0)).codes
    assert (found[:, ~torch.tensor(hidden)] == torch.tensor(start)[~torch.tensor(hidden)]).all()
    counts = np.zeros((3, 4, 4))
    np.add.at(counts, tuple(found.T.numpy()), 1 / n)
    return counts


def _conditional(start: list[int], hidden: list[bool]) -> np.ndarray:
    p = Table().joint()
    for axis, (value, unknown) in enumerate(zip(start, hidden, strict=True)):
        if not unknown:
            p = p * np.eye(p.shape[axis])[value].reshape([-1 if a == axis else 1 for a in range(3)])
    return p / p.sum()


def _apart(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation distance."""
    return abs(p - q).sum() / 2


@pytest.mark.parametrize(
    ("start", "hidden", "m", "sweeps"),
    [([0, 0, 2], [True, True, False], 1, 50), ([2, 1, 0], [True, False, True], 2, 25), ([1, 3, 3], [True] * 3, 4, 20)],
)
def test_gibbs_keeps_the_exact_conditional(config, start, hidden, m, sweeps):
    """From one fixed start, also where only the likeliest code is proposed but for exploration: chains reach it and stay."""
    found = _chains(config(proposals=m, exploration=0.3, sweeps=sweeps, updates=1000), start, hidden)
    assert _apart(found, _conditional(start, hidden)) < 0.03


def test_gibbs_at_another_temperature_keeps_the_power(config):
    start, hidden = [0, 0, 2], [True, True, False]
    found = _chains(config(proposals=4, exploration=0.3, sweeps=20, updates=1000, temperature=0.5), start, hidden)
    exact = _conditional(start, hidden)
    assert _apart(found, exact) > 0.1
    assert _apart(found, exact**2 / (exact**2).sum()) < 0.03


def test_without_the_correction_gibbs_would_draw_something_else(config, monkeypatch):
    """What is left is the raster fill-in, deaf to the known last code."""
    start, hidden = [0, 0, 2], [True, True, False]
    exact = _conditional(start, hidden)
    monkeypatch.setattr(metropolis, "acceptance", lambda ratio, uniforms: torch.ones_like(ratio, dtype=torch.bool))
    assert _apart(_chains(config(proposals=4, exploration=0.3, sweeps=15, updates=1000), start, hidden), exact) > 0.1


def test_a_stationary_start_stays_stationary_after_each_single_update(config):
    """Detailed balance, by the matrix of one update: sum over x of p(x) P(x -> x') = p(x'), without any sampling error."""
    prior, k = Table(), (3, 4, 4)
    states = torch.tensor(list(itertools.product(*map(range, k))))
    log_p = torch.cat([prior.log_prob(states, None)]).double()
    for t, size in enumerate(k):
        rows = metropolis.conditionals(prior, states, None)
        q = metropolis.proposal(rows[:, t], 2, 0.25).exp()
        assert q.sum(1).allclose(torch.ones(len(states), dtype=torch.float64))
        assert (q[:, :size] > 0).all()
        assert (q[:, size:] == 0).all()
        flow = torch.zeros(len(states), len(states), dtype=torch.float64)
        for x, state in enumerate(states):
            for value in range(size):
                y = int((states == state.index_fill(0, torch.tensor(t), value)).all(1).nonzero())
                ratio = log_p[y] - log_p[x] + q[x, state[t]].log() - q[x, value].log()
                flow[x, y] += log_p[x].exp() * q[x, value] * ratio.clamp(max=0).exp()
        assert torch.allclose(flow, flow.T, atol=1e-12)


def test_acceptance_is_as_likely_as_the_ratio():
    uniforms = torch.rand(100000, generator=generator(0), dtype=torch.float64)
    for ratio in (0.2, 0.7, 1.0, 3.0):
        found = metropolis.acceptance(torch.full_like(uniforms, math.log(ratio)), uniforms).double().mean()
        assert float(found) == pytest.approx(min(1, ratio), abs=0.005)
    assert not metropolis.acceptance(torch.tensor([math.nan, -math.inf]), torch.zeros(2)).any()


def test_a_proposal_is_one_of_the_likeliest_or_any(config):
    p = torch.tensor([[0.5, 0.2, 0.3, 0.0]], dtype=torch.float64)
    q = metropolis.proposal(p.log(), 2, 0.1).exp()
    expected = 0.9 * torch.tensor([[5 / 8, 0, 3 / 8, 0]], dtype=torch.float64) + 0.1 * p
    torch.testing.assert_close(q, expected)


def test_gibbs_visits_each_images_own_hidden_codes_as_often_as_asked(config, monkeypatch):
    """Two hidden codes, one and none: two images are offered a code, then one, and so on; `updates` may end it earlier."""
    hidden = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    codes = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 1, 1]])
    visited: list[int] = []
    original = metropolis.proposal

    def watched(log_p: Tensor, m: int, exploration: float) -> Tensor:
        visited.append(len(log_p))
        return original(log_p, m, exploration)

    monkeypatch.setattr(metropolis, "proposal", watched)
    found = metropolis.gibbs(Table(), codes, hidden, None, config(sweeps=3, updates=100), generator(0))
    assert visited == [2, 1] * 3
    assert torch.equal(found.codes[~hidden], codes[~hidden])
    assert found.accepted <= found.proposed <= 9
    visited.clear()
    metropolis.gibbs(Table(), codes, hidden, None, config(sweeps=3, updates=4), generator(0))
    assert visited == [2, 1] * 2


@pytest.mark.parametrize(("updates", "whole"), [(8, 0), (16, 0), (31, 0), (32, 1), (45, 1), (1000, 2)])
def test_a_sweep_cut_short_is_spread_over_all_hidden_codes(updates, whole):
    """32, 10, 1 and no hidden codes, two sweeps: never the first ones alone, none twice, and each as often as any other."""
    count = torch.tensor([32, 10, 1, 0] * 500)
    found = metropolis.visits(count, 2, updates, generator(0))
    assert len(found) == min(updates, 2 * 32)
    for hidden, row in zip(count[:4].tolist(), found.T[:4], strict=True):
        for sweep in row[: 32 * whole].unflatten(0, (whole, 32)):
            assert sweep.tolist() == [*range(hidden), *[-1] * (32 - hidden)]
        last = row[32 * whole :]
        visited, rest = last[last >= 0], len(last)
        assert len(visited) == min(rest, hidden)
        assert (visited.diff() > 0).all()
        if len(visited):
            assert visited[0] <= hidden / rest
            assert visited[-1] >= hidden - 1 - hidden / rest
            assert visited.diff().tolist() == [] or int(visited.diff().max()) <= math.ceil(hidden / min(rest, hidden))
    last = found[32 * whole :, ::4].T
    if 0 < last.shape[1] < 32:
        often = torch.bincount(last.flatten(), minlength=32) / len(last)
        assert often == pytest.approx(last.shape[1] / 32, abs=0.1)


def test_gibbs_reaches_the_last_hidden_codes_with_few_updates(config):
    """Over many images each of three hidden codes is changed by a single update."""
    codes = torch.zeros(600, 3).long()
    own = config(sweeps=2, updates=1, proposals=4, exploration=1.0)
    found = metropolis.gibbs(Table(), codes, torch.ones(600, 3, dtype=torch.bool), None, own, generator(0)).codes
    assert ((found != 0).sum(1) <= 1).all()
    assert ((found != 0).sum(0) > 30).all()


def test_gibbs_depends_on_its_generator_alone(config):
    hidden = torch.ones(50, 3, dtype=torch.bool)
    found = []
    for seed in (0, 0, 1):
        torch.rand(3)
        found.append(
            metropolis.gibbs(Table(), torch.zeros(50, 3).long(), hidden, None, config(), generator(seed)).codes
        )
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# fill-ins


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prior", "conditional"), [("pixelsnail", True), ("masked", False)])
def test_what_is_known_stays(inpainting_run, config, kind, prior, conditional):
    """Known codes, and to the bit unmasked pixels, whatever the grids; hidden codes are drawn."""
    if kind == "pixels" and prior == "pixelsnail":
        prior = "histogram"  # 192 positions, one pass each: too slow for what it shows
    run = inpainting_run(kind, prior, conditional)
    own, tokenizer, model = config(samples=3, updates=3), run.tokenizer(), run.prior()
    pixels = np.asarray(run.images("test")[:3])
    labels = torch.tensor([[0], [1], [0]]) if conditional else None
    bidirectional = run.infiller() if model.exact else model
    for name, mask in masks.masks(config(structured={}), 3, 8, 8, seed=0).items():
        scene = masks.seen(tokenizer, pixels, mask, None, labels, "cpu")
        np.testing.assert_array_equal(scene.hidden, masks.cells(mask, tokenizer.space))
        found = inpainting.fill_ins(own, scene, model, bidirectional, 0, name)
        assert list(found) == (["raster", "gibbs", "masked"] if model.exact else ["masked"])
        for codes, facts in found.values():
            assert codes.shape == (3, *scene.known.shape)
            assert (codes == scene.known)[:, ~scene.hidden].all()
            for part, size in zip(model.space.split(codes.flatten(0, 1)), model.space.sizes, strict=True):
                assert 0 <= int(part.min()) <= int(part.max()) < size
            assert ("bits" in facts) == model.exact
            filled = masks.decoded(tokenizer, scene, codes[0])
            np.testing.assert_array_equal(filled[~mask], pixels[~mask])
        if scene.hidden.sum() > 3:
            assert (found["masked"][0][0] != found["masked"][0][1]).any()


def test_raster_is_the_prior_given_the_known_codes_and_gibbs_starts_there(inpainting_run, config):
    run = inpainting_run()
    prior, own = run.prior(), config(samples=1, batch_size=3, sweeps=4, updates=100)
    mask = masks.masks(own, 3, 8, 8, seed=0)["centre_25"]
    scene = masks.seen(run.tokenizer(), np.asarray(run.images("test")[:3]), mask, None, None, "cpu")
    scene = scene._replace(hidden=torch.tensor([[False, True, False, True]]).expand(3, -1))
    found = inpainting.fill_ins(own, scene, prior, prior, 0, "centre_25")
    given = {"known": scene.known, "known_mask": ~scene.hidden}
    raster = sampling.naive_sample(prior, 3, generator(0, "inpainting", "centre_25", "raster", 0), Sampling(), **given)
    draws = generator(0, "inpainting", "centre_25", "gibbs", 0)
    gibbs, proposed, accepted = metropolis.gibbs(prior, raster, scene.hidden, None, own, draws)
    assert torch.equal(found["raster"][0][0], raster)
    assert torch.equal(found["gibbs"][0][0], gibbs)
    assert found["gibbs"][1]["accepted"] == accepted / proposed
    assert not torch.equal(raster, gibbs)
    for codes, facts in (found["raster"], found["gibbs"]):
        assert facts["bits"] == pytest.approx(-prior.log_prob(codes[0], None).mean().item() / math.log(2), rel=1e-5)


@pytest.mark.parametrize("prior", ["pixelsnail", "masked"])
def test_draws_are_at_the_temperature_asked_for(inpainting_run, config, prior):
    """Of raster and masked. Close to 0 all samples are the likeliest codes; at 1 they differ."""
    run = inpainting_run(prior=prior)
    model, method = run.prior(), "masked" if prior == "masked" else "raster"
    pixels = np.asarray(run.images("test")[:3])
    mask = masks.masks(config(), 3, 8, 8, seed=0)["centre_25"]
    scene = masks.seen(run.tokenizer(), pixels, mask, None, None, "cpu")
    scene = scene._replace(hidden=torch.ones_like(scene.hidden))
    for temperature in (1.0, 0.5):
        own = config(samples=2, batch_size=6, updates=1, temperature=temperature)
        found = inpainting.fill_ins(own, scene, model, model, 0, "centre_25")[method][0].flatten(0, 1)
        draws = generator(0, "inpainting", "centre_25", method, 0)
        known = (scene.known.repeat(2, 1), torch.zeros(6, scene.known.shape[1], dtype=torch.bool))
        assert torch.equal(found, model.sample(6, draws, Sampling(temperature), None, *known))
    cold = inpainting.fill_ins(config(samples=2, updates=1, temperature=1e-6), scene, model, model, 0, "cold")[method][
        0
    ]
    warm = inpainting.fill_ins(config(samples=2, updates=1), scene, model, model, 0, "cold")[method][0]
    assert not torch.equal(warm[0], warm[1])
    if prior != "masked":  # whose order is random
        assert torch.equal(cold[0], cold[1])
    assert not torch.equal(cold, warm)


def test_nothing_of_a_masked_pixel_is_seen(inpainting_run, config):
    """Other pixels under the mask, the same fill-ins."""
    run = inpainting_run()
    own, tokenizer = config(samples=1), run.tokenizer()
    pixels = np.asarray(run.images("test")[:3])
    mask = masks.masks(own, 3, 8, 8, seed=0)["square_25"]
    other = np.where(mask[..., None], 255 - pixels, pixels)
    with torch.no_grad():
        assert not torch.equal(*(tokenizer.encode(arrays.to_model(each)) for each in (pixels, other)))
    for smooth in (False, True):
        first, second = (
            masks.seen(tokenizer, each, mask, masks.biharmonic(each, mask) if smooth else None, None, "cpu")
            for each in (pixels, other)
        )
        assert torch.equal(first.known, second.known)
    np.testing.assert_array_equal(masks.biharmonic(pixels, mask)[mask], masks.biharmonic(other, mask)[mask])


def test_autoencoder_replaces_masked_pixels_by_the_reconstruction_of_the_masked_image(inpainting_run, config):
    run = inpainting_run()
    tokenizer, pixels = run.tokenizer(), np.asarray(run.images("test")[:2])
    mask = np.zeros((2, 8, 8), bool)
    mask[:, 2:5, 1:4] = True
    scene = masks.seen(tokenizer, pixels, mask, None, None, "cpu")
    covered = pixels.copy()
    for index in range(2):
        covered[index][mask[index]] = pixels[index][~mask[index]].mean(0).round()
    with torch.no_grad():
        rebuilt = arrays.to_pixels(tokenizer(arrays.to_model(covered)).reconstruction)
    found = masks.decoded(tokenizer, scene, scene.known).astype(int)
    assert abs(found - np.where(mask[..., None], rebuilt, pixels)).max() <= 1


def test_biharmonic_is_that_of_each_image_alone(make_images):
    from skimage.restoration import inpaint_biharmonic

    pixels = make_images(4, 12, 12)
    mask = np.zeros((4, 12, 12), bool)
    mask[:2, 4:8, 4:8] = True
    mask[2:, 1:4, 5:11] = True
    found = masks.biharmonic(pixels, mask)
    np.testing.assert_array_equal(found[~mask], pixels[~mask])
    for image, where, filled in zip(pixels, mask, found, strict=True):
        alone = inpaint_biharmonic(image / 255, where, channel_axis=-1)
        assert abs(filled - (255 * alone.clip(0, 1))).max() <= 1


# judgement


def test_scores_by_hand():
    pixels = np.full((2, 8, 8, 3), 100, np.uint8)
    mask = np.zeros((2, 8, 8), bool)
    mask[0, 2:4, 2:4] = True
    mask[1, :, 4:] = True
    results = np.stack([pixels, pixels])
    results[0][mask] = 110
    results[1][mask] = 130
    found = mask_scores.judged(results, pixels, mask)
    assert found["psnr_db"] == pytest.approx(-10 * math.log10((10**2 + 30**2) / 2 / 255**2))
    assert found["psnr_db_of_mean"] == pytest.approx(-20 * math.log10(20 / 255))
    overall = (4 / 64 + 32 / 64) / 2 * (10**2 + 30**2) / 2
    assert found["psnr_db_overall"] == pytest.approx(-10 * math.log10(overall / 255**2))
    assert found["seam"] == pytest.approx(20)
    assert found["seam_original"] == 0
    assert found["spread"] == pytest.approx(10)
    perfect = mask_scores.judged(pixels[None], pixels, mask)
    assert perfect["ssim"] == perfect["ssim_overall"] == pytest.approx(1)
    assert perfect["psnr_db"] == 100
    assert perfect["spread"] == 0


def test_seam_of_every_edge_pixel():
    pixels = np.zeros((1, 4, 4, 1), np.uint8)
    pixels[0, 1, 1] = 40
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1, 1] = mask[0, 0, 1] = True
    # (1,1) to its left, right and lower neighbour, and (0,1) to its left and right one; not between the two
    assert mask_scores.seam(pixels, mask) == pytest.approx(3 * 40 / 5)


def test_ssim_of_the_whole_image_is_that_of_the_other_measures(make_images):
    a, b = make_images(3, 20, 20), make_images(6, 20, 20)[3:]
    mask = np.ones((3, 20, 20), bool)
    mask[:, 0] = False
    found = mask_scores.judged(a[None], b, mask)
    assert found["ssim_overall"] == pytest.approx(scores.ssim(a, b).mean(), rel=1e-6)
    assert found["ssim"] == pytest.approx(mask_scores.similarity(a, b)[:, 1:].mean())


# the report


@pytest.mark.parametrize(
    ("kind", "prior", "conditional"),
    [("one grid", "pixelsnail", False), ("two levels", "pixelsnail", True), ("one grid", "masked", True)],
)
def test_report(inpainting_run, kind, prior, conditional, capsys):
    run = inpainting_run(kind, prior, conditional, shown=2, centre=[], random=[], patches=[])
    report = run.measure("extensions")
    exact = prior != "masked"
    assert report.metrics["applies"] == {"raster": int(exact), "gibbs": int(exact), "masked": 1}
    assert ("raster and gibbs do not apply" in capsys.readouterr().out) != exact
    table = report.tables["methods"]
    names = ["bottom_30", "square_25", "eyes"]
    methods = ["biharmonic", "autoencoder", *(["raster", "gibbs"] if exact else []), "masked"]
    assert list(zip(table["mask"], table["method"], strict=True)) == list(itertools.product(names, methods))
    assert set(report.metrics) == {"applies", *names}
    for row in table.itertuples():
        assert report.metrics[row.mask][row.method] == {
            "psnr_db": row.psnr_db, "psnr_db_of_mean": row.psnr_db_of_mean, "ssim": row.ssim,
        }  # fmt: skip
        assert (row.spread == 0) == (row.method in ("biharmonic", "autoencoder"))
        assert row.psnr_db_overall > row.psnr_db
    assert set(report.pictures) == {"methods"}


def test_without_an_infiller_the_method_is_left_out(inpainting_run, raw, capsys):
    raw["infiller"]["enabled"] = False
    report = inpainting_run(centre=[], random=[], patches=[], structured={}).measure("extensions")
    assert report.metrics["applies"] == {"raster": 1, "gibbs": 1, "masked": 0}
    assert set(report.tables["methods"]["method"]) == {"biharmonic", "autoencoder", "raster", "gibbs"}
    assert "inpainting: masked does not apply: infiller.enabled is false" in capsys.readouterr().out


def test_report_is_the_same_whatever_the_global_generators_hold(inpainting_run):
    run = inpainting_run(centre=[], bottom=[], patches=[], structured={})
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(run.measure("extensions"))
    assert found[0].metrics == found[1].metrics
    assert found[0].tables["methods"].equals(found[1].tables["methods"])


def test_grey_images_have_a_picture(workspace, make_images):
    pixels = make_images(2, channels=1)
    mask = np.zeros((2, 8, 8), bool)
    mask[:, 2:4] = True
    strip = inpainting._strip(pixels, mask, {"biharmonic": pixels[None]}, 2)
    assert strip.shape == (6, 8, 8, 1)
    assert (strip[1][2:4] == inpainting.GREY).all()
    files.write_picture(Path("grey.png"), figures.rows([("rows", strip)], ["original", "given", "biharmonic"]))
