"""Formulas on codes in NumPy: what reads only codes need not import torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from tessera.core.space import CodeSpace


def frequencies(codes: Int[np.ndarray, ...], k: int) -> Float[np.ndarray, " k"]:
    """Share of each of the K codes; they sum to 1."""
    counts = np.bincount(np.asarray(codes).reshape(-1), minlength=k)
    return counts / counts.sum()


def entropy_bits(p: Float[np.ndarray, " k"]) -> float:
    """-sum p log2 p, in bits; 0 log 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def perplexity(p: Float[np.ndarray, " k"]) -> float:
    """2 to the entropy: the number of equally likely codes that would be as hard to guess; 1 to K."""
    return 2.0 ** entropy_bits(p)


def usage(p: Float[np.ndarray, " k"]) -> float:
    """Share of the codebook that occurs at all, 0 to 1."""
    return float((p > 0).mean())


def neighbours_equal(grid: Int[np.ndarray, "n h w"], dy: int, dx: int) -> float:
    """Probability that the code `dy` below and `dx` to the right is the same; nan where the grid is too small."""
    _, h, w = grid.shape
    if h <= dy or w <= dx:
        return math.nan
    return float((grid[:, : h - dy, : w - dx] == grid[:, dy:, dx:]).mean())


def copying(grid: Int[np.ndarray, "n h w"]) -> dict[str, float]:
    """Accuracy, 0 to 1, of predicting a code by a copy of its neighbour: `left`, `above`, the `better` of these two over
    all of the grid, and `either`: the share of codes that at least one of the two equals, which no rule that picks one
    of them, however clever, exceeds. Over the codes that have both neighbours, so that the four are comparable; in one
    row or column over those that have the one. Empty for 1x1."""
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
    """Each code and its neighbour to the `right`, each code and the `lower` one; a grid of one row or column has only one
    of the two, 1x1 none."""
    _, h, w = grid.shape
    pairs = {"right": (grid[:, :, :-1], grid[:, :, 1:])} if w > 1 else {}
    pairs |= {"lower": (grid[:, :-1], grid[:, 1:])} if h > 1 else {}
    return {name: (a.reshape(-1), b.reshape(-1)) for name, (a, b) in pairs.items()}


def entropies_given(
    a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """How often each of the K codes is `a`, and the entropy of `b` where it is, -sum_b T[a,b] log2 T[a,b] in bits, with
    T[a,b] = n(a,b) / n(a); 0 for a code that never occurs. Plug-in: biased low where n(a) is not much larger than K, by
    up to log2 K - log2 n(a). Made from the pairs that occur, without the matrix of K^2."""
    n = np.bincount(a, minlength=k)
    found, joint = np.unique(np.asarray(a, np.int64) * k + b, return_counts=True)
    of = found // k
    bits = np.bincount(of, weights=joint * np.log2(n[of] / joint), minlength=k)
    return n, bits / np.maximum(n, 1)


def entropy_given(a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int) -> float:
    """H(b | a) in bits: the mean of `entropies_given`, weighted by how often each code occurs."""
    n, bits = entropies_given(a, b, k)
    return float((n * bits).sum() / n.sum())


def predictability(bits: float, k: int) -> float:
    """1 - H / log2 K: 0 for codes of which each of the K is as likely, 1 for certain ones; 1 where K = 1."""
    return max(0.0, 1 - bits / math.log2(k)) if k > 1 else 1.0  # max: sums round


def order_zero_bits(codes: Int[np.ndarray, "n t"], space: CodeSpace) -> Float[np.ndarray, " t"]:
    """Entropy of each code of an image in bits, if it were drawn by the frequencies of its grid."""
    fractions = map(frequencies, space.split(codes), space.sizes)
    return np.repeat([entropy_bits(fraction) for fraction in fractions], space.lengths)
