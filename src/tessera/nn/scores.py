"""Formulas on codes and on 8-bit images, in NumPy: whoever reads only codes or pictures need not import torch.

Two measures of pictures have two conventions each, which differ by more than most systems that are compared by them.
Wherever tessera prints one, its name says which: `psnr_db` is of the mean squared error over images, `psnr_db_per_image` the
mean of the images' own; `ssim` has uniform windows of 7x7 pixels, `ssim_gaussian` Gaussian ones of 11x11.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int, UInt8

from tessera.core.images import batches

UNIFORM, GAUSSIAN = 7, 11  # pixels a side of the windows of `ssim` and `ssim_gaussian`
BLOCK = 64  # images at once: bounds the memory, not the result


def frequencies(codes: Int[np.ndarray, ...], k: int) -> Float[np.ndarray, " k"]:
    """Share of each of the K codes; they sum to 1."""
    counts = np.bincount(np.asarray(codes).reshape(-1), minlength=k)
    return counts / counts.sum()


def entropy_bits(p: Float[np.ndarray, " k"]) -> float:
    """-sum p log2 p, in bits; 0 log 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def perplexity(p: Float[np.ndarray, " k"]) -> float:
    """2 to the entropy: the number of equally likely codes that would be as hard to guess; 1 to K."""
    return 2.0 ** entropy_bits(p)


def usage(p: Float[np.ndarray, " k"]) -> float:
    """Share of the codebook that occurs at all, 0 to 1."""
    return float((p > 0).mean())


def mse(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Mean squared error of each image in units of [0, 1]^2 (a quarter of that on [-1, 1])."""
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 255
    return np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)


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


def neighbours_equal(grid: Int[np.ndarray, "n h w"], dy: int, dx: int) -> float:
    """Probability that the code `dy` below and `dx` to the right is the same; nan where the grid is too small."""
    _, h, w = grid.shape
    if h <= dy or w <= dx:
        return math.nan
    return float((grid[:, : h - dy, : w - dx] == grid[:, dy:, dx:]).mean())


def split_grids(codes: Int[np.ndarray, "n t"], grids: tuple[tuple[int, int], ...]) -> list[Int[np.ndarray, "n h w"]]:
    """Codes [N,T] as one array [N,h,w] per grid."""
    folded, start = [], 0
    for h, w in grids:
        folded.append(np.asarray(codes[:, start : start + h * w]).reshape(-1, h, w))
        start += h * w
    return folded


def copying(grid: Int[np.ndarray, "n h w"]) -> dict[str, float]:
    """Accuracy, 0 to 1, of predicting a code by a copy of its neighbour: `left`, `above`, the `better` of these two over
    all of the grid, and `either`: the share of codes that at least one of the two equals, which no rule that picks one
    of them, however clever, exceeds. Over the codes that have both neighbours, so that the four are comparable; in one
    row or column over those that have the one. Empty for 1x1."""
    _, h, w = grid.shape
    here = grid[:, int(h > 1) :, int(w > 1) :]
    hits = {}
    if w > 1:
        hits["left"] = here == grid[:, int(h > 1) :, :-1]
    if h > 1:
        hits["above"] = here == grid[:, :-1, int(w > 1) :]
    if not hits:
        return {}
    accuracy = {name: float(hit.mean()) for name, hit in hits.items()}
    either = np.logical_or.reduce(list(hits.values()))
    return accuracy | {"better": max(accuracy.values()), "either": float(either.mean())}


def neighbour_pairs(
    grid: Int[np.ndarray, "n h w"],
) -> dict[str, tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """Each code and its neighbour to the `right`, each code and the `lower` one; a grid of one row or column has only one
    of the two, 1x1 none."""
    _, h, w = grid.shape
    pairs = {"right": (grid[:, :, :-1], grid[:, :, 1:])} if w > 1 else {}
    pairs |= {"lower": (grid[:, :-1], grid[:, 1:])} if h > 1 else {}
    return {name: (a.reshape(-1), b.reshape(-1)) for name, (a, b) in pairs.items()}


def entropies_given(
    a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """How often each of the K codes is `a`, and the entropy of `b` where it is, -sum_b T[a,b] log2 T[a,b] in bits, with
    T[a,b] = n(a,b) / n(a); 0 for a code that never occurs. Plug-in: biased low where n(a) is not much larger than K, by
    up to log2 K - log2 n(a). Made from the pairs that occur, without the matrix of K^2."""
    n = np.bincount(a, minlength=k)
    found, joint = np.unique(np.asarray(a, np.int64) * k + b, return_counts=True)
    of = found // k
    bits = np.bincount(of, weights=joint * np.log2(n[of] / joint), minlength=k)
    return n, bits / np.maximum(n, 1)


def entropy_given(a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int) -> float:
    """H(b | a) in bits: the mean of `entropies_given`, weighted by how often each code occurs."""
    n, bits = entropies_given(a, b, k)
    return float((n * bits).sum() / n.sum())


def predictability(bits: float, k: int) -> float:
    """1 - H / log2 K: 0 for codes of which each of the K is as likely, 1 for certain ones; 1 where K = 1."""
    return max(0.0, 1 - bits / math.log2(k)) if k > 1 else 1.0  # max: sums round


def order_zero_bits(
    codes: Int[np.ndarray, "n t"], grids: tuple[tuple[int, int], ...], codebook_sizes: tuple[int, ...]
) -> Float[np.ndarray, " t"]:
    """Entropy of each code of an image in bits, if it were drawn by the frequencies of its grid."""
    shares = map(frequencies, split_grids(codes, grids), codebook_sizes)
    return np.repeat([entropy_bits(share) for share in shares], [height * width for height, width in grids])
