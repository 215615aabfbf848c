"""Variations of an image: the prior samples a fraction of its codes anew. A prior that is told labels also samples each label.

The seed chooses the codes to sample. Those of a smaller fraction are among those of a larger one, and every position keeps its
random number, so an image changes gradually. Fraction 0 is the reconstruction, fraction 1 a new sample. A prior in raster order
samples each code given the codes before it, so codes kept further on have no effect (the methods `gibbs` and `masked` of the
extension `inpainting` use them). A conditional prior is told of the image what it is told in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera import conditions, scores
from tessera.autoregression.sampling import sample_batches
from tessera.core.contracts import Prior, Report, Sampling, Tokenizer
from tessera.core.params import Params, Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = UInt8[np.ndarray, "n h w c"]
OTHER = "another_image"
LABEL = "label"  # the condition that the sheet is of


class Config(Strict):
    images: int = Field(ge=2, description="test images, evenly spread over the split", examples=[3])
    shown: int = Field(ge=1, description="of these, images in the picture, one per row", examples=[2])
    batch_size: int = Field(ge=1, description="images sampled at once", examples=[2])
    fractions: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1, description="fractions of an image's codes that are sampled anew", examples=[[0.5, 1.0]]
    )
    labels: int = Field(ge=1, description="most labels in the sheet of labels, evenly spread over all", examples=[2])
    per_label: int = Field(ge=1, description="samples of each of these labels", examples=[2])
    guidance: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="of the sheet of labels, one block each: 1 is p(codes | label), 0 ignores the label, above 1 "
        "exaggerates it; values other than 1 need a prior with a dropout of the label", examples=[[1.0, 2.0]],
    )  # fmt: skip

    def rule(self, params: Params) -> Iterator[str]:
        """Holds only for priors that are told the label: others have no sheet of labels."""
        wrong = [value for value in self.guidance if value != 1]
        if wrong and "label" in params.conditions and not params.guidable("label"):
            yield (
                f"extensions.variations.guidance: must be 1 alone while prior.conditions.label is 0, got {wrong[0]:g}; raise "
                "prior.conditions.label"
            )


class Seen(NamedTuple):
    """Images as pixels, codes and features, which are all compared."""

    pixels: Pixels
    codes: Int[np.ndarray, "n t"]
    features: Float[np.ndarray, "n f"]

    def rolled(self) -> Seen:
        """Each image replaced by another one, by a cyclic shift."""
        return Seen(*(np.roll(part, 1, axis=0) for part in self))


def measure(config: Config, run: Run) -> Report:
    """Mean distances of the variations to their originals by fraction, and those of another test image for comparison.
    `codes_changed` is a fraction of all codes; it is below the sampled fraction, since some codes are sampled as they were.
    `feature_distance` is Euclidean, by the network that scores. `conditional` is 0 if the prior is told no labels; the sheet
    of labels is then left out."""
    tokenizer, prior, extractor, device = run.tokenizer(), run.prior(), run.scorer(), run.runtime.device

    def seen(codes: Int[Tensor, "n t"], pixels: Pixels | None = None) -> Seen:
        pixels = arrays.decoded(tokenizer, codes, config.batch_size) if pixels is None else pixels
        return Seen(pixels, codes.cpu().numpy(), arrays.mapped(extractor, pixels, config.batch_size, device))

    chosen = arrays.evenly(len(run.images("test")), config.images)
    codes = torch.from_numpy(run.codes("test")[chosen].astype(np.int64)).to(device)
    told = conditions.of_hidden(run, prior.conditioning, "test")
    given = None if told is None else torch.from_numpy(told[chosen]).to(device)
    n, t = codes.shape
    order, fractions = places(n, t, run.params.seed).to(device), sorted(set(config.fractions))
    original = seen(codes, np.asarray(run.images("test")[chosen]))
    found = {f"fraction_{100 * fraction:g}": seen(varied(prior, codes, order, fraction, given, config.batch_size, run.params.seed))
             for fraction in fractions}  # fmt: skip
    rows = {name: compared(original, other) for name, other in [*found.items(), (OTHER, original.rolled())]}
    table = pd.DataFrame([{"variation": name, **row} for name, row in rows.items()])
    table.insert(1, "fraction", [*fractions, 1.0])
    rebuilt = arrays.decoded(tokenizer, codes, config.batch_size)
    drawings: dict[str, Pixels | Figure] = {
        "variations": _sheet([original.pixels, rebuilt, *(each.pixels for each in found.values())], config.shown),
        "distances": _curve(table),
    }
    if LABEL in prior.conditioning:
        drawings["labels"] = _labels(config, run, prior, tokenizer)
    else:
        print("variations: the prior is told no labels, so there is no sheet of them", flush=True)
    metrics = {column: dict(zip(table["variation"], table[column], strict=True)) for column in rows[OTHER]}
    return Report({"conditional": int(LABEL in prior.conditioning), **metrics}, {"variations": table}, drawings)


def places(n: int, t: int, seed: int) -> Int[Tensor, "n t"]:
    """For each image, the order in which its positions are sampled anew; 0 is the first."""
    return torch.from_numpy(numpy_generator(seed, "variations", "places").random((n, t)).argsort(1).argsort(1))


def varied(
    prior: Prior,
    codes: Int[Tensor, "n t"],
    order: Int[Tensor, "n t"],
    fraction: float,
    given: Int[Tensor, "n c"] | None,
    batch_size: int,
    seed: int,
) -> Int[Tensor, "n t"]:
    """The codes with the first `fraction` of the positions sampled anew. Random numbers do not depend on the fraction."""
    kept, rng = order >= round(fraction * codes.shape[1]), partial(generator, seed, "variations")
    return sample_batches(prior, len(codes), batch_size, rng, Sampling(), given, codes, kept)


def compared(original: Seen, other: Seen) -> dict[str, float]:
    """`psnr_db` is of the mean squared error over images, `ssim` the mean with uniform windows (`scores`)."""
    return {
        "codes_changed": float((original.codes != other.codes).mean()),
        "feature_distance": float(np.linalg.norm(original.features - other.features, axis=1).mean()),
        "psnr_db": float(scores.psnr_db(scores.mse(original.pixels, other.pixels).mean())),
        "ssim": float(scores.ssim(original.pixels, other.pixels).mean()),
    }


def of_labels(
    run: Run, prior: Prior, labels: Sequence[str], count: int, batch_size: int, guidance: float
) -> Int[Tensor, "n t"]:
    """`count` samples of each label, label by label, told otherwise of random training images with that label. Random numbers do
    not depend on the guidance."""
    seed, parts = run.params.seed, []
    for label in labels:
        rows = numpy_generator(seed, "variations", "conditions", label)
        told = conditions.as_in_training(run, prior.conditioning, count, rows, {LABEL: label})
        assert told is not None, "the prior is told the label"
        parts.append(told)
    given = torch.from_numpy(np.concatenate(parts)).to(run.runtime.device)
    rng = partial(generator, seed, "variations", "labels")
    return sample_batches(prior, len(given), batch_size, rng, Sampling(guidance={LABEL: guidance}), given)


# pictures


def _sheet(columns: list[Pixels], shown: int) -> UInt8[np.ndarray, "height width c"]:
    """One row per image: original, reconstruction, variations from the smallest fraction to the largest."""
    chosen = arrays.evenly(len(columns[0]), shown)
    rows = np.stack([column[chosen] for column in columns], axis=1)
    return pictures.sheet(rows.reshape(-1, *rows.shape[2:]), len(columns))


def _curve(table: pd.DataFrame) -> Figure:
    """Distances over the fraction of sampled codes; dashed: another image."""
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
        axis.set(xlabel="fraction of codes sampled anew", ylabel=name, xlim=(-0.02, 1.02))
        axis.set_ylim(bottom=None if column == "psnr_db" else 0)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _labels(config: Config, run: Run, prior: Prior, tokenizer: Tokenizer) -> Figure:
    """One row per label, one block of columns per guidance."""
    from matplotlib.figure import Figure

    names, blocks = prior.conditioning[LABEL].names, sorted(set(config.guidance))
    chosen = [names[i] for i in arrays.evenly(len(names), config.labels)]
    figure = Figure(
        figsize=(1.6 + 0.62 * config.per_label * len(blocks), 0.4 + 0.66 * len(chosen)), layout="constrained"
    )
    axes = figure.subplots(len(chosen), len(blocks), squeeze=False)
    for guidance, column in zip(blocks, axes.T, strict=True):
        sampled = of_labels(run, prior, chosen, config.per_label, config.batch_size, guidance)
        pixels = arrays.decoded(tokenizer, sampled, config.batch_size)
        for axis, label, row in zip(column, chosen, np.split(pixels, len(chosen)), strict=True):
            sheet = pictures.sheet(row, config.per_label)
            axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if guidance == blocks[0]:
                axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        column[0].set_title(f"guidance {guidance:g}", fontsize=9)
    return figure
