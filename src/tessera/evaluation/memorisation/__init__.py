"""Are samples copies of training images? Their distance to the nearest one against that of test images. No torch.

A test image is as near to the training images as an unseen one ought to be. In three spaces: the scorer's features, where all
images passed the tokenizer, also those of test and training; pixels (RMSE in grey levels, 0 to 255) of the images themselves; codes
(fraction of an image's codes that differ, 0 to 1), where the augmented copies that the prior is trained on are training images
too. `median_ratio` is the median distance of the samples over that of the test images: 0 for copies, around 1 for new
samples, more for samples unlike anything. `near_fraction` is the fraction of samples no farther than the `quantile` of the test
images' distances, and around `quantile` for new samples. Samples of a group are compared with test images of that group, and with
all training images.

In features only `features.decoded` training images are looked at, evenly spaced, since only they are seen as decoded; of a larger
split a copy of another image is not found there. Distances of test images are to the same ones, so both figures still compare
like with like. Pixels and codes look at all. Column `references` has the number, and the log says where it is not all. There at
most `COMPARED` test images, their reconstructions and copies are compared, evenly spaced: with all of a large data set, the time
would grow as the square of the number of images.

Pixels do not find copies: what a tokenizer loses keeps a decoded one as far from its training image as many a test image is.
Row `copies` shows it: training images as a prior that recites their codes would sample them. Blurred images are nearer in
pixels without being copies; reconstructions of the test images, which cannot be, show how much.

A prior that is told a neighbour (`prior.conditions.neighbour`) borrows from the training image that a sample is drawn for, its
neighbour, and `neighbours` says how much. `equal_codes` is the mean fraction of a sample's codes that are its neighbour's at the
same places, `equal_codes_train` that of training images and all their neighbours, `equal_codes_nearest` that of training images
and the nearest of these. `distance_ratio` is the mean distance in features of samples to their neighbours over that of training
images to theirs: around 1 where samples borrow as much as training images have in common with their neighbours, 0 for copies.
Picture `neighbours` shows samples over their neighbours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from pydantic import Field

from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.evaluation.memorisation import neighbours
from tessera.features.neighbours import nearest
from tessera.images import pictures
from tessera.images.arrays import evenly
from tessera.near_copies import near_fraction, nearest_codes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF = ("samples", "baseline", "reconstruction", "copies")  # those of them that a space has
COLUMNS, BINS = 8, 40
COMPARED = 5000  # most images of the test split whose nearest training images in pixels and codes are searched
SPACES, FIGURES = ("features", "pixels", "codes"), ("median_ratio", "near_fraction")
METRICS = (
    *(f"*.{space}.{name}" for space in SPACES for name in FIGURES),
    *(f"*.neighbours.{name}" for name in neighbours.FIGURES),
)


class Config(Strict):
    quantile: float = Field(gt=0, lt=1, description="of the test images' distances; a sample no farther is suspiciously near",
                            examples=[0.25])  # fmt: skip
    pairs: int = Field(ge=1, le=256, description="samples nearest to a training image that are shown", examples=[4])


class Far(NamedTuple):
    """Distance of each image of a set to the nearest training image [N], indices of the images of each group, and how many training
    images, augmented copies included, were looked at."""

    distance: Float[np.ndarray, " n"]
    groups: dict[str, np.ndarray]
    references: int


def measure(config: Config, run: Run) -> Report:
    """Metrics of the samples, of each group. Table `compared` has the controls' too, and in `test_near_fraction` what
    `near_fraction` is of the test images themselves: more than `quantile` where many distances are equal, as those of few codes
    are. A set without images of a group has no row there. Picture `pairs`: the samples nearest in feature space, over their
    nearest training images; like the histograms, of all images."""
    features, index = _in_features(run)
    spaces = dict(zip(SPACES, (features, _in_pixels(run), _in_codes(run)), strict=True))
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for group in [group for group, images in _unseen(run)[1].items() if len(images)]:
        own = {space: _compared(sets, group, config.quantile) for space, sets in spaces.items()}
        metrics[group] = {space: _metrics(own[space]) for space in spaces}
        rows += [{"group": group, "space": space, **row} for space in spaces for row in own[space]]
    width = {"codes": 1 / run.codes("test").shape[1]}
    histograms = [_histogram(sets, width.get(space, 0.0)).assign(space=space) for space, sets in spaces.items()]
    table = pd.concat(histograms, ignore_index=True)
    shown = closest(run.samples(), run.images("train"), index, features["samples"].distance, config.pairs)
    report = Report(
        metrics, {"distances": table, "compared": pd.DataFrame(rows)}, {"pairs": shown, "distances": _picture(table)}
    )
    told = neighbours.neighbours_of_samples(run)
    return report if told is None else _with_neighbours(report, config, run, told)


def _with_neighbours(report: Report, config: Config, run: Run, told: Int[np.ndarray, " n"]) -> Report:
    """The report, and in it how far the samples are from the training images that they were drawn for."""
    pairs = neighbours.pairs_of(run, told)
    rows = {group: list(neighbours.rows_of(pairs, group)) for group in report.metrics}
    metrics = {group: own | {"neighbours": neighbours.figures(rows[group])} for group, own in report.metrics.items()}
    table = pd.DataFrame([row for own in rows.values() for row in own])
    shown = neighbours.picture(run, told, config.pairs, COLUMNS)
    return Report(metrics, {**report.tables, "neighbours": table}, {**report.pictures, "neighbours": shown})


def _compared(sets: dict[str, Far], group: str, quantile: float) -> list[dict[str, Any]]:
    """A row of each set that has images of the group, but for the test images, which they are compared with."""
    far = {name: of.distance[of.groups[group]] for name, of in sets.items() if len(of.groups[group])}
    unseen = far.pop("test")
    test = {
        "test_median": float(np.median(unseen)),
        "test_near_fraction": compare(unseen, unseen, quantile)["near_fraction"],
    }
    return [
        {"of": name, "images": len(own), "references": sets[name].references, **test, **compare(own, unseen, quantile)}
        for name, own in far.items()
    ]


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the samples; empty where the group has none."""
    return next(({name: row[name] for name in FIGURES} for row in rows if row["of"] == "samples"), {})


