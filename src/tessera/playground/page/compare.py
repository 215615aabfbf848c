"""The tab Compare runs."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from tessera.core.errors import InputError
from tessera.playground import cells, compare
from tessera.playground.page.parts import Fresh, Tab, plain, row, told
from tessera.playground.workspace import Workspace

TITLE = "Compare runs"
SIDE = 128
ROWS = ("original", "left", "right")
DIGITS = 5


def why_not(space: Workspace) -> str | None:
    return compare.why_not()


def build(space: Workspace) -> Tab:
    with gr.Row():
        left = gr.Dropdown([], label="Left", info="revision or experiment; type to search", elem_id="compare-left")
        right = gr.Dropdown([], label="Right", info="revision or experiment; type to search", elem_id="compare-right")
    go = gr.Button("Compare", variant="primary", elem_id="compare-go")
    said = gr.Markdown(elem_id="compare-said")
    pictures = row(
        "whole", label="The same test images, reconstructed by both", columns=compare.IMAGES, elem_id="compare-images"
    )
    with gr.Row():
        stage = gr.Radio(compare.CURVES, value=compare.CURVES[0], label="Curves of", elem_id="compare-stage")
        measure = gr.Dropdown([], label="Measure", elem_id="compare-measure")
    plot = gr.LinePlot(x="epoch", y="value", color="run", height=280, buttons=[], elem_id="compare-plot")
    table = gr.Dataframe(label="Metrics that differ, the largest relative difference first", interactive=False, max_height=400,
                         headers=["metric", "left", "right", "difference"], elem_id="compare-table")  # fmt: skip
    measured = gr.State(None)

    @told
    def both(a: str | None, b: str | None, of: str) -> tuple[Any, ...]:
        if not a or not b:
            raise InputError("choose a run on each side first")
        sides = compare.Revision(a), compare.Revision(b)
        metrics = compare.differing(*(side.metrics() for side in sides))
        pictures, left_out = _pictures(space, sides)
        return f"{sentence(metrics)} {left_out}", pictures, metrics.map(_short), *trained(a, b, of)

    @told
    def trained(a: str | None, b: str | None, of: str) -> tuple[Any, ...]:
        if not a or not b:
            return None, gr.skip(), gr.skip()
        found = compare.curves(compare.Revision(a), compare.Revision(b), of)
        names = list(dict.fromkeys(found["measure"]))
        first = names[0] if names else None
        return found, gr.Dropdown(names, value=first), _only(found, first)

    go.click(both, [left, right, stage], [said, pictures, table, measured, measure, plot])
    stage.input(trained, [left, right, stage], [measured, measure, plot], show_progress="hidden")
    measure.input(_only, [measured, measure], plot, show_progress="hidden")
    return Tab([Fresh(left, lambda: _choices("HEAD")), Fresh(right, lambda: _choices(compare.HERE))])


def _choices(value: str) -> Any:
    return gr.Dropdown(compare.revisions(), value=value) if compare.why_not() is None else gr.Dropdown([])


def _only(found: pd.DataFrame | None, measure: str | None) -> pd.DataFrame | None:
    return None if found is None or measure is None else found[found["measure"] == measure]


def _short(value: Any) -> Any:
    return value if isinstance(value, str) else ("" if np.isnan(value) else f"{value:.{DIGITS}g}")


def sentence(metrics: pd.DataFrame) -> str:
    if metrics.empty:
        return "All metrics of both are equal."
    return f"{len(metrics)} metrics differ."


def _pictures(space: Workspace, sides: tuple[compare.Revision, compare.Revision]) -> tuple[list[Any], str]:
    """Rows: originals, those of the left tokenizer, those of the right one; or none, and why."""
    if reason := space.why_not("dataset"):
        return [], reason
    try:
        found = compare.reconstructed(space, *sides)
    except InputError as error:  # metrics and curves stand in git, and can be compared all the same
        return [], plain(error)
    return [(cells.enlarged(pixels, SIDE), name) for name, row in zip(ROWS, found, strict=True) for pixels in row], ""
