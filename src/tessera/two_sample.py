"""Classifier two-sample test on features: can a linear classifier tell two sets apart? scikit-learn, no torch.

Lopez-Paz and Oquab 2017 (arXiv 1610.06545): the accuracy of a classifier on images that it was not trained on is a test of
whether two sets have one distribution. It is 1/2 where they have, 1 where they can be told apart.
The classifier here is a logistic regression on standardised features. Cross-fitting: each fold is predicted by a classifier
that was trained on the others. A family stands in one fold, on both sides: variants of one image would else be recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from tessera.core.errors import InputError

Z = 1.959964  # standard deviations on either side of a mean that hold 95 % of a Gaussian


class Accuracy(NamedTuple):
    """Mean of the two sets' fractions of images that are recognised, 0 to 1, and its 95 % interval by the binomial law."""

    value: float
    low: float
    high: float


def cross_fitted(
    a: Float[np.ndarray, "n f"],
    b: Float[np.ndarray, "m f"],
    families: tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " m"]],
    penalty: float,
    folds: int,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Probability, by classifiers that were not trained on it, that an image of `a`, and one of `b`, belongs to `a`.

    Both sets weigh alike, whatever their sizes. `penalty` is C, the inverse of the weight of |w|^2 / 2. Computed in float32, in
    half the time of float64: probabilities differ by 1e-4.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    x = np.concatenate([a, b]).astype(np.float32)
    y = np.repeat([1, 0], [len(a), len(b)])
    found = np.zeros(len(x))
    with threadpool_limits(
        1
    ):  # products of this size: a second thread of BLAS waits more than it computes, five times as long
        for train, held in split(np.concatenate([np.asarray(of, str) for of in families]), y, folds):
            known = x[train]
            mean, deviation = known.mean(0), known.std(0)
            deviation[deviation == 0] = 1  # a feature that never varies
            model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)
            model.fit((known - mean) / deviation, y[train])
            found[held] = model.predict_proba((x[held] - mean) / deviation)[:, 1]
    return found[: len(a)], found[len(a) :]


def split(
    families: Shaped[np.ndarray, " n"], sets: Int[np.ndarray, " n"], folds: int
) -> Iterator[tuple[Int[np.ndarray, " i"], Bool[np.ndarray, " n"]]]:
    """(indices to train on, mask of the fold) for each fold. Folds are of whole families, as equal as these allow: the
    largest family first goes to the fold with the fewest images of its set. The order of the images does not matter.

    Raises:
        InputError: a set has fewer families than folds.
    """
    for which in np.unique(sets):
        if (have := len(np.unique(families[sets == which]))) < folds:
            raise InputError(f"a two-sample test in {folds} folds needs as many families in each set, got {have}")
    names, index = np.unique(families, return_inverse=True)
    kinds = np.unique(sets)
    counts = np.array([np.bincount(index[sets == kind], minlength=len(names)) for kind in kinds])
    fold, sizes = np.zeros(len(names), np.int64), np.zeros((len(kinds), folds))
    for family in np.lexsort((names, -counts.sum(0))):
        own = counts[:, family].argmax()  # each set is spread over all folds: no fold holds the whole of one
        fold[family] = np.lexsort((sizes.sum(0), sizes[own]))[0]
        sizes[:, fold[family]] += counts[:, family]
    for each in range(folds):
        held = fold[index] == each
        yield np.flatnonzero(~held), held


def accuracy(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> Accuracy:
    """Of what `cross_fitted` found: half from each set, so that naming the larger set always is no better than 1/2."""
    right = float((a > 0.5).mean()), float((b <= 0.5).mean())
    value = sum(right) / 2
    # a binomial variance of each half; where all are right, that of one error in as many
    deviation = sum(max(p * (1 - p), 1 / n) / n for p, n in zip(right, (len(a), len(b)), strict=True)) ** 0.5 / 2
    return Accuracy(value, max(0.0, value - Z * deviation), min(1.0, value + Z * deviation))
