"""Which diagnostic predicts how well a prior models the codes? Rank correlations over the runs of a pool.

The predicted outcomes; larger is worse:

- `excess`: held-out bits per image of the trained prior in excess of what the rate alone predicts: the residual of a
  least-squares fit of log2 bits on log2 rate over the runs. The rate is the number of codes times log2 K. Any codes cost
  more bits if there are more of them; `excess` asks which codes cost more than their number explains.
- `fd`, `kid`: distance of samples to the test images minus that of the tokenizer's reconstructions, so that the loss of
  the tokenizer is not attributed to the prior.

Spearman's rho with percentile bootstrap intervals (2,000 resamples of the runs). A diagnostic of several grids counts by its
mean over the grids. `probe` is listed apart: it is itself a small prior, and so nearly the same quantity as `excess`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from tessera.core import files
from tessera.studies import results
from tessera.studies.results import Result
from tessera.studies.sweep import PAGES

RESAMPLES = 2000
LEAST = 6  # runs; a rank correlation of fewer says nothing
BITS, CODES, RATE = "evaluation/likelihood:all.test.nll_bits_per_code", "codes:codes_per_image", "codes:bits_per_image"
FD, FD_FLOOR = "evaluation/frechet:all.fd_*.samples_test", "evaluation/frechet:all.fd_*.reconstruction_test"
KID, KID_FLOOR = "evaluation/frechet:all.kid_*.samples_test", "evaluation/frechet:all.kid_*.reconstruction_test"
OUTCOMES = ("excess", "fd", "kid")
JUDGED = ("diagnostics/", "probe:")
APART = ("probe:",)


def outcomes(rows: list[Result]) -> pd.DataFrame:
    """One row per run: rate and held-out bits per image, and the three outcomes."""
    of = {name: np.array([results.metric(row, pattern) for row in rows]) for name, pattern in
          {"per_code": BITS, "codes": CODES, "rate": RATE, "fd": FD, "fd_floor": FD_FLOOR,
           "kid": KID, "kid_floor": KID_FLOOR}.items()}  # fmt: skip
    bits = of["per_code"] * of["codes"]
    columns = {"run": [row.run for row in rows], "rate": of["rate"], "bits": bits,
               "excess": excess(of["rate"], bits), "fd": of["fd"] - of["fd_floor"], "kid": of["kid"] - of["kid_floor"]}  # fmt: skip
    return pd.DataFrame(columns)


def excess(rate: Float[np.ndarray, " n"], bits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Residual of log2 bits after a linear fit on log2 rate, or after subtracting the mean if all rates are equal."""
    x, y = np.log2(rate), np.log2(bits)
    if np.ptp(x) == 0:
        return y - y.mean()
    slope, offset = np.polyfit(x, y, 1)
    return y - (slope * x + offset)


def diagnostics(rows: list[Result]) -> pd.DataFrame:
    """Metrics of the diagnostics and the probe, `file:name`, mean over grids: those that all runs have and that vary."""
    names: dict[str, None] = {}
    for row in rows:
        names |= {_over_grids(name): None for name in row.metrics if name.startswith(JUDGED)}
    table = pd.DataFrame({name: [results.metric(row, name) for row in rows] for name in names})
    return table.loc[:, table.notna().all() & (table.nunique() > 1)]


def _over_grids(name: str) -> str:
    file, _, rest = name.partition(":")
    head, _, tail = rest.partition(".")
    kind, _, index = head.rpartition("_")
    return f"{file}:{kind}_*.{tail}" if index.isdigit() else name


def spearman(x: Float[np.ndarray, "... n"], y: Float[np.ndarray, "... n"]) -> Float[np.ndarray, " ..."]:
    """Spearman's rho along the last axis, ties with their mean rank; NaN if one variable is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (x, y))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(size > 0, size, np.nan)


def interval(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], fraction: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval over runs. Resamples in which a variable is constant are left out."""
    rows = np.random.default_rng(0).integers(0, len(x), (RESAMPLES, len(x)))
    low, high = np.nanquantile(spearman(x[rows], y[rows]), [(1 - fraction) / 2, (1 + fraction) / 2])
    return float(low), float(high)


