"""Super-resolution: images of twice the size from the same codes, by a new decoder on the tokenizer's frozen code vectors.

As in VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, algorithm 1), all levels are decoded at once, with coarse levels upsampled
to the finest grid. The decoder predicts a residual on the bicubic enlargement of the tokenizer's reconstruction (VDSR, Kim et
al. 2016, arXiv 1511.04587, sec. 3.2), which depends on the same code vectors. Untrained, its output is that enlargement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera import scores
from tessera.core.contracts import Report, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.extensions.super_resolution.upscaling import (
    FACTOR,
    Decoder,
    Seen,
    augmented,
    enlarged,
    inner,
    made_for,
    see,
)
from tessera.images import arrays, pictures
from tessera.networks import conv
from tessera.training.loop import LOOKED_AT, Fitted, Row, Task, fit
from tessera.training.settings import Training

if TYPE_CHECKING:
    from tessera.core.params import Params

NAME = "extensions.super_resolution"  # in random streams and the checkpoint; the section of `training` in messages


class Config(Strict):
    channels: int = Field(ge=1, description="channels at the finest grid of codes", examples=[8])
    outer_channels: int = Field(ge=1, description="channels at finer resolutions", examples=[4])
    blocks: int = Field(ge=0, description="residual blocks at the finest grid of codes", examples=[1])
    outer_blocks: int = Field(ge=0, description="residual blocks at the size of the originals", examples=[1])
    normalisation: Literal["batch", "group", "none"] = Field(description="kind of normalisation", examples=["batch"])
    flip: float = Field(ge=0, le=1, description="probability of a horizontal flip of a training image", examples=[0.5])
    shift: int = Field(ge=0, description="largest shift of the training images of a step along each axis, in pixels of the "
                       "originals; white comes in", examples=[1])  # fmt: skip
    shown: int = Field(ge=1, description="test images in the picture", examples=[3])
    training: Training

    def rule(self, params: Params) -> Iterator[str]:
        finest = params.value("dataset.image_size") // getattr(params.config("tokenizer"), "downsampling", 1)
        if finest == 1 and requires(params) is None:  # otherwise nothing is trained
            narrowest = inner(self.channels) if self.blocks else self.channels
            yield from conv.on_one_place(self.normalisation, narrowest, self.training.batch_size, NAME, NAME, params)


def requires(params: Params) -> str | None:
    small, large = params.value("dataset.image_size"), params.value("dataset.target_size")
    if large != FACTOR * small:
        return f"dataset.target_size must be {FACTOR} times dataset.image_size, {FACTOR * small}, got {large}"
    if getattr(params.config("tokenizer"), "latent", "spatial") != "spatial":
        return f"tokenizer.{params.value('tokenizer.name')}.latent must be spatial: one vector per image has no grid to decode from"
    return None


def measure(config: Config, run: Run) -> Report:
    """Scores of the test images at twice their size, as 8-bit pixels: `mse` in units of [-1, 1]^2, `psnr_db` of the mean MSE,
    `psnr_db_per_image`, `ssim` with uniform windows, and `ssim_gaussian` (see `scores`). The published 23.65 dB is for the mean
    MSE, .0172; the source does not state the windows of its SSIM of .797. `gain_db` is the decoder's PSNR minus that of each
    other method. `bicubic_of_original` enlarges the original; all other methods have only its codes."""
    tokenizer = run.tokenizer()
    decoder, fitted = trained(config, tokenizer, run)
    enlarge = partial(enlargements, decoder, tokenizer, run, "test")
    targets = run.images("test", "targets")
    methods = judged(enlarge, targets, np.arange(len(targets)), config.training.batch_size)
    ours = methods["decoder"]["psnr_db"]
    gains = {name: ours - row["psnr_db"] for name, row in methods.items() if name != "decoder"}
    table = pd.DataFrame([{"method": name, **row} for name, row in methods.items()])
    metrics = {"epoch": fitted.epoch, **methods, "gain_db": gains}
    tables = {"methods": table, "curve": pd.DataFrame(fitted.history)}
    return Report(metrics, tables, {"test": picture(enlarge, targets, run.table("test")["family"], config.shown)})


# training


class Objective(nn.Module):
    """Training loss of the decoder."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, seen: Seen, target: Float[Tensor, "b c 2*h 2*w"]) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(self.decoder(seen), target)}


