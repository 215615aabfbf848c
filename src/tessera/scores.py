"""Scores of 8-bit images, in NumPy: modules that read only pictures need not import torch.

Both PSNR and SSIM have two conventions, whose difference exceeds that between most systems that are compared by them. Names in
tessera always say which one: `psnr_db` is of the mean squared error over images, `psnr_db_per_image` is the mean of the PSNR of
each image; `ssim` has uniform windows of 7x7 pixels, `ssim_gaussian` Gaussian windows of 11x11.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from tessera.images.arrays import batches

Error = TypeVar("Error", float, np.ndarray)
UNIFORM, GAUSSIAN = 7, 11  # side in pixels of the windows of `ssim` and `ssim_gaussian`
SYMMETRIC = 4  # [-1, 1] is twice as wide as [0, 1], so a squared error on it is 4 times as large
BLOCK = 64  # images at once; it bounds the memory and does not change the result


def mse(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Mean squared error of each image in units of [0, 1]^2; see `symmetric`."""
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 255
    return np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)


def symmetric(error: Error) -> Error:
    """Convert a squared error from units of [0, 1]^2 to units of [-1, 1]^2, the range of model inputs and losses."""
    return SYMMETRIC * error


def unit(error: Error) -> Error:
    """The inverse of `symmetric`; `psnr_db` takes its result."""
    return error / SYMMETRIC


def psnr_db(error: float | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """10 log10(1 / error) of a mean squared error in units of [0, 1]^2. A perfect image counts as 100 dB.

    For the metric `psnr_db`, pass the mean error over images. For `psnr_db_per_image`, pass the error of each image and take the
    mean of the results: by Jensen's inequality it is never less. On the embedded emoji it is 0.8 dB more.
    """
    return -10 * np.log10(np.maximum(error, 1e-10))


def ssim(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Structural similarity of each pair, -1 to 1, with uniform windows: the defaults of scikit-image 0.26.

    Windows of 7x7 pixels inside the image, all pixels with equal weight; variances with N - 1; data range 255, K1 = 0.01,
    K2 = 0.03; the mean over colour channels. Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity", eq. 13, except for the window: they say that a uniform one causes blocking artefacts (section III.C). A
    smaller image has the largest odd window that fits.
    """
    from skimage.metrics import structural_similarity

    options = {"win_size": odd_window(UNIFORM, *a.shape[1:3]), "channel_axis": -1, "data_range": 255}
    return np.array([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)])


def ssim_gaussian(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Structural similarity of each pair, -1 to 1, with Gaussian windows as published (Wang et al. 2004, section III.C,
    eq. 13), computed by pytorch-msssim in float64 (its window weights have 7 digits).

    Windows of 11x11 pixels inside the image, weighted by a Gaussian of sigma 1.5; variances with N; data range 255, K1 = 0.01,
    K2 = 0.03; the mean over colour channels. scikit-image gives the same with gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, and the loss term `ssim` trains it. A smaller image has the largest odd window that fits, with
    the same sigma. On the embedded emoji it is about .03 below `ssim`.
    """
    import torch
    from pytorch_msssim import ssim as similarity

    options = {"data_range": 255, "win_size": odd_window(GAUSSIAN, *a.shape[1:3]), "size_average": False}
    found = np.empty(len(a))
    for where in batches(len(a), BLOCK):
        x, y = (torch.from_numpy(np.asarray(pixels[where], np.float64).transpose(0, 3, 1, 2)) for pixels in (a, b))
        found[where] = similarity(x, y, **options).numpy()
    return found


def odd_window(most: int, height: int, width: int) -> int:
    """Side of a window in pixels: `most`, or the largest odd number that fits into the image."""
    side = min(most, height, width)
    return side - 1 + side % 2


def by_family(values: Float[np.ndarray, " n"], families: list[str]) -> float:
    """Mean over families of the mean within each family, so that the skin-tone variants of one emoji count once."""
    _, index = np.unique(families, return_inverse=True)
    counts = np.bincount(index)
    return float((np.bincount(index, weights=values) / counts).mean())
