"""The metrics of the prior, and its accuracy beside that of the oracle."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from stages.report import elements
from tessera.core import files

if TYPE_CHECKING:
    import pandas as pd

    from tessera.core.run import Run

ORACLE = "oracle"  # the diagnostic whose predictors the prior should exceed

PREDICTORS = {
    "left": "copy left",
    "above": "copy above",
    "better": "better of the two",
    "either": "either of the two (not a predictor: it knows which)",
    "constant": "always the most frequent code",
    "random": "at random",
}


def body(run: Run) -> str:
    """Metrics of the prior, and bars that compare its accuracy with the predictors of the oracle."""
    return elements.numbers("prior") + _beside_oracle(run)


def _beside_oracle(run: Run) -> str:
    """Accuracies of prior and oracle as bars. A prior that is no better than copying a neighbour has learned only smoothness."""
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
        f'<h3 id="prior-oracle">Accuracy beside the oracle</h3>\n<p>{_times(prior, table)} {note} A prior that is no better '
        f'than copying a neighbour has learned only smoothness.</p>\n<dl class="bars">{rows}</dl>\n'
    )


def _times(prior: dict[str, Any], table: pd.DataFrame) -> str:
    accuracy, best = prior["val"]["accuracy"], table.groupby("predictor")["accuracy"].max()
    said = f"The prior predicts {accuracy:.1%} of the codes of validation images correctly"
    if table["grid"].nunique() == 1 and best.get("better", 0) and best.get("random", 0):
        said += f", {accuracy / best['better']:.1f} times the better of copying left and copying above"
        said += f", and {accuracy / best['random']:.0f} times chance"
    return said + "."