def trained(config: Config, tokenizer: Tokenizer, run: Run) -> tuple[Decoder, Fitted]:
    """The decoder of the epoch with the smallest validation error, in evaluation mode. The tokenizer encodes the flipped and
    shifted training images; it is not trained."""
    device, training = run.runtime.device, config.training
    small, large, targets = run.images("train"), run.images("train", "targets"), run.images("val", "targets")
    looked_at = arrays.evenly(len(targets), LOOKED_AT)

    def batch(indices: np.ndarray, rng: Generator, done: float) -> tuple[Seen, Tensor]:
        rows = np.sort(indices)  # sorted: a memory map is faster to read forwards
        pair = arrays.to_model(small[rows], device), arrays.to_model(large[rows], device)
        x, target = augmented(*pair, config.flip, config.shift, rng)
        with torch.no_grad():
            codes = tokenizer.encode(x)
        return see(tokenizer, codes), target

    def evaluate(objective: Objective) -> Row:
        enlarge = partial(enlargements, objective.decoder, tokenizer, run, "val", methods=["decoder"])
        row = judged(enlarge, targets, looked_at, training.batch_size)["decoder"]
        return {f"val_{name}": value for name, value in row.items()}

    seed_globally(run.params.seed, NAME, "initialisation")
    objective = Objective(made_for(tokenizer, config, device))
    task = Task(NAME, objective, len(small), batch, evaluate, score=lambda row: -row["val_mse"])
    fitted = fit(task, training, run.params.seed, run.runtime)
    return objective.decoder.to(device), fitted


# comparison with other methods

METHODS: dict[str, Callable[[Decoder, Seen, Tensor], Tensor]] = {
    "decoder": lambda decoder, seen, original: decoder(seen),
    "bicubic": lambda decoder, seen, original: enlarged(seen.reconstruction),
    "nearest": lambda decoder, seen, original: enlarged(seen.reconstruction, "nearest"),
    "bicubic_of_original": lambda decoder, seen, original: enlarged(original),
}
Enlarge = Callable[[np.ndarray], dict[str, np.ndarray]]  # rows of a split -> uint8 [B,2H,2W,C] by each method


@torch.no_grad()
def enlargements(
    decoder: Decoder,
    tokenizer: Tokenizer,
    run: Run,
    split: str,
    rows: Int[np.ndarray, " b"],
    methods: Iterable[str] = METHODS,
) -> dict[str, UInt8[np.ndarray, "b h w c"]]:
    """Images of a split at twice their size."""
    device = run.runtime.device
    seen = see(tokenizer, torch.from_numpy(run.codes(split)[rows].astype(np.int64)).to(device))
    original = arrays.to_model(run.images(split)[rows], device)
    return {name: arrays.to_pixels(METHODS[name](decoder, seen, original)) for name in methods}


def judged(
    enlarge: Enlarge, targets: UInt8[np.ndarray, "n h w c"], rows: Int[np.ndarray, " m"], batch_size: int
) -> dict[str, dict[str, float]]:
    """Mean scores over the rows, by method."""
    found: dict[str, list[pd.DataFrame]] = {}
    for where in arrays.batches(len(rows), batch_size):
        target = targets[rows[where]]
        for name, pixels in enlarge(rows[where]).items():
            error = scores.mse(pixels, target)
            columns = {
                "mse": scores.symmetric(error),
                "psnr_db_per_image": scores.psnr_db(error),
                "ssim": scores.ssim(pixels, target),
                "ssim_gaussian": scores.ssim_gaussian(pixels, target),
            }
            found.setdefault(name, []).append(pd.DataFrame(columns))
    means = {name: dict(pd.concat(parts).mean()) for name, parts in found.items()}
    return {
        name: {"mse": m["mse"], "psnr_db": float(scores.psnr_db(scores.unit(m["mse"])))} | m
        for name, m in means.items()
    }


def picture(
    enlarge: Enlarge, targets: UInt8[np.ndarray, "n h w c"], families: pd.Series, shown: int
) -> UInt8[np.ndarray, "height width c"]:
    """Rows: the targets, the bicubic enlargements of their reconstructions, the decoder's images; one image per family."""
    first = np.sort(np.unique(families.to_numpy(str), return_index=True)[1])
    rows = first[arrays.evenly(len(first), shown)]
    by_method = enlarge(rows)
    return pictures.sheet(np.concatenate([targets[rows], by_method["bicubic"], by_method["decoder"]]), len(rows))
