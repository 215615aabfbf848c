"""Of a prior that is told a neighbour: how far its samples are from the training images that they were drawn for. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8

from tessera.core.conditioning import NEIGHBOUR
from tessera.core.run import Run
from tessera.images import pictures
from tessera.images.arrays import batches, evenly

FIGURES = ("equal_codes", "equal_codes_train", "equal_codes_nearest", "distance_ratio")
BLOCK = 2048  # images compared at once


class Pairs(NamedTuple):
    """Images, each with its neighbours: the fraction of codes that are equal [N], and the distance in features [M] of those that
    were seen as decoded; means over the neighbours of an image. `groups` and `groups_seen` are indices of images by group."""

    equal: Float[np.ndarray, " n"]
    distance: Float[np.ndarray, " m"]
    groups: dict[str, np.ndarray]
    groups_seen: dict[str, np.ndarray]


def neighbours_of_samples(run: Run) -> Int[np.ndarray, " n"] | None:
    """The training image that each sample was drawn for; None where nothing was said of some."""
    table = run.sample_conditions("samples")
    found = None if table is None or NEIGHBOUR not in table else table[NEIGHBOUR].to_numpy("int64")
    return None if found is None or (found < 0).any() else found


def pairs_of(run: Run, told: Int[np.ndarray, " n"]) -> dict[str, Pairs]:
    """The samples with the neighbours that they were drawn for, training images with all of theirs, of which samples are drawn for
    any, and training images with their nearest. In features a neighbour is an original, and what is compared with it has passed
    the tokenizer: samples, and at most `features.decoded` training images."""
    near, images = run.neighbours("train"), len(run.images("train"))
    decoded = evenly(images, len(run.features("reconstruction_train")))
    groups, groups_seen = run.groups("train"), run.groups("reconstruction_train")
    samples = run.groups("samples")

    def training(near: Int[np.ndarray, "n k"]) -> Pairs:
        equal = _equal(run.codes("train"), near, run.codes("train"))
        seen = _distance(run.features("reconstruction_train"), near[decoded], run.features("train"))
        return Pairs(equal, seen, groups, groups_seen)

    own = told[:, None]
    equal = _equal(run.samples("samples", "codes"), own, run.codes("train"))
    distance = _distance(run.features("samples"), own, run.features("train"))
    return {
        "samples": Pairs(equal, distance, samples, samples),
        "train": training(near),
        "nearest": training(near[:, :1]),
    }


def rows_of(pairs: dict[str, Pairs], group: str) -> Iterator[dict[str, Any]]:
    """Means over the images of a group, of each set that has some."""
    for of, own in pairs.items():
        if len(own.groups[group]) and len(own.groups_seen[group]):
            means = own.equal[own.groups[group]].mean(), own.distance[own.groups_seen[group]].mean()
            yield {
                "group": group,
                "of": of,
                "images": len(own.groups[group]),
                "equal_codes": means[0],
                "distance": means[1],
            }


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the rows of one group; empty where it has no samples or no training images."""
    table = pd.DataFrame(rows, columns=["of", "equal_codes", "distance"]).set_index("of")
    if not {"samples", "train", "nearest"} <= set(table.index):
        return {}
    equal, far = table["equal_codes"], table["distance"]
    ratio = far["samples"] / far["train"] if far["train"] else 1.0
    return dict(zip(FIGURES, map(float, (equal["samples"], equal["train"], equal["nearest"], ratio)), strict=True))


def picture(run: Run, told: Int[np.ndarray, " n"], count: int, columns: int) -> UInt8[np.ndarray, "height width c"]:
    """The first samples, as they came, over the training images that they were drawn for."""
    shown = np.arange(min(count, len(told)))
    train = np.stack([run.images("train")[index] for index in told[shown]])
    return pictures.rows_of_pairs(np.asarray(run.samples()[shown]), train, min(columns, len(shown)))


def _equal(
    codes: Int[np.ndarray, "n t"], near: Int[np.ndarray, "n k"], train: Int[np.ndarray, "m t"]
) -> Float[np.ndarray, " n"]:
    """Fraction of an image's codes that are those of a neighbour at the same place, mean over its neighbours."""
    found = np.empty(len(codes))
    for where in batches(len(codes), BLOCK):
        own = np.asarray(codes[where])
        found[where] = np.mean([(own == train[column]).mean(1) for column in near[where].T], axis=0)
    return found


def _distance(
    features: Float[np.ndarray, "n f"], near: Int[np.ndarray, "n k"], train: Float[np.ndarray, "m f"]
) -> Float[np.ndarray, " n"]:
    """Euclidean distance of an image to a neighbour, mean over its neighbours."""
    found = np.empty(len(features))
    for where in batches(len(features), BLOCK):
        own = np.asarray(features[where], np.float64)
        found[where] = np.mean([np.linalg.norm(own - train[column], axis=1) for column in near[where].T], axis=0)
    return found
