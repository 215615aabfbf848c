"""Super-resolution: images of twice the size from the same codes, by the network of the stage `upsampler`, beside enlargements.

As in VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, algorithm 1), all levels are decoded at once. The network predicts a residual
on the bicubic enlargement of the tokenizer's reconstruction, which depends on the same code vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera import upsampling
from tessera.core.contracts import Report, Tokenizer, Upsampler
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.images import arrays, pictures
from tessera.upsampling import Enlarge, Seen, enlarged


class Config(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    shown: int = Field(ge=1, description="test images in the picture", examples=[3])


def requires(run: Run) -> str | None:
    return run.unused("upsampler")


def measure(config: Config, run: Run) -> Report:
    """Scores of the test images at twice their size, as 8-bit pixels: `mse` in units of [-1, 1]^2, `psnr_db` of the mean MSE,
    `psnr_db_per_image`, `ssim` with uniform windows, and `ssim_gaussian` (see `scores`). The published 23.65 dB is for the mean
    MSE, .0172; the source does not state the windows of its SSIM of .797. `gain_db` is the decoder's PSNR minus that of each
    other method. `bicubic_of_original` enlarges the original; all other methods have only its codes."""
    tokenizer = run.tokenizer()
    enlarge = partial(enlargements, run.upsampler(tokenizer), tokenizer, run)
    targets = run.images("test", "targets")
    methods = upsampling.judged(enlarge, targets, np.arange(len(targets)), config.batch_size)
    ours = methods["decoder"]["psnr_db"]
    gains = {name: ours - row["psnr_db"] for name, row in methods.items() if name != "decoder"}
    table = pd.DataFrame([{"method": name, **row} for name, row in methods.items()])
    shown = picture(enlarge, targets, run.table("test")["family"], config.shown)
    return Report({**methods, "gain_db": gains}, {"methods": table}, {"test": shown})


METHODS: dict[str, Callable[[Upsampler, Seen, Tensor], Tensor]] = {
    "decoder": lambda decoder, seen, original: decoder(*seen),
    "bicubic": lambda decoder, seen, original: enlarged(seen.reconstruction),
    "nearest": lambda decoder, seen, original: enlarged(seen.reconstruction, "nearest"),
    "bicubic_of_original": lambda decoder, seen, original: enlarged(original),
}


@torch.no_grad()
def enlargements(
    decoder: Upsampler, tokenizer: Tokenizer, run: Run, rows: Int[np.ndarray, " b"]
) -> dict[str, UInt8[np.ndarray, "b h w c"]]:
    """Test images at twice their size, by method."""
    seen = upsampling.of_split(run, tokenizer, "test", rows)
    original = arrays.to_model(run.images("test")[rows], run.runtime.device)
    return {name: arrays.to_pixels(method(decoder, seen, original)) for name, method in METHODS.items()}


def picture(
    enlarge: Enlarge, targets: UInt8[np.ndarray, "n h w c"], families: pd.Series, shown: int
) -> UInt8[np.ndarray, "height width c"]:
    """Rows: the targets, the bicubic enlargements of their reconstructions, the decoder's images; one image per family."""
    first = np.sort(np.unique(families.to_numpy(str), return_index=True)[1])
    rows = first[arrays.evenly(len(first), shown)]
    by_method = enlarge(rows)
    return pictures.sheet(np.concatenate([targets[rows], by_method["bicubic"], by_method["decoder"]]), len(rows))
