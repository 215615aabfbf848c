"""Usage of the codebook over the whole split, never over a batch. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Config(Strict):
    """No settings."""


def measure(config: Config, run: Run) -> Report:
    """Fraction of the codebook used, number of active codes, and perplexity, on `val`; the table has every split and grid."""
    rows, histogram = [], []
    for split in SPLITS:
        for grid, (codes, k) in enumerate(zip(run.space.split(run.codes(split)), run.space.sizes, strict=True)):
            p = statistics.frequencies(codes, k)
            rows.append(
                {
                    "split": split,
                    "grid": grid,
                    "codebook_size": k,
                    "active": int((p > 0).sum()),
                    "usage": statistics.usage(p),
                    "perplexity": statistics.perplexity(p),
                    "entropy_bits": statistics.entropy_bits(p),
                }
            )
            order = np.argsort(-p, kind="stable")
            histogram.append(
                pd.DataFrame({"split": split, "grid": grid, "rank": range(k), "code": order, "p": p[order]})
            )
    val = [row for row in rows if row["split"] == "val"]
    names = ("usage", "active", "perplexity")
    metrics: dict[str, Any] = {f"grid_{row['grid']}": {name: row[name] for name in names} for row in val}
    tables = {"splits": pd.DataFrame(rows), "histogram": pd.concat(histogram)}
    return Report(metrics, tables, {"histogram": _picture(tables["histogram"])})


def _picture(histogram: pd.DataFrame) -> Figure:
    """Frequency of codes, most frequent first; the dashed line is that of equally likely codes."""
    import seaborn as sns
    from matplotlib.figure import Figure

    grids = sorted(histogram["grid"].unique())
    figure = Figure(figsize=(5.2 * len(grids), 3.4))
    for axis, grid in zip(np.atleast_1d(figure.subplots(1, len(grids))), grids, strict=True):
        part = histogram[histogram["grid"] == grid]
        sns.lineplot(part, x="rank", y="p", hue="split", ax=axis)
        axis.axhline(1 / (part["rank"].max() + 1), color="grey", linestyle="--", linewidth=1)
        axis.set(title=f"grid {grid}", xlabel="rank of the code", ylabel="fraction of all codes", ylim=(0, None))
    return figure
