"""What the prior reached, beside the oracle that is to be beaten."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from stages.report import elements
from tessera.core import files

if TYPE_CHECKING:
    import pandas as pd

    from tessera.core.run import Run

ORACLE = "oracle"  # the diagnostic whose predictors are to be beaten

PREDICTORS = {
    "left": "copy left",
    "above": "copy above",
    "better": "better of the two",
    "either": "either of the two (no predictor: knows which)",
    "constant": "always the most frequent code",
    "random": "at random",
}


def body(run: Run) -> str:
    """Metrics of the prior, and its accuracy as bars among those of the predictors of the oracle."""
    return elements.numbers("prior") + _beside_oracle(run)


def _beside_oracle(run: Run) -> str:
    """An oracle is read against the prior: one that is no better than copying a neighbour has learned smoothness only."""
    if ORACLE not in run.params.keys("diagnostics") or elements.metrics(f"diagnostics/{ORACLE}").get("applies") == 0:
        return f"<p>The diagnostic <code>{ORACLE}</code>, to read the accuracy against, is not run or does not apply.</p>\n"
    table = files.read_table(files.PLOTS / "diagnostics" / ORACLE / "accuracy.csv")
    table = table[table["split"] == "val"]
    prior = elements.metrics("prior")
    bars = [
        ("prior, validation", prior["val"]["accuracy"], "val"),
        ("prior, train", prior["train"]["accuracy"], "train"),
    ]
    several = table["grid"].nunique() > 1
    for grid, predictor, accuracy in zip(table["grid"], table["predictor"], table["accuracy"], strict=True):
        words = PREDICTORS.get(predictor, predictor) + (f", grid {grid}" if several else "")
        bars.append((words, float(accuracy), "value"))
    longest = max(accuracy for _, accuracy, _ in bars) or 1.0
    rows = "".join(
        f'<dt>{escape(words)}</dt><dd><span class="bar {kind}" style="width:{100 * accuracy / longest:.1f}%"></span>'
        f"<b>{accuracy:.1%}</b></dd>"
        for words, accuracy, kind in bars
    )
    note = "The accuracy of the prior is over all grids." if several else ""
    return (
        f'<h3 id="prior-oracle">Accuracy beside the oracle</h3>\n<p>{_times(prior, table)} {note} Where a prior is no better '
        f'than copying a neighbour, it has learned smoothness and nothing else.</p>\n<dl class="bars">{rows}</dl>\n'
    )


def _times(prior: dict[str, Any], table: pd.DataFrame) -> str:
    accuracy, best = prior["val"]["accuracy"], table.groupby("predictor")["accuracy"].max()
    said = f"Of the codes of validation images the prior names {accuracy:.1%}"
    if table["grid"].nunique() == 1 and best.get("better", 0) and best.get("random", 0):
        said += f", {accuracy / best['better']:.1f} times the better of copying left and copying above"
        said += f", and {accuracy / best['random']:.0f} times chance"
    return said + "."
