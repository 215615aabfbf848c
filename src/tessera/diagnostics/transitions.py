"""What a code says about its right and lower neighbour, as matrices and in bits. Imports no torch.

T[a,b] = P(neighbour = b | code = a), counted on the train split: the language model of pairs that a prior starts from.
Its entropy H(a) = -sum_b T[a,b] log2 T[a,b] is averaged over codes, each weighing as it occurs (`entropy_bits`: H(b | a))
or each the same (`entropy_bits_by_code`), and predictability is 1 - H / log2 K. A published report has H = 4.9 bits and
11 %, having divided by 5.5 bits; log2 256 is 8, and by the formula it is 1 - 4.9 / 8 = 39 %.

These entropies are biased low, for most of a row's K cells are never seen; and a histogram far from flat is "predictable"
without any neighbour. `shuffled` is the judge of both: the same statistic after the neighbours have been permuted among
all pairs. Rows keep their number of examples and codes their frequency, so its bias is about the same, and only the
dependence is gone; what is left above it, `gain_bits` = H(shuffled) - H, is what the neighbour itself tells. (Not
Miller and Madow's correction: it adds (cells seen - 1) / 2n nats, at most 0.72 bits, where log2 K - log2 n may be
missing; and it knows nothing of the histogram.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field

from tessera.codes import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Config(Strict):
    shown: int = Field(ge=2, le=1024, description="codes of the picture, the most frequent ones", examples=[4])


def measure(config: Config, run: Run) -> Report:
    """Of `train`. Metrics: means over the two directions, of each grid; tables: each direction, and each code with its
    likeliest neighbour. A grid of one code has no neighbours, and reports that it does not apply."""
    metrics: dict[str, Any] = {}
    means, codes, matrices = [], [], {}
    folded = run.space.split(run.codes("train"))
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
    """One row for each code that occurs, the most frequent first."""
    n, bits = statistics.entropies_given(a, b, k)
    found, joint = np.unique(np.asarray(a, np.int64) * k + b, return_counts=True)
    found, joint = found[order := np.argsort(joint, kind="stable")], joint[order]
    likeliest, most = np.zeros((2, k), np.int64)
    likeliest[found // k], most[found // k] = found % k, joint  # of several the last is kept: the largest
    rows = pd.DataFrame({"code": range(k), "count": n, "entropy_bits": bits, "likeliest": likeliest})
    rows["p"] = most / np.maximum(n, 1)
    return rows[n > 0].sort_values("count", ascending=False, kind="stable")


def matrix(a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"], k: int, shown: int) -> Float[np.ndarray, "s s"]:
    """T over the `shown` most frequent codes, most frequent first; rows of codes that never occur are 0."""
    n = np.bincount(a, minlength=k)
    order = np.argsort(-n, kind="stable")[:shown]
    place = np.full(k, -1)
    place[order] = np.arange(size := len(order))
    kept = (place[a] >= 0) & (place[b] >= 0)
    counts = np.bincount(place[a[kept]] * size + place[b[kept]], minlength=size * size).reshape(size, size)
    return counts / np.maximum(n[order], 1)[:, None]


def _picture(matrices: dict[tuple[int, str], Float[np.ndarray, "s s"]]) -> Figure:
    """A logarithmic scale, white where a pair never occurs; the diagonal is a code beside itself."""
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
