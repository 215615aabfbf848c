"""Sheets of objects of every run of a study: `python -m benchmarks.shape`, after `python -m tessera.studies shape --direct`.

For each run the first samples of a group, as they came, from the same random numbers in all runs, and beside them test images of
the group through the tokenizer. Twice: `shape-rest-blind.png` without names and in an order by chance, to judge first, and
`shape-rest.png` with names. `shape-rest-blind.csv` tells which letter is which run; it is not printed.
"""

from __future__ import annotations

import argparse
import contextlib
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from tessera import groups
from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.images import pictures
from tessera.images.arrays import evenly
from tessera.studies import direct, sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = sweep.PAGES / "pictures"
REAL = "test images"
COLUMNS, PANELS = 8, 4  # images in a row of a panel, panels in a row


def sheets(study: str, group: str, shown: int, runs: Sequence[str]) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    """Under `REAL` test images of the group through the tokenizer of the first run, evenly spaced; then of each run its first
    samples of the group, fewer where it has fewer.

    Raises:
        InputError: no run has samples of the group.
    """
    found: dict[str, UInt8[np.ndarray, "n h w c"]] = {}
    for name in runs:
        where = direct.folder(study, name)
        if direct.state(study, name) != "done" or not (where / files.ARTIFACTS / "samples").exists():
            print(f"{name}: no samples in {where}; left out", file=sys.stderr)
            continue
        with contextlib.chdir(where):
            run = Run(Params(files.read_json(Path(direct.PARAMS))))
            nothing = np.zeros(0, np.int64)
            of_samples, of_real = (run.groups(of).get(group, nothing) for of in ("samples", "reconstruction"))
            if not found:
                real = of_real[evenly(len(of_real), shown)]
                found[REAL] = np.array(run.images("test", "reconstruction")[real])
            found[name] = np.array(run.samples()[of_samples[:shown]])
    if len(found) < 2 or not len(found[REAL]):
        raise InputError(
            f"--group: must be a group that runs of the study {study} have samples of, got {group!r}; run "
            f"`python -m tessera.studies {study} --direct` first"
        )
    return found


def figure(panels: Mapping[str, UInt8[np.ndarray, "n h w c"]], shown: int) -> Figure:
    """A panel of `shown` places for each title."""
    from matplotlib.figure import Figure

    blocks = {title: block(images, shown) for title, images in panels.items()}
    height, width = next(iter(blocks.values())).shape[:2]
    columns = min(PANELS, len(blocks))
    rows = -(-len(blocks) // columns)
    made = Figure(figsize=(columns * width / 150, rows * (height / 150 + 0.25)), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, images) in zip(axes, blocks.items(), strict=False):
        axis.imshow(images.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=9)
    return made


def block(images: UInt8[np.ndarray, "n h w c"], shown: int) -> UInt8[np.ndarray, "height width c"]:
    """Places without an image are white."""
    missing = ((0, shown - len(images)), (0, 0), (0, 0), (0, 0))
    return pictures.sheet(np.pad(images, missing, constant_values=255), COLUMNS)


def letters(count: int) -> list[str]:
    """A, B ... Z, AA, AB ..."""
    alphabet = string.ascii_uppercase
    return [(alphabet[i // 26 - 1] if i >= 26 else "") + alphabet[i % 26] for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="shape")
    parser.add_argument("--group", default=groups.REST, help="of section features")
    parser.add_argument("--shown", type=int, default=40, help="images of each run")
    parser.add_argument("--runs", nargs="+", help="all of the study if not given")
    parser.add_argument("--folder", type=Path, default=PICTURES, help="of the pictures")
    options = parser.parse_args(argv)
    try:
        runs = options.runs or list(sweep.load(options.study).runs)
        found = sheets(options.study, options.group, options.shown, runs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stem = f"{options.study}-{options.group}"
    order = numpy_generator(0, stem, "blind").permutation(list(found))
    key = dict(zip(letters(len(order)), map(str, order), strict=True))
    blind = {letter: found[name] for letter, name in key.items()}
    for name, panels in {stem: found, f"{stem}-blind": blind}.items():
        path = options.folder / f"{name}.png"
        files.write_picture(path, figure(panels, options.shown))
        print(path)
    table = pd.DataFrame({"letter": list(key), "run": list(key.values())})
    files.write_table(options.folder / f"{stem}-blind.csv", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
