"""The tab Style."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tessera.playground import cells, style
from tessera.playground.page.parts import PLAIN, Tab, picker, row, told
from tessera.playground.workspace import Picture, Workspace

TITLE = "Style"
SIDE = 256


def why_not(space: Workspace) -> str | None:
    return space.why_not("tokenizer")


def build(space: Workspace) -> Tab:
    with gr.Row():
        with gr.Column(min_width=280):
            content = picker(space, "Content", "style-content")
            first = gr.Image(label="Content", elem_id="style-first", **PLAIN)
        with gr.Column(min_width=280):
            manner = picker(space, "Style", "style-style")
            second = gr.Image(label="Style", elem_id="style-second", **PLAIN)
        with gr.Column(scale=2, min_width=280):
            found = row(label="The content in that style", columns=3, elem_id="style-found")
            said = gr.Markdown(elem_id="style-said")

    @told
    def transfer(a: Picture | None, b: Picture | None) -> tuple[Any, ...]:
        sides = [None if each is None else cells.enlarged(each.pixels) for each in (a, b)]
        if a is None or b is None:
            return *sides, [], ""
        result = style.styled(space, a, b)
        pictures = [(cells.enlarged(pixels, SIDE), name) for name, pixels in result.found.items()]
        return *sides, pictures, sentences(result)

    for part in (content.picture.change, manner.picture.change):
        part(transfer, [content.picture, manner.picture], [first, second, found, said], show_progress="hidden")
    return Tab([], names=(content.names, manner.names))


def sentences(result: style.Styled) -> str:
    """The measures of each method, and why others are left out."""
    lines = [
        f"- **{name}** keeps {own['edges']:.2f} of the edges (an unrelated picture: {own['edges_unrelated']:.2f}), and takes the "
        f"distance of colours from {own['colours_before']:.2f} to {own['colours_after']:.2f}."
        for name, own in result.measures.items()
    ]
    return "\n".join(lines + [f"- **{name}** does not apply: {why}." for name, why in result.reasons.items()])
