"""Content and style: what each method must and must not change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import example
from kinds import KINDS, LEVELS, apart, run_of

from tessera import statistics
from tessera.extensions import style_transfer as style
from tessera.images import arrays


@pytest.fixture
def run(raw, tiny_run, runtime):
    """`run("vqvae2")`: on the tiny data set, with a tokenizer of that kind."""
    raw["extensions"]["style_transfer"] = example(style.Config).model_dump()
    tiny_run()
    return lambda kind="vqvae": run_of(kind, raw, runtime, "style_transfer")


def two(run) -> tuple[object, style.Images, style.Images]:
    """Tokenizer, and two images with different codes."""
    tokenizer, x = run.tokenizer(), arrays.to_model(run.images("test")[apart(run)])
    with torch.no_grad():
        seen = style.Images(tokenizer.latents(x), tokenizer.encode(x))
    return tokenizer, seen.only(0), seen.only(1)


@pytest.mark.parametrize("name", style.METHODS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_image_in_its_own_style_is_its_reconstruction(run, kind, name):
    tokenizer, *both = two(run(kind))
    for image in both:
        assert (style.METHODS[name](tokenizer, image, image) == image.codes).all()


@torch.no_grad()
def test_adain_has_the_statistics_of_the_style():
    content, other = torch.randn(1, 3, 4, 5), 3 * torch.randn(1, 3, 4, 5) + 7
    styled = style.restyled(content, other)
    torch.testing.assert_close(styled.mean((2, 3)), other.mean((2, 3)))
    torch.testing.assert_close(styled.std((2, 3)), other.std((2, 3)), rtol=1e-3, atol=0)
    # the places keep their order in each channel
    assert (styled.flatten(2).argsort(2) == content.flatten(2).argsort(2)).all()


def test_adain_of_a_constant_is_the_style_mean():
    other = torch.randn(1, 3, 4, 4)
    styled = style.restyled(torch.full((1, 3, 4, 4), 5.0), other)
    torch.testing.assert_close(styled, other.mean((2, 3), keepdim=True).expand_as(styled))


@pytest.mark.parametrize("kind", KINDS)
def test_palette_uses_no_code_that_the_style_lacks(run, kind):
    """And of those that it has, the one whose vector is nearest, by brute force."""
    tokenizer, content, other = two(run(kind))
    codes = style.palette(tokenizer, content, other)[0].numpy()
    grids = [tokenizer.space.split(part[None]) for part in (codes, *(c.codes[0].numpy() for c in (content, other)))]
    for result, before, allowed, book in zip(*grids, tokenizer.codebooks, strict=True):
        assert set(result.flat) <= set(allowed.flat)
        book = book.detach().double().numpy()
        for new, old in zip(result.flat, before.flat, strict=True):
            nearest = min(np.linalg.norm(book[old] - book[code]) for code in set(allowed.flat))
            assert np.linalg.norm(book[old] - book[new]) == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize("kind", sorted(LEVELS))
def test_hierarchy_takes_the_first_level_of_one_and_the_rest_of_the_other(run, kind):
    tokenizer, content, other = two(run(kind))
    length = sum(tokenizer.space.lengths[: tokenizer.depths[0]])
    for coarse in ("content", "style"):
        method = style.available(example(style.Config, coarse=coarse), tokenizer)[0]["hierarchy"]
        codes = method(tokenizer, content, other)
        first, rest = (content, other) if coarse == "content" else (other, content)
        assert (codes[:, :length] == first.codes[:, :length]).all()
        assert (codes[:, length:] == rest.codes[:, length:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_report_names_what_does_not_apply(run, kind, capsys):
    report = style.measure(example(style.Config), run(kind))
    lacking = ({"adain"} if "vectors" in kind else set()) | (set() if kind in LEVELS else {"hierarchy"})
    assert {name for name, values in report.metrics.items() if values == {"applies": 0}} == lacking
    assert set(report.pictures) == set(style.METHODS) - lacking
    ways = report.tables["methods"].set_index("method")["why_not"]
    assert {name for name in ways.index if ways[name]} == lacking
    said = capsys.readouterr().out
    assert all(f"{name} does not apply" in said for name in lacking)


def test_measures_by_hand(run):
    """Of a picture in its own style; of one that became the style; and histograms that can be counted."""
    tokenizer, content, other = two(run())
    codes = torch.cat([content.codes, other.codes])
    pixels, codes = arrays.to_pixels(tokenizer.decode(codes)), codes.numpy()
    same = style.judged(pixels[[0, 0, 0]], codes[[0, 0, 0]], tokenizer)
    assert same == {"edges": 1, "edges_unrelated": 1} | dict.fromkeys(style.MEASURES[2:], 0)
    became = style.judged(pixels[[1, 0, 1]], codes[[1, 0, 1]], tokenizer)
    assert became["edges"] == became["edges_unrelated"] < 1
    assert became["colours_after"] == became["codes_after"] == 0
    assert became["codes_before"] == style.total_variation(*(statistics.frequencies(row, 8) for row in codes)) > 0
    black, white = (style.colour_histogram(np.full((4, 4, 3), shade, np.uint8)) for shade in (0, 255))
    assert (black[0], white[-1], black.sum(), len(black)) == (1, 1, 1, 64)
    assert style.total_variation(black, white) == 1
    assert style.total_variation(np.array([0.5, 0.5]), np.array([0.75, 0.25])) == 0.25


def test_images_are_of_different_families_where_there_are_enough(run):
    current = run()
    families = current.table("test")["family"].to_numpy()
    assert len(set(families[style.sampled(current, 3)])) == 3
    assert sorted(style.sampled(current, 5)) == [0, 1, 2, 3, 4]
    assert len(style.sampled(current, 7)) == 7
    first = style.sampled(current, 5).tolist()
    current.params.raw["seed"] = 1
    assert style.sampled(current, 5).tolist() != first


def test_edges_are_where_the_picture_changes():
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[:, :, 4:] = 255
    found = style.edges(image)[0, :, :, 0]
    assert found[:, 3:5].min() > 100
    assert found[:, [0, 1, 2, 5, 6, 7]].max() == 0


def test_table_and_picture_hold_every_content_in_every_style(run):
    report = style.measure(example(style.Config, contents=2, styles=3, methods=["palette"]), run())
    table, sheet = report.tables["pairs"], report.pictures["palette"]
    assert len(table) == 2 * 3
    assert set(table["content"]).isdisjoint(table["style"])
    assert sheet.shape == (3 * 68 + 4, 4 * 68 + 4, 3)
    tokenizer, names = run().tokenizer(), list(run().table("test")["name"])
    with torch.no_grad():
        x = arrays.to_model(run().images("test"))
        seen = style.Images(tokenizer.latents(x), tokenizer.encode(x))
        plain = arrays.to_pixels(tokenizer.decode(seen.codes))
        for (row, column), pair in zip(itertools.product(range(2), range(3)), table.itertuples(), strict=True):
            content, other = names.index(pair.content), names.index(pair.style)
            result = arrays.to_pixels(tokenizer.decode(style.palette(tokenizer, seen.only(content), seen.only(other))))
            cell = {(0, column + 1): plain[other], (row + 1, 0): plain[content], (row + 1, column + 1): result[0]}
            for (down, right), image in cell.items():
                top, left = 4 + 68 * down, 4 + 68 * right
                shown = sheet[top : top + 64 : 8, left : left + 64 : 8]
                assert abs(shown.astype(int) - image).max() <= 1  # of another batch
    assert report.metrics["palette"]["edges"] == pytest.approx(table["edges"].mean())


def test_global_generators_decide_nothing(run):
    reports = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        reports.append(run("vqvae2").measure("extensions"))
    assert reports[0].metrics == reports[1].metrics
    assert all((reports[0].pictures[name] == reports[1].pictures[name]).all() for name in style.METHODS)
