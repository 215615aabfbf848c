"""How often neighbouring codes are equal. At 1/K the grid looks like noise to a prior. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import Field

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIRECTIONS = {"horizontal": (0, 1), "vertical": (1, 0), "diagonal": (1, 1)}


class Config(Strict):
    distance: int = Field(ge=1, description="largest distance in the table and picture, in codes", examples=[2])


def measure(config: Config, run: Run) -> Report:
    """Probability that the right, lower and diagonal neighbour has the same code, on `val`. `chance` is this probability for
    two independent codes, sum p_k^2. The table has every split and distances up to `distance`."""
    rows, metrics = [], {}
    for split in SPLITS:
        folded = run.space.neighbourhoods(run.codes(split))
        for grid, (codes, k) in enumerate(zip(folded, run.space.sizes, strict=True)):
            chance = float((statistics.frequencies(codes, k) ** 2).sum())
            found = {
                (name, far): statistics.neighbours_equal(codes, dy * far, dx * far)
                for name, (dy, dx) in DIRECTIONS.items()
                for far in range(1, config.distance + 1)
            }
            place = {"split": split, "grid": grid}
            rows += [{**place, "direction": n, "distance": far, "equal": p} for (n, far), p in found.items()]
            rows += [
                {**place, "direction": "chance", "distance": far, "equal": chance}
                for far in range(1, config.distance + 1)
            ]
            if split == "val":
                near = {name: p for (name, far), p in found.items() if far == 1 and not math.isnan(p)}
                metrics[f"grid_{grid}"] = {**near, "chance": chance}
    table = pd.DataFrame(rows).dropna()
    return Report(metrics, {"neighbours": table}, {"neighbours": _picture(table)})


def _picture(table: pd.DataFrame) -> Figure:
    import seaborn as sns
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4))
    axis = figure.subplots()
    part = table[table["split"] == "val"]
    sns.lineplot(part, x="distance", y="equal", hue="direction", style="grid", markers=True, ax=axis)
    axis.set(title="equal codes at a distance", xlabel="distance in codes", ylabel="probability", ylim=(0, None))
    axis.set_xticks(sorted(part["distance"].unique()))
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure
