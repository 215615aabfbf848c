"""Are samples copies of training images? Their distance to the nearest one against that of test images. No torch.

A test image is as near to the training images as an unseen one ought to be. In two spaces: the feature network's, and
pixels (RMSE in grey levels, 0 to 255). `median_ratio` is the median distance of the samples over that of the test
images: 0 for copies, around 1 for new draws, more for samples unlike anything. `near_share` is the share of samples
nearer than all but a `quantile` of the test images, and around `quantile` for new draws. Blurred images are nearer in
pixels without being copies: reconstructions of the test images, which cannot be, show how much of that is the
tokenizer's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field

from tessera.core import pictures
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.nn.neighbours import nearest

OF = ("samples", "baseline", "reconstruction")
COLUMNS, BINS = 8, 40


class Config(Strict):
    quantile: float = Field(gt=0, lt=1, description="share of the test images that counts as suspiciously near",
                            examples=[0.25])  # fmt: skip
    pairs: int = Field(ge=1, le=256, description="samples nearest to a training image that are shown", examples=[4])


def measure(config: Config, run: Run) -> Report:
    """Metrics of the samples, in feature space and in pixels; table `compared` has the baseline's and the
    reconstructions' too. Picture `pairs`: the samples nearest in feature space, over their nearest training images."""
    spaces = {
        "features": {name: run.features(name) for name in ("train", "test", *OF)},
        "pixels": {name: _flat(pixels) for name, pixels in _images(run).items()},
    }
    metrics: dict[str, Any] = {}
    histograms, rows, found = [], [], {}
    for space, points in spaces.items():
        found[space] = {name: nearest(points[name], points["train"]) for name in ("test", *OF)}
        far = {name: distance * _unit(space, points["train"]) for name, (_, distance) in found[space].items()}
        compared = {name: compare(far[name], far["test"], config.quantile) for name in OF}
        metrics[space] = compared["samples"]
        middle = float(np.median(far["test"]))
        rows += [{"space": space, "of": name, "test_median": middle, **values} for name, values in compared.items()]
        histograms.append(_histogram(far).assign(space=space))
    table = pd.concat(histograms, ignore_index=True)
    shown = closest(run.samples(), run.images("train"), *found["features"]["samples"], config.pairs)
    return Report(
        metrics, {"distances": table, "compared": pd.DataFrame(rows)}, {"pairs": shown, "distances": _picture(table)}
    )


def compare(distances: Float[np.ndarray, " n"], unseen: Float[np.ndarray, " m"], quantile: float) -> dict[str, float]:
    """`median_ratio` and `near_share` of distances to the training images, against those of unseen images.

    The ratio is 1 where half of the unseen images are copies of training images too: nothing can be said then.
    """
    ours, theirs = float(np.median(distances)), float(np.median(unseen))
    # <=, for copies are to be found too where some unseen images have a twin in the train split, at distance 0
    near = float((distances <= np.quantile(unseen, quantile)).mean())
    return {"median_ratio": ours / theirs if theirs else 1.0, "near_share": near}


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


def _images(run: Run) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    splits = {split: run.images(split) for split in ("train", "test")}
    drawn = {of: run.samples(of) for of in ("samples", "baseline")}
    return splits | drawn | {"reconstruction": run.images("test", "reconstruction")}


def _flat(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n f"]:
    return pixels.reshape(len(pixels), -1)


def _unit(space: str, points: Shaped[np.ndarray, "n f"]) -> float:
    """What turns a Euclidean distance into the space's own unit: RMSE over the pixels."""
    return points.shape[1] ** -0.5 if space == "pixels" else 1.0


def _histogram(far: dict[str, Float[np.ndarray, " n"]]) -> pd.DataFrame:
    """Share of each set by distance, in bins that all sets have in common."""
    edges = np.histogram_bin_edges(np.concatenate(list(far.values())), BINS)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in far.items()}
    return pd.DataFrame({"distance": (edges[:-1] + edges[1:]) / 2, **shares})


def _picture(table: pd.DataFrame) -> Any:
    """Samples left of the test images are nearer to training images than unseen images are."""
    import seaborn as sns
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.4))
    for axis, (space, part) in zip(figure.subplots(1, 2), table.groupby("space", sort=False), strict=True):
        long = part.melt(["distance"], ["test", *OF], var_name="images", value_name="share")
        sns.lineplot(long, x="distance", y="share", hue="images", drawstyle="steps-mid", ax=axis)
        unit = ", RMSE in grey levels" if space == "pixels" else ""
        axis.set(title=f"to the nearest training image, in {space}", xlabel=f"distance{unit}", ylim=(0, None))
    return figure
