"""The tab Inpaint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from tessera.core.errors import InputError
from tessera.playground import cells, inpaint
from tessera.playground.page.parts import Tab, picker, row, told
from tessera.playground.workspace import Picture, Workspace

TITLE = "Inpaint"
BRUSH = 32  # pixels of the canvas
COLOUR = "#e6007e"  # no colour of an emoji's edge


def why_not(space: Workspace) -> str | None:
    return space.why_not("tokenizer", "prior")


def build(space: Workspace) -> Tab:
    chosen = picker(space, "Picture", "inpaint")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            brush = gr.Brush(default_size=BRUSH, colors=[COLOUR], default_color=COLOUR, color_mode="fixed")
            editor = gr.ImageEditor(
                label="Paint over what is to be filled in", sources=(), transforms=(), layers=False, brush=brush,
                eraser=gr.Eraser(default_size=BRUSH), canvas_size=(cells.SIDE, cells.SIDE), fixed_canvas=True,
                image_mode="RGBA", format="png", buttons=[], elem_id="inpaint-editor",
            )  # fmt: skip
            count = gr.Slider(
                1, inpaint.MOST, 2, step=1, label="Fill-ins of each method that samples", elem_id="inpaint-count"
            )
            updates = gr.Slider(
                1, inpaint.MOST_UPDATES, inpaint.UPDATES, step=1, label="Visits of gibbs to hidden codes, at most",
                info="each is a forward pass", elem_id="inpaint-updates",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="inpaint-seed")
            go = gr.Button("Fill in", variant="primary", elem_id="inpaint-go")
        with gr.Column(scale=3):
            with gr.Row():
                given = row("one", label="given", columns=1, min_width=90, elem_id="inpaint-given")
                found = [
                    row("one", label=name, columns=1, min_width=90, elem_id=f"inpaint-{name}") for name in inpaint.ORDER
                ]
            left_out = gr.Markdown(elem_id="inpaint-left-out")

    @told
    def choose(picture: Picture | None) -> Any:
        if picture is None:
            return None
        return {"background": inpaint.editable(picture), "layers": [], "composite": None}

    @told
    def fill(
        picture: Picture | None, painted: dict[str, Any] | None, count: int, visits: int, seed: int | None
    ) -> Iterator[tuple[Any, ...]]:
        if picture is None:
            raise InputError("no picture is chosen: choose one by its name, or upload one")
        if seed is None:
            raise InputError("Seed must be a whole number; write one there")
        mask = inpaint.hidden(_alpha(painted), *picture.pixels.shape[:2])
        for filled in inpaint.filled(space, picture, mask, int(count), int(seed), int(visits)):
            said = "".join(f"- **{name}** is left out, {why}.\n" for name, why in filled.reasons.items())
            columns = [
                gr.Gallery(inpaint.shown(filled, name), visible=name in filled.found, selected_index=None)
                for name in inpaint.ORDER
            ]
            yield [inpaint.given(picture, mask)], *columns, said

    chosen.picture.change(choose, chosen.picture, editor, show_progress="hidden")
    go.click(fill, [chosen.picture, editor, count, updates, seed], [given, *found, left_out])
    return Tab([], names=(chosen.names,))


def _alpha(painted: dict[str, Any] | None) -> np.ndarray:
    """The opacity of all that was painted, [y,x]."""
    layers = [np.asarray(layer)[..., 3] for layer in (painted or {}).get("layers") or []]
    return np.maximum.reduce(layers) if layers else np.zeros((1, 1), np.uint8)
