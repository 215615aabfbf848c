"""Codes of which some are replaced by near neighbours in the codebook, as a prior would confuse them (Qiu et al. 2025, arXiv
2509.12474): a fraction of an image's codes, the "rate", each by one of its nearest others, sampled uniformly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from tessera.core.space import CodeSpace
from tessera.images import arrays

if TYPE_CHECKING:
    from tessera.core.contracts import Tokenizer

BLOCK = 256  # rows of the [K,K] distances in memory at once


def tables(tokenizer: Tokenizer, count: int) -> list[Int[np.ndarray, "k c"]]:
    """The `neighbours` of each of the tokenizer's codebooks, grid by grid."""
    return [neighbours(book.detach().float().cpu().numpy(), count) for book in tokenizer.codebooks]


def neighbours(book: Float[np.ndarray, "k d"], count: int) -> Int[np.ndarray, "k c"]:
    """Indices of the `count` nearest other code vectors, or of all others if fewer, nearest first. A copy of a code vector
    counts as another code."""
    from scipy.spatial.distance import cdist

    found = []
    for where in arrays.batches(len(book), BLOCK):
        distances = cdist(book[where].astype(np.float64), book.astype(np.float64))
        own = np.arange(len(book))[where]
        distances[np.arange(len(own)), own] = np.inf
        found.append(np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(book) - 1)])
    return np.concatenate(found)


def replaced(
    codes: Int[np.ndarray, "n t"],
    space: CodeSpace,
    near: list[Int[np.ndarray, "k c"]],
    where: Bool[np.ndarray, "n t"],
    choices: Float[np.ndarray, "n t"],
) -> Int[np.ndarray, "n t"]:
    """The codes, with those at `where` [N,T] replaced by a neighbour, selected by `choices`, uniform on [0, 1). `near` are
    the `tables` of the tokenizer."""
    folded = zip(space.split(codes), space.split(choices), near, strict=True)
    others = [table[own, (choice * table.shape[1]).astype(int)] for own, choice, table in folded]
    return np.where(where, space.join(others), codes)
