"""Near-copies of training images, by codes: how many codes differ from the nearest one's. NumPy and SciPy, no torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from tessera.images.arrays import batches

BLOCK = 2048  # images compared at once


def nearest_codes(codes: Int[np.ndarray, "n t"], *references: Int[np.ndarray, "_ t"]) -> Float[np.ndarray, " n"]:
    """Hamming distance of each image's codes to the nearest of all references, as a fraction of the codes (0 to 1); block by
    block, for references on disk."""
    from scipy.spatial.distance import cdist

    smallest = np.full(len(codes), np.inf)
    for reference in references:
        for others in batches(len(reference), BLOCK):
            block = np.asarray(reference[others], np.float64)
            for where in batches(len(codes), BLOCK):
                found = cdist(np.asarray(codes[where], np.float64), block, "hamming").min(1)
                smallest[where] = np.minimum(smallest[where], found)
    return smallest


def near_fraction(distances: Float[np.ndarray, " n"], unseen: Float[np.ndarray, " m"], quantile: float) -> float:
    """Fraction of `distances` to the training images that are no larger than the `quantile` of those of `unseen` images: around
    `quantile` for new images, 1 for copies."""
    # <=, for copies are to be found too where some unseen images have a twin in the train split, at distance 0
    return float((distances <= np.quantile(unseen, quantile)).mean())
