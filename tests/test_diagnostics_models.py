"""The mathematics of the diagnostics that ask a tokenizer or train a small prior."""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from tessera import perturbation, scores
from tessera.core import files, models
from tessera.core.contracts import Quantized
from tessera.core.space import CodeSpace
from tessera.diagnostics import equivariance, geometry, robustness
from tessera.evaluation import frechet as evaluated
from tessera.features import frechet
from tessera.images.arrays import to_model, to_pixels
from tessera.quantizers import ema, fsq, kmeans, residual
from tessera.tokenizers import pixels, prologue, vae, vqvae2

FROM_MODELS = (geometry, robustness, equivariance)


class MeanColour:
    """Features of an image: the mean and the spread of its first channel."""

    distance = "fd_mean"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0].mean((1, 2)), x[:, 0].std((1, 2))], dim=1)


class Patches:
    """An exactly equivariant tokenizer of 2x2 patches of one channel: the code is the patch's mean, in 8 steps; or, with
    `places`, one that says only in which column the patch stands."""

    space, image_shape = CodeSpace(((4, 4),), (8,)), (1, 8, 8)

    def __init__(self, book: torch.Tensor | None = None, places: bool = False) -> None:
        self.book = torch.linspace(-1, 1, 8)[:, None] if book is None else book
        self.codebooks, self.places = (self.book,), places

    def latents(self, x):
        means = torch.nn.functional.avg_pool2d(x, 2)
        return (torch.arange(4.0).expand_as(means) if self.places else means,)

    def quantize(self, latents):
        z = latents[0]
        codes = z.long() if self.places else ((z + 1) * 3.5).round().long()
        return (Quantized(self.vectors(codes.flatten(1))[0], codes, {}),)

    def vectors(self, codes):
        return (self.book[codes.view(-1, 4, 4)].permute(0, 3, 1, 2),)

    def encode(self, x):
        return self.quantize(self.latents(x))[0].codes.flatten(1)

    def decode(self, codes):
        return self.decode_vectors(self.vectors(codes))

    def decode_vectors(self, z_q):
        return z_q[0][:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3)


def stub(tokenizer, images, folder="nowhere"):
    """What the diagnostics ask of a run."""
    return SimpleNamespace(
        params=SimpleNamespace(seed=0),
        device="cpu",
        images=lambda split: images,
        tokenizer=lambda: tokenizer,
        scorer=MeanColour,
        folder=lambda stage: files.ARTIFACTS / folder,
    )


def grey(n: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 1), dtype=np.uint8)


def leaves(metrics: dict) -> list[float]:
    return [number for value in metrics.values() for number in (leaves(value) if isinstance(value, dict) else [value])]


def finite(report) -> bool:
    numbers = leaves(report.metrics)
    numbers += [x for table in report.tables.values() for x in table.select_dtypes("number").to_numpy().ravel()]
    return bool(numbers) and all(math.isfinite(number) for number in numbers)


# every tokenizer


def built(name: str, tiny, make_images, train):
    x = to_model(make_images(12))
    if name == "pixels":
        return pixels.build(tiny(pixels.Config), (3, 8, 8)).eval()
    if name.startswith("vae"):
        latent = name.partition(" ")[2]
        config = tiny(vae.Config, latent=latent)
        bare = train(vae.build(config, (3, 8, 8)), x, steps=20)
        whole = vae.build(config, (3, 8, 8), lambda dim: kmeans.build(tiny(kmeans.Config, codebook_size=4), dim))
        whole.load_state_dict(bare.state_dict(), strict=False)
        whole.quantizer.fit(bare.latents(x)[0].detach().movedim(1, 3).flatten(0, 2), torch.Generator().manual_seed(0))
        return whole.eval()
    module = {"ema": ema, "residual": residual, "fsq": fsq}[name.partition(" ")[2]]
    values = {"levels": [8]} if module is fsq else {}
    config = tiny(module.Config, **values)
    tokenizer = prologue if name.startswith("prologue") else vqvae2

    def make_quantizer(dim: int | None = None, codebook_size: int | None = None) -> Any:
        return module.build(config, dim)

    return train(tokenizer.build(tiny(tokenizer.Config), (3, 8, 8), make_quantizer), x, steps=20)


