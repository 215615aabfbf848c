"""A score of how well a prior can learn a grid of codes, before a prior is trained. Imports no torch.

    S = 100 (0.5 rho + 0.3 oracle + 0.2 predictability)

rho: mean of the fractions of right and of lower neighbours that are equal (diagnostic `autocorrelation`), on `val`;
oracle: accuracy of the better of copying left and copying above (diagnostic `oracle`), on `val`;
predictability: 1 - H(neighbour | code) / log2 K, codes weighted by frequency (diagnostic `transitions`), on `train`.

The published score of an emoji tokenizer (16x16 codes, K = 256) is 28.9, critical: rho = (.34 + .32) / 2, oracle = .34,
predictability = .11. The published predictability is 1 - 4.9 / 5.5; with log2 256 = 8 it is .39, and the score 34.5, poor.
Compare with 34.5. `independent` is the score of independent codes with the same histogram, 100 (0.8 sum p_k^2 + 0.2 (1 -
H(p) / log2 K)). A collapsed codebook scores 100 because its codes are constant; then `independent` is 100 too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = {"rho": 0.5, "oracle": 0.3, "predictability": 0.2}
BANDS = {"critical": 0, "poor": 30, "fair": 50, "good": 70}  # band: lowest score


class Config(Strict):
    """No settings: scores with other weights would not be comparable."""


def measure(config: Config, run: Run) -> Report:
    """Score, band (0 critical, 1 poor, 2 fair, 3 good) and parts of each grid. A grid of one code has no neighbours: the
    diagnostic does not apply to it."""
    train, val = (run.space.neighbourhoods(run.codes(split)) for split in ("train", "val"))
    rows: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for grid, (counted, codes, k) in enumerate(zip(train, val, run.space.sizes, strict=True)):
        found = parts(counted, codes, k)
        metrics[f"grid_{grid}"] = {"applies": 0}
        if found:
            score = learnability(found)
            p = statistics.frequencies(counted, k)
            alone = dict.fromkeys(("rho", "oracle"), float((p**2).sum()))
            alone["predictability"] = statistics.predictability(statistics.entropy_bits(p), k)
            floor = learnability(alone)
            metrics[f"grid_{grid}"] = {"score": score, "band": band(score), **found, "independent": floor}
            rows += [
                {
                    "grid": grid,
                    "part": name,
                    "value": found[name],
                    "weight": weight,
                    "points": 100 * weight * found[name],
                    "score": score,
                    "band": list(BANDS)[band(score)],
                    "independent": floor,
                }
                for name, weight in WEIGHTS.items()
            ]
    columns = ["grid", "part", "value", "weight", "points", "score", "band", "independent"]
    table = pd.DataFrame(rows, columns=columns)
    return Report(metrics, {"parts": table}, {"score": _picture(table)} if rows else {})


def parts(train: Int[np.ndarray, "n h w"], val: Int[np.ndarray, "m h w"], k: int) -> dict[str, float]:
    """rho, oracle and predictability, each from 0 to 1; empty for a 1x1 grid."""
    pairs = statistics.neighbour_pairs(train)
    if not pairs:
        return {}
    near = [statistics.neighbours_equal(val, dy, dx) for dy, dx in ((0, 1), (1, 0))]
    bits = float(np.mean([statistics.entropy_given(a, b, k) for a, b in pairs.values()]))
    return {
        "rho": float(np.mean([p for p in near if not math.isnan(p)])),
        "oracle": statistics.copying(val)["better"],
        "predictability": statistics.predictability(bits, k),
    }


def learnability(found: dict[str, float]) -> float:
    """S of the three parts, 0 to 100."""
    return 100 * sum(weight * found[name] for name, weight in WEIGHTS.items())


def band(score: float) -> int:
    """Index into `BANDS`."""
    return sum(score >= least for least in BANDS.values()) - 1


def _picture(table: pd.DataFrame) -> Figure:
    """Points of each part, over the bands; the mark is the score of independent codes."""
    from matplotlib.figure import Figure

    grids = table["grid"].unique()
    figure = Figure(figsize=(8.0, 1.7 + 0.6 * len(grids)), layout="constrained")
    axis = figure.subplots()
    for index, (name, least) in enumerate(BANDS.items()):
        end = [*BANDS.values(), 100][index + 1]
        axis.axvspan(least, end, color="black", alpha=0.16 - 0.045 * index, linewidth=0)
        axis.text((least + end) / 2, -0.5, name, ha="center", va="bottom", fontsize=9)
    places, left = np.arange(len(grids)), np.zeros(len(grids))
    for name, part in table.groupby("part", sort=False):
        points = part["points"].to_numpy()
        bars = axis.barh(places, points, left=left, height=0.5, label=name)
        axis.bar_label(bars, [f"{value:.1f}" for value in points], label_type="center", color="white", fontsize=8)
        left += points
    floors = table.drop_duplicates("grid")["independent"]
    axis.scatter(floors, places + 0.34, marker="^", s=30, color="black", label="independent codes")
    for place, score in zip(places, left, strict=True):
        axis.text(score + 1, float(place), f"{score:.1f}", va="center", fontweight="bold")
    axis.set_yticks(places, [f"grid {grid}" for grid in grids])
    axis.set(title="learnability", xlabel="points", xlim=(0, 108), ylim=(len(grids) - 0.5, -0.75))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=4, frameon=False, fontsize=9)
    return figure
