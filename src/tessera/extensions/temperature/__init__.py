"""What the temperature of sampling trades: likely, alike samples below 1, varied and less likely ones above.

Samples of each temperature against as many test images, in the feature space of the network that scores: Fréchet distance
and KID (`features.frechet`), precision and recall (`features.neighbours`), and how many samples are distinct. Beside them training
images in the place of samples: only the comparison with those says anything. Codes are drawn from all of logits /
temperature, without truncation or guidance, at every temperature from the same random numbers. A conditional prior is given
the frequencies of the training labels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera.autoregression.sampling import sample_batches
from tessera.core.contracts import Device, Prior, Report, Sampling
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, generator, numpy_generator
from tessera.features.frechet import distance, kid
from tessera.features.neighbours import fewer, overlap, subset
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = UInt8[np.ndarray, "n h w c"]
REAL = "train"  # what stands beside the temperatures: training images


class Config(Strict):
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="that logits are divided by", examples=[[0.5, 1.0]]
    )
    count: int = Field(ge=4, description="samples of each, and test images; fewer where there are fewer test images",
                       examples=[6])  # fmt: skip
    batch_size: int = Field(ge=1, description="samples drawn at once", examples=[4])
    shown: int = Field(ge=1, description="samples of each in the picture", examples=[3])
    neighbours: int = Field(ge=1, le=100, description="k of precision and recall: how far a ball reaches; at most half of a set",
                            examples=[2])  # fmt: skip
    kid_subsets: int = Field(ge=2, description="random subsets that KID is averaged over", examples=[3])
    kid_subset_size: int = Field(ge=2, description="images of each; at most half of a set", examples=[3])


def measure(config: Config, run: Run) -> Report:
    """By measure and temperature (`at_0_5` is 0.5). `distinct` is the share of different code sequences among the samples,
    1 where none comes twice. `best` is the temperature of the smallest Fréchet distance."""
    tokenizer, prior, extractor, device = run.tokenizer(), run.prior(), run.scorer(), run.runtime.device
    seed, smallest = run.params.seed, min(len(run.images("test")), len(run.images("train")))
    count = fewer("extensions.temperature.count", config.count, smallest, smallest)
    config = config.model_copy(update={
        "neighbours": fewer("extensions.temperature.neighbours", config.neighbours, (count - 1) // 2, count),
        "kid_subset_size": fewer("extensions.temperature.kid_subset_size", config.kid_subset_size, count // 2, count),
    })  # fmt: skip
    labels = (
        numpy_generator(seed, "temperature", "labels").choice(run.required_labels("train"), count)
        if prior.classes
        else None
    )

    def features(pixels: Pixels) -> Float[np.ndarray, "n f"]:
        return arrays.mapped(extractor, pixels, config.batch_size, device)

    def some(split: str) -> Pixels:
        rng = numpy_generator(seed, "temperature", split)
        return run.images(split)[subset(rng, len(run.images(split)), count)]

    real, sheets, rows = features(some("test")), {}, []
    bar = run.runtime.progress(total=len(config.temperatures), desc="temperature")
    for temperature in sorted(set(config.temperatures)):
        codes = sampled_codes(prior, count, Sampling(temperature=temperature), labels, config.batch_size, seed, device)
        pixels = arrays.decoded(tokenizer, codes, config.batch_size)
        sheets[temperature] = pictures.sheet(pixels[: config.shown], config.shown)
        rows.append({"of": f"at_{temperature:g}".replace(".", "_"), "temperature": temperature,
                     **compared(real, features(pixels), config, seed), "distinct": distinct(codes)})  # fmt: skip
        bar.update()
    bar.close()
    rows.append({"of": REAL, **compared(real, features(some("train")), config, seed)})
    names = {"distance": extractor.distance, "kid": _kid(extractor.distance)}
    table = pd.DataFrame(rows).rename(columns=names)
    values = table.set_index("of")[[*names.values(), "precision", "recall", "distinct"]]
    best = table["temperature"][table[extractor.distance][: len(sheets)].idxmin()]
    metrics = {name: values[name].dropna().to_dict() for name in values}
    drawings = {"samples": _samples(sheets), "curves": _curves(table, *names.values())}
    return Report({"images": count, "best": best, **metrics}, {"temperatures": table}, drawings)


def sampled_codes(
    prior: Prior,
    count: int,
    sampling: Sampling,
    labels: Int[np.ndarray, " n"] | None,
    batch_size: int,
    seed: int,
    device: Device,
) -> Int[Tensor, "n t"]:
    """Codes whose random numbers depend on (seed, batch) and not on the temperature."""
    given = None if labels is None else torch.from_numpy(labels).to(device)
    return sample_batches(prior, count, batch_size, partial(generator, seed, "temperature"), sampling, given)


def distinct(codes: Int[Tensor, "n t"]) -> float:
    return len(codes.unique(dim=0)) / len(codes)


def compared(
    real: Float[np.ndarray, "n f"], fake: Float[np.ndarray, "n f"], config: Config, seed: int
) -> dict[str, float]:
    found = overlap(real, fake, config.neighbours)
    # the same subsets at every temperature
    kernel = kid(
        fake, real, subsets=config.kid_subsets, size=config.kid_subset_size, seed=derive(seed, "temperature", "kid")
    )
    return {
        "distance": distance(fake, real),
        "kid": kernel.mean,
        "precision": found.precision,
        "recall": found.recall,
    }


def _kid(name: str) -> str:
    """KID is called so on Inception's features, and after the features elsewhere."""
    return "kid" if name == "fid" else f"kid_{name.removeprefix('fd_')}"


# pictures


def _samples(sheets: dict[float, UInt8[np.ndarray, "height width c"]]) -> Figure:
    """The first samples of each temperature, as they came; a column has the same random numbers."""
    from matplotlib.figure import Figure

    height, width = next(iter(sheets.values())).shape[:2]
    figure = Figure(figsize=(0.6 + width / 100, len(sheets) * height / 100))
    for axis, (temperature, sheet) in zip(
        figure.subplots(len(sheets), 1, squeeze=False)[:, 0], sheets.items(), strict=True
    ):
        axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(f"{temperature:g}", rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    return figure


def _curves(table: pd.DataFrame, distance_name: str, kid_name: str) -> Figure:
    """Over the temperature; dashed, training images in the place of samples."""
    from matplotlib.figure import Figure

    panels = {distance_name: [distance_name], kid_name: [kid_name], "share": ["precision", "recall", "distinct"]}
    sampled, real = table[table["of"] != REAL], table[table["of"] == REAL].iloc[0]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axis, (title, columns) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for index, column in enumerate(columns):
            axis.plot(sampled["temperature"], sampled[column], marker="o", color=f"C{index}", label=column)
            if real[column] == real[column]:
                label = "training images" if index == 0 else None
                axis.axhline(real[column], color=f"C{index}", linestyle="--", linewidth=1, label=label)
        axis.set(xlabel="temperature", ylabel=title)
        axis.set_ylim(bottom=None if title == kid_name else 0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
