"""What temperature and top-p of sampling trade: likely, alike samples below 1, varied and less likely ones above.

Samples of each temperature and top-p against as many reconstructions of held-out images (of `val`, to choose by them), in the
feature space of the network that scores: Fréchet distance and KID (`features.frechet`, `features.kernel`), clipped coverage
(`features.clipped`), and how many samples are distinct. Beside them reconstructions of training images in the place of samples:
only the comparison with those says anything. Distances alone may prefer dull samples of low temperature; coverage falls there.
Codes are sampled from logits / temperature, from the nucleus of top-p, without guidance, every time from the same random numbers.
A conditional prior is told of random training images.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field
from torch import Tensor

from tessera import conditions
from tessera.autoregression.sampling import sample_batches
from tessera.core.contracts import Device, Prior, Report, Sampling
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator
from tessera.features import kernel
from tessera.features.clipped import coverage
from tessera.features.frechet import distance
from tessera.features.neighbours import fewer, subset
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = UInt8[np.ndarray, "n h w c"]
REAL = "train"  # what stands beside the temperatures: decoded training images
ENDS = ("", "_low", "_high")  # of the names of KID and its interval
FRACTIONS = ("clipped_coverage", "distinct")


class Config(Strict):
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="that logits are divided by", examples=[[0.5, 1.0]]
    )
    top_p: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1,
        description="of the nuclei that codes are drawn from, at each temperature; 1: all codes",
        examples=[[1.0]],
    )
    split: Literal["val", "test"] = Field(
        description="real images that samples are compared with; choose by val", examples=["test"]
    )
    count: int = Field(ge=4, description="samples of each, and images of the split; fewer where there are fewer",
                       examples=[6])  # fmt: skip
    batch_size: int = Field(ge=1, description="samples drawn at once", examples=[4])
    shown: int = Field(ge=1, description="samples of each in the picture", examples=[3])
    neighbours: int = Field(ge=1, le=100, description="k of clipped coverage: how far a ball reaches; at most half of "
                            "a set", examples=[1])  # fmt: skip
    resamplings: int = Field(ge=20, description="resamplings of the families, for the interval of KID", examples=[20])


class Points(NamedTuple):
    """Features of images, and the family of each."""

    features: Float[np.ndarray, "n f"]
    families: Shaped[np.ndarray, " n"]


def measure(config: Config, run: Run) -> Report:
    """By measure, temperature and top-p (`at_0_5` is 0.5, `at_0_5_top_p_0_9` with top-p 0.9). `distinct` is the fraction of
    different code sequences among the samples, 1 where none comes twice. `best` is the temperature of the smallest Fréchet
    distance, `best_top_p` its top-p."""
    tokenizer, prior, extractor, device = run.tokenizer(), run.prior(), run.scorer(), run.runtime.device
    seed, smallest = run.params.seed, min(len(run.codes(config.split)), len(run.codes("train")))
    count = fewer("extensions.temperature.count", config.count, smallest, smallest)
    k = fewer("extensions.temperature.neighbours", config.neighbours, (count - 1) // 2, count)
    config = config.model_copy(update={"neighbours": k})
    told = conditions.as_in_training(run, prior.conditioning, count, numpy_generator(seed, "temperature", "labels"))

    def features(pixels: Pixels) -> Float[np.ndarray, "n f"]:
        return arrays.mapped(extractor, pixels, config.batch_size, device)

    def decoded(split: str) -> Points:
        some = subset(numpy_generator(seed, "temperature", split), len(run.codes(split)), count)
        codes = run.codes(split)[some].astype(np.int64)
        pixels = arrays.decoded(tokenizer, codes, config.batch_size, device)
        return Points(features(pixels), run.table(split)["family"].to_numpy(str)[some])

    real, sheets, rows = decoded(config.split), {}, []
    ways = list(product(sorted(set(config.temperatures)), sorted(set(config.top_p), reverse=True)))
    alone = np.array([f"sample {index}" for index in range(count)])  # samples: each is its own family
    bar = run.runtime.progress(total=len(ways), desc="temperature")
    for temperature, top_p in ways:
        how = Sampling(temperature=temperature, top_p=top_p)
        codes = sampled_codes(prior, count, how, told, config.batch_size, seed, device)
        pixels = arrays.decoded(tokenizer, codes, config.batch_size)
        sheets[described(temperature, top_p, "{:g}", ", top-p {:g}")] = pictures.sheet(
            pixels[: config.shown], config.shown
        )
        of = described(temperature, top_p, "at_{:g}", "_top_p_{:g}").replace(".", "_")
        rows.append({"of": of, "temperature": temperature, "top_p": top_p,
                     **compared(real, Points(features(pixels), alone), config, seed), "distinct": distinct(codes)})  # fmt: skip
        bar.update()
    bar.close()
    rows.append({"of": REAL, **compared(real, decoded("train"), config, seed)})
    kid = kernel.name(extractor.distance)
    renamed = {"distance": extractor.distance, **{f"kid{end}": f"{kid}{end}" for end in ENDS}}
    table = pd.DataFrame(rows).rename(columns=renamed)
    values = table.set_index("of")[[extractor.distance, kid, *FRACTIONS]]
    best = table.loc[table[extractor.distance][: len(sheets)].idxmin()]
    metrics = {name: values[name].dropna().to_dict() for name in values}
    shown = {"samples": _samples(sheets), "curves": _curves(table, extractor.distance, kid)}
    chosen = {"best": best["temperature"], "best_top_p": best["top_p"]}
    return Report({"images": count, **chosen, **metrics}, {"temperatures": table}, shown)


def described(temperature: float, top_p: float, first: str, second: str) -> str:
    """Of a way to sample: `second` only where codes are truncated."""
    return first.format(temperature) + (second.format(top_p) if top_p < 1 else "")


def sampled_codes(
    prior: Prior,
    count: int,
    sampling: Sampling,
    told: Int[np.ndarray, "n c"] | None,
    batch_size: int,
    seed: int,
    device: Device,
) -> Int[Tensor, "n t"]:
    """Codes whose random numbers depend on (seed, batch) and not on the temperature."""
    given = None if told is None else torch.from_numpy(told).to(device)
    return sample_batches(prior, count, batch_size, partial(generator, seed, "temperature"), sampling, given)


def distinct(codes: Int[Tensor, "n t"]) -> float:
    return len(codes.unique(dim=0)) / len(codes)


def compared(real: Points, fake: Points, config: Config, seed: int) -> dict[str, float]:
    """The resampled families of the real images are the same at every temperature."""
    generator = numpy_generator(seed, "temperature", "kid")
    families = (real.families, fake.families)
    kid = kernel.kid(real.features, fake.features, families, config.resamplings, generator)
    return {
        "distance": distance(fake.features, real.features),
        **{f"kid{end}": value for end, value in zip(ENDS, kid, strict=True)},
        "clipped_coverage": coverage(real.features, fake.features, real.families, config.neighbours),
    }


# pictures


def _samples(sheets: dict[str, UInt8[np.ndarray, "height width c"]]) -> Figure:
    """The first samples of each temperature and top-p, as they came; a column has the same random numbers."""
    from matplotlib.figure import Figure

    height, width = next(iter(sheets.values())).shape[:2]
    figure = Figure(figsize=(0.3 + 0.08 * max(map(len, sheets)) + width / 100, len(sheets) * height / 100))
    for axis, (of, sheet) in zip(figure.subplots(len(sheets), 1, squeeze=False)[:, 0], sheets.items(), strict=True):
        axis.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(of, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    return figure


def _curves(table: pd.DataFrame, distance_name: str, kid_name: str) -> Figure:
    """Over the temperature, a line for each top-p, KID with its interval; dashed, decoded training images in place of samples."""
    from matplotlib.figure import Figure

    panels = {distance_name: [distance_name], kid_name: [kid_name], "fraction": [*FRACTIONS]}
    sampled, real = table[table["of"] != REAL], table[table["of"] == REAL].iloc[0]
    lines = dict(list(sampled.groupby("top_p", sort=False)))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axis, (title, columns) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for index, (column, (top_p, line)) in enumerate(product(columns, lines.items())):
            label = column + (f", top-p {top_p:g}" if len(lines) > 1 else "")
            axis.plot(line["temperature"], line[column], marker="o", color=f"C{index}", label=label)
            if column == kid_name:
                axis.fill_between(line["temperature"], line[f"{kid_name}_low"], line[f"{kid_name}_high"], alpha=0.2)
        for index, column in enumerate(columns):
            if real[column] == real[column]:
                name = "training images" if index == 0 else None
                axis.axhline(real[column], color=f"C{index * len(lines)}", linestyle="--", linewidth=1, label=name)
        axis.set(xlabel="temperature", ylabel=title)
        axis.set_ylim(bottom=None if title == kid_name else 0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