def compare(distances: Float[np.ndarray, " n"], unseen: Float[np.ndarray, " m"], quantile: float) -> dict[str, float]:
    """`median_ratio` and `near_fraction` of distances to the training images, against those of unseen images.

    The ratio is 1 where half of the unseen images are copies of training images too: nothing can be said then.
    """
    ours, theirs = float(np.median(distances)), float(np.median(unseen))
    return {
        "median_ratio": ours / theirs if theirs else 1.0,
        "near_fraction": near_fraction(distances, unseen, quantile),
    }


def closest(
    samples: UInt8[np.ndarray, "n h w c"],
    train: UInt8[np.ndarray, "m h w c"],
    index: Int[np.ndarray, " n"],
    distance: Float[np.ndarray, " n"],
    count: int,
) -> UInt8[np.ndarray, "height width c"]:
    """The `count` samples of least distance, nearest first, over their nearest training images; in whole rows."""
    columns = min(COLUMNS, count, len(samples))
    order = np.argsort(distance, kind="stable")[:count]
    order = order[: len(order) // columns * columns]
    return pictures.rows_of_pairs(np.asarray(samples[order]), np.asarray(train[index[order]]), columns)


def _in_features(run: Run) -> tuple[dict[str, Far], Int[np.ndarray, " n"]]:
    """Distance to the nearest of the training images that were seen as decoded, and which training image is nearest to each sample.
    All sets passed the decoder."""
    decoded, images = run.features("reconstruction_train"), len(run.images("train"))
    if len(decoded) < images:
        print(f"evaluation.memorisation: in features {len(decoded)} of {images} training images are looked at, and copies of "
              "others are not found; raise features.decoded to look at more", flush=True)  # fmt: skip
    sets = {"test": run.features("reconstruction"), **{of: run.features(of) for of in ("samples", "baseline")}}
    found = {name: nearest(points, decoded) for name, points in sets.items()}
    groups = {"test": run.groups("reconstruction"), **{of: run.groups(of) for of in ("samples", "baseline")}}
    far = {name: Far(distance, groups[name], len(decoded)) for name, (_, distance) in found.items()}
    some = evenly(len(decoded), len(sets["test"]))
    groups_of_copies = _of_some(run.groups("reconstruction_train"), some)
    far["copies"] = Far(nearest(decoded[some], decoded)[1], groups_of_copies, len(decoded))
    originals = evenly(images, len(decoded))
    return far, originals[found["samples"][0]]


def _in_pixels(run: Run) -> dict[str, Far]:
    """RMSE in grey levels to the nearest training image."""
    train, recited = run.images("train"), run.images("train", "reconstruction")
    unseen, groups = _unseen(run)
    some = evenly(len(recited), len(unseen))
    sets = {
        "test": (run.images("test")[unseen], groups),
        **{of: (run.samples(of), run.groups(of)) for of in ("samples", "baseline")},
        "reconstruction": (run.images("test", "reconstruction")[unseen], groups),
        "copies": (recited[some], _of_some(run.groups("train"), some)),
    }
    return {
        name: Far(nearest(_flat(pixels), _flat(train))[1] * train[0].size ** -0.5, groups, len(train))
        for name, (pixels, groups) in sets.items()
    }


def _in_codes(run: Run) -> dict[str, Far]:
    """Fraction of the codes, of all grids together, that differ from the nearest training image's or augmented copy's.
    Reconstructions have the codes of the test images: no row of their own."""
    train, augmented = run.codes("train"), run.augmented_codes()
    unseen, groups = _unseen(run)
    some = evenly(len(train), len(unseen))
    sets = {
        "test": (run.codes("test")[unseen], groups),
        **{of: (run.samples(of, "codes"), run.groups(of)) for of in ("samples", "baseline")},
        "copies": (train[some], _of_some(run.groups("train"), some)),
    }
    references = len(train) + sum(map(len, augmented))
    return {
        name: Far(nearest_codes(codes, train, *augmented), groups, references) for name, (codes, groups) in sets.items()
    }


def _unseen(run: Run) -> tuple[Int[np.ndarray, " n"], dict[str, np.ndarray]]:
    """Indices of the test images that are compared in pixels and codes, and of these the images of each group."""
    members = run.groups("test")
    unseen = members["all"][evenly(len(members["all"]), COMPARED)]
    return unseen, _of_some(members, unseen)


def _of_some(groups: dict[str, np.ndarray], some: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """Groups of some images, by their place among these."""
    return {name: np.flatnonzero(np.isin(some, members)) for name, members in groups.items()}


def _flat(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n f"]:
    return pixels.reshape(len(pixels), -1)


def _histogram(sets: dict[str, Far], width: float) -> pd.DataFrame:
    """Fraction of each set by distance, in bins that all sets have in common; where distances are multiples of `width`, each bin
    holds as many of them."""
    far = {name: of.distance for name, of in sets.items()}
    values = np.concatenate(list(far.values()))
    edges = np.histogram_bin_edges(values, BINS)
    if width:
        each = math.ceil((values.max() / width + 1) / BINS)
        edges = width * (np.arange(0, values.max() / width + each + 0.5, each) - 0.5)
    fractions = {name: np.histogram(distances, edges)[0] / len(distances) for name, distances in far.items()}
    return pd.DataFrame({"distance": (edges[:-1] + edges[1:]) / 2, **fractions})


def _picture(table: pd.DataFrame) -> Figure:
    """Samples left of the test images are nearer to training images than unseen images are. Copies of codes, all at 0, may
    leave the picture at its top."""
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = dict(zip(["test", *OF], sns.color_palette(), strict=False))  # the same in every space
    figure = Figure(figsize=(15.6, 3.4), layout="constrained")
    for axis, (space, part) in zip(figure.subplots(1, 3), table.groupby("space", sort=False), strict=True):
        long = part.melt(["distance"], ["test", *OF], var_name="images", value_name="fraction").dropna()
        sns.lineplot(long, x="distance", y="fraction", hue="images", palette=colours, drawstyle="steps-mid", legend=False,
                     ax=axis)  # fmt: skip
        top = 1.1 * part.reindex(columns=["test", *OF[:3]]).max().max()
        unit = {"pixels": ", RMSE in grey levels", "codes": ", fraction of codes"}.get(space, "")
        axis.set(title=f"to the nearest training image, in {space}", xlabel=f"distance{unit}", ylim=(0, top))
    keys = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=keys, title="images", loc="outside right center")  # within, it would hide the copies
    return figure
