"""The measure `two_sample`: critics on known distributions of codes, halves of codes, and what the report says of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example

from tessera import critic
from tessera.core.space import CodeSpace
from tessera.evaluation import two_sample
from tessera.evaluation.two_sample import Images, Scores
from tessera.two_sample import accuracy

GRID = CodeSpace(((4, 4),), (8,))
LEVELS = CodeSpace(((2, 3), (4, 6), (4, 6)), (8, 4, 4))  # two levels, not square, the finer of depth 2
ONE = CodeSpace(((1, 1),), (65536,))


class Tokenizer:
    """Only code vectors: a level's is the sum over its depths, as of a residual quantizer."""

    def __init__(self, space: CodeSpace, levels: tuple[int, ...] = (1,), dim: int = 5) -> None:
        self.space, self.levels = space, levels
        random = torch.Generator().manual_seed(0)
        self.books = [torch.randn(size, dim, generator=random) for size in space.sizes]

    def vectors(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grids = [book[part].movedim(-1, 1) for book, part in zip(self.books, self.space.split(codes), strict=True)]
        return tuple(sum(grids[sum(self.levels[:at]) :][:depth]) for at, depth in enumerate(self.levels))


def images(codes: np.ndarray, name: str, per_family: int = 1, **groups: list[int]) -> Images:
    families = np.array([f"{name}{index // per_family}" for index in range(len(codes))])
    indices = {group: np.array(rows) for group, rows in groups.items()}
    return Images(codes, None, families, {"all": np.arange(len(codes))} | indices)


def codes_of(space: CodeSpace, n: int, seed: int, odd: int = 0) -> np.ndarray:
    """Codes, any alike; those of the lower, or with `odd` of the upper, half of each codebook where `odd` is not 0."""
    random, columns = np.random.default_rng(seed), []
    for size, length in zip(space.sizes, space.lengths, strict=True):
        codes = random.integers(0, size if odd == 0 else size // 2, (n, length))
        columns.append(codes + (size // 2 if odd > 0 else 0))
    return np.concatenate(columns, axis=1)


def config(**values: Any) -> two_sample.Config:
    quick = {"count": 80, "epochs": 6, "batch_size": 16, "channels": 8, "folds": 4, "lr": 0.02}
    return example(two_sample.Config, **(quick | values))


def criticised(space: CodeSpace, a: Images, b: Images, seed: int = 0, levels: tuple[int, ...] = (1,)) -> Scores:
    return two_sample.criticised(a, b, Tokenizer(space, levels), config(), seed)


SPACES = pytest.mark.parametrize(("space", "levels"), [(GRID, (1,)), (LEVELS, (1, 2)), (ONE, (1,))])


@SPACES
def test_equal_distributions_are_within_the_interval(space, levels):
    found = accuracy(
        *criticised(space, images(codes_of(space, 80, 0), "a"), images(codes_of(space, 80, 1), "b"), 0, levels)
    )
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize(("space", "levels"), [(GRID, (1,)), (LEVELS, (1, 2))])
def test_disjoint_distributions_are_told_apart(space, levels):
    a, b = images(codes_of(space, 40, 0, odd=-1), "a"), images(codes_of(space, 40, 1, odd=1), "b")
    assert accuracy(*criticised(space, a, b, 0, levels)).value == 1


def test_one_code_per_image_is_told_apart_by_its_vector():
    """Of 65,536 codes, those whose vector begins with a positive number stand for real images."""
    book = Tokenizer(ONE).books[0][:, 0]
    a, b = (images(torch.nonzero(side)[:80].numpy(), name) for side, name in ((book > 0, "a"), (book < 0, "b")))
    assert accuracy(*criticised(ONE, a, b)).low > 0.9


def test_the_seed_decides_and_the_order_of_images_does_not():
    a, b = images(codes_of(GRID, 30, 0), "a", 2), images(codes_of(GRID, 30, 1), "b", 3)
    first, order = criticised(GRID, a, b), np.random.default_rng(0).permutation(30)
    torch.manual_seed(5)
    again = criticised(GRID, a.at(order), b.at(order[::-1]))
    np.testing.assert_array_equal(again.false, first.false[order])
    np.testing.assert_array_equal(again.real, first.real[order[::-1]])
    assert not np.array_equal(criticised(GRID, a, b, seed=1).false, first.false)


def test_a_dimension_that_is_constant_in_training_is_zero_everywhere():
    """Also where it varies in the held fold: divided by no deviation, it would be infinite."""
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:4, 1] = 0.3
    x[4:, 1] = 7.0
    found = critic.standardised(x, np.arange(4))
    assert (found[:, 1] == 0).all()
    for dimension in (0, 2):
        deviation, mean = torch.std_mean(found[:4, dimension], correction=0)
        assert (float(mean), float(deviation)) == pytest.approx((0, 1), abs=1e-6)


def test_where_families_are_too_few_nothing_is_measured():
    small = images(codes_of(GRID, 40, 0), "a", 20, few=[0, 1, 2])
    many = images(codes_of(GRID, 40, 1), "b", few=[3, 4])
    found = two_sample.by_critic(small, many, Tokenizer(GRID), config(), 0, "cpu")
    assert found["all"] == "2 families in a set, fewer than 4 folds"
    found = two_sample.by_critic(many, many._replace(families=many.families + "x"), Tokenizer(GRID), config(), 0, "cpu")
    assert isinstance(found["all"], Scores)
    assert found["few"] == "2 families in a set, fewer than 4 folds"


# images of two halves


def halves(space: CodeSpace, real: Images) -> Images:
    names = np.array([f"image {i}" for i in range(len(real.codes))])
    return two_sample._of_two_halves(real, names, SimpleNamespace(space=space, params=SimpleNamespace(seed=0)))


@pytest.mark.parametrize("space", [GRID, LEVELS])
def test_half_of_the_codes_comes_from_another_family_of_the_same_group(space):
    codes = np.repeat(np.arange(40)[:, None], space.length, axis=1)  # every code names its image
    real = images(codes, "f", 2, low=list(range(20)), high=list(range(20, 40)))
    found = halves(space, real)
    for image, own in enumerate(found.codes):
        (other,) = set(own) - {image}
        assert other // 2 != image // 2  # of another family
        assert (other < 20) == (image < 20)
        assert 0.3 < (own == other).mean() < 0.7
    np.testing.assert_array_equal(halves(space, real).codes, found.codes)


def test_one_code_has_no_halves_and_one_family_no_partner():
    assert len(halves(ONE, images(codes_of(ONE, 9, 0), "a")).codes) == 0
    assert len(halves(GRID, images(codes_of(GRID, 9, 0), "a", 9)).codes) == 0


# the report


def table(**verdicts: Scores | str) -> pd.DataFrame:
    rows = [{"split": "val", "group": "all", "of": of, "judge": "critic", **two_sample._row(verdict)}
            for of, verdict in verdicts.items()]  # fmt: skip
    return pd.DataFrame(rows)


def scores(right: int, n: int = 100) -> Scores:
    """`right` of `n` recognised, on either side."""
    found = np.repeat([0.9, 0.1], [right, n - right])
    return Scores(found, 1 - found)


@pytest.mark.parametrize(("right", "counts"), [(50, 0), (55, 0), (60, 1), (90, 1)])
def test_a_critic_counts_that_finds_halves_above_chance(right, counts):
    found = two_sample._metrics(table(samples=scores(70), halves=scores(right), baseline=scores(100)))["val"]["all"]
    assert found["critic_counts"] == counts
    assert found["critic_halves"] == pytest.approx(right / 100)
    assert found["critic"] == pytest.approx(0.7)
    assert found["critic_low"] < 0.7 < found["critic_high"]
    assert "critic_baseline" not in found


def test_what_is_not_measured_is_named_in_the_table_alone():
    made = table(samples="2 families in a set, fewer than 4 folds", halves=scores(90))
    assert made["note"][0] == "not measured: 2 families in a set, fewer than 4 folds"
    assert np.isnan(made["accuracy"][0])
    assert two_sample._metrics(made)["val"]["all"] == {"critic_halves": pytest.approx(0.9), "critic_counts": 1}


def test_the_surest_stand_above_those_that_fool_it():
    samples = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    sheet = two_sample.surest(samples, np.array([0.2, 0.9, 0.5, 0.8, 0.1]), 2)
    assert sheet.shape == (2 * 72 + two_sample.GAP, 2 * 68 + 4, 3)
    assert [sheet[4, 4, 0], sheet[4, 72, 0]] == [1, 3]
    assert [sheet[-5, 4, 0], sheet[-5, 72, 0]] == [4, 0]
