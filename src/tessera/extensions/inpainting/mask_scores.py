"""Scores of fill-ins: error and structural similarity (`scores.ssim`: uniform windows of 7x7 pixels) inside a mask, and the
seam along its edge."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from tessera import scores
from tessera.extensions.inpainting.masks import Masks, Pixels


def judged(results: UInt8[np.ndarray, "s n h w c"], pixels: Pixels, masks: Masks) -> dict[str, float]:
    """Scores of `s` fill-ins of each image. `psnr_db` (of the mean squared error over images and fill-ins) and `ssim` are inside
    the mask, `_overall` over the whole image, `psnr_db_of_mean` of the mean fill-in. `seam`, `seam_original` and `spread`, the
    standard deviation over an image's fill-ins, are in grey levels."""
    inside, overall, similar, similar_overall = [], [], [], []
    for filled in results:
        inside.append(_inside(filled, pixels, masks))
        overall.append(scores.mse(filled, pixels))
        maps = similarity(filled, pixels)
        similar.append((maps * masks).sum((1, 2)) / masks.sum((1, 2)))
        margin = _window(pixels) // 2  # windows would cross the border here; `scores.ssim` leaves it out too
        similar_overall.append(maps[:, margin:-margin, margin:-margin].mean())
    return {
        "psnr_db": float(scores.psnr_db(np.mean(inside))),
        "psnr_db_of_mean": float(scores.psnr_db(_inside(results.mean(0), pixels, masks).mean())),
        "ssim": float(np.mean(similar)),
        "psnr_db_overall": float(scores.psnr_db(np.mean(overall))),
        "ssim_overall": float(np.mean(similar_overall)),
        "seam": float(np.mean([seam(filled, masks) for filled in results])),
        "seam_original": seam(pixels, masks),
        "spread": float(results.astype(np.float32).std(0).mean(-1)[masks].mean()),
    }


def _inside(filled: np.ndarray, pixels: Pixels, masks: Masks) -> Float[np.ndarray, " n"]:
    """Mean squared error of the masked pixels of each image, in units of [0, 1]^2."""
    square = np.square((filled.astype(np.float64) - pixels) / 255).mean(3)
    return (square * masks).sum((1, 2)) / masks.sum((1, 2))


def similarity(a: Pixels, b: Pixels) -> Float[np.ndarray, "n h w"]:
    """SSIM around each pixel, mean over channels, with the windows of `scores.ssim`, mirrored at the border."""
    from skimage.metrics import structural_similarity

    options = {"win_size": _window(a), "channel_axis": -1, "data_range": 255, "full": True}
    return np.stack([structural_similarity(x, y, **options)[1].mean(-1) for x, y in zip(a, b, strict=True)])


def _window(pixels: Pixels) -> int:
    return scores.odd_window(scores.UNIFORM, *pixels.shape[1:3])


def seam(pixels: Pixels, masks: Masks) -> float:
    """Mean absolute difference, in grey levels, between a masked pixel and a neighbour that is not masked."""
    values, differences = pixels.astype(np.float32), []
    for axis in (1, 2):
        edge = np.diff(masks, axis=axis)  # of booleans: True where the two differ
        differences.append(np.abs(np.diff(values, axis=axis)).mean(-1)[edge])
    return float(np.concatenate(differences).mean())
