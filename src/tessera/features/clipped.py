"""Clipped Density and Clipped Coverage: which fraction of the samples is good, and how much of the real images they cover.

Salvy, Talbot and Thirion 2026 (Enhanced Generative Model Evaluation with Clipped Density and Coverage, arXiv 2507.01761).
Points are features [N,F] of real images and [M,F] of samples. Each real point has a ball, as large as the distance to its k-th
nearest other real point. Of independent images, both measures are about 1 for samples of the real distribution, and about x where
a fraction x of the samples are of it and the others lie far away. So a value means the same for sets of any size. No torch.

Three things here are not in the paper:

- Variants of one image stand in one family, and are no independent images: neighbours are counted among other families. Else a
  ball would be as small as the difference between two skin tones, and not even other real images would lie in it. Where each
  image is its own family, the measures are those of the paper. Else other real images, which come in families too, cover less.
- `directions`: of features only the direction counts. Where a network recognises nothing all activations are weak: noise would
  lie near the origin, and so nearer to each real image than these to one another.
- `collapsed`: where most balls have no extent, as of a decoder that yields one image for all codes, everything would lie in them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from tessera.core.errors import InputError
from tessera.features.neighbours import distances

ROUNDING = 1e-5  # distance that two passes over one image may leave between its directions


class Clipped(NamedTuple):
    """Both measures, 0 to 1."""

    density: float
    coverage: float


def directions(points: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
    """Points at distance 1 from the origin, in float64; the origin itself stays."""
    points = np.asarray(points, np.float64)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length > 0, length, 1)


def clipped(
    real: Float[np.ndarray, "n f"], fake: Float[np.ndarray, "m f"], families: Shaped[np.ndarray, " n"], k: int
) -> Clipped:
    """Both measures of `fake` against `real`, whose families are given. Balls are closed for the density, and open for the
    coverage, as the authors' are.

    Raises:
        InputError: there is no sample, or a real point has fewer than `k` others of other families.
    """
    least = others(families).min(initial=len(real))
    if not len(fake) or least < max(k, 1):
        raise InputError(
            f"clipped density and coverage need a sample, and for each real image {k} of other families (k), got {len(fake)} "
            f"samples and {least} such images; lower k or take more images"
        )
    own = np.where(families[:, None] == families[None, :], np.inf, distances(real, real))
    between, reach = distances(real, fake), np.partition(own, k - 1, axis=1)[:, k - 1]
    held = np.minimum((between < reach[:, None]).sum(1) / k, 1).mean()
    sizes, counts = np.unique(others(families), return_counts=True)
    good = np.arange(len(fake) + 1) / len(fake)
    expected = np.average([expected_coverage(size, len(fake), k) for size in sizes], axis=0, weights=counts)
    return Clipped(_density(own, between, reach, k), float(np.interp(held, expected, good)))


def coverage(
    real: Float[np.ndarray, "n f"], fake: Float[np.ndarray, "m f"], families: Shaped[np.ndarray, " n"], k: int
) -> float:
    """Clipped coverage of the directions of features. NaN where there are too few images: each real one needs `k` of other
    families, and there must be more than `k` samples. 0 where the real images have `collapsed`."""
    if len(fake) <= k or others(families).min(initial=len(real)) < k:
        return math.nan
    real, fake = directions(real), directions(fake)
    return 0.0 if collapsed(real, families, k) else clipped(real, fake, families, k).coverage


def collapsed(real: Float[np.ndarray, "n f"], families: Shaped[np.ndarray, " n"], k: int) -> bool:
    """Whether most images lie, by their directions and within rounding, where `k` of other families do."""
    own = np.where(families[:, None] == families[None, :], np.inf, distances(real, real))
    return bool(np.median(np.partition(own, k - 1, axis=1)[:, k - 1]) <= ROUNDING)


def others(families: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each image the number of images of other families."""
    _, index, counts = np.unique(families, return_inverse=True, return_counts=True)
    return len(families) - counts[index]


def _density(
    own: Float[np.ndarray, "n n"], between: Float[np.ndarray, "n m"], reach: Float[np.ndarray, " n"], k: int
) -> float:
    """A sample counts by the number of balls that it lies in, over k, and at most 1: many in one place cannot make up for those
    elsewhere. No ball is larger than the median one, since those of outliers hold anything. The mean over samples is divided by
    the mean over real points, each of which is looked for in the balls of others."""
    reach = np.minimum(reach, np.median(reach))
    found, ideal = (np.minimum((far <= reach[:, None]).sum(0) / k, 1).mean() for far in (between, own))
    return float(min(found / ideal, 1))


def expected_coverage(others: int, fake: int, k: int) -> Float[np.ndarray, " good"]:
    """E[min(J, k)] / k for 0, 1, ..., `fake` good samples, strictly increasing [fake + 1].

    J is the number of samples in a ball that reaches to the k-th nearest of `others` independent points. The ball holds a
    fraction of the distribution that is Beta(k, others + 1 - k), as the k-th smallest of as many uniform numbers is. So J of g
    good samples is beta-binomial. The measured coverage is read from this curve backwards, as a fraction of good samples.
    """
    from scipy.stats import betabinom

    good, few = np.arange(fake + 1)[:, None], np.arange(k)
    missing = (k - few) * betabinom.pmf(few, good, k, others + 1 - k)  # min(J, k) is k from J = k on
    return 1 - missing.sum(1) / k
