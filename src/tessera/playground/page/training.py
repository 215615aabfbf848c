"""The tab Training."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from tessera.playground import training
from tessera.playground.page.parts import Tab, told
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
    seen = gr.State(None)  # what the charts show: they are sent again only when there is more
    timer = gr.Timer(SECONDS, active=False)

    @told
    def look(key: str | None, before: Any) -> tuple[Any, ...]:
        found = training.listed()
        chosen = next((each for each in found if each.key == key), found[0] if found else None)
        if chosen is None:
            nothing = [gr.LinePlot(visible=False) for _ in plots]
            return gr.Dropdown([], value=None), training.NOTHING, *nothing, None
        names = [(each.title, each.key) for each in found]
        rows = training.table(chosen)
        now = names, chosen.key, len(rows)
        if now == before:
            return gr.skip(), training.sentence(chosen), *(gr.skip() for _ in plots), gr.skip()
        charts = [_chart(rows[rows["chart"] == title]) for title in training.CHARTS]
        return gr.Dropdown(names, value=chosen.key), training.sentence(chosen), *charts, now

    after = [choice, said, *plots, seen]
    listening: dict[str, Any] = {"fn": look, "inputs": [choice, seen], "outputs": after, "show_progress": "hidden"}
    choice.input(**listening)
    timer.tick(**listening)
    return Tab([], lambda tab: tab.select(**listening), timer)


def _chart(rows: pd.DataFrame) -> Any:
    return gr.LinePlot(rows[["epoch", "value", "line"]], visible=not rows.empty)
