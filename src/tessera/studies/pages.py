"""Writes docs/studies/NAME.md, its CSV and its figures from the kept results."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from tessera.core import files, trees
from tessera.core.params import read
from tessera.studies import correlation, results, sweep
from tessera.studies.results import Result
from tessera.studies.sweep import PAGES

FIGURES = PAGES / "figures"
COLOURS = {"ours": "#1f5a92", "published": "#d9772e"}  # group -> its colour in all figures; others take the next
SHADES = 8  # curves that can be told apart by their shade alone
DASHES = ("-", "--", ":")  # of neighbouring curves, where there are more
LABELS = {  # name -> label of an axis
    "beta": "beta, commitment weight",
    "bits_per_image": "rate, bits per image",
    "code_dim": "D, dimension of a code vector",
    "codebook_size": "K, number of code vectors",
    "decay": "decay of the EMA",
    "horizontal": "fraction of equal horizontal neighbours",
    "latent_dim": "dimension of a latent",
    "neighbours": "k of the neighbour graph",
    "perplexity": "perplexity of the codes",
    "test.psnr_db": "PSNR, dB",
    "reconstruction_test": "distance of reconstructions to test images",
    "samples.recall": "recall of samples",
    "samples_test": "distance of samples to test images",
    "test.fraction_saved": "fraction of the entropy saved, test",
    "usage": "fraction of code vectors used",
    "val_perplexity": "perplexity of the codes, validation",
    "val_psnr_db": "PSNR, dB, validation",
    "val_usage": "fraction of code vectors used, validation",
}
MEASURES = (
    "`psnr_db` is of the mean error over images, `ssim` has uniform windows of 7x7 pixels (`src/tessera/scores.py`)."
)


def write(name: str, study: sweep.Study) -> Path:
    """Write the page of a study, and its figures."""
    pool, owner = sweep.pool_of(name, study)
    chosen = sweep.shown(name, study)
    rows = fitting(pool, owner, chosen)
    for figure in study.figures:
        files.write_picture(FIGURES / f"{name}-{_file(figure)}.png", plot(figure, study, rows, owner))
    if study.columns and (study.pool or study.correlations):
        files.write_table(PAGES / f"{name}.csv", table(study, rows, owner))
    plotted = correlation.write(name, rows) if study.correlations else []
    path = PAGES / f"{name}.md"
    with files.writing(path) as stream:
        stream.write(text(name, study, rows, owner, plotted))
    return path


def fitting(pool: str, owner: sweep.Study, runs: list[str]) -> list[Result]:
    """The kept results of these runs; a result with other values than its run counts as missing."""
    kept, values = {result.run: result for result in results.load(pool)}, sweep.counted(owner)
    return [results.fitting(kept.get(run, Result(run, "missing", {}, {})), values[run]) for run in runs]


def text(name: str, study: sweep.Study, rows: list[Result], owner: sweep.Study, correlated: list[str]) -> str:
    parts = [
        f"# {study.title}",
        study.text,
        f"`python -m tessera.studies {name}`. {study.budget or owner.budget}".strip(),
    ]
    if study.findings:
        parts += ["## What the runs say", study.findings]
    if study.columns:
        named = [MEASURES] if {"psnr_db", "ssim"} & set(study.columns) else []
        parts += ["## Runs", *named, markdown(table(study, rows, owner).map(short))]
    lost = [
        f"`{row.run}` ({row.why or results.NOT_YET.get(row.state, row.state)})" for row in rows if row.state != "done"
    ]
    if lost:
        parts.append(
            f"Without result: {', '.join(lost)}. `python -m tessera.studies {name}` runs these again, and no others."
        )
    parts += correlated
    parts += [f"![{figure.title}](figures/{name}-{_file(figure)}.png)" for figure in study.figures]
    for published in study.published:
        shown = pd.DataFrame(published.rows, columns=published.columns)
        parts += [
            "## Published",
            published.source,
            markdown(shown.map(lambda v: v if isinstance(v, str) else f"{v:g}")),
        ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(study: sweep.Study, rows: list[Result], owner: sweep.Study) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {"run": [row.run for row in rows]}
    for title, source in study.columns.items():
        columns[title] = [value(source, row, owner) for row in rows]
    return pd.DataFrame(columns)


def value(source: str, row: Result, owner: sweep.Study) -> Any:
    """A metric (`file:name`) of a run, or a value of its params.yaml."""
    if ":" in source:
        return results.metric(row, source)
    changes = sweep.changes(owner, row.run)
    found = changes[source] if source in changes else trees.value(read(), source)
    return found if isinstance(found, int | float | str) and not isinstance(found, bool) else str(found)


# figures


def plot(figure: sweep.Figure, study: sweep.Study, rows: list[Result], owner: sweep.Study) -> Figure:
    plotted = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = plotted.subplots()
    groups = study.groups or {"": [row.run for row in rows]}
    if figure.kind == "curves":
        _curves(axis, figure, rows)
    else:
        for group, runs in groups.items():
            points = [
                (value(figure.x, row, owner), value(figure.y, row, owner), row.run) for row in rows if row.run in runs
            ]
            points = sorted(point for point in points if not any(math.isnan(float(v)) for v in point[:2]))
            if points:
                _points(axis, points, group, joined=":" not in figure.x or bool(study.groups))
        axis.set(xlabel=_label(figure.x), ylabel=_label(figure.y))
    if figure.log:
        _logarithmic(axis)
    axis.set_title(figure.title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return plotted


def _points(axis: Axes, points: list[tuple[Any, Any, str]], group: str, joined: bool) -> None:
    """Plot points. They are joined if x is a parameter or `group` is a series; otherwise each is labelled with its run."""
    x, y, runs = zip(*points, strict=True)
    axis.plot(x, y, marker="o", linestyle="-" if joined else "none", label=group or None, color=COLOURS.get(group))
    if not joined:
        axis.margins(0.15)
        for place, run in zip(zip(x, y, strict=True), runs, strict=True):
            axis.annotate(run, place, (0, 5), textcoords="offset points", ha="center", fontsize=7)


def _logarithmic(axis: Axes) -> None:
    """A logarithmic x axis with plain numbers as ticks, a factor of 2 apart if all x are at least 2, and no minor labels."""
    axis.set_xscale("log", base=2 if axis.dataLim.x0 >= 2 else 10)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _curves(axis: Axes, figure: sweep.Figure, rows: list[Result]) -> None:
    import seaborn as sns

    plotted = [row for row in rows if figure.y in row.curves.get(figure.file, ())]
    colours = sns.color_palette("viridis", len(plotted))
    styles = DASHES if len(plotted) > SHADES else DASHES[:1]
    for row, colour, style in zip(plotted, colours, itertools.cycle(styles), strict=False):
        curve = row.curves[figure.file]
        axis.plot(curve[figure.x], curve[figure.y], label=row.run, color=colour, linestyle=style)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs, or steps
    axis.set(xlabel=_label(figure.x), ylabel=_label(figure.y))


def _name(source: str) -> str:
    """The short name for axes and file names: `diagnostics/usage:grid_*.usage` becomes `usage`, and
    `evaluation/likelihood:all.test.fraction_saved`, of the group `all`, `test.fraction_saved`."""
    metric = source.rpartition(":")[2].rpartition("*.")[2].removeprefix("all.")
    return metric if ":" in source else source.rpartition(".")[2]


def _label(source: str) -> str:
    return LABELS.get(_name(source), _name(source))


def _file(figure: sweep.Figure) -> str:
    return f"{_name(figure.y)}-{_name(figure.x)}".replace(".", "-")


# tables


def short(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
