"""Recognisers: of which class is an image, by its features? scikit-learn, no torch.

Features are standardised and projected onto their principal components. On these stand two heads:

    linear     multinomial logistic regression, by at most `iterations` of L-BFGS
    centroid   the nearest class mean, which is hard to beat where a class has few images (Snell et al. 2017, arXiv 1703.05175);
               the distance is that of Mahalanobis, by the covariance within classes, shrunk as Ledoit and Wolf (2004) do: a linear
               discriminant analysis in which all classes are equally likely

Validation images, which neither was trained on, decide which head is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from tessera.core.errors import InputError

HEADS = LINEAR, CENTROID = ("linear", "centroid")


class Examples(NamedTuple):
    """Images of known classes, which are text."""

    features: Float[np.ndarray, "n f"]
    classes: Shaped[np.ndarray, " n"]


class Recogniser:
    """The better of two heads.

    The order of the images changes no more than rounding.

    Args:
        train: of at least two classes.
        held_out: these choose the head, by how often the first class is right; on a tie, or where none is of a class of `train`,
            it is the linear one.
        dimensions: principal components, at most.
        penalty: C of the logistic regression, the inverse of the weight of |w|^2 / 2.
        iterations: of the logistic regression, at most. It need not converge: with a thousand classes that takes minutes.

    Attributes:
        classes: names of the classes [K], sorted.
        head: one of `HEADS`.
        accuracy: head -> fraction of the held-out images that it recognises; nan where none is of a known class.

    Raises:
        InputError: `train` has one class, or none.
    """

    def __init__(self, train: Examples, held_out: Examples, dimensions: int, penalty: float, iterations: int) -> None:
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits

        self.classes, index = np.unique(train.classes.astype(str), return_inverse=True)
        if len(self.classes) < 2:
            raise InputError(f"a recogniser needs images of two classes, got those of {len(self.classes)}")
        k, (n, f) = len(self.classes), train.features.shape
        self._projection = make_pipeline(
            StandardScaler(), PCA(min(dimensions, n, f), svd_solver="covariance_eigh", copy=False)
        )
        self._heads: dict[str, Any] = {
            LINEAR: LogisticRegression(C=penalty, max_iter=iterations),
            CENTROID: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(k, 1 / k)),
        }
        with threadpool_limits(1), warnings.catch_warnings():  # one thread: see `two_sample`
            warnings.simplefilter("ignore")  # not converged; a class of one image has no covariance
            x = self._projection.fit_transform(train.features.astype(np.float64)).astype(np.float32)
            for head in self._heads.values():
                head.fit(x, index)
        self.head = LINEAR
        self.accuracy = self._accuracies(held_out)
        if self.accuracy[CENTROID] > self.accuracy[LINEAR]:
            self.head = CENTROID

    def _accuracies(self, held_out: Examples) -> dict[str, float]:
        known = np.isin(held_out.classes.astype(str), self.classes)
        if not known.any():
            return dict.fromkeys(HEADS, np.nan)
        right = np.searchsorted(self.classes, held_out.classes[known].astype(str))
        features = held_out.features[known]
        return {head: float((self._scores(features, head).argmax(1) == right).mean()) for head in HEADS}

    def _scores(self, features: Float[np.ndarray, "n f"], head: str) -> Float[np.ndarray, "n k"]:
        x = self._projection.transform(features.astype(np.float64)).astype(np.float32)
        scores = self._heads[head].decision_function(x)  # no probabilities: of many classes they are 0
        return scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)  # of two classes it gives one

    def __call__(self, features: Float[np.ndarray, "n f"]) -> Shaped[np.ndarray, " n"]:
        """The likeliest class of each image."""
        return self.classes[self._scores(features, self.head).argmax(1)]

    def places(self, features: Float[np.ndarray, "n f"], wanted: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The place of the wanted class among all, by likelihood: 1 is the first, K the last. Of classes that are equally likely
        the wanted one is last, so that a recogniser that cannot tell is not right.

        Raises:
            InputError: a wanted class is none of `classes`.
        """
        return places(lambda: self._scores(features, self.head), self.classes, wanted)


def places(
    scores: Callable[[], Float[np.ndarray, "n k"]],
    classes: Shaped[np.ndarray, " k"],
    wanted: Shaped[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """See `Recogniser.places`. `scores` are asked for if there is any image.

    Raises:
        InputError: a wanted class is none of `classes`.
    """
    wanted = wanted.astype(str)
    if len(unknown := np.setdiff1d(wanted, classes)):
        raise InputError(f"the recogniser has seen no image of {str(unknown[0])!r}; it knows {len(classes)} classes")
    if not len(wanted):
        return np.zeros(0, np.int64)
    found = scores()
    own = np.take_along_axis(found, np.searchsorted(classes, wanted)[:, None], 1)
    return (found >= own).sum(1)
