"""Fréchet distance between sets of features. NumPy, no torch.

Heusel et al. 2017 (arXiv 1706.08500, eq. 6): |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)), of Gaussians fitted to the two sets.
It shrinks as sets grow: compare sets of the same number of images.

With X and X' the centred features over the root of N - 1, S = X^T X, and the trace of (S S')^(1/2) is the sum of the singular
values of X X'^T. That needs no root of an F x F matrix, which of 1,280 features takes forty times as long and is singular where
there are fewer images.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tessera.core.errors import InputError


def distance(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> float:
    """Fréchet distance of two sets of features, in float64.

    Raises:
        InputError: a set has fewer than two images, and so no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"a Fréchet distance needs at least 2 images in each set, got {len(a)} and {len(b)}")
    (mean, x), (other_mean, y) = _centred(a), _centred(b)
    roots = np.linalg.svd(_short(x) @ _short(y).T, compute_uv=False).sum()
    found = np.square(mean - other_mean).sum() + np.square(x).sum() + np.square(y).sum() - 2 * roots
    return max(0.0, float(found))  # rounding may leave a little less


def _centred(points: Float[np.ndarray, "n f"]) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, "n f"]]:
    """Mean, and deviations from it whose products add up to the covariance."""
    points = np.asarray(points, np.float64)
    return points.mean(0), (points - points.mean(0)) / (len(points) - 1) ** 0.5


def _short(x: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "r f"]:
    """At most F rows with the same x^T x."""
    return np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x
