"""Conditions of a prior as arrays: those that images have, those that samples are drawn for, and those that somebody asks for.

A condition is a column of classes of `artifacts/dataset/table.csv`, the words of an image's name, or what the stage `codes` made
if it was asked to: its cluster, or a near training image. What there is, a prior holds itself (`prior.conditioning`), so that
these functions need no params.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from tessera.core import models
from tessera.core.conditioning import CLUSTER, MADE_OF_CODES, NEIGHBOUR, WORDS, Condition, Conditioning
from tessera.core.errors import InputError, listed
from tessera.words import Vocabulary

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from tessera.core.contracts import Prior
    from tessera.core.run import Run


def wanted(run: Run) -> Conditioning:
    """What params.yaml asks for (`prior.conditions`, `prior.words`), with the classes of the data set, and the words in the names
    of training images.

    Raises:
        InputError: the data set has no such column of classes, or no word is frequent enough.
    """
    classes, parts = dict(run.class_names), []
    if CLUSTER in run.params.conditions and (count := run.cluster_count):
        classes[CLUSTER] = tuple(map(str, range(count)))
    for name, dropout in run.params.conditions.items():
        if name == WORDS:
            parts.append(Vocabulary.of(names(run.table("train")), *run.params.words).condition(dropout))
        elif name == NEIGHBOUR:
            parts.append(_neighbour(run, dropout))
        elif name in classes:
            parts.append(Condition(name, classes[name], 1, dropout))
        elif name == CLUSTER:
            raise InputError(
                f"prior.conditions.{name}: must be none where there are no clusters, got {dropout:g}; set codes.clusters.count, "
                "to 32 say, or it to none"
            )
        else:
            raise InputError(
                f"prior.conditions.{name}: must be none where the data set has no {name}s, got {dropout:g}; its images have "
                f"{listed([*classes, WORDS])}. Set it to none, or let the data set read them, see docs/data.md"
            )
    return Conditioning(tuple(parts))


def _neighbour(run: Run, dropout: float) -> Condition:
    if not run.neighbour_count:
        raise InputError(
            f"prior.conditions.{NEIGHBOUR}: must be none where there are no neighbours, got {dropout:g}; set "
            "codes.neighbours.count, to 8 say, or it to none"
        )
    images = tuple(run.table("train")["name"].tolist())
    return Condition(NEIGHBOUR, images, 1, dropout, run.neighbour_features().shape[1])


def names(table: pd.DataFrame) -> list[str]:
    """The name of each image, without the vendor that stands before it where there are several."""
    found = table["name"].tolist()
    if "vendor_name" not in table:
        return found
    return [name.removeprefix(f"{vendor}/") for name, vendor in zip(found, table["vendor_name"], strict=True)]


def of_table(conditioning: Conditioning, table: pd.DataFrame) -> Int[np.ndarray, "n c"] | None:
    """The conditions of the images of a table; None for an unconditional prior.

    Raises:
        InputError: the table lacks a column.
    """
    columns = []
    for part in conditioning:
        if part.name == WORDS:
            columns.append(Vocabulary(part.names, part.columns).ids(names(table)))
        elif part.name in table:
            columns.append(table[[part.name]].to_numpy("int64"))
        else:
            raise InputError(
                f"the prior is told the {part.name} of an image, and the data set has none: run `dvc repro prior`"
            )
    return np.concatenate(columns, axis=1) if columns else None


def of_split(
    run: Run, conditioning: Conditioning, split: str, rows: Sequence[int] | None = None
) -> Int[np.ndarray, "n c"] | None:
    """The conditions of the images of a split, or of those at `rows`; None for an unconditional prior. The neighbour is the
    nearest."""
    if not conditioning:
        return None
    table = run.table(split)
    if CLUSTER in conditioning and run.cluster_count:
        table = table.assign(**{CLUSTER: run.clusters(split)})
    if NEIGHBOUR in conditioning and run.neighbour_count:
        table = table.assign(**{NEIGHBOUR: run.neighbours(split)[:, 0]})
    return of_table(conditioning, table if rows is None else table.iloc[list(rows)])


def of_hidden(
    run: Run, conditioning: Conditioning, split: str, rows: Sequence[int] | None = None
) -> Int[np.ndarray, "n c"] | None:
    """As `of_split`, for images of which a part is to be filled in: nothing is said of what is made of all codes of an image, which
    would give the hidden part away."""
    told = of_split(run, conditioning, split, rows)
    return None if told is None else without_codes(conditioning, told)


def without_codes(conditioning: Conditioning, told: Int[np.ndarray, "n c"]) -> Int[np.ndarray, "n c"]:
    """A copy of conditions in which nothing is said of what is made of an image's codes."""
    told = told.copy()
    for part, columns in zip(conditioning, conditioning.split(told), strict=True):
        if part.name in MADE_OF_CODES:
            columns[:] = part.none
    return told


