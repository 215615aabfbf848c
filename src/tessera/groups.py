"""Groups of images that figures are printed for, and which of them an image without a label belongs to. No torch.

The mean over all images hides what differs between kinds of images: three in five emoji are people, nearly all of them variants
of one another. A group is one label of the data set or several; every figure of samples is given for all images and for each
group. An unconditional prior draws no labels, so the group of a sample is predicted from its features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Float, Int

REST, ALL = "rest", "all"
OTHERS = -1  # the group of an image that samples are not compared with
PENALTY = 0.01  # C, the inverse of the weight of |w|^2 / 2


def of_labels(
    label_names: Sequence[str], named: Mapping[str, Sequence[str]]
) -> tuple[list[str], Int[np.ndarray, " l"]]:
    """Names of the groups, and the group of each label.

    `named` gives patterns of label names (`*`, `?`) for each group, the first that matches; what none matches is the group
    `rest`. Where no pattern matches any label, as in another data set, every label is a group of its own.
    """
    found = [
        next((name for name, patterns in named.items() if any(fnmatchcase(label, p) for p in patterns)), REST)
        for label in label_names
    ]
    if set(found) <= {REST}:
        found = _slugs(label_names)
    names = sorted(set(found), key=found.index)
    names.sort(key=lambda name: name == REST)  # last
    return names, np.array([names.index(name) for name in found], np.int64)


def _slugs(label_names: Sequence[str]) -> list[str]:
    """Labels as names of metrics: lower case, digits and `_`; a number behind those that would be equal."""
    plain = [re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or "label" for label in label_names]
    taken = {name for name in plain if plain.count(name) > 1} | {ALL, REST}
    found: list[str] = []
    for at, name in enumerate(plain):
        while name in taken or name in found or (name != plain[at] and name in plain):
            name = f"{name}_{at}"
        found.append(name)
    return found


class Assigner:
    """A logistic regression from standardised features to groups."""

    def __init__(self, features: Float[np.ndarray, "n f"], groups: Int[np.ndarray, " n"]) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits

        self._only = int(groups[0]) if len(np.unique(groups)) == 1 else None  # nothing to tell apart
        self._model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
        if self._only is None:
            with threadpool_limits(1):  # see `two_sample`
                self._model.fit(features.astype(np.float64), groups)

    def __call__(self, features: Float[np.ndarray, "n f"]) -> Int[np.ndarray, " n"]:
        if self._only is not None:
            return np.full(len(features), self._only)
        return self._model.predict(features.astype(np.float64)).astype(np.int64)
