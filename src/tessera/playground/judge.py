"""Tab Judge: which of two decoded images is real? Votes of people, the check that no measure replaces.

Both images are decoded from codes, so that the blur of the decoder tells nothing: the real one is a test image through the
tokenizer, the other a sample of the stage `samples`. Both are of one group, where groups are known. Votes are kept in
`docs/studies/judges-votes.csv`, one row each, which `python -m benchmarks.judges --votes` reads.
"""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.seeding import numpy_generator
from tessera.playground.workspace import Workspace
from tessera.runtime import provenance
from tessera.runtime.inputs import digests

VOTES = Path("docs/studies/judges-votes.csv")
PAIRS = 50  # of a session
CONFIDENCE = 0.95
COLUMNS = ("samples", "session", "pair", "group", "real", "sample", "real_side", "voted_side", "right")
DIGITS = 12  # of the digest of the samples
SIDES = ("left", "right")
_writing = threading.Lock()


class Pair(NamedTuple):
    """Indices of the test image and of the sample, their group, and the side on which the real one stands."""

    real: int
    sample: int
    group: str
    real_side: str


def pairs(space: Workspace, session: int, count: int = PAIRS) -> list[Pair]:
    """Pairs of a session, whose number is the seed. No image comes twice before all of its group have come.

    Raises:
        InputError: there is nothing to compare.
    """
    rng = numpy_generator(session, "playground", "judge")
    real, made = _groups(space, "test"), _groups(space, "samples")
    both = [name for name in made if len(made[name]) and len(real.get(name, ()))]
    if not both:
        raise InputError("no group has both test images and samples; run `dvc repro features`")
    sizes = np.array([len(made[name]) for name in both])
    names = rng.choice(len(both), count, p=sizes / sizes.sum())  # as frequent as among the samples
    queues = {
        (side, name): _endless(rng, of[name], count) for name in both for side, of in (("real", real), ("made", made))
    }
    sides = rng.permutation(np.resize(SIDES, count))
    return [
        Pair(queues["real", both[name]].pop(), queues["made", both[name]].pop(), both[name], str(side))
        for name, side in zip(names, sides, strict=True)
    ]


def _groups(space: Workspace, of: str) -> dict[str, np.ndarray]:
    """Indices of test images or samples by group; one group, `all`, where the stage `features` has not run."""
    if space.why_not("dataset", "samples", "features") is None:
        found = {name: rows for name, rows in space.groups(of).items() if name != "all"}
        if found:
            return found
    return {"all": np.arange(len(space.images("test", "reconstruction") if of == "test" else space.samples()))}


def _endless(rng: np.random.Generator, rows: np.ndarray, count: int) -> list[int]:
    repeats = -(-count // len(rows))
    return [int(row) for _ in range(repeats) for row in rng.permutation(rows)][::-1]


def images(space: Workspace, pair: Pair) -> dict[str, UInt8[np.ndarray, "h w c"]]:
    """By side."""
    real = np.asarray(space.images("test", "reconstruction")[pair.real])
    made = np.asarray(space.samples()[pair.sample])
    return {"left": real, "right": made} if pair.real_side == "left" else {"left": made, "right": real}


def version(space: Workspace) -> str:
    """Digest of the samples that are judged: votes on others do not count for them."""
    folder = space.folder("samples")
    paths = sorted(folder.rglob("*.npy"))
    found = space.kept.get("samples", paths, lambda: provenance.digest(folder.as_posix(), digests(folder.as_posix())))
    return str(found)[:DIGITS]


def vote(space: Workspace, session: int, number: int, pair: Pair, side: str, path: Path = VOTES) -> None:
    """Append a vote, in one write, so that no other server's row is cut."""
    row = (version(space), session, number, pair.group, pair.real, pair.sample, pair.real_side, side,
           int(side == pair.real_side))  # fmt: skip
    try:
        with _writing:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                if stream.tell() == 0:
                    writer.writerow(COLUMNS)
                writer.writerow(row)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}). Make its folder writable") from error


def votes(of: str | None = None, path: Path = VOTES) -> pd.DataFrame:
    """Those on the samples with the digest `of`, or all; empty where there are none.

    Raises:
        InputError: the file has other columns.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    table = files.read_table(path, text=("samples", "group", "real_side", "voted_side"))
    if tuple(table.columns) != COLUMNS:
        raise InputError(f"{path} must have the columns {', '.join(COLUMNS)}; move it away")
    return table if of is None else table[table["samples"] == of].reset_index(drop=True)


def by_session(table: pd.DataFrame) -> pd.DataFrame:
    """Votes as `benchmarks.judges` tells of a judge: columns group, images, judge, set, repetition, value. A session is a
    repetition; the value is the fraction of its votes that were right, and .5 where samples pass as real."""
    both = pd.concat([table.assign(group="all"), table[table["group"] != "all"]])
    rows = []
    for (group, of), part in both.groupby(["group", "samples"], sort=False):
        for repetition, (_, own) in enumerate(part.groupby("session", sort=False)):
            rows.append({"group": group, "images": PAIRS, "judge": "people", "set": f"samples {of}", "repetition": repetition,
                         "value": own["right"].mean()})  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "images", "judge", "set", "repetition", "value"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By group, and of all: votes, how many were right, their fraction, and its exact binomial interval (Clopper & Pearson 1934).
    A half is what guessing gives: samples that nobody can tell from real images."""
    from scipy.stats import binomtest

    rows = []
    for name in ("all", *sorted(set(table["group"]) - {"all"})):
        own = table if name == "all" else table[table["group"] == name]
        if not len(own):
            continue
        right = int(own["right"].sum())
        low, high = binomtest(right, len(own)).proportion_ci(CONFIDENCE)
        rows.append(
            {"group": name, "votes": len(own), "right": right, "fraction": right / len(own), "low": low, "high": high}
        )
    return pd.DataFrame(rows, columns=["group", "votes", "right", "fraction", "low", "high"])
