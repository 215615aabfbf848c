"""Fréchet distance and KID between sets of features, by torch-fidelity's own statistics.

Fréchet distance (Heusel et al. 2017, arXiv 1706.08500, eq. 6): |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)), of Gaussians
fitted to the two sets. It shrinks as sets grow: compare sets of the same number of images.

KID (Binkowski et al. 2018, arXiv 1801.01401): squared MMD with the kernel (ab/F + 1)^3, unbiased, hence around 0, and
sometimes below, for equal distributions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tessera.core.errors import InputError

NORMAL_95 = 1.959964  # standard deviations on either side of a mean that hold 95 % of a Gaussian


class Kid(NamedTuple):
    """Mean over subsets, and where 95 % of subsets lie: the spread of one subset, not the error of the mean."""

    mean: float
    low: float
    high: float


def distance(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> float:
    """Fréchet distance of two sets of features, in float64.

    Raises:
        InputError: a set has fewer than two images, and so no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"a Fréchet distance needs at least 2 images in each set, got {len(a)} and {len(b)}")
    import torch  # torch-fidelity's functions take tensors and compute in NumPy
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    first, second = (fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (a, b))
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def kid(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"], subsets: int, size: int, seed: int) -> Kid:
    """KID of two sets of features over random subsets of `size` of each; the seed alone decides which.

    Raises:
        InputError: a subset has fewer than two images, and so no pairs.
    """
    if size < 2:
        raise InputError(f"KID needs subsets of at least 2 images, got {size}; take sets of at least 4")
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(
        *(torch.from_numpy(x.astype(np.float64)) for x in (a, b)),
        kid_subsets=subsets,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=seed % 2**32,  # it seeds NumPy's older generator, which takes 32 bits
        verbose=False,
    )
    mean, spread = found[KEY_METRIC_KID_MEAN], NORMAL_95 * found[KEY_METRIC_KID_STD]
    return Kid(mean, mean - spread, mean + spread)
