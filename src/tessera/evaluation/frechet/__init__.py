"""Fréchet distance and KID between sets of features (`features.frechet`, `features.kernel`). Imports no torch.

The Fréchet distance is called `fid` on Inception's features only; on others `fd_classifier` and the like, to be compared
within one data set and one scorer. KID is called `kid` beside `fid`, and otherwise after the features, `kid_classifier`.

`samples_test` is the figure of the literature: samples, which passed the decoder, against test images, which did not. Much of it is
the blur of the decoder. In the figures that end in `_decoded` both sides passed the tokenizer: the second set are the
reconstructions of the test images. `train_decoded`, reconstructions of training images against them, says what other real images
reach, and `train_test` says it without the tokenizer. Neither is a lower bound: training images come in families, of which as
many images hold fewer, so samples may lie below where families are few and large. `reconstruction_test` is what the tokenizer
alone loses. It may lie below `train_test`, since both of its sets are of the same images.

For each group of images all sets have the same number of images: the Fréchet distance shrinks as sets grow. KID has the interval of
its values over resampled families; a figure whose interval holds the values of all other rows against the same set says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from tessera import sets
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features import kernel
from tessera.features.frechet import distance
from tessera.features.kernel import Interval

PAIRS = (
    ("samples", "test"),
    ("samples", "train"),
    ("reconstruction", "test"),
    ("reconstruction", "train"),
    ("baseline", "test"),
    ("train", "test"),
    ("gaussian", "test"),
    ("samples", "reconstruction"),
    ("baseline", "reconstruction"),
    ("reconstruction_train", "reconstruction"),
    ("gaussian", "reconstruction"),
)  # `gaussian`: of a tokenizer that decodes N(0, I), where there is one
SETS, CONTROLS = ("test", "reconstruction", "samples", "train", "reconstruction_train"), ("baseline", "gaussian")
KID = ("samples_test", "reconstruction_test", "samples_decoded", "train_decoded")  # of KID, what the metrics have
LEAST = 4  # images; half of the resamplings of 2 hold no pair


def _name(first: str, second: str) -> str:
    """Of a pair in the metrics."""
    decoded = second == "reconstruction"
    return f"{first.removeprefix('reconstruction_')}_decoded" if decoded else f"{first}_{second}"


METRICS = (
    "*.images",
    *(f"*.{distance}.{_name(*pair)}" for distance in ("fid", "fd_*") for pair in PAIRS),
    *(f"*.kid*.{name}{end}" for name in KID for end in ("", "_low", "_high")),
)


class Config(Strict):
    count: int = Field(ge=LEAST, description="images of every set, chosen by the seed; fewer where a set has fewer",
                       examples=[8])  # fmt: skip
    resamplings: int = Field(ge=20, description="resamplings of the families, for the interval of KID", examples=[20])


def measure(config: Config, run: Run) -> Report:
    """Of each group the distances, and KID of the pairs that matter most; the table has every pair. A control with fewer images
    of a group than the others is not measured there, nor is a group of fewer than `LEAST` images: their rows are empty, and
    the log names both."""
    controls = [name for name in CONTROLS if name in run.sample_sets]
    chosen = sets.equal(run, "frechet", config.count, SETS, controls)
    kid = kernel.name(run.distance)
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for group, of in chosen.items():
        count = len(of["test"])
        for name in [name for name in controls if name not in of and count >= LEAST]:
            print(
                f"evaluation.frechet: {name}, group {group}: not measured, there are fewer than {count} images",
                flush=True,
            )
        able = set(of) if count >= LEAST else set()
        own = [
            _compared(config, run, group, of, *pair) if able.issuperset(pair) else _empty(group, count, *pair)
            for pair in PAIRS
            if {*SETS, *controls}.issuperset(pair)
        ]
        measured = [row for row in own if kid in row]
        _mark(measured, group, kid)
        rows += own
        if count < LEAST:
            print(f"evaluation.frechet: group {group}: not measured, a set has only {count} images", flush=True)
            metrics[group] = {"images": count}
            continue
        named = {_name(row["first"], row["second"]): row for row in measured}
        metrics[group] = {
            "images": count,
            run.distance: {name: row[run.distance] for name, row in named.items()},
            kid: {f"{name}{end}": named[name][f"{kid}{end}"] for name in KID for end in ("", "_low", "_high")},
        }
    return Report(metrics, {"pairs": pd.DataFrame(rows)})


def _compared(config: Config, run: Run, group: str, of: dict[str, Any], first: str, second: str) -> dict[str, Any]:
    """A row of the table."""
    kid = kernel.name(run.distance)
    pair = run.features(first)[of[first]], run.features(second)[of[second]]
    found = kernel.kid(
        *pair,
        families=(run.families(first)[of[first]], run.families(second)[of[second]]),
        resamplings=config.resamplings,
        generator=numpy_generator(run.params.seed, "frechet", "kid", group, first, second),
        related=np.eye(len(pair[0]), dtype=bool) if sets.MADE_OF.get(first) == second else None,
    )
    values = {run.distance: distance(*pair), kid: found.value, f"{kid}_low": found.low, f"{kid}_high": found.high}
    return {"group": group, "first": first, "second": second, "images": len(pair[0]), **values}


def _empty(group: str, images: int, first: str, second: str) -> dict[str, Any]:
    """A row of the table for what is not measured."""
    return {"group": group, "first": first, "second": second, "images": images, "says": "not measured"}


def _mark(rows: list[dict[str, Any]], group: str, kid: str) -> None:
    """Put into each row what its KID says, beside those of the same group against the same set."""
    for row in rows:
        others = [other[kid] for other in rows if other["second"] == row["second"] and other is not row]
        row["says"] = says(Interval(row[kid], row[f"{kid}_low"], row[f"{kid}_high"]), others)
        if row["says"] == "nothing":
            print(f"evaluation.frechet: {kid} of {row['first']} against {row['second']}, group {group}, says nothing: its interval "
                  f"{row[f'{kid}_low']:.3f} to {row[f'{kid}_high']:.3f} holds the values of all others", flush=True)  # fmt: skip


def says(of: Interval, others: Iterable[float]) -> str:
    """`nothing` where the interval holds the values of all others, so that the figure tells no two of them apart; else
    `something`."""
    return "nothing" if all(of.low <= value <= of.high for value in others) else "something"
