"""Pictures of held-out images and compositions beside their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.evaluation.words.config import ORIGINALS, SAMPLES
from tessera.evaluation.words.held_out import Images, of_others
from tessera.evaluation.words.samples import Samples
from tessera.features.neighbours import subset
from tessera.images import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8  # samples of each concept in a picture, at most


def some(held_out: Images, count: int, seed: int) -> Int[np.ndarray, " c"]:
    """Held-out images of `count` concepts, chosen by the seed."""
    return _of_each_concept(numpy_generator(seed, "words", "shown").permutation(len(held_out.rows)), held_out, count)


def worst(judged: Mapping[str, pd.DataFrame], held_out: Images, count: int) -> Int[np.ndarray, " c"]:
    """Held-out images of `count` concepts, whose samples have their concept at the last place, the last first; only of those whose
    original has it among the first five: of others the judge cannot know."""
    order = np.argsort(-judged[SAMPLES]["place"].to_numpy(), kind="stable")
    return _of_each_concept(order[judged[ORIGINALS]["top_5"].to_numpy()[order] == 1], held_out, count)


def _of_each_concept(order: Int[np.ndarray, " n"], held_out: Images, count: int) -> Int[np.ndarray, " c"]:
    """The first image of each concept, `count` at most."""
    _, first = np.unique(held_out.concepts[order], return_index=True)
    return order[np.sort(first)[:count]]


def picture(rows: Int[np.ndarray, " c"], held_out: Images, train: Images, samples: Samples, run: Run) -> Figure:
    """A row for each held-out image: itself; training drawings of the name, or else of the concept, one by each other vendor; its
    samples, unselected."""
    originals, drawings = run.images("test"), run.images("train")
    vendors, shown = np.unique(train.vendors), samples.pixels[:, :SHOWN]
    lines = []
    for at in rows:
        others = of_others(held_out, at, train)
        strip = np.full((len(vendors) - 1, *originals.shape[1:]), 255, np.uint8)
        for column, vendor in enumerate(vendor for vendor in vendors if vendor != held_out.vendors[at]):
            if len(own := others[train.vendors[others] == vendor]):
                strip[column] = drawings[train.rows[own[0]]]
        lines.append((np.asarray(originals[held_out.rows[at]])[None], strip, shown[at]))
    titles = [f"{held_out.names[at]}\n{held_out.vendors[at]}" for at in rows]
    return _figure(titles, {"original": 1, "other vendors": len(vendors) - 1, "samples": shown.shape[1]}, lines)


def of_names(
    names: Sequence[str], vendors: Sequence[str], pixels: UInt8[np.ndarray, "n v h w c"], count: int, seed: int
) -> Figure:
    """A row for each of `count` compositions, chosen by the seed: a sample for every vendor, in their order."""
    rows = subset(numpy_generator(seed, "words", "compositions"), len(names), count)
    return _figure([names[at] for at in rows], {", ".join(vendors): len(vendors)}, [(pixels[at],) for at in rows])


def _figure(
    titles: Sequence[str], columns: Mapping[str, int], lines: Sequence[tuple[UInt8[np.ndarray, "n h w c"], ...]]
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.62 * sum(columns.values()), 0.4 + 0.66 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), len(columns), width_ratios=list(columns.values()), squeeze=False)
    for title, strips, row in zip(titles, lines, axes, strict=True):
        for axis, strip in zip(row, strips, strict=True):
            axis.imshow(
                pictures.sheet(strip, len(strip)).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    return figure
