"""Accuracy of copying a neighbour: a prior must beat it to have learned more than smoothness. Imports no torch.

A published report has a copy-left oracle of 34 % at K = 256, 87 times chance; its trained prior has 42 %. `either` is not a
predictor, since it knows which neighbour to copy. The table has a second baseline, `constant`: always the most frequent code
of the train split, the accuracy of a prior that knows only the histogram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = ("left", "above", "better", "either", "constant", "random")


class Config(Strict):
    """No settings."""


def measure(config: Config, run: Run) -> Report:
    """Accuracies of `statistics.copying` on `val`, `random` = 1 / K, and `times_random` = better / random. The table has every
    split. A grid of one code has no neighbours: the diagnostic does not apply to it."""
    constants = [
        int(statistics.frequencies(codes, k).argmax())
        for codes, k in zip(run.space.neighbourhoods(run.codes("train")), run.space.sizes, strict=True)
    ]
    rows, metrics = [], {}
    for split in SPLITS:
        folded = run.space.neighbourhoods(run.codes(split))
        for grid, (codes, k, constant) in enumerate(zip(folded, run.space.sizes, constants, strict=True)):
            copied = statistics.copying(codes)
            found = {**copied, "constant": float((codes == constant).mean()), "random": 1 / k}
            rows += [
                {"split": split, "grid": grid, "predictor": name, "accuracy": value, "times_random": value * k}
                for name, value in found.items()
            ]
            if split == "val" and copied:
                metrics[f"grid_{grid}"] = {**copied, "random": 1 / k, "times_random": copied["better"] * k}
            elif split == "val":
                metrics[f"grid_{grid}"] = {"applies": 0}
    table = pd.DataFrame(rows)
    return Report(metrics, {"accuracy": table}, {"accuracy": _picture(table[table["split"] == "val"])})


def _picture(val: pd.DataFrame) -> Figure:
    from matplotlib.figure import Figure

    grids = sorted(val["grid"].unique())
    figure = Figure(figsize=(5.2 * len(grids), 3.0), layout="constrained")
    for axis, grid in zip(np.atleast_1d(figure.subplots(1, len(grids))), grids, strict=True):
        part = val[val["grid"] == grid].set_index("predictor").reindex(BARS).dropna()
        colours = ["tab:blue" if name in BARS[:3] else "tab:grey" for name in part.index]
        bars = axis.barh(part.index, part["accuracy"], color=colours)
        labels = [f"{row.accuracy:.1%}, {row.times_random:.1f} x random" for row in part.itertuples()]
        axis.bar_label(bars, labels, padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.set(title=f"grid {grid}: a code guessed by copying, val", xlabel="fraction of codes that are right")
        axis.set_xlim(0, max(1.5 * part["accuracy"].max(), 0.01))
    return figure
