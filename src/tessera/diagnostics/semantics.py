"""Whether codes carry the label: mutual information, and labels of nearest neighbours by codes. Imports no torch.

`label_bits`: I(label; code) = H(code) - H(code | label) in bits, for a random code of a random image of `train`; 0 if all
classes use the codebook alike. An estimate from counts is biased upwards, so `label_bits_shuffled` is its mean after
`permutations` of the labels. Labels are permuted among families, since variants of one image are not independent.

Nearest neighbours of each image of `val` are the images of `train` that have most codes in common with it, at the same place
(`same_place`) or anywhere (`anywhere`: histogram intersection, Swain & Ballard 1991). The metric is the fraction of
neighbours with the same label; tied neighbours have equal weight. `chance` is the value for a random training image. Codes of
a plain background count as any others, so images with similar silhouettes are near. Of a large data set at most `COMPARED`
images are compared, evenly spread over each split, since a pair costs time in proportion to the codes of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from pydantic import Field

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.images import pictures
from tessera.images.arrays import batches, evenly

COMPARED = {"val": 1_000, "train": 10_000}  # most images of each split in the search for neighbours
BLOCK = 1024  # images compared at once


class Config(Strict):
    permutations: int = Field(ge=1, le=1000, description="permutations of the labels behind the baseline", examples=[2])
    shown: int = Field(ge=1, le=64, description="validation images in the picture", examples=[2])
    nearest: int = Field(ge=1, le=16, description="nearest training images shown per validation image", examples=[2])


def measure(config: Config, run: Run) -> Report:
    """Metrics of each grid; the table has them by class. The picture shows validation images, evenly spread over the split, each
    left of its nearest training images by codes at the same place, over all grids. Does not apply without labels."""
    if not run.label_names:
        return Report({"applies": 0})
    labels = {split: run.required_labels(split) for split in ("train", "val")}
    families = run.table("train")["family"].to_numpy()
    shuffles = list(_shuffles(labels["train"], families, config.permutations, run.params.seed))
    train, val = (run.space.split(run.codes(split)) for split in ("train", "val"))
    seen = {split: evenly(len(own), COMPARED[split]) for split, own in labels.items()}
    val_labels, train_labels = (labels[split][seen[split]] for split in ("val", "train"))
    chance = statistics.frequencies(labels["train"], len(run.label_names))[val_labels]
    metrics: dict[str, Any] = {}
    rows = []
    for grid, (a, b, k) in enumerate(zip(val, train, run.space.sizes, strict=True)):
        codes = b.reshape(len(b), -1)
        own, others = a.reshape(len(a), -1)[seen["val"]], codes[seen["train"]]
        hits = {
            "same_place": same_label(at_places(own, k), at_places(others, k), val_labels, train_labels),
            "anywhere": same_label(occurrences(own), occurrences(others), val_labels, train_labels),
            "chance": chance,
        }
        metrics[f"grid_{grid}"] = {
            "label_bits": label_bits(codes, labels["train"], k),
            "label_bits_shuffled": float(np.mean([label_bits(codes, shuffled, k) for shuffled in shuffles])),
            **{name: float(values.mean()) for name, values in hits.items()},
        }
        by_label = pd.DataFrame({"grid": grid, "label": [run.label_names[i] for i in val_labels], **hits})
        groups = by_label.groupby(["grid", "label"], sort=False)
        rows.append(groups.mean().assign(images=groups.size()).reset_index())
    return Report(metrics, {"classes": pd.concat(rows)}, {"nearest": _sheet(config, run)})


def label_bits(codes: Int[np.ndarray, "n t"], labels: Int[np.ndarray, " n"], k: int) -> float:
    """I(label; code) = H(label) + H(code) - H(label, code) in bits."""
    label, code = labels.repeat(codes.shape[1]), codes.reshape(-1)
    pair = np.unique(label * k + code, return_counts=True)[1] / len(code)
    alone = statistics.entropy_bits(statistics.frequencies(labels, 1)) + statistics.entropy_bits(
        statistics.frequencies(code, k)
    )
    return max(0.0, alone - statistics.entropy_bits(pair))  # max: sums round


def _shuffles(
    labels: Int[np.ndarray, " n"], families: np.ndarray, count: int, seed: int
) -> Iterator[Int[np.ndarray, " n"]]:
    """Labels permuted among families: each family gets the label of the first image of a random family."""
    _, first, family = np.unique(families, return_index=True, return_inverse=True)
    for index in range(count):
        yield labels[numpy_generator(seed, "semantics", index).permutation(first)][family]


def at_places(codes: Int[np.ndarray, "n t"], k: int) -> Int[np.ndarray, "n t"]:
    """Code and place as one number: two images have a number in common if they have the same code at the same place."""
    return np.arange(codes.shape[1]) * k + codes


def occurrences(codes: Int[np.ndarray, "n t"]) -> Int[np.ndarray, "n t"]:
    """Code and its number of earlier occurrences in the image as one number: two images have sum_k min(n_k, m_k) of these
    numbers in common."""
    ordered, place = np.sort(codes, axis=1).astype(np.int64), np.arange(codes.shape[1])
    begins = np.diff(ordered, axis=1, prepend=-1) != 0
    return ordered * codes.shape[1] + place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)


def shared(a: Int[np.ndarray, "n t"], b: Int[np.ndarray, "m t"]) -> Int[np.ndarray, "n m"]:
    """Number of values that each row of `a` has in common with each row of `b`, by a product of sparse matrices. The values of
    a row must be distinct."""
    from scipy.sparse import csr_array

    names, column = np.unique(np.concatenate([a, b]), return_inverse=True)
    rows, t = len(a) + len(b), a.shape[1]
    has = csr_array((np.ones(rows * t, np.int32), column.reshape(-1), np.arange(rows + 1) * t), (rows, len(names)))
    return (has[: len(a)] @ has[len(a) :].T).toarray()


def same_label(
    own: Int[np.ndarray, "n t"],
    others: Int[np.ndarray, "m t"],
    own_labels: Int[np.ndarray, " n"],
    other_labels: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " n"]:
    """For each image of `own`, the fraction of its nearest `others` (most values in common) that have its label."""
    found = np.zeros(len(own))
    for where in batches(len(own), BLOCK):
        common = shared(own[where], others)
        nearest = common == common.max(axis=1, keepdims=True)
        same = own_labels[where][:, None] == other_labels
        found[where] = (nearest & same).sum(axis=1) / nearest.sum(axis=1)
    return found


def _sheet(config: Config, run: Run) -> UInt8[np.ndarray, "height width c"]:
    images, train = run.images("val"), run.images("train")
    chosen, known = evenly(len(images), config.shown), evenly(len(train), COMPARED["train"])
    grids = zip(
        *(run.space.split(run.codes(split)) for split in ("val", "train")),
        run.space.sizes,
        strict=True,
    )
    common = sum(
        shared(at_places(a[chosen].reshape(len(chosen), -1), k), at_places(b[known].reshape(len(known), -1), k))
        for a, b, k in grids
    )
    nearest = np.argsort(-common, axis=1, kind="stable")[:, : config.nearest]
    blank = np.full_like(images[0], 255)
    rows = [
        image
        for own, found in zip(chosen, nearest, strict=True)
        for image in (images[own], blank, *train[known[found]])
    ]
    return pictures.sheet(np.stack(rows), columns=2 + nearest.shape[1])