@pytest.mark.parametrize("name", ["vqvae2 ema", "vqvae2 residual", "vqvae2 fsq", "prologue ema",
                                  "prologue residual", "vae spatial", "vae vector", "pixels"])  # fmt: skip
def test_every_tokenizer(workspace, tiny, make_images, train, name):
    """Two levels, two depths, code vectors of one number, a codebook fitted afterwards, one code an image, intensities."""
    tokenizer = built(name, tiny, make_images, train)
    for module in FROM_MODELS:
        report = module.measure(tiny(module.Config), stub(tokenizer, make_images(6)))
        assert finite(report)
        files.write_report(f"diagnostics/{module.__name__.rpartition('.')[2]}", report)


def test_collapsed_codebook(workspace, tiny):
    """All code vectors equal: it is what a diagnostic is for."""
    run = stub(Patches(torch.zeros(8, 3)), grey(6))
    reports = [module.measure(tiny(module.Config), run) for module in FROM_MODELS]
    assert all(finite(report) for report in reports)
    assert reports[0].metrics["grid_0"] == dict.fromkeys(reports[0].metrics["grid_0"], 0.0)


def test_one_home_of_the_distance():
    assert evaluated.distance is frechet.distance


# geometry


def blobs(count: int = 4, each: int = 10, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    draws, label = np.random.default_rng(0), np.repeat(np.arange(count), each)
    return 10 * np.eye(dim)[label] + 0.1 * draws.standard_normal((len(label), dim)), label


def test_blobs_are_found():
    points, label = blobs()
    found, silhouette = geometry.clusters(points, 4, seed=0)
    assert adjusted_rand_score(found, label) == 1
    assert silhouette > 0.9
    places = geometry.embedded(points, perplexity=5.0, iterations=300, seed=0)
    assert geometry.clusters(places, 4, seed=0)[1] > 0.5
    assert adjusted_rand_score(geometry.clusters(places, 4, seed=0)[0], label) == 1


def test_silhouette_stands_beside_that_of_a_gaussian(tiny):
    """k-means finds clusters in any cloud; only what exceeds those of a Gaussian is structure."""
    config = tiny(geometry.Config, clusters=4)
    cloud = np.random.default_rng(1).standard_normal((200, 2)) * (3, 1)
    none, some = (geometry.described(points, config, seed=0)[1] for points in (cloud, blobs()[0]))
    assert none["silhouette"] > 0.2
    assert none["silhouette"] == pytest.approx(none["silhouette_gaussian"], abs=0.06)
    assert some["silhouette"] > some["silhouette_gaussian"] + 0.4


def test_effective_dimension_in_closed_form():
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert geometry.participation_ratio(axes) == pytest.approx(5)
    assert geometry.participation_ratio(np.arange(10)[:, None] * np.array([[1.0, -2.0, 0.5]])) == pytest.approx(1)
    assert geometry.participation_ratio(axes[:, :2] * (2, 1)) == pytest.approx((4 + 1) ** 2 / (16 + 1))
    turned = axes @ np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    assert geometry.participation_ratio(turned) == pytest.approx(5)


def test_spacing_by_loops():
    points = np.random.default_rng(0).standard_normal((7, 3))
    mean, nearest = geometry.spacing(points)
    far = {frozenset(pair): np.linalg.norm(points[pair[0]] - points[pair[1]]) for pair in combinations(range(7), 2)}
    assert mean == pytest.approx(np.mean(list(far.values())))
    assert nearest == pytest.approx([min(d for pair, d in far.items() if i in pair) for i in range(7)])


def test_evolution_on_one_plane():
    """A codebook moved along the widest direction moves by as much in its panel, and by as much on the whole."""
    kept = np.random.default_rng(0).standard_normal((30, 4)) * (5, 2, 1, 1)
    step = 3 * geometry.axes(kept)[:, 0]
    table, points = geometry.evolution(kept, {0: kept - step})
    assert points["epoch 0"] - points["kept"] == pytest.approx(np.tile([-3.0, 0.0], (30, 1)))
    assert points["kept"].mean(0) == pytest.approx([0, 0])
    assert list(table["moved"]) == pytest.approx([3 / geometry.spacing(kept)[0], 0])
    assert table["effective_dimension"][0] == pytest.approx(table["effective_dimension"][1])


def test_snapshots_of_training_in_order_of_epochs(tiny_run, tiny):
    run = tiny_run("geometry")
    book = run.tokenizer().codebooks[0]
    stored = {f"{epoch}/codebook_0": book + epoch for epoch in (0, 2, 10)}
    models.save_weights(run.folder("tokenizer") / "snapshots.safetensors", stored)
    report = geometry.measure(tiny(geometry.Config), run)
    assert list(report.tables["evolution"]["snapshot"]) == ["epoch 0", "epoch 2", "epoch 10", "kept"]
    moved = report.tables["evolution"]["moved"].to_numpy()
    assert moved[[0, 3]] == pytest.approx([0, 0])
    assert moved[2] == pytest.approx(5 * moved[1], rel=1e-4)


def test_the_most_used_codes_of_a_large_codebook_are_looked_at(workspace, tiny):
    book = torch.randn(50, 3)
    run = stub(Patches(book), grey(6))
    table = geometry.measure(tiny(geometry.Config, codes=8), run).tables["codebook"]
    assert list(table["code"]) == list(range(8))  # it only ever uses those
    assert table["fraction"].sum() == pytest.approx(1)


# robustness


def test_neighbours_by_brute_force():
    book = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    book[7] = book[3]
    table = perturbation.neighbours(book, 4)
    assert table.shape == (300, 4)
    assert (table[3, 0], table[7, 0]) == (7, 3)  # a copy is a neighbour, and the nearest
    far = cdist(book, book)
    for code, found in enumerate(table):
        others = sorted(far[code, other] for other in range(300) if other != code)
        assert code not in found
        assert far[code, found] == pytest.approx(others[:4], abs=1e-6)
    assert perturbation.neighbours(book[:3], 8).shape == (3, 2)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_as_many_codes_as_the_rate_become_neighbours(rate):
    """Within 5 standard deviations of the binomial; both grids by their own codebook, all neighbours alike."""
    draws, space = np.random.default_rng(0), CodeSpace(((4, 5), (10, 10)), (6, 30))
    books = [draws.standard_normal((k, 2)) for k in (6, 30)]
    codes = np.concatenate([draws.integers(0, 6, (50, 20)), draws.integers(0, 30, (50, 100))], axis=1)
    tables = [perturbation.neighbours(book, 4) for book in books]
    where, choices = draws.random(codes.shape) < rate, draws.random(codes.shape)
    changed = perturbation.replaced(codes, space, tables, where, choices)
    assert ((changed != codes) == where).all()
    assert abs(where.mean() - rate) <= 5 * math.sqrt(rate * (1 - rate) / codes.size)
    for part, table in ((slice(0, 20), tables[0]), (slice(20, 120), tables[1])):
        before, after = codes[:, part][where[:, part]], changed[:, part][where[:, part]]
        rank = (table[before] == after[:, None]).argmax(1)
        assert (table[before, rank] == after).all()
        if rate:
            shares = np.bincount(rank, minlength=4) / len(rank)
            assert abs(shares - 1 / 4).max() < 5 * math.sqrt(3 / 16 / len(rank))


def test_rate_0_is_the_plain_reconstruction(tiny_run, tiny):
    run = tiny_run("robustness")
    report = robustness.measure(tiny(robustness.Config, rates=[1.0, 0.5, 0.75]), run)
    table = report.tables["rates"].set_index("rate")
    assert list(table.index) == [0, 0.5, 0.75, 1]
    x, tokenizer, extractor = to_model(run.images("val")), run.tokenizer(), run.scorer()
    with torch.no_grad():
        decoded = to_pixels(tokenizer.decode(tokenizer.encode(x)))
        features = [extractor(images).numpy() for images in (x, to_model(decoded))]
    assert table.loc[0, "replaced"] == 0
    assert table.loc[0, "fd_classifier"] == pytest.approx(frechet.distance(*features), abs=1e-6)
    error = scores.mse(decoded, np.asarray(run.images("val"))).mean()
    assert table.loc[0, "psnr_db"] == pytest.approx(10 * math.log10(1 / error))
    assert table.loc[1, "replaced"] == 1
    middle = report.metrics["fd_classifier"]
    assert report.metrics["rate"] == 0.75
    assert middle["perturbed"] == table.loc[0.75, "fd_classifier"]
    assert middle["rise"] == pytest.approx(middle["perturbed"] - table.loc[0, "fd_classifier"])
    assert report.metrics["psnr_db"]["drop"] == pytest.approx(table.loc[0, "psnr_db"] - table.loc[0.75, "psnr_db"])


def test_copies_of_code_vectors_cost_nothing_and_others_do(workspace, tiny):
    """Every vector stands twice in the codebook: the nearest neighbour decodes to the same image."""
    twice = torch.linspace(-1, 1, 4).repeat_interleave(2)[:, None]
    config = tiny(robustness.Config, neighbours=1, rates=[0.5, 0.9])
    same = robustness.measure(config, stub(Patches(twice), grey(20))).metrics
    assert same["psnr_db"]["drop"] == 0
    assert same["fd_mean"]["rise"] == pytest.approx(0, abs=1e-6)
    other = robustness.measure(config, stub(Patches(), grey(20))).metrics
    assert other["psnr_db"]["drop"] > 0.1


# equivariance


def test_an_equivariant_tokenizer_is_found_so(workspace, tiny):
    images, config = grey(6), tiny(equivariance.Config)
    found = equivariance.measure(config, stub(Patches(), images)).metrics["level_0"]
    assert (found["cell_equal"], found["flip_equal"], found["cell_distance"], found["flip_distance"]) == (1, 1, 0, 0)

    def code(image: np.ndarray, y: int, x: int) -> int:
        patch = [image[y + dy, x + dx] / 127.5 - 1 for dy in (0, 1) for dx in (0, 1)]
        return round((np.mean(patch) + 1) * 3.5)

    same = [
        code(image[:, :, 0].astype(float), 2 * y, 2 * x) == code(image[:, :, 0].astype(float), 2 * y - 1, 2 * x - 1)
        for image in images
        for y in (1, 2)  # the inner ones of 4
        for x in (1, 2)
    ]
    assert found["pixel_equal"] == pytest.approx(np.mean(same))
    assert 0 < found["pixel_equal"] < 1


def test_codes_of_places_do_not_move_at_all(workspace, tiny):
    """The code is the column, its vector the column's number: after a shift it is off by one, mirrored it is 3 - x."""
    book = torch.arange(8.0)[:, None]
    report = equivariance.measure(tiny(equivariance.Config), stub(Patches(book, places=True), grey(6)))
    found = report.metrics["level_0"]
    assert (found["cell_equal"], found["flip_equal"], found["pixel_equal"]) == (0, 0, 1)
    apart = np.mean([abs(i - j) for i in range(4) for j in range(4)])
    assert found["cell_distance"] == pytest.approx(1 / apart, rel=0.2)  # `apart` is estimated from random pairs
    assert found["flip_distance"] == pytest.approx(2 * found["cell_distance"])  # the mean of 3, 1, 1, 3
    assert found["pixel_distance"] == 0
    assert list(report.tables["changes"]["chance"]) == [1 / 4] * 3


def test_shifted_by_brute_force():
    x = torch.randn(2, 1, 5, 6)
    found = equivariance.shifted(x, 2, 1)
    for y in range(5):
        for column in range(6):
            came = x[:, 0, y - 2, column - 1] if y >= 2 and column >= 1 else torch.ones(2)
            assert torch.equal(found[:, 0, y, column], came)
