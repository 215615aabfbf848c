"""Inpainting: fills the masked part of an image, by five methods.

`autoencoder` decodes the codes of the image with its mean colour under the mask. `raster` samples hidden codes from the prior in
raster order. `gibbs` improves these by Metropolis-within-Gibbs sweeps, whose stationary distribution is the prior's p(hidden
codes | known codes). `masked` samples from a bidirectional prior: that of the stage `infiller`, or the chosen prior if it is one.
`biharmonic` (scikit-image; Damelin & Hoang 2018) continues the surroundings smoothly, without codes.

No method sees a hidden pixel. The image is encoded with a fill-in under the mask, and a code is hidden if its cell of the
image overlaps the mask, on every grid. Hidden codes are sampled and decoded, and only masked pixels are replaced. `raster`
samples each code given the codes before it, so known codes below and to the right have no effect; under `gibbs` and `masked`
all known codes do. Random single pixels (`random`) touch nearly every cell, so almost all codes are hidden: see `hidden` in
the table. `patches` mask the same fraction of pixels in tiles.

Published values with raster fill-in of 64x64 emoji with 16x16 codes, inside the mask: centre of 25 % 18.2 dB PSNR and SSIM
0.65; random 30 % 16.8 and 0.58; eyes 19.5 and 0.71. By the autoencoder, 8x8 squares of 32x32, over the whole image: 25.3 dB
and 0.911. The source states neither whether the masked pixels were encoded nor the windows of SSIM. 25.3 dB is the mean of
the images' PSNRs, since its MSE of .00376 on [0, 1] is 24.2 dB.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from tessera import conditions
from tessera.core.contracts import ExactPrior, Prior, Report, Sampling
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.extensions.inpainting import figures, mask_scores, masks
from tessera.extensions.inpainting.masks import KINDS, Masks, Pixels, Scene, decoded, seen
from tessera.extensions.inpainting.metropolis import gibbs
from tessera.images import arrays

Fraction = Annotated[float, Field(gt=0, lt=1)]
Relative = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")]

EXACT = ("raster", "gibbs")  # methods that need a likelihood
HEADLINE = ("psnr_db", "psnr_db_of_mean", "ssim")
GREY = 128  # masked pixels in the picture


class Config(Strict):
    images: int = Field(ge=1, le=4096, description="test images, evenly spread over the split", examples=[3])
    samples: int = Field(ge=1, le=64, description="fill-ins of each image by each method that samples", examples=[2])
    shown: int = Field(ge=1, le=16, description="images in the picture, for each mask", examples=[1])
    batch_size: int = Field(ge=1, description="fill-ins sampled at once", examples=[4])
    centre: list[Fraction] = Field(description="masks: a square in the middle, these fractions of the pixels",
                                examples=[[0.25]])  # fmt: skip
    bottom: list[Fraction] = Field(
        description="masks: the lowest rows, these fractions of the pixels", examples=[[0.3]]
    )
    random: list[Fraction] = Field(description="masks: random pixels, these fractions", examples=[[0.3]])
    patches: list[Fraction] = Field(description="masks: random tiles, these fractions", examples=[[0.3]])
    tiles: int = Field(ge=2, le=1024, description="tiles per side of the image, for `patches`", examples=[4])
    square: list[Fraction] = Field(description="masks: a random square, its side these fractions of the image's",
                                examples=[[0.25]])  # fmt: skip
    structured: dict[Name, Annotated[list[Relative], Field(min_length=4, max_length=4)]] = Field(
        description="masks: named boxes; top, left, bottom, right as fractions of height and width",
        examples=[{"eyes": [0.3, 0.1, 0.5, 0.9]}],
    )
    under: Literal["mean", "biharmonic"] = Field(
        description="fill-in under the mask when known codes are encoded for a prior: the mean of the known pixels, or "
        "their smooth continuation; the method autoencoder always has the mean", examples=["mean"],
    )  # fmt: skip
    temperature: float = Field(gt=0, description="of all sampling. At 1 gibbs samples from p(hidden | known); else p is the "
                               "prior's to the power of 1 / temperature", examples=[1.0])  # fmt: skip
    sweeps: int = Field(ge=1, description="of gibbs: visits to each hidden code, if `updates` allows", examples=[2])
    updates: int = Field(ge=1, description="of gibbs: most visits to hidden codes of an image, over all sweeps; each costs "
                         "a forward pass. A shortened sweep visits codes evenly spread over all", examples=[6])  # fmt: skip
    proposals: int = Field(ge=1, description="of gibbs: m; proposals come from the m likeliest codes", examples=[4])
    exploration: float = Field(gt=0, le=1, description="of gibbs: probability of a proposal from all codes instead; at 0, codes "
                               "outside the m likeliest could be neither reached nor left", examples=[0.1])  # fmt: skip

    @model_validator(mode="after")
    def _masks(self) -> Config:
        for name, (top, left, bottom, right) in self.structured.items():
            if not (top < bottom and left < right):
                raise ValueError(f"structured.{name} must have top < bottom and left < right")
        for kind in KINDS:
            if len({masks.named(kind, fraction) for fraction in getattr(self, kind)}) < len(getattr(self, kind)):
                raise ValueError(f"{kind} must have fractions that differ in whole percent")
        if not (self.structured or any(getattr(self, kind) for kind in KINDS)):
            raise ValueError("at least one mask must be given")
        return self


def measure(config: Config, run: Run) -> Report:
    """Scores by mask and method.

    `psnr_db` (of the mean squared error over images and samples) and `ssim` (uniform windows of 7x7 pixels) are inside the
    mask, with `_overall` over the whole image. `psnr_db_of_mean` is for the mean of an image's samples, which has a smaller
    squared error than single samples. `seam`: mean absolute difference across the mask's edge in grey levels; compare with
    `seam_original`. `spread`: standard deviation over an image's samples, in grey levels. `hidden`: fraction of hidden codes.
    `bits`: -log2 p of an image's codes by the exact prior. `accepted`: fraction of accepted gibbs proposals. `applies`: 0 for
    `raster` and `gibbs` if the prior has no exact likelihood (`masked`), which both need, and for `masked` if there is no
    bidirectional prior."""
    tokenizer, prior = run.tokenizer(), run.prior()
    device, chosen = run.runtime.device, arrays.evenly(len(run.images("test")), config.images)
    pixels, told = np.asarray(run.images("test")[chosen]), _told(run, prior, chosen)
    bidirectional = _bidirectional(run, prior)
    n, height, width, _ = pixels.shape
    regions = masks.masks(config, n, height, width, run.params.seed)
    bar = run.runtime.progress(total=len(regions), desc="inpainting")
    tables, strips = [], []
    for name, region in regions.items():
        smooth = masks.biharmonic(pixels, region)
        scene = covered = seen(tokenizer, pixels, region, None, told, device)
        if config.under == "biharmonic":
            scene = seen(tokenizer, pixels, region, smooth, told, device)
        found = {"biharmonic": smooth[None], "autoencoder": decoded(tokenizer, covered, covered.known)[None]}
        facts: dict[str, dict[str, float]] = {}
        for method, (sampled, about) in fill_ins(config, scene, prior, bidirectional, run.params.seed, name).items():
            found[method] = np.stack([decoded(tokenizer, scene, codes) for codes in sampled])
            facts[method] = about
        hidden = {"mask": name, "hidden": float(scene.hidden.float().mean())}
        tables += [{**hidden, "method": method, **mask_scores.judged(results, pixels, region), **facts.get(method, {})}
                   for method, results in found.items()]  # fmt: skip
        strips.append((name, _strip(pixels, region, found, config.shown)))
        bar.update()
    bar.close()
    table = pd.DataFrame(tables)
    metrics = {name: {row.method: {key: getattr(row, key) for key in HEADLINE} for row in part.itertuples()}
               for name, part in table.groupby("mask", sort=False)}  # fmt: skip
    applies = {method: int(method in found) for method in (*EXACT, "masked")}
    picture = figures.rows(strips, ["original", "given", *found])
    return Report({"applies": applies, **metrics}, {"methods": table}, {"methods": picture})


# methods


def fill_ins(
    config: Config, scene: Scene, prior: Prior, bidirectional: Prior | None, seed: int, name: str
) -> dict[str, tuple[Int[Tensor, "s n t"], dict[str, float]]]:
    """For each method: `samples` fill-ins of every image, and metrics about them. Each batch has its own random stream."""
    known, hidden = scene.known.repeat(config.samples, 1), scene.hidden.repeat(config.samples, 1)
    told = scene.conditions.repeat(config.samples, 1) if scene.conditions is not None else None
    methods = (*(EXACT if prior.exact else ()), *(("masked",) if bidirectional is not None else ()))
    parts: dict[str, list[Tensor]] = {method: [] for method in methods}
    bits: dict[str, list[Tensor]] = {method: [] for method in parts}
    proposed, accepted = 0, 0
    for index, where in enumerate(arrays.batches(len(known), config.batch_size)):
        given = (known[where], ~hidden[where])
        said = told[where] if told is not None else None
        for method, own in parts.items():
            rng = generator(seed, "inpainting", name, method, index)
            if method == "gibbs":  # starts from the codes of `raster`
                codes, *counts = gibbs(cast("ExactPrior", prior), parts["raster"][-1], hidden[where], said, config, rng)
                proposed, accepted = proposed + counts[0], accepted + counts[1]
            else:
                source = bidirectional if method == "masked" else prior
                assert source is not None, "or there were no such method"
                codes = source.sample(len(given[0]), rng, Sampling(config.temperature), said, *given)
            own.append(codes)
            if prior.exact:
                with torch.no_grad():
                    bits[method].append(-prior.log_prob(codes, said) / math.log(2))
    facts = {method: {"bits": float(torch.cat(own).mean())} if own else {} for method, own in bits.items()}
    if prior.exact:
        facts["gibbs"]["accepted"] = accepted / max(1, proposed)
    return {method: (torch.cat(own).unflatten(0, (config.samples, -1)), facts[method]) for method, own in parts.items()}


def _bidirectional(run: Run, prior: Prior) -> Prior | None:
    """The prior that sees all known codes; None, and a line for the log, if there is none."""
    if not prior.exact:
        print("inpainting: the prior has no exact likelihood, so raster and gibbs do not apply", flush=True)
        return prior
    if reason := run.unused("infiller"):
        print(f"inpainting: masked does not apply: {reason}", flush=True)
        return None
    return run.infiller()


def _told(run: Run, prior: Prior, rows: np.ndarray) -> Int[Tensor, "n c"] | None:
    """What a prior is told of test images, of which a part is hidden."""
    told = conditions.of_hidden(run, prior.conditioning, "test")
    return None if told is None else torch.from_numpy(told[rows]).to(run.runtime.device)


# picture


def _strip(pixels: Pixels, masks: Masks, found: dict[str, np.ndarray], shown: int) -> Pixels:
    """Rows: an image, the masked image, and its first fill-in by each method."""
    chosen = arrays.evenly(len(pixels), shown)
    masked = np.where(masks[..., None], np.uint8(GREY), pixels)
    columns = [pixels, masked, *(results[0] for results in found.values())]
    return np.stack([column[chosen] for column in columns], axis=1).reshape(-1, *pixels.shape[1:])
