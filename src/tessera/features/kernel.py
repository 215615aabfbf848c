"""Kernel Inception Distance over all pairs, with an interval by resampling families. NumPy, no torch.

KID (Binkowski et al. 2018, arXiv 1801.01401, section 4): the squared maximum mean discrepancy of two sets of features [N,F]
with the kernel (ab/F + 1)^3. The estimate is unbiased: around 0 for equal distributions, and sometimes below. It takes all
pairs of images, no random subsets. No image is paired with itself, nor in a resampled set with its own copy, nor with an
image that the caller calls related, such as one that holds codes of the same image: such pairs are no independent images.

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


class Weighed(NamedTuple):
    """Kernel values [n,m] of the pairs that count, else 0, and 1 for each of them, else 0: of images of different families;
    and for each image of the first set the sums of both over its own family, [n]."""

    apart: tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]
    within: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


class Pairs(NamedTuple):
    """The pairs of a set with itself, of the other set with itself, and between both."""

    own: Weighed
    other: Weighed
    between: Weighed


def kernel(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> Float[np.ndarray, "n m"]:
    """(ab/F + 1)^3 in float64."""
    base = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T / a.shape[1] + 1
    return base * base * base  # NumPy's power takes ten times as long


def pairs(
    a: Float[np.ndarray, "n f"],
    b: Float[np.ndarray, "m f"],
    families: tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " m"]],
    related: Bool[np.ndarray, "n m"] | None = None,
    related_within: Bool[np.ndarray, "n n"] | None = None,
) -> Pairs:
    """All pairs that count. `related` says which images of `a` are related to which of `b`, `related_within` which of `a` to
    which of `a`: these pairs do not count.

    Raises:
        InputError: a set has fewer than two images, or an image is related to all others.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"KID needs at least 2 images in each set, got {len(a)} and {len(b)}")
    first, second = families
    return Pairs(within(a, first, related_within), within(b, second), between(a, b, families, related))


def within(
    a: Float[np.ndarray, "n f"], families: Shaped[np.ndarray, " n"], related: Bool[np.ndarray, "n n"] | None = None
) -> Weighed:
    """The pairs of a set with itself: none of an image with itself, nor of `related` ones.

    Raises:
        InputError: an image is related to all others.
    """
    apart = ~np.eye(len(a), dtype=bool)
    return _weighed(a, a, apart if related is None else apart & ~related, families[:, None] == families)


def between(
    a: Float[np.ndarray, "n f"],
    b: Float[np.ndarray, "m f"],
    families: tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " m"]],
    related: Bool[np.ndarray, "n m"] | None = None,
) -> Weighed:
    """The pairs of one set with another, but for `related` ones.

    Raises:
        InputError: an image of `a` is related to all of `b`.
    """
    first, second = families
    counted = np.ones((len(a), len(b)), bool) if related is None else ~related
    return _weighed(a, b, counted, first[:, None] == second)


def _weighed(
    a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"], counted: Bool[np.ndarray, "n m"],
    same: Bool[np.ndarray, "n m"],
) -> Weighed:  # fmt: skip
    if not counted.any(1).all():
        raise InputError("KID needs pairs of different images, and an image of one set is related to all of a set")
    values, apart, family = kernel(a, b), (counted & ~same).astype(np.float64), (counted & same).astype(np.float64)
    return Weighed((values * apart, apart), ((values * family).sum(1), family.sum(1)))


def estimate(pairs: Pairs, a: Float[np.ndarray, "r n"], b: Float[np.ndarray, "r m"]) -> Float[np.ndarray, " r"]:
    """KID where image i counts `a[., i]` times, as all of its family; ones give the estimate itself, counts of a resampling one
    resampled value. A family that counts twice is two families: a pair within it counts twice, not four times."""
    own, other, cross = (
        mean(weighed, left, right) for weighed, left, right in zip(pairs, (a, b, a), (a, b, b), strict=True)
    )
    return own + other - 2 * cross


def mean(weighed: Weighed, a: Float[np.ndarray, "r n"], b: Float[np.ndarray, "r m"]) -> Float[np.ndarray, " r"]:
    """Weighted means over pairs: one of image i with image j of another family counts a_i b_j times, of the same family a_i."""
    values, counted = (
        ((a @ apart) * b).sum(1) + a @ within for apart, within in zip(weighed.apart, weighed.within, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where nothing counts
        return values / counted


def kid(
    a: Float[np.ndarray, "n f"],
    b: Float[np.ndarray, "m f"],
    families: tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " m"]],
    resamplings: int,
    generator: np.random.Generator,
    related: Bool[np.ndarray, "n m"] | None = None,
) -> Interval:
    """KID of two sets with its interval, from `resamplings` resamplings of the families of each set; those that have a family in
    common are resampled together. `related`: as for `pairs`.

    Raises:
        InputError: as for `pairs`.
    """
    found = pairs(a, b, families, related)
    if np.isin(*families).any():
        weights = np.split(resampled(np.concatenate(families), resamplings, generator), [len(a)], axis=1)
    else:
        weights = [resampled(of, resamplings, generator) for of in families]
    (value,) = estimate(found, np.ones((1, len(a))), np.ones((1, len(b))))
    return interval(float(value), estimate(found, *weights))


def name(distance: str) -> str:
    """KID on the features whose Fréchet distance has the name `distance`: `kid` beside `fid`, `kid_classifier` beside
    `fd_classifier`."""
    return "kid" if distance == "fid" else f"kid_{distance.removeprefix('fd_')}"


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