def correlations(rows: list[Result]) -> pd.DataFrame:
    """One row per diagnostic: rho and its interval for each outcome, sorted by the absolute rho with `excess`, largest first."""
    outcome, table, found = outcomes(rows), diagnostics(rows), []
    for name in table:
        entry: dict[str, object] = {"diagnostic": name, "apart": int(str(name).startswith(APART))}
        for of in OUTCOMES:
            x, y = table[name].to_numpy(float), outcome[of].to_numpy(float)
            entry[of] = float(spearman(x, y))
            entry[f"{of}_low"], entry[f"{of}_high"] = interval(x, y)
        found.append(entry)
    result = pd.DataFrame(found)
    return result.sort_values(
        ["apart", "excess"], key=lambda part: part if part.name == "apart" else -part.abs(), ignore_index=True
    )


def write(name: str, rows: list[Result]) -> list[str]:
    """Write CSV and figures for all runs, and for the runs of the most frequent grid. Returns the Markdown that shows them."""
    from tessera.studies.pages import markdown, short

    done = [row for row in rows if row.state == "done" and np.isfinite(results.metric(row, BITS))]
    parts = ["## Outcomes", markdown(outcomes(done).map(short))]
    for title, chosen in {"all runs": done, "one grid": one_grid(done)}.items():
        if len(chosen) < LEAST:
            continue
        file = f"{name}-{title.replace(' ', '-')}"
        table = correlations(chosen)
        files.write_table(PAGES / f"{file}.csv", table)
        files.write_picture(PAGES / "figures" / f"{file}.png", picture(table, f"{title} (n = {len(chosen)})"))
        shown = pd.DataFrame({"diagnostic": "`" + table["diagnostic"].str.removeprefix("diagnostics/") + "`"})
        for of in OUTCOMES:
            shown[of] = [f"{r:+.2f} [{low:+.2f}, {high:+.2f}]" for r, low, high in
                         table[[of, f"{of}_low", f"{of}_high"]].itertuples(index=False)]  # fmt: skip
        parts += [
            f"## {title.capitalize()}: {len(chosen)}",
            f"![rank correlations](figures/{file}.png)",
            markdown(shown),
        ]
    return parts


def one_grid(rows: list[Result]) -> list[Result]:
    """The runs with the most frequent number of codes."""
    codes = [results.metric(row, CODES) for row in rows]
    common = max(set(codes), key=codes.count) if codes else None
    return [row for row, count in zip(rows, codes, strict=True) if count == common]


def picture(table: pd.DataFrame, title: str) -> Figure:
    """One row per diagnostic: rho with its interval, one colour per outcome. Diagnostics listed apart are below the dashed line."""
    figure = Figure(figsize=(8.2, 1.2 + 0.24 * len(table)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(table))[::-1]
    for shift, of, colour in zip((0.22, 0, -0.22), OUTCOMES, ("#1f5a92", "#d9772e", "#4c9a6a"), strict=True):
        values = table[of].to_numpy(float)
        ends = np.abs(table[[f"{of}_low", f"{of}_high"]].to_numpy(float).T - values)
        axis.errorbar(values, places + shift, xerr=ends, fmt="o", markersize=3.5, linewidth=1, color=colour, label=of)
    axis.axvline(0, color="black", linewidth=0.8)
    apart = int(table["apart"].sum())
    if apart:
        axis.axhline(places[len(table) - apart] + 0.5, color="grey", linestyle="--", linewidth=0.8)
    axis.set_yticks(places, table["diagnostic"].str.removeprefix("diagnostics/"), fontsize=7)
    axis.set(
        xlim=(-1.02, 1.02), ylim=(-0.8, len(table) - 0.2), xlabel="Spearman's rho, 95 % bootstrap interval", title=title
    )
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=len(OUTCOMES))
    axis.grid(alpha=0.25, axis="x")
    return figure
