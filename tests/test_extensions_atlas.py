"""Codes as pictures: what is decoded, what is cut out, and what is counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import example
from kinds import KINDS, run_of

from tessera import statistics
from tessera.extensions import atlas
from tessera.images import arrays

CONFIG = example(atlas.Config)


@pytest.fixture
def run(raw, tiny_run, runtime):
    """`run("vqvae2")`: on the tiny data set, with a tokenizer of that kind."""
    raw["extensions"]["atlas"] = CONFIG.model_dump()
    tiny_run()
    return lambda kind="vqvae": run_of(kind, raw, runtime, "atlas")


def page(run, grid=0, m=3, batch_size=16) -> atlas.Page:
    return atlas.Page(run.tokenizer(), grid, torch.tensor(run.codes("train")[:m]).long(), batch_size)


@pytest.mark.parametrize("kind", KINDS)
def test_every_grid_has_its_pictures_and_numbers(run, kind):
    current = run(kind)
    report = current.measure("extensions")
    space = current.space
    assert list(report.metrics) == [f"grid_{grid}" for grid in range(len(space.grids))]
    assert set(report.pictures) == {
        f"grid_{grid}_{name}"
        for grid in range(space.global_grids, len(space.grids))
        for name in ("whole", "single", "context")
    }
    codes = space.split(current.codes("train"))
    for grid, values in enumerate(report.metrics.values()):
        if grid < space.global_grids:
            assert values == {"applies": 0}
            continue
        assert values["shown"] == min(8, space.sizes[grid])
        assert values["used"] == min(8, len(np.unique(codes[grid])))
        assert 0 < values["context_fraction"] <= 1
        assert values["context_rmse"] >= 0
        assert 0 <= values["spill"] <= 1
        table = report.tables["codes"].query(f"grid == {grid}")
        np.testing.assert_allclose(
            table["fraction"], statistics.frequencies(codes[grid], space.sizes[grid])[table["code"]]
        )


@pytest.mark.parametrize("kind", ["vqvae", "vae, kmeans"])
@torch.no_grad()
def test_whole_is_the_picture_of_one_code_everywhere(run, kind):
    """Of a single grid; whatever the context."""
    current = run(kind)
    tokenizer, shown = current.tokenizer(), np.array([3, 0, 7])
    expected = arrays.to_pixels(tokenizer.decode(torch.tensor(shown)[:, None].expand(-1, 16)))
    found = atlas.filled(page(current), shown, everywhere=True)
    assert abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["vqvae", "residual", "vqvae2, residual", "pixels"])
@torch.no_grad()
def test_codes_stand_amid_the_mean_of_the_context(run, kind):
    """Every grid, code by code and image by image; batches change nothing."""
    current = run(kind)
    tokenizer, grids = current.tokenizer(), current.space.grids
    for grid, (height, width) in enumerate(grids):
        start = sum(h * w for h, w in grids[:grid])
        for everywhere in (True, False):
            places = range(height * width) if everywhere else [height // 2 * width + width // 2]
            shown = np.array([2, 0, 1])
            found = atlas.filled(page(current, grid), shown, everywhere)
            for code, picture in zip(shown, found, strict=True):
                codes = page(current, grid).context.clone()
                codes[:, [start + place for place in places]] = int(code)
                levels = [tokenizer.vectors(row[None]) for row in codes]
                mean = tuple(torch.stack(level).mean(0) for level in zip(*levels, strict=True))
                assert abs(picture.astype(int) - arrays.to_pixels(tokenizer.decode_vectors(mean))[0]).max() <= 1
            smaller = atlas.filled(page(current, grid, batch_size=1), shown, everywhere)
            assert abs(found.astype(int) - smaller).max() <= 1


def test_frequent_contexts_by_brute_force():
    grid = np.random.default_rng(0).integers(0, 3, (6, 4, 3))
    grid[grid == 1] = 0
    windows = atlas.frequent(grid, 4)
    seen: dict[int, list] = {code: [] for code in range(4)}
    for image, row, column in np.ndindex(grid.shape):
        around = [(row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)]
        context = tuple(grid[image, r, c] if 0 <= r < 4 and 0 <= c < 3 else -1 for r, c in around)
        seen[grid[image, row, column]].append((context, (image, row, column)))
    for code, occurrences in seen.items():
        if not occurrences:
            assert windows.fraction[code] == 0
            continue
        counts = Counter(context for context, _ in occurrences)
        best = max(counts.values())
        first = next(place for context, place in occurrences if counts[context] == best)
        assert windows.fraction[code] == best / len(occurrences)
        assert tuple(windows.place[code]) == first
    assert not seen[1]
    assert not seen[3]


def test_cut_is_the_place_of_a_code_with_its_neighbours():
    pixels = np.arange(2 * 8 * 6).reshape(2, 8, 6, 1).astype(np.uint8)
    own = atlas.cut(pixels, (4, 2), np.array([[1, 1], [3, 0]]), 0)
    np.testing.assert_array_equal(own, [pixels[0, 2:4, 3:6], pixels[1, 6:8, 0:3]])
    wide = atlas.cut(pixels, (4, 2), np.array([[1, 1], [3, 0]]), 1)
    assert wide.shape == (2, 6, 9, 1)
    np.testing.assert_array_equal(wide[0, :, :6], pixels[0, 0:6, 0:6])
    assert (wide[0, :, 6:] == 255).all()
    np.testing.assert_array_equal(wide[1, :4, 3:], pixels[1, 4:8])


def test_spill_is_the_share_of_change_elsewhere():
    mean = np.full((1, 4, 4, 3), 100, np.uint8)
    single = np.repeat(mean, 3, 0)
    single[0, 2:, 2:] += 10  # inside its place, 4 pixels
    single[1, 2:, 2:] += 10
    single[1, 0, :3] -= 20  # 3 pixels of four times the squared change
    np.testing.assert_allclose(atlas.spill(single, mean, (2, 2), np.array([[1, 1]] * 3)), [0, 12 / 16, 0])


def test_pixels_do_not_spill_and_look_alike_everywhere(run):
    for values in run("pixels").measure("extensions").metrics.values():
        assert values["spill"] == 0


def test_order_by_use_and_by_direction():
    draws = np.random.default_rng(0)
    along = draws.permutation(6)
    book = np.stack([5.0 * along, 0.1 * draws.normal(size=6)], 1)
    share = np.array([0.1, 0.3, 0.0, 0.3, 0.2, 0.1])
    assert atlas.ordered(book, share, 4, "use").tolist() == [1, 3, 4, 0]
    shown = atlas.ordered(book, share, 4, "direction")
    assert set(shown) == {0, 1, 3, 4}
    assert (np.diff(along[shown]) > 0).all()
    assert (atlas.ordered(-book, share, 4, "direction") == shown[::-1]).all()


def test_codes_that_never_occur_have_no_context(run):
    """They come last, and their cell is white."""
    current = run()
    codes = np.array(current.codes("train"))
    np.save("artifacts/codes/train.npy", np.where(codes > 3, 0, codes))
    report = current.measure("extensions")
    table, sheet = report.tables["codes"], report.pictures["grid_0_context"]
    assert set(table["code"][4:]) == {4, 5, 6, 7}
    assert (table[["fraction", "context_fraction", "context_rmse"]][4:] == 0).all(axis=None)
    assert report.metrics["grid_0"]["used"] == len(set(codes[codes < 4]) | {0})
    side = (sheet.shape[0] - 4) // 3
    cells = [sheet[4 + side * row :, 4 + side * column :][: side - 4, : side - 4] for row, column in np.ndindex(3, 3)]
    assert [bool((cell == 255).all()) for cell in cells[4:8]] == [True] * 4
    assert not (cells[0] == 255).all()


def test_global_generators_decide_nothing(run):
    reports = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        reports.append(run("vqvae2, residual").measure("extensions"))
    assert reports[0].metrics == reports[1].metrics
    assert all((reports[0].pictures[name] == reports[1].pictures[name]).all() for name in reports[0].pictures)
