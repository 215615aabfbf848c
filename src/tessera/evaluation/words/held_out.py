"""What is asked for: held-out images, drawings by other vendors, compositions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from tessera.conditions import names as names_of
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.evaluation.words.config import Config, placeholders
from tessera.features.neighbours import nearest, subset
from tessera.words import split


class Images(NamedTuple):
    """Real drawings, sorted by vendor and name, so that their order in the data set does not matter. `rows` are their indices in
    their split; `names` are without the vendor."""

    rows: Int[np.ndarray, " n"]
    vendors: Shaped[np.ndarray, " n"]
    names: Shaped[np.ndarray, " n"]
    concepts: Shaped[np.ndarray, " n"]
    labels: Shaped[np.ndarray, " n"]
    features: Float[np.ndarray, "n f"]
    codes: Int[np.ndarray, "n t"]

    def at(self, where: Shaped[np.ndarray, " m"]) -> Images:
        return Images(*(each[where] for each in self))


def images(run: Run, split: str) -> Images:
    table = run.table(split)
    vendors, called = table["vendor_name"].to_numpy(str), np.array(names_of(table), str)
    rows = np.lexsort((called, vendors))
    concepts, labels = (table[column].to_numpy(str) for column in ("family", "label_name"))
    everything = Images(
        np.arange(len(table)), vendors, called, concepts, labels, np.asarray(run.features(split)), np.asarray(run.codes(split))
    )  # fmt: skip
    return everything.at(rows)


def unseen(test: Images, train: Images) -> Shaped[np.ndarray, " n"]:
    """Which test images are of a concept that other vendors drew in training, and their own vendor, which drew others, did not."""
    who: dict[str, set[str]] = {}
    for concept, vendor in zip(train.concepts, train.vendors, strict=True):
        who.setdefault(concept, set()).add(vendor)
    pairs, seen = zip(test.concepts, test.vendors, strict=True), set(train.vendors)
    return np.array([concept in who and vendor in seen - who[concept] for concept, vendor in pairs], bool)


def same_codes(test: Images, train: Images) -> Shaped[np.ndarray, " n"]:
    """Which test images have the very codes of a training image."""
    known = {codes.tobytes() for codes in np.ascontiguousarray(train.codes)}
    return np.array([codes.tobytes() in known for codes in np.ascontiguousarray(test.codes)], bool)


def chosen(vendors: Shaped[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " m"]:
    """At most `count` images of each vendor."""
    found = []
    for vendor in np.unique(vendors):
        own = np.flatnonzero(vendors == vendor)
        found.append(own[subset(numpy_generator(seed, "words", "held_out", vendor), len(own), count)])
    return np.concatenate(found)


def partners(held_out: Images, seed: int) -> Int[np.ndarray, " n"]:
    """Of each held-out image a random other one, of the same vendor and another concept; -1 where there is none."""
    found = np.full(len(held_out.rows), -1)
    rng = numpy_generator(seed, "words", "partners")
    for at, (vendor, concept) in enumerate(zip(held_out.vendors, held_out.concepts, strict=True)):
        others = np.flatnonzero((held_out.vendors == vendor) & (held_out.concepts != concept))
        if len(others):
            found[at] = rng.choice(others)
    return found


def of_others(wanted: Images, at: int, train: Images) -> Int[np.ndarray, " m"]:
    """Training drawings by other vendors than that of image `at`: of its name, or of its concept where none has that name."""
    alike = (train.concepts == wanted.concepts[at]) & (train.vendors != wanted.vendors[at])
    named = alike & (train.names == wanted.names[at])
    return np.flatnonzero(named if named.any() else alike)


def retrieved(held_out: Images, train: Images) -> Int[np.ndarray, " n"]:
    """Of each held-out image, the training drawing of `of_others` that is nearest to it in features."""
    found = np.zeros(len(held_out.rows), np.int64)
    for at in range(len(found)):
        others = of_others(held_out, at, train)
        (index,), _ = nearest(held_out.features[at : at + 1], train.features[others])
        found[at] = others[index]
    return found


def values_of(names: Iterable[str], values: Sequence[str]) -> Shaped[np.ndarray, " n"]:
    """Which of `values` each name has, as whole words (`dark skin tone` is no part of `medium-dark skin tone`); empty where it has
    none or several."""
    patterns = {value: re.compile(rf"(?<![\w-]){re.escape(value)}(?![\w-])") for value in values}
    found = []
    for name in names:
        held = [(value, len(pattern.findall(name))) for value, pattern in patterns.items() if pattern.search(name)]
        found.append(held[0][0] if len(held) == 1 and held[0][1] == 1 else "")
    return np.array(found, str)


def composed(config: Config, known: Iterable[str]) -> dict[str, str]:
    """The compositions with all values of their attributes, of which two words stand together in no name of `known`: name -> the
    composition that it is of."""
    found, apart = {}, Apart(known)
    for template in config.compositions:
        held = sorted(placeholders(template))
        for values in itertools.product(*(config.attributes[name] for name in held)):
            name = template.format(**dict(zip(held, values, strict=True)))
            if apart(name):
                found[name] = template
    return found


class Apart:
    """Whether two words of a name stand together in no name of `known`."""

    def __init__(self, known: Iterable[str]) -> None:
        self._together = {pair for name in known for pair in _pairs(name)}

    def __call__(self, name: str) -> bool:
        return not _pairs(name) <= self._together

    def of(self, names: Iterable[str]) -> Shaped[np.ndarray, " n"]:
        return np.array([self(name) for name in names], bool)


def _pairs(name: str) -> set[tuple[str, str]]:
    return set(itertools.combinations(sorted(set(split(name))), 2))
