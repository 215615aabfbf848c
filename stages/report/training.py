"""The curves of everything that was trained: each term of each loss over the epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stages.report import chart, definitions, elements
from tessera.core import files

if TYPE_CHECKING:
    import pandas as pd

TRAINED = ("scorer", "perceptual", "tokenizer", "prior", "upsampler", "infiller")

LEGEND = (
    '<p>Every term of every loss at each evaluation, <span class="train">training split</span> and '
    '<span class="val">validation split</span>. The vertical line is the epoch whose weights are used.</p>\n'
)


def body() -> str:
    """One part per stage that trains, with a small chart per term."""
    return LEGEND + "".join(map(_training, TRAINED))


def _training(name: str) -> str:
    history, kept = files.read_table(files.PLOTS / f"{name}.csv"), elements.metrics(name).get("epoch")
    charts = [_curve(title, history, columns, kept) for title, columns in _terms(history).items()]
    shown = f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>Nothing was trained.</p>"
    if "bound" in history and history["bound"].any():
        shown = "<p>Bits are an upper bound: this prior has no exact likelihood.</p>" + shown
    return f'<h3 id="training-{name}">{name}</h3>\n{shown}\n'


def _terms(history: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Term -> line -> column: `train_mse` and `val_mse` are the two lines of `mse`; `lr` is a term with a single line. Terms with
    two lines come first."""
    terms: dict[str, dict[str, str]] = {}
    for column in [name for name in history.columns if name not in ("epoch", "bound")]:
        split, _, term = column.partition("_")
        term, line = (term, split) if split in ("train", "val") else (column, "value")
        terms.setdefault(term, {})[line] = column
    return {term: columns for several in (2, 1) for term, columns in terms.items() if len(columns) == several}


def _curve(term: str, history: pd.DataFrame, columns: dict[str, str], kept: Any) -> str:
    lines, last = {}, []
    for line, column in columns.items():
        points = [(float(x), float(y)) for x, y in zip(history["epoch"], history[column], strict=True) if y != ""]
        points = [point for point in points if math.isfinite(point[1])]
        if points:
            lines[line] = points
            now = next((y for x, y in points if x == kept), points[-1][1])
            last.append(f'<span class="{line}">{line if line != "value" else ""} {elements.number(now)}</span>')
    if not lines:
        return ""
    plotted = chart.svg(lines, kept, f"{term} by epoch") if max(map(len, lines.values())) > 1 else ""
    return f"<figure><figcaption><b>{definitions.linked(term)}</b> {' '.join(last)}</figcaption>{plotted}</figure>"
