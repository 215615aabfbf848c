"""How well a code predicts its right and lower neighbour, as transition matrices and in bits. Imports no torch.

T[a,b] = P(neighbour = b | code = a), counted on the train split: a bigram model of codes. Its row entropies H(a) = -sum_b
T[a,b] log2 T[a,b] are averaged over codes, weighted by frequency (`entropy_bits`: H(b | a)) or equally
(`entropy_bits_by_code`). Predictability is 1 - H / log2 K. A published report has H = 4.9 bits and predictability 11 %,
because it divides by 5.5 bits; log2 256 is 8, and the formula gives 1 - 4.9 / 8 = 39 %.

These entropies are biased low, since most of a row's K cells are never seen. A histogram far from flat is also "predictable"
without any neighbour. `shuffled` corrects for both: it is the same statistic after a permutation of the neighbours among all
pairs. Rows keep their number of examples and codes their frequency, so the bias is about the same and only the dependence is
gone. `gain_bits` = H(shuffled) - H is the information from the neighbour itself. (The correction of Miller and Madow would
not do: it adds (cells seen - 1) / 2n nats, at most 0.72 bits, where log2 K - log2 n bits can be missing, and it ignores the
histogram.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Config(Strict):
    shown: int = Field(ge=2, le=1024, description="most frequent codes, shown in the picture", examples=[4])


def measure(config: Config, run: Run) -> Report:
    """Statistics of `train`. Metrics are means over the two directions, per grid. The tables have each direction, and each code
    with its likeliest neighbour. A grid of one code has no neighbours: the diagnostic does not apply to it."""
    metrics: dict[str, Any] = {}
    means, codes, matrices = [], [], {}
    folded = run.space.neighbourhoods(run.codes("train"))
    for grid, (own, k) in enumerate(zip(folded, run.space.sizes, strict=True)):
        of_grid = []
        for name, (a, b) in statistics.neighbour_pairs(own).items():
            shuffled = numpy_generator(run.params.seed, "transitions", grid, name).permutation(b)
            of_grid.append(_entropies(a, b, shuffled, k))
            means.append({"grid": grid, "direction": name, **of_grid[-1]})
            codes.append(_by_code(a, b, k).assign(grid=grid, direction=name))
            matrices[grid, name] = matrix(a, b, k, config.shown)
        metrics[f"grid_{grid}"] = pd.DataFrame(of_grid).mean().to_dict() if of_grid else {"applies": 0}
    columns = ["grid", "direction", "code", "count", "entropy_bits", "likeliest", "p"]
    by_code = pd.concat(codes)[columns] if codes else pd.DataFrame(columns=columns)
    shown = {"matrix": _picture(matrices)} if matrices else {}
    return Report(metrics, {"directions": pd.DataFrame(means), "codes": by_code}, shown)


def _entropies(
    a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], shuffled: Int[np.ndarray, " p"], k: int
) -> dict[str, float]:
    n, bits = statistics.entropies_given(a, b, k)
    by_code, weighted = bits[n > 0].mean(), statistics.entropy_given(a, b, k)
    independent = statistics.entropy_given(a, shuffled, k)
    return {
        "entropy_bits": weighted,
        "entropy_bits_by_code": by_code,
        "predictability": statistics.predictability(weighted, k),
        "predictability_by_code": statistics.predictability(by_code, k),
        "predictability_shuffled": statistics.predictability(independent, k),
        "gain_bits": independent - weighted,
    }


def _by_code(a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int) -> pd.DataFrame:
    """One row per code that occurs, most frequent first."""
    n, bits = statistics.entropies_given(a, b, k)
    found, joint = np.unique(np.asarray(a, np.int64) * k + b, return_counts=True)
    found, joint = found[order := np.argsort(joint, kind="stable")], joint[order]
    likeliest, most = np.zeros((2, k), np.int64)
    likeliest[found // k], most[found // k] = found % k, joint  # the last assignment wins: the largest count
    rows = pd.DataFrame({"code": range(k), "count": n, "entropy_bits": bits, "likeliest": likeliest})
    rows["p"] = most / np.maximum(n, 1)
    return rows[n > 0].sort_values("count", ascending=False, kind="stable")


def matrix(a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int, shown: int) -> Float[np.ndarray, "s s"]:
    """T of the `shown` most frequent codes, most frequent first; rows of codes that never occur are 0."""
    n = np.bincount(a, minlength=k)
    order = np.argsort(-n, kind="stable")[:shown]
    place = np.full(k, -1)
    place[order] = np.arange(size := len(order))
    kept = (place[a] >= 0) & (place[b] >= 0)
    counts = np.bincount(place[a[kept]] * size + place[b[kept]], minlength=size * size).reshape(size, size)
    return counts / np.maximum(n[order], 1)[:, None]


def _picture(matrices: dict[tuple[int, str], Float[np.ndarray, "s s"]]) -> Figure:
    """The matrices on a logarithmic scale, white where a pair never occurs; the diagonal has pairs of equal codes."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = len({grid for grid, _ in matrices})
    figure = Figure(figsize=(12.4, 5.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).reshape(-1)
    for axis in axes[len(matrices) :]:
        axis.set_axis_off()
    for axis, ((grid, name), t) in zip(axes, matrices.items(), strict=False):
        scale = LogNorm(vmin=1e-3, vmax=1)
        plotted = axis.imshow(np.where(t > 0, t, np.nan), cmap="magma_r", norm=scale, interpolation="nearest")
        title = f"grid {grid}: {name} neighbour, codes by frequency"
        axis.set(title=title, xlabel="code of the neighbour (rank)", ylabel="code (rank)")
    figure.colorbar(plotted, ax=axes.tolist(), label="T[a,b]", extend="min", shrink=0.8)
    return figure
