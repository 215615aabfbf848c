"""Statistics of codes in NumPy: modules that read only codes need not import torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from tessera.core.space import CodeSpace


def frequencies(codes: Int[np.ndarray, ...], k: int) -> Float[np.ndarray, " k"]:
    """Relative frequency of each of the K codes; the sum is 1."""
    counts = np.bincount(np.asarray(codes).reshape(-1), minlength=k)
    return counts / counts.sum()


def entropy_bits(p: Float[np.ndarray, " k"]) -> float:
    """Entropy -sum p log2 p in bits, with 0 log 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def perplexity(p: Float[np.ndarray, " k"]) -> float:
    """2 to the entropy, from 1 to K: the number of equally likely codes with the same entropy."""
    return 2.0 ** entropy_bits(p)


def usage(p: Float[np.ndarray, " k"]) -> float:
    """Fraction of the codebook that occurs at all, 0 to 1."""
    return float((p > 0).mean())


def neighbours_equal(grid: Int[np.ndarray, "n h w"], dy: int, dx: int) -> float:
    """Probability that a code equals the code `dy` rows below and `dx` columns to the right; nan if the grid is too small."""
    _, h, w = grid.shape
    if h <= dy or w <= dx:
        return math.nan
    return float((grid[:, : h - dy, : w - dx] == grid[:, dy:, dx:]).mean())


def copying(grid: Int[np.ndarray, "n h w"]) -> dict[str, float]:
    """Accuracy, 0 to 1, of predicting a code by a copy of a neighbour: `left`, `above`, and `better`, the higher of these two.
    `either` is the fraction of codes that equal at least one of the two: no rule that picks one of the neighbours can exceed
    it. All four use the codes that have both neighbours, so they are comparable; in a grid of one row or column they use the
    codes that have the one. Empty for a 1x1 grid."""
    _, h, w = grid.shape
    here = grid[:, int(h > 1) :, int(w > 1) :]
    hits = {}
    if w > 1:
        hits["left"] = here == grid[:, int(h > 1) :, :-1]
    if h > 1:
        hits["above"] = here == grid[:, :-1, int(w > 1) :]
    if not hits:
        return {}
    accuracy = {name: float(hit.mean()) for name, hit in hits.items()}
    either = np.logical_or.reduce(list(hits.values()))
    return accuracy | {"better": max(accuracy.values()), "either": float(either.mean())}


def neighbour_pairs(
    grid: Int[np.ndarray, "n h w"],
) -> dict[str, tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """Pairs (code, neighbour) for the neighbour to the `right` and the `lower` one. A grid of one row or column has only one of
    the two, a 1x1 grid neither."""
    _, h, w = grid.shape
    pairs = {"right": (grid[:, :, :-1], grid[:, :, 1:])} if w > 1 else {}
    pairs |= {"lower": (grid[:, :-1], grid[:, 1:])} if h > 1 else {}
    return {name: (a.reshape(-1), b.reshape(-1)) for name, (a, b) in pairs.items()}


def entropies_given(
    a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """How often each of the K codes occurs as `a`, n(a), and the entropy of `b` given that code in bits: -sum_b T[a,b] log2
    T[a,b] with T[a,b] = n(a,b) / n(a), or 0 for a code that does not occur. The plug-in estimator: biased low by up to
    log2 K - log2 n(a) if n(a) is not much larger than K. Computed from the pairs that occur, without a K x K matrix."""
    n = np.bincount(a, minlength=k)
    found, joint = np.unique(np.asarray(a, np.int64) * k + b, return_counts=True)
    of = found // k
    bits = np.bincount(of, weights=joint * np.log2(n[of] / joint), minlength=k)
    return n, bits / np.maximum(n, 1)


def entropy_given(a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int) -> float:
    """H(b | a) in bits: the mean of `entropies_given`, weighted by the frequency of each code."""
    n, bits = entropies_given(a, b, k)
    return float((n * bits).sum() / n.sum())


def predictability(bits: float, k: int) -> float:
    """1 - H / log2 K: 0 if all K codes are equally likely, 1 if the code is certain, and 1 if K = 1."""
    return max(0.0, 1 - bits / math.log2(k)) if k > 1 else 1.0  # max: rounding can make it negative


def order_zero_bits(codes: Int[np.ndarray, "n t"], space: CodeSpace) -> Float[np.ndarray, " t"]:
    """Bits of each of the T codes of an image if it is sampled from the code frequencies of its grid: the entropy of these."""
    fractions = map(frequencies, space.split(codes), space.sizes)
    return np.repeat([entropy_bits(fraction) for fraction in fractions], space.lengths)
