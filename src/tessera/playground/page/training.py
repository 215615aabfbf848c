"""The tab Training."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from tessera.playground import training
from tessera.playground.page.parts import Tab, told
from tessera.playground.training import Training
from tessera.playground.workspace import Workspace

TITLE = "Training"
SECONDS = 2  # from one look to the next, while the tab is open


def why_not(space: Workspace) -> str | None:
    return None  # what is missing now may begin while the tab is open


def build(space: Workspace) -> Tab:
    choice = gr.Dropdown([], label="Training", elem_id="training-name")
    said = gr.Markdown(elem_id="training-said")
    with gr.Row(elem_classes="charts"):
        plots = [
            gr.LinePlot(x="epoch", y="value", color="line", title=title, y_title=" ", height=260, buttons=[], visible=False,
                        min_width=320, elem_id=f"training-{title.split()[0].strip(',').lower()}")
            for title in training.CHARTS
        ]  # fmt: skip
    # a look changes these alone: the list, which may be open just now, and the charts are sent again only when there is more
    names, seen = gr.State([]), gr.State(None)
    timer = gr.Timer(SECONDS, active=False)

    @told
    def look(key: str | None) -> tuple[Any, ...]:
        found = training.listed()
        chosen = _chosen(found, key)
        if chosen is None:
            return training.NOTHING, [], None
        rows = len(training.table(chosen))
        return training.sentence(chosen), [(each.title, each.key) for each in found], (chosen.key, rows)

    @told
    def listed(found: list[tuple[str, str]], key: str | None) -> Any:
        keys = [each for _, each in found]
        return gr.Dropdown(found, value=key if key in keys else next(iter(keys), None))

    @told
    def charts(now: tuple[str, int] | None) -> list[Any]:
        chosen = None if now is None else _chosen(training.listed(), now[0])
        if chosen is None:
            return [gr.LinePlot(visible=False) for _ in plots]
        rows = training.table(chosen)
        return [_chart(rows[rows["chart"] == title]) for title in training.CHARTS]

    looking: dict[str, Any] = {"fn": look, "inputs": choice, "outputs": [said, names, seen], "show_progress": "hidden"}
    choice.input(**looking)
    timer.tick(**looking)
    names.change(listed, [names, choice], choice, show_progress="hidden")
    seen.change(charts, seen, plots, show_progress="hidden")
    return Tab([], lambda tab: tab.select(**looking), timer)


def _chosen(found: list[Training], key: str | None) -> Training | None:
    """The training of this key, or else the first one."""
    return next((each for each in found if each.key == key), found[0] if found else None)


def _chart(rows: pd.DataFrame) -> Any:
    return gr.LinePlot(rows[["epoch", "value", "line"]], visible=not rows.empty)
