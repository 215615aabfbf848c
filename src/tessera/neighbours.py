"""Near training images of other families, by features of the tokenizer's latents: what a prior may be told in the place of a label.

A prior that is told the feature of a near training image learns the law of what lies around it (instance-conditioned GANs,
Casanova et al. 2021, arXiv 2109.05070; retrieval-augmented diffusion, Blattmann et al. 2022, arXiv 2204.11824). Variants of one
image are of one family and never each other's neighbours: else the prior would learn to recite. NumPy, no torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field

from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.images.arrays import batches

BLOCK = 2048  # images compared at once: of a block with a block, memory does not grow with the number of images


class Neighbours(Strict):
    count: int = Field(ge=0, le=256, description="near training images of each image, which a prior may be told; 0: none",
                       examples=[0])  # fmt: skip
    grid: int = Field(ge=1, le=64, description="side of the grid to which latents are averaged before they are compared",
                      examples=[2])  # fmt: skip
    dimensions: int = Field(ge=1, le=4096, description="principal components of them by which images are compared",
                            examples=[2])  # fmt: skip


class Reduced(NamedTuple):
    """Features [N,F] float32 of each split, and the fraction of the variance of `train` that F components have."""

    features: dict[str, Float[np.ndarray, "n f"]]
    variance: float


def reduced(latents: dict[str, Float[np.ndarray, "n d"]], dimensions: int) -> Reduced:
    """Principal components of the standardised latents of `train`, the largest first; of the other splits by the same map. All are
    divided by one number, so that the mean square over `train` is 1: a network reads them, and distances keep their order.

    Raises:
        InputError: there are fewer numbers in a latent, or fewer training images.
    """
    train = latents["train"]
    if dimensions > (most := min(train.shape)):
        raise InputError(
            f"codes.neighbours.dimensions: must be at most {most}, since there are {train.shape[0]} training images with "
            f"{train.shape[1]} numbers each, got {dimensions}; set it lower, or codes.neighbours.grid higher"
        )
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1  # a number that never varies

    def standardised(block: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
        return (block.astype(np.float64) - mean) / deviation

    covariance = np.zeros((train.shape[1], train.shape[1]))
    for where in batches(len(train), BLOCK):
        own = standardised(train[where])
        covariance += own.T @ own / len(train)
    variances, components = np.linalg.eigh(covariance)  # ascending
    variances, components = variances[::-1][:dimensions], components[:, ::-1][:, :dimensions]
    largest = components[abs(components).argmax(0), np.arange(dimensions)]
    components = components * np.where(largest < 0, -1, 1)  # the sign of a component is arbitrary
    scale = np.sqrt(variances.mean()) or 1
    features = {
        split: np.concatenate([standardised(array[where]) @ components / scale for where in batches(len(array), BLOCK)])
        for split, array in latents.items()
    }
    kept = float(variances.sum() / (np.trace(covariance) or 1))
    return Reduced({split: array.astype(np.float32) for split, array in features.items()}, kept)


def nearest_of_other_families(
    points: Float[np.ndarray, "n f"],
    families: Shaped[np.ndarray, " n"],
    references: Float[np.ndarray, "m f"],
    families_of_references: Shaped[np.ndarray, " m"],
    count: int,
) -> Int[np.ndarray, "n k"]:
    """Indices (int32) of the `count` references nearest to each point by Euclidean distance, nearest first, among those of other
    families than the point's. Of equal distances the lower index is first.

    Raises:
        InputError: some point has fewer references of other families.
    """
    _require_enough(families, families_of_references, count)
    codes = np.unique(np.concatenate([families, families_of_references]), return_inverse=True)[1]
    own, others = codes[: len(families)], codes[len(families) :]
    parts = [_nearest(points[where], own[where], references, others, count) for where in batches(len(points), BLOCK)]
    return np.concatenate([np.zeros((0, count), np.int32), *parts])


def _require_enough(families: Shaped[np.ndarray, " n"], of_references: Shaped[np.ndarray, " m"], count: int) -> None:
    known, sizes = np.unique(of_references, return_counts=True)
    largest = max(sizes[np.isin(known, families)], default=0)
    if count > (most := len(of_references) - largest):
        raise InputError(
            f"codes.neighbours.count: must be at most {most}, as many training images as are of other families than the largest, "
            f"got {count}"
        )


def _nearest(
    points: Float[np.ndarray, "b f"],
    families: Int[np.ndarray, " b"],
    references: Float[np.ndarray, "m f"],
    families_of_references: Int[np.ndarray, " m"],
    count: int,
) -> Int[np.ndarray, "b k"]:
    """Who is near is decided by |b|^2 - 2ab, a matrix product, which rounds; their order by the differences themselves."""
    points = points.astype(np.float64)
    far = np.full((len(points), count), np.inf)
    index = np.zeros((len(points), count), np.int64)
    for where in batches(len(references), BLOCK):
        block = references[where].astype(np.float64)
        squares = np.square(block).sum(1) - 2 * points @ block.T  # |a|^2 is the same for every reference
        squares[families[:, None] == families_of_references[where]] = np.inf
        places = np.broadcast_to(np.arange(where.start, where.stop), squares.shape)
        far, index = np.concatenate([far, squares], axis=1), np.concatenate([index, places], axis=1)
        chosen = np.argpartition(far, count - 1, axis=1)[:, :count]
        far, index = np.take_along_axis(far, chosen, axis=1), np.take_along_axis(index, chosen, axis=1)
    distances = np.linalg.norm(points[:, None] - references[index].astype(np.float64), axis=2)
    order = np.lexsort((index, distances), axis=1)
    return np.take_along_axis(index, order, axis=1).astype(np.int32)
