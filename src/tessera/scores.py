"""Formulas on codes and on 8-bit images, in NumPy: whoever reads only codes or pictures need not import torch.

Two measures of pictures have two conventions each, which differ by more than most systems that are compared by them.
Wherever tessera prints one, its name says which: `psnr_db` is of the mean squared error over images, `psnr_db_per_image` the
mean of the images' own; `ssim` has uniform windows of 7x7 pixels, `ssim_gaussian` Gaussian ones of 11x11.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from tessera.images.arrays import batches

Error = TypeVar("Error", float, np.ndarray)
UNIFORM, GAUSSIAN = 7, 11  # pixels a side of the windows of `ssim` and `ssim_gaussian`
SYMMETRIC = 4  # a squared error on [-1, 1], which is twice as wide as [0, 1], is 4 times that on [0, 1]
BLOCK = 64  # images at once: bounds the memory, not the result


def mse(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Mean squared error of each image in units of [0, 1]^2; see `symmetric`."""
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 255
    return np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)


def symmetric(error: Error) -> Error:
    """A squared error in units of [0, 1]^2 in those of [-1, 1]^2, in which models see images and losses are."""
    return SYMMETRIC * error


def unit(error: Error) -> Error:
    """The inverse of `symmetric`: what `psnr_db` takes."""
    return error / SYMMETRIC


def psnr_db(error: float | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """10 log10(1 / error), for a mean squared error in units of [0, 1]^2; a perfect image counts as 100 dB.

    Of the mean error over images, as `psnr_db`; of each image's own, whose mean is `psnr_db_per_image`: by Jensen's
    inequality never less, by 0.8 dB on the embedded emoji.
    """
    return -10 * np.log10(np.maximum(error, 1e-10))


def ssim(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Structural similarity of each pair, -1 to 1, with uniform windows: the defaults of scikit-image 0.26.

    Windows of 7x7 pixels that lie within the image, all pixels weighted alike, variances with N - 1; data range 255,
    K1 = 0.01, K2 = 0.03; each colour channel by itself, then their mean. Wang et al. 2004, "Image quality assessment: from
    error visibility to structural similarity", eq. 13, but for the window, of which they say (section III.C) that a
    uniform one shows blocks. A smaller image has the largest odd window that fits.
    """
    from skimage.metrics import structural_similarity

    options = {"win_size": odd_window(UNIFORM, *a.shape[1:3]), "channel_axis": -1, "data_range": 255}
    return np.array([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)])


def ssim_gaussian(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Structural similarity of each pair, -1 to 1, with Gaussian windows as published (Wang et al. 2004, section III.C,
    eq. 13), by pytorch-msssim in float64 (but for its weights, which round to 7 digits).

    Windows of 11x11 pixels that lie within the image, weighted by a Gaussian of sigma 1.5, variances with N; data range
    255, K1 = 0.01, K2 = 0.03; each colour channel by itself, then their mean. It is what scikit-image has with
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, and what the loss term `ssim` trains. A smaller image has
    the largest odd window that fits, of the same sigma. On the embedded emoji some .03 below `ssim`.
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
    """Pixels a side of a window: `most`, or the largest odd number that fits into the image."""
    side = min(most, height, width)
    return side - 1 + side % 2


def by_family(values: Float[np.ndarray, " n"], families: list[str]) -> float:
    """Mean over families of the mean within each: tone variants of one emoji count once."""
    _, index = np.unique(families, return_inverse=True)
    counts = np.bincount(index)
    return float((np.bincount(index, weights=values) / counts).mean())
