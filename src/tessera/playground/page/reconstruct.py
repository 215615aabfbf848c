"""The tab Reconstruct.

A replaced code is drawn twice: at the press by `redraw.js`, from the codes that the page holds and the route `redraw`, and then by
Gradio, whose queue and page take several times as long and which alone keeps the state and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, ValidationError

from tessera.core.errors import InputError, NonFiniteError
from tessera.playground import cells, reconstruct
from tessera.playground.page.parts import PLAIN, Tab, in_address, picker, row, told
from tessera.playground.reconstruct import Edited
from tessera.playground.workspace import Picture, Workspace

TITLE = "Reconstruct"
USES, NEAREST = 8, 8
MOST_CODES = 2**16  # of an image
MOST_BYTES = 8 * MOST_CODES  # of a request to draw it
Whole = Annotated[int, Field(ge=0, lt=2**31)]
QUIET: dict[str, Any] = {"show_progress": "hidden"}
# what changes the codes happens in the order of the presses: each takes milliseconds, so one at a time for all visitors
ORDERED: dict[str, Any] = {**QUIET, "concurrency_limit": 1, "concurrency_id": "reconstruct"}
LAST: dict[str, Any] = {**ORDERED, "trigger_mode": "always_last"}  # a press while the one before is answered counts
HOLD = "(held) => { window.tessera?.hold(held); }"
REDRAW = (Path(__file__).parent / "redraw.js").read_text(encoding="utf-8")
HINT = "Click a cell of the grid: its code, where else it is used, and its nearest codes."


def why_not(space: Workspace) -> str | None:
    return space.why_not("tokenizer")


def build(space: Workspace) -> Tab:
    chosen = picker(space, "Picture", "reconstruct")
    edited, held = gr.State(None), gr.JSON(visible=False)  # the latter for `redraw.js`
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
        return now, on_page(now), gr.Image(cells.enlarged(pixels), label=title), reconstruct.grid(space, now)

    @told
    def about(now: Edited | None) -> tuple[Any, ...]:
        if now is None or now.chosen is None:
            return HINT, [], [], gr.skip()
        use, found = reconstruct.use(space, now, USES), reconstruct.nearest(space, now, NEAREST)
        pictures = reconstruct.with_each(space, now, found), reconstruct.elsewhere(space, now, use)
        return sentence(use), *pictures, on_page(now, [code for code, _ in found])

    @told
    def choose(picture: Picture | None) -> tuple[Any, ...]:
        if picture is None:
            return None, None, None, None, None
        now = reconstruct.encoded(space, picture)
        return *shown(now), gr.Image(cells.enlarged(picture.pixels), label=f"Original: {picture.name}")

    @told
    def click(now: Edited | None, at: gr.SelectData) -> tuple[Any, ...]:
        if now is None:
            return None, None, None, gr.skip()
        now = reconstruct.clicked(space, now, *at.index)
        at_cell = None if now.chosen is None else int(now.codes[now.chosen])
        return now, on_page(now), reconstruct.grid(space, now), at_cell

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

    after = [edited, held, result, grid]
    for event in (
        chosen.picture.change(choose, chosen.picture, [*after, original], **ORDERED),
        grid.select(click, edited, [edited, held, grid, code], **ORDERED),
        put.click(replace, [edited, code], after, **LAST),
        code.submit(replace, [edited, code], after, **LAST),
        near.select(take, edited, [code, *after], **LAST),
        undo.click(restore, edited, after, **ORDERED),
    ):  # the picture first; what is told of the cell takes several times as long
        event.success(None, held, None, js=HOLD)
        event.success(about, edited, [facts, near, uses, held], **QUIET).success(None, held, None, js=HOLD)
    return Tab([], names=(chosen.names,))


def on_page(now: Edited, near: Sequence[int] = ()) -> dict[str, Any]:
    """What the page holds, to ask `redraw` by: the codes, the chosen position, and the codes in the row of nearest ones."""
    return {"codes": now.codes.tolist(), "position": now.chosen, "near": list(near)}


class Cell(BaseModel):
    """A code to be put at a position of the codes of an image."""

    codes: list[Whole] = Field(max_length=MOST_CODES)
    position: Whole
    code: Whole


def redrawing(space: Workspace) -> Callable[[Request], Awaitable[dict[str, str]]]:
    """What answers `redraw.js`: part of the tab -> its picture, as an address that holds it. It keeps nothing. Where it is sent
    what is no cell it draws nothing, and leaves it to Gradio's own event to say so."""

    async def redraw(request: Request) -> dict[str, str]:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return {}
        return await run_in_threadpool(_redrawn, space, bytes(body))

    return redraw


def _redrawn(space: Workspace, body: bytes) -> dict[str, str]:
    try:
        cell = Cell.model_validate_json(body)
        found = reconstruct.redrawn(space, cell.codes, cell.position, cell.code)
    except (ValidationError, InputError, NonFiniteError):
        return {}
    if found is None:
        return {}
    pixels, grid = found
    return {"result": in_address(cells.enlarged(pixels)), "grid": in_address(grid)}


def sentence(use: reconstruct.Use) -> str:
    here = f"**Code {use.code}** stands in {use.here} cell{'s' * (use.here != 1)} of this picture"
    if not use.counted:
        return f"{here}. Where else it is used is not known: `dvc repro codes` makes the codes of the training images."
    return f"{here}, and is {use.fraction:.2%} of the codes of {use.counted} training images."