def as_in_training(
    run: Run, conditioning: Conditioning, count: int, rng: np.random.Generator, asked: Mapping[str, str] | None = None
) -> Int[np.ndarray, "n c"] | None:
    """Conditions to draw samples for: those of random training images, as often as they occur together there.

    Where something is asked for, it takes the place of what the image has, and the images are those that agree with most of what
    is asked. So samples by one vendor have the classes that this vendor draws, and a guitar is among the objects. The neighbour is,
    as in training, any of those of the image.

    Args:
        asked: condition -> a class by name or number, or words.

    Raises:
        InputError: see `conditions_of`.
    """
    known = of_split(run, conditioning, "train")
    if known is None:
        require_known(conditioning, asked or {})
        return None
    given = _ids(conditioning, {name: [text] for name, text in (asked or {}).items()}, 1)
    neighbours = run.neighbours("train") if NEIGHBOUR in conditioning else None
    agree = np.zeros(len(known), np.int64)
    for part, own in zip(conditioning, conditioning.split(known), strict=True):
        has = neighbours if part.name == NEIGHBOUR and neighbours is not None else own
        for one in set(given[part.name][0].tolist()) - {part.none} if part.name in given else ():
            agree += (has == one).any(1)
    rows = np.flatnonzero(agree == agree.max())
    chosen = rows[rng.choice(len(rows), count)]
    found = known[chosen]
    for part, own in zip(conditioning, conditioning.split(found), strict=True):
        if part.name == NEIGHBOUR and neighbours is not None:
            own[:] = neighbours[chosen, rng.integers(neighbours.shape[1], size=count)][:, None]
        own[:] = given.get(part.name, own)
    return found


def conditions_of(prior: Prior | str | Path, asked: Mapping[str, Sequence[str]], n: int) -> Int[Tensor, "n c"] | None:
    """The argument `conditions` of `prior.sample` for `n` images, from what is asked of them:

        conditions_of(prior, {"words": ["guitar"], "vendor": ["noto", "twitter"]}, 2)

    Nothing is said of conditions that are not asked for.

    Args:
        prior: a model, or the folder of one.
        asked: condition -> the class, by name or number, or the words; one for all images, or one for each.

    Returns:
        Ids, int64, on the CPU; None for an unconditional prior.

    Raises:
        InputError: the prior has no such condition, or it has no such class or word: the message names what there is. Or nothing
            is said of a condition that the prior never learned to do without (its dropout is 0).
    """
    import torch

    if isinstance(prior, str | Path):
        folder = Path(prior)
        conditioning, fitted = models.conditioning_of(folder), models.in_closed_form(folder)
    else:
        conditioning, fitted = prior.conditioning, hasattr(prior, "fit")
    require_known(conditioning, asked)
    for part in conditioning:
        if part.name not in asked and not part.dropout and not fitted:
            raise InputError(
                f"{part.name} must be given, since this prior never went without it in training; there are {listed(part.names)}"
            )
    if not conditioning:
        return None
    given = _ids(conditioning, asked, n)
    columns = [given.get(part.name, np.full((n, part.columns), part.none)) for part in conditioning]
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.int64))


def require_known(conditioning: Conditioning, asked: Mapping[str, object]) -> None:
    """
    Raises:
        InputError: something is asked for that the prior is not told.
    """
    for name in asked:
        if name not in conditioning:
            raise InputError(conditioning.unknown(name))


def _ids(conditioning: Conditioning, asked: Mapping[str, Sequence[str]], n: int) -> dict[str, Int[np.ndarray, "n m"]]:
    require_known(conditioning, asked)
    found = {}
    for name, texts in asked.items():
        if len(texts) not in (1, n):
            raise InputError(f"{name}: must be one for all {n} images, or one for each, got {len(texts)}")
        part = conditioning[name]
        own = {text: _of_text(part, text) for text in dict.fromkeys(texts)}
        found[name] = np.array([own[text] for text in (texts if len(texts) == n else list(texts) * n)], np.int64)
    return found


def _of_text(part: Condition, text: str) -> list[int]:
    if part.name == WORDS:
        return Vocabulary(part.names, part.columns).asked(text).tolist()
    if text in part.names:
        return [part.names.index(text)]
    if text.isdecimal() and int(text) < part.none:
        return [int(text)]
    near = difflib.get_close_matches(text, part.names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{part.name} {text!r}: there is no such {part.name}; there are {listed(part.names)}{hint}")


def described(conditioning: Conditioning, conditions: Int[np.ndarray, "n c"]) -> pd.DataFrame:
    """A row for each image, for people and for other stages: of a class its id (-1: nothing is said) and its name, as in the table
    of the data set (`label`, `label_name`), and the words as text."""
    import pandas as pd

    columns: dict[str, object] = {}
    for part, own in zip(conditioning, conditioning.split(conditions), strict=True):
        if part.name == WORDS:
            vocabulary = Vocabulary(part.names, part.columns)
            columns[part.name] = [vocabulary.text(row) for row in own.tolist()]
        else:
            ids = own[:, 0]
            columns[part.name] = np.where(ids == part.none, -1, ids)
            columns[f"{part.name}_name"] = ["" if i == part.none else part.names[i] for i in ids.tolist()]
    return pd.DataFrame(columns)
