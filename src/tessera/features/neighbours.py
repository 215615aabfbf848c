"""Nearest neighbours among points [N,F]: what coverage and memorisation are made of. NumPy and SciPy, no torch.

Sets of points are estimates of manifolds: the union of balls around their points, each as large as the distance to its
k-th nearest neighbour in the same set (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped

from tessera.images.arrays import batches

BLOCK = 2048  # points compared at once


def distances(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> Float[np.ndarray, "n m"]:
    """Euclidean distances in float64, from the differences themselves: exactly 0 between equal points."""
    from scipy.spatial.distance import cdist

    return cdist(np.asarray(a, np.float64), np.asarray(b, np.float64))


def radii(points: Float[np.ndarray, "n f"], k: int) -> Float[np.ndarray, " n"]:
    """Distance of each point to its k-th nearest other point; k < N."""
    # a point is its own 0-th neighbour; where others are equal to it, it does not matter which of them counts as itself
    return np.partition(distances(points, points), k, axis=1)[:, k]


def nearest(
    points: Shaped[np.ndarray, "n f"], references: Shaped[np.ndarray, "m f"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Index of the nearest reference of each point, and the distance to it; block by block, for references on disk.

    Nearest is decided by |a|^2 - 2ab + |b|^2, a matrix product, which rounds; the distance is then taken from the
    difference, so that a copy has distance 0.
    """
    index, distance = np.zeros(len(points), np.int64), np.zeros(len(points))
    for where in batches(len(points), BLOCK):
        own = np.asarray(points[where], np.float64)
        smallest = np.full(len(own), np.inf)
        for others in batches(len(references), BLOCK):
            block = np.asarray(references[others], np.float64)
            squares = np.square(block).sum(1) - 2 * own @ block.T  # |a|^2 is the same for every reference
            best = squares.argmin(1)
            found = np.take_along_axis(squares, best[:, None], 1)[:, 0]
            nearer = found < smallest
            smallest[nearer] = found[nearer]
            index[where][nearer] = best[nearer] + others.start
        distance[where] = np.linalg.norm(own - np.asarray(references[index[where]], np.float64), axis=1)
    return index, distance


def fewer(place: str, wanted: int, most: int, images: int) -> int:
    """`wanted` or `most` that so few images allow, at least 1; the log says so."""
    if wanted > (taken := max(1, most)):
        print(f"{place}: {taken} instead of {wanted}, since the smallest set has {images} images", flush=True)
    return min(wanted, taken)


def subset(generator: np.random.Generator, n: int, count: int) -> Int[np.ndarray, " c"]:
    """`count` of range(n), without repetition, in order; all of them where `count` is not less."""
    return np.arange(n) if count >= n else np.sort(generator.choice(n, count, replace=False))
