"""Variations of an image: a fraction of its codes is drawn anew by the prior. And what a conditional prior draws of each label.

Which codes are drawn is chosen by the seed; those of a smaller fraction are among those of a larger one, and every position
keeps its random number, so that an image changes step by step. Fraction 0 is the reconstruction, fraction 1 a new sample. A prior
in raster order draws each code given those before it alone: what is kept further on constrains nothing (the extension
`inpainting` has ways that hear it). A conditional prior is told the image's own label.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera import scores
from tessera.autoregression.sampling import sample_batches
from tessera.core.contracts import Device, Prior, Report, Sampling, Tokenizer
from tessera.core.params import Params, Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = UInt8[np.ndarray, "n h w c"]
OTHER = "another_image"


class Config(Strict):
    images: int = Field(ge=2, description="test images, evenly spread over the split", examples=[3])
    shown: int = Field(ge=1, description="of these, rows of the picture", examples=[2])
    batch_size: int = Field(ge=1, description="images drawn at once", examples=[2])
    fractions: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1, description="fractions of an image's codes that are drawn anew", examples=[[0.5, 1.0]]
    )
    labels: int = Field(ge=1, description="rows of the sheet of labels, at most; evenly spread over them", examples=[2])
    per_label: int = Field(ge=1, description="samples of each of these labels", examples=[2])
    guidance: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="of the sheet of labels, one block each: 1 is p(codes | label), 0 forgets the label, more "
        "exaggerates it; other than 1 needs a prior with label_dropout", examples=[[1.0, 2.0]],
    )  # fmt: skip

    def rule(self, params: Params) -> Iterator[str]:
        """Of conditional priors: for others the sheet of labels is left out."""
        wrong = [value for value in self.guidance if value != 1]
        if wrong and params.value("prior.conditional") and not params.guidable:
            yield (
                f"extensions.variations.guidance: must be 1 alone while prior.label_dropout is 0, got {wrong[0]:g}; raise "
                "prior.label_dropout"
            )


class Seen(NamedTuple):
    """Images in the three ways in which they are compared."""

    pixels: Pixels
    codes: Int[np.ndarray, "n t"]
    features: Float[np.ndarray, "n f"]

    def rolled(self) -> Seen:
        """Each image's place taken by the next image."""
        return Seen(*(np.roll(part, 1, axis=0) for part in self))


def measure(config: Config, run: Run) -> Report:
    """Mean distances of the variations to their originals by fraction; beside them that of another test image.
    `codes_changed` is a fraction of all codes (below what was drawn: some are drawn as they were), `feature_distance`
    Euclidean, by the network that scores. `conditional` is 0 where the prior knows no labels: the sheet of what it draws
    of each label is left out then."""
    tokenizer, prior, extractor, device = run.tokenizer(), run.prior(), run.scorer(), run.runtime.device

    def seen(codes: Int[Tensor, "n t"], pixels: Pixels | None = None) -> Seen:
        pixels = arrays.decoded(tokenizer, codes, config.batch_size) if pixels is None else pixels
        return Seen(pixels, codes.cpu().numpy(), arrays.mapped(extractor, pixels, config.batch_size, device))

    chosen = arrays.evenly(len(run.images("test")), config.images)
    codes = torch.from_numpy(run.codes("test")[chosen].astype(np.int64)).to(device)
    labels = torch.from_numpy(run.required_labels("test")[chosen]).to(device) if prior.classes else None
    n, t = codes.shape
    order, fractions = places(n, t, run.params.seed).to(device), sorted(set(config.fractions))
    original = seen(codes, np.asarray(run.images("test")[chosen]))
    found = {f"fraction_{100 * fraction:g}": seen(varied(prior, codes, order, fraction, labels, config.batch_size, run.params.seed))
             for fraction in fractions}  # fmt: skip
    rows = {name: compared(original, other) for name, other in [*found.items(), (OTHER, original.rolled())]}
    table = pd.DataFrame([{"variation": name, **row} for name, row in rows.items()])
    table.insert(1, "fraction", [*fractions, 1.0])
    rebuilt = arrays.decoded(tokenizer, codes, config.batch_size)
    drawings: dict[str, Pixels | Figure] = {
        "variations": _sheet([original.pixels, rebuilt, *(each.pixels for each in found.values())], config.shown),
        "distances": _curve(table),
    }
    if prior.classes:
        drawings["labels"] = _labels(config, run, prior, tokenizer)
    else:
        print("variations: the prior is not conditional, so there is no sheet of labels", flush=True)
    metrics = {column: dict(zip(table["variation"], table[column], strict=True)) for column in rows[OTHER]}
    return Report({"conditional": int(prior.classes > 0), **metrics}, {"variations": table}, drawings)


