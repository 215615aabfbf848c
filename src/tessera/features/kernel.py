"""Kernel Inception Distance over all pairs, with an interval by resampling families. NumPy, no torch.

KID (Binkowski et al. 2018, arXiv 1801.01401, section 4): the squared maximum mean discrepancy of two sets of features [N,F]
with the kernel (ab/F + 1)^3. The estimate is unbiased: around 0 for equal distributions, and sometimes below. It takes all
pairs of images, no random subsets; no image is paired with itself, also not with an image that holds some of its codes, nor
in a resampled set with its own copy.

Variants of one image stand in one family, and are no independent images: the interval resamples whole families. An image
that belongs to no known family, a sample, is a family of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from tessera.core.errors import InputError


class Interval(NamedTuple):
    """An estimate, and the 2.5th and 97.5th percentile of its resampled values."""

    value: float
    low: float
    high: float


class Pairs(NamedTuple):
    """Sums over pairs of a set of features with another, [n,n], [m,m] and [n,m]: the kernel where a pair counts, else 0; and
    the number of pairs, 1 or 0."""

    own: tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]
    other: tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]
    between: tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]


def kernel(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> Float[np.ndarray, "n m"]:
    """(ab/F + 1)^3 in float64."""
    return (np.asarray(a, np.float64) @ np.asarray(b, np.float64).T / a.shape[1] + 1) ** 3


def pairs(
    a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"], related: Bool[np.ndarray, "n m"] | None = None
) -> Pairs:
    """All pairs that count. `related` says which images of `a` hold codes of which of `b`: these pairs do not.

    Raises:
        InputError: a set has fewer than two images, or an image of `a` is related to all of `b`.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"KID needs at least 2 images in each set, got {len(a)} and {len(b)}")
    between = np.ones((len(a), len(b))) if related is None else 1.0 - related
    if not between.any(1).all():
        raise InputError("KID needs pairs of different images, and an image of one set is related to all of the other")
    own, other = 1 - np.eye(len(a)), 1 - np.eye(len(b))
    return Pairs((kernel(a, a) * own, own), (kernel(b, b) * other, other), (kernel(a, b) * between, between))


def estimate(pairs: Pairs, a: Float[np.ndarray, "r n"], b: Float[np.ndarray, "r m"]) -> Float[np.ndarray, " r"]:
    """KID where image i counts `a[., i]` times; ones give the estimate itself, counts of a resampling one resampled value."""
    (own, other, between) = (
        _mean(*matrices, left, right)
        for matrices, left, right in zip(pairs, (a, b, a), (a, b, b), strict=True)
    )  # fmt: skip
    return own + other - 2 * between


def kid(
    a: Float[np.ndarray, "n f"],
    b: Float[np.ndarray, "m f"],
    families: tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " m"]],
    resamplings: int,
    generator: np.random.Generator,
) -> Interval:
    """KID of two sets with its interval, from `resamplings` resamplings of the families of each set.

    Raises:
        InputError: a set has fewer than two images.
    """
    found = pairs(a, b)
    weights = [resampled(of, resamplings, generator) for of in families]
    (value,) = estimate(found, np.ones((1, len(a))), np.ones((1, len(b))))
    return interval(float(value), estimate(found, *weights))


def interval(value: float, resampled: Float[np.ndarray, " r"]) -> Interval:
    """`value` with the 95 % interval of its resampled values; nan among these, where a resampling holds no pair, is left out."""
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def resampled(
    families: Shaped[np.ndarray, " n"], resamplings: int, generator: np.random.Generator
) -> Float[np.ndarray, "r n"]:
    """How often each image counts where as many families as there are were chosen with replacement: equal for all images of
    a family. The order of the images does not matter, for families are numbered by their sorted names."""
    names, index = np.unique(families, return_inverse=True)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamplings)
    return counts[:, index].astype(np.float64)


def _mean(
    values: Float[np.ndarray, "n m"], counted: Float[np.ndarray, "n m"], a: Float[np.ndarray, "r n"],
    b: Float[np.ndarray, "r m"],
) -> Float[np.ndarray, " r"]:  # fmt: skip
    """Weighted means over pairs: one of image i with image j counts a_i b_j times."""
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where nothing counts
        return ((a @ values) * b).sum(1) / ((a @ counted) * b).sum(1)
