"""Are samples copies of training images? Their distance to the nearest one against that of test images. No torch.

A test image is as near to the training images as an unseen one ought to be. In three spaces: the feature network's;
pixels (RMSE in grey levels, 0 to 255); codes (share of an image's codes that differ, 0 to 1), where the augmented copies
that the prior is trained on are training images too. `median_ratio` is the median distance of the samples over that of
the test images: 0 for copies, around 1 for new draws, more for samples unlike anything. `near_fraction` is the share of
samples no farther than the `quantile` of the test images' distances, and around `quantile` for new draws.

Codes alone find copies: what a tokenizer loses keeps a decoded one as far from its training image, in the other two, as
many a test image is. Row `copies` shows it: training images as a prior that recites their codes would draw them. Blurred
images are nearer in pixels without being copies; reconstructions of the test images, which cannot be, show how much.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from pydantic import Field

from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.features.neighbours import nearest, nearest_codes
from tessera.images import pictures
from tessera.images.arrays import evenly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF = ("samples", "baseline", "reconstruction", "copies")  # those of them that a space has
COLUMNS, BINS = 8, 40


class Config(Strict):
    quantile: float = Field(gt=0, lt=1, description="of the test images' distances; a sample no farther is suspiciously near",
                            examples=[0.25])  # fmt: skip
    pairs: int = Field(ge=1, le=256, description="samples nearest to a training image that are shown", examples=[4])


def measure(config: Config, run: Run) -> Report:
    """Metrics of the samples; table `compared` has the controls' too, and in `test_near_fraction` what `near_fraction` is of the
    test images themselves: more than `quantile` where many distances are equal, as those of few codes are. Picture
    `pairs`: the samples nearest in feature space, over their nearest training images."""
    features = {name: nearest(run.features(name), run.features("train")) for name in ("test", *OF[:3])}
    spaces = {
        "features": {name: distance for name, (_, distance) in features.items()},
        "pixels": _in_pixels(run),
        "codes": _in_codes(run),
    }
    metrics: dict[str, Any] = {}
    histograms, rows = [], []
    for space, far in spaces.items():
        unseen, controls = far["test"], [name for name in OF if name in far]
        compared = {name: compare(far[name], unseen, config.quantile) for name in controls}
        metrics[space] = compared["samples"]
        test = {
            "test_median": float(np.median(unseen)),
            "test_near_fraction": compare(unseen, unseen, config.quantile)["near_fraction"],
        }
        rows += [{"space": space, "of": name, **test, **values} for name, values in compared.items()]
        width = 1 / run.codes("test").shape[1] if space == "codes" else 0.0
        histograms.append(_histogram(far, width).assign(space=space))
    table = pd.concat(histograms, ignore_index=True)
    shown = closest(run.samples(), run.images("train"), *features["samples"], config.pairs)
    return Report(
        metrics, {"distances": table, "compared": pd.DataFrame(rows)}, {"pairs": shown, "distances": _picture(table)}
    )


def compare(distances: Float[np.ndarray, " n"], unseen: Float[np.ndarray, " m"], quantile: float) -> dict[str, float]:
    """`median_ratio` and `near_fraction` of distances to the training images, against those of unseen images.

    The ratio is 1 where half of the unseen images are copies of training images too: nothing can be said then.
    """
    ours, theirs = float(np.median(distances)), float(np.median(unseen))
    # <=, for copies are to be found too where some unseen images have a twin in the train split, at distance 0
    near = float((distances <= np.quantile(unseen, quantile)).mean())
    return {"median_ratio": ours / theirs if theirs else 1.0, "near_fraction": near}


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


def _in_pixels(run: Run) -> dict[str, Float[np.ndarray, " n"]]:
    """RMSE in grey levels to the nearest training image."""
    train, recited = run.images("train"), run.images("train", "reconstruction")
    sets = {
        "test": run.images("test"),
        **{of: run.samples(of) for of in ("samples", "baseline")},
        "reconstruction": run.images("test", "reconstruction"),
        "copies": recited[evenly(len(recited), len(run.images("test")))],
    }
    return {name: nearest(_flat(pixels), _flat(train))[1] * train[0].size ** -0.5 for name, pixels in sets.items()}


def _in_codes(run: Run) -> dict[str, Float[np.ndarray, " n"]]:
    """Share of the codes, of all grids together, that differ from the nearest training image's or augmented copy's.
    Reconstructions have the codes of the test images: no row of their own."""
    train, test = run.codes("train"), run.codes("test")
    sets = {
        "test": test,
        **{of: run.samples(of, "codes") for of in ("samples", "baseline")},
        "copies": train[evenly(len(train), len(test))],
    }
    return {name: nearest_codes(codes, train, *run.augmented_codes()) for name, codes in sets.items()}


def _flat(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n f"]:
    return pixels.reshape(len(pixels), -1)


def _histogram(far: dict[str, Float[np.ndarray, " n"]], width: float) -> pd.DataFrame:
    """Share of each set by distance, in bins that all sets have in common; where distances are multiples of `step`, each
    bin holds as many of them."""
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
        long = part.melt(["distance"], ["test", *OF], var_name="images", value_name="share").dropna()
        sns.lineplot(long, x="distance", y="share", hue="images", palette=colours, drawstyle="steps-mid", legend=False,
                     ax=axis)  # fmt: skip
        top = 1.1 * part[["test", *OF[:3]]].max().max()
        unit = {"pixels": ", RMSE in grey levels", "codes": ", share of codes"}.get(space, "")
        axis.set(title=f"to the nearest training image, in {space}", xlabel=f"distance{unit}", ylim=(0, top))
    keys = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=keys, title="images", loc="outside right center")  # within, it would hide the copies
    return figure