def places(n: int, t: int, seed: int) -> Int[Tensor, "n t"]:
    """For each image, the order in which its positions are given up: 0 is the first."""
    return torch.from_numpy(numpy_generator(seed, "variations", "places").random((n, t)).argsort(1).argsort(1))


def varied(
    prior: Prior,
    codes: Int[Tensor, "n t"],
    order: Int[Tensor, "n t"],
    fraction: float,
    labels: Int[Tensor, " n"] | None,
    batch_size: int,
    seed: int,
) -> Int[Tensor, "n t"]:
    """The codes with the first `fraction` of the positions drawn anew; the same random numbers whatever the fraction."""
    kept, rng = order >= round(fraction * codes.shape[1]), partial(generator, seed, "variations")
    return sample_batches(prior, len(codes), batch_size, rng, Sampling(), labels, codes, kept)


def compared(original: Seen, other: Seen) -> dict[str, float]:
    """`psnr_db` is of the mean squared error over images, `ssim` the mean with uniform windows (`scores`)."""
    return {
        "codes_changed": float((original.codes != other.codes).mean()),
        "feature_distance": float(np.linalg.norm(original.features - other.features, axis=1).mean()),
        "psnr_db": float(scores.psnr_db(scores.mse(original.pixels, other.pixels).mean())),
        "ssim": float(scores.ssim(original.pixels, other.pixels).mean()),
    }


def of_labels(
    prior: Prior, labels: list[int], count: int, guidance: float, batch_size: int, seed: int, device: Device
) -> Int[Tensor, "n t"]:
    """`count` samples of each label, label by label; the same random numbers whatever the guidance."""
    given = torch.tensor(labels, device=device).repeat_interleave(count)
    rng = partial(generator, seed, "variations", "labels")
    return sample_batches(prior, len(given), batch_size, rng, Sampling(guidance=guidance), given)


# pictures


def _sheet(columns: list[Pixels], shown: int) -> UInt8[np.ndarray, "height width c"]:
    """A row an image: original, reconstruction, variations from the smallest fraction to the largest."""
    chosen = arrays.evenly(len(columns[0]), shown)
    rows = np.stack([column[chosen] for column in columns], axis=1)
    return pictures.sheet(rows.reshape(-1, *rows.shape[2:]), len(columns))


def _curve(table: pd.DataFrame) -> Figure:
    """Over the fraction of codes drawn; dashed, another image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    names = {
        "codes_changed": "fraction of codes changed",
        "feature_distance": "distance to the original, features",
        "psnr_db": "PSNR to the original, dB",
    }
    variations, other = table.iloc[:-1], table.iloc[-1]
    for axis, (column, name) in zip(figure.subplots(1, 3), names.items(), strict=True):
        axis.plot(variations["fraction"], variations[column], marker="o")
        axis.axhline(other[column], color="grey", linestyle="--", linewidth=1, label="another image")
        axis.set(xlabel="fraction of codes drawn anew", ylabel=name, xlim=(-0.02, 1.02))
        axis.set_ylim(bottom=None if column == "psnr_db" else 0)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _labels(config: Config, run: Run, prior: Prior, tokenizer: Tokenizer) -> Figure:
    """A row a label, a block of columns a guidance."""
    from matplotlib.figure import Figure

    chosen, blocks = arrays.evenly(prior.classes, config.labels).tolist(), sorted(set(config.guidance))
    figure = Figure(
        figsize=(1.6 + 0.62 * config.per_label * len(blocks), 0.4 + 0.66 * len(chosen)), layout="constrained"
    )
    axes = figure.subplots(len(chosen), len(blocks), squeeze=False)
    for guidance, column in zip(blocks, axes.T, strict=True):
        sampled = of_labels(
            prior, chosen, config.per_label, guidance, config.batch_size, run.params.seed, run.runtime.device
        )
        pixels = arrays.decoded(tokenizer, sampled, config.batch_size)
        for axis, label, row in zip(column, chosen, np.split(pixels, len(chosen)), strict=True):
            sheet = pictures.sheet(row, config.per_label)
            axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if guidance == blocks[0]:
                axis.set_ylabel(run.label_names[label], rotation=0, ha="right", va="center", fontsize=8)
        column[0].set_title(f"guidance {guidance:g}", fontsize=9)
    return figure
