"""Images at twice their size from the same codes: what an upsampler reads, and its scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tessera import scores
from tessera.core.contracts import Tokenizer
from tessera.core.run import Run
from tessera.images import arrays

if TYPE_CHECKING:
    from tessera.core.params import Params

FACTOR = 2
COLUMNS = ("mse", "psnr_db_per_image", "ssim", "ssim_gaussian")
Enlarge = Callable[[np.ndarray], dict[str, np.ndarray]]  # rows of a split -> uint8 [B,2H,2W,C] by each method


def unused(params: Params) -> str | None:
    """Why no upsampler is made; None where one is."""
    small, large = params.value("dataset.image_size"), params.value("dataset.target_size")
    if not params.value("upsampler.enabled"):
        return "upsampler.enabled is false"
    if large != FACTOR * small:
        return f"dataset.target_size must be {FACTOR} times dataset.image_size, {FACTOR * small}, got {large}"
    if getattr(params.config("tokenizer"), "latent", "spatial") != "spatial":
        return f"tokenizer.{params.value('tokenizer.name')}.latent must be spatial: one vector per image has no grid to decode from"
    return None


class Seen(NamedTuple):
    """What an upsampler reads: the code vectors of images, level by level without global codes, and their reconstruction in
    [-1, 1]."""

    vectors: tuple[Float[Tensor, "b d h w"], ...]
    reconstruction: Float[Tensor, "b c h w"]


@torch.no_grad()
def see(tokenizer: Tokenizer, codes: Int[Tensor, "b t"]) -> Seen:
    vectors = tokenizer.vectors(codes)
    return Seen(tokenizer.space.placed(vectors), tokenizer.decode_vectors(vectors).clamp(-1, 1))


def of_split(run: Run, tokenizer: Tokenizer, split: str, rows: Int[np.ndarray, " b"]) -> Seen:
    """Of images of a split."""
    return see(tokenizer, torch.from_numpy(run.codes(split)[rows].astype(np.int64)).to(run.runtime.device))


def enlarged(x: Float[Tensor, "b c h w"], mode: str = "bicubic") -> Float[Tensor, "b c 2*h 2*w"]:
    """Enlarges to twice the size. `nearest` repeats pixels. `bicubic` is cubic convolution (Keys 1981) with a = -0.75 over 4x4
    pixels: pixel centres at half-integers (`align_corners=False`), repeated edges, no antialiasing (only shrinking needs it)."""
    return F.interpolate(x, scale_factor=FACTOR, mode=mode, **({"align_corners": False} if mode == "bicubic" else {}))


def judged(
    enlarge: Enlarge, targets: UInt8[np.ndarray, "n h w c"], rows: Int[np.ndarray, " m"], batch_size: int
) -> dict[str, dict[str, float]]:
    """Mean scores over the rows, by method: `mse` in units of [-1, 1]^2, `psnr_db` of the mean MSE, `psnr_db_per_image`, `ssim`
    with uniform windows, and `ssim_gaussian` (see `scores`), all of 8-bit pixels."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for where in arrays.batches(len(rows), batch_size):
        target = targets[rows[where]]
        for name, pixels in enlarge(rows[where]).items():
            # whole columns at once: small arrays kept from each batch lie between torch's freed blocks, which then do not fit again
            columns = found.setdefault(name, {column: np.empty(len(rows)) for column in COLUMNS})
            error = scores.mse(pixels, target)
            columns["mse"][where] = scores.symmetric(error)
            columns["psnr_db_per_image"][where] = scores.psnr_db(error)
            columns["ssim"][where] = scores.ssim(pixels, target)
            columns["ssim_gaussian"][where] = scores.ssim_gaussian(pixels, target)
    means = {name: dict(pd.DataFrame(columns).mean()) for name, columns in found.items()}
    return {
        name: {"mse": m["mse"], "psnr_db": float(scores.psnr_db(scores.unit(m["mse"])))} | m
        for name, m in means.items()
    }
