"""The tab Reconstruct."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tessera.playground import cells, reconstruct
from tessera.playground.page.parts import PLAIN, Tab, picker, row, told
from tessera.playground.reconstruct import Edited
from tessera.playground.workspace import Picture, Workspace

TITLE = "Reconstruct"
USES, NEAREST = 8, 8
QUIET: dict[str, Any] = {"show_progress": "hidden"}
HINT = "Click a cell of the grid: its code, where else it is used, and its nearest codes."


def why_not(space: Workspace) -> str | None:
    return space.why_not("tokenizer")


def build(space: Workspace) -> Tab:
    chosen = picker(space, "Picture", "reconstruct")
    edited = gr.State(None)
    with gr.Row():
        original = gr.Image(label="Original", elem_id="reconstruct-original", **PLAIN)
        result = gr.Image(label="Reconstruction", elem_id="reconstruct-result", **PLAIN)
        grid = gr.Image(label="Codes: click a cell", elem_id="reconstruct-grid", **PLAIN)
    facts = gr.Markdown(HINT, elem_id="reconstruct-facts")
    with gr.Row(elem_classes="bottom"):
        code = gr.Number(label="Put this code there", precision=0, minimum=0, elem_id="reconstruct-code")
        put = gr.Button("Replace", variant="primary", elem_id="reconstruct-put")
        undo = gr.Button("Undo all", elem_id="reconstruct-undo")
    near = row(label="Nearest codes and their distances, each in this cell: click one to put it there", columns=NEAREST,
               elem_id="reconstruct-near")  # fmt: skip
    uses = row(label="Training images that use this code most, and how often", columns=USES, elem_id="reconstruct-uses")

    def shown(now: Edited) -> tuple[Any, ...]:
        pixels = reconstruct.reconstruction(space, now)
        changed = f", {now.changed} changed" if now.changed else ""
        title = f"Reconstruction: {reconstruct.psnr_db(now, pixels):.1f} dB{changed}"
        return now, gr.Image(cells.enlarged(pixels), label=title), reconstruct.grid(space, now)

    @told
    def about(now: Edited | None) -> tuple[Any, ...]:
        if now is None or now.chosen is None:
            return HINT, [], []
        use, found = reconstruct.use(space, now, USES), reconstruct.nearest(space, now, NEAREST)
        return sentence(use), reconstruct.with_each(space, now, found), reconstruct.elsewhere(space, now, use)

    @told
    def choose(picture: Picture | None) -> tuple[Any, ...]:
        if picture is None:
            return None, None, None, None
        now = reconstruct.encoded(space, picture)
        return *shown(now), gr.Image(cells.enlarged(picture.pixels), label=f"Original: {picture.name}")

    @told
    def click(now: Edited | None, at: gr.SelectData) -> tuple[Any, ...]:
        if now is None:
            return None, None, gr.skip()
        now = reconstruct.clicked(space, now, *at.index)
        at_cell = None if now.chosen is None else int(now.codes[now.chosen])
        return now, reconstruct.grid(space, now), at_cell

    @told
    def replace(now: Edited | None, value: int | None) -> tuple[Any, ...]:
        if now is None or value is None:
            return tuple(gr.skip() for _ in after)
        return shown(reconstruct.replaced(space, now, int(value)))

    @told
    def take(now: Edited, at: gr.SelectData) -> tuple[Any, ...]:
        found = reconstruct.nearest(space, now, NEAREST)[at.index][0]
        return found, *replace(now, found)

    @told
    def restore(now: Edited | None) -> tuple[Any, ...]:
        return tuple(gr.skip() for _ in after) if now is None else shown(reconstruct.restored(now))

    after = [edited, result, grid]
    for event in (
        chosen.picture.change(choose, chosen.picture, [*after, original], **QUIET),
        grid.select(click, edited, [edited, grid, code], **QUIET),
        put.click(replace, [edited, code], after, **QUIET),
        code.submit(replace, [edited, code], after, **QUIET),
        near.select(take, edited, [code, *after], **QUIET),
        undo.click(restore, edited, after, **QUIET),
    ):  # the picture first; what is told of the cell takes several times as long
        event.success(about, edited, [facts, near, uses], **QUIET)
    return Tab([], names=(chosen.names,))


def sentence(use: reconstruct.Use) -> str:
    here = f"**Code {use.code}** stands in {use.here} cell{'s' * (use.here != 1)} of this picture"
    if not use.counted:
        return f"{here}. Where else it is used is not known: `dvc repro codes` makes the codes of the training images."
    return f"{here}, and is {use.fraction:.2%} of the codes of {use.counted} training images."
