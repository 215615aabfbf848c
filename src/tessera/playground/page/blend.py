"""The tab Blend."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from tessera.core.errors import InputError
from tessera.extensions import interpolation
from tessera.playground import blend, cells
from tessera.playground.page.parts import PLAIN, Tab, picker, plain, to_download, told
from tessera.playground.workspace import Picture, Workspace

TITLE = "Blend"
STRIP = 8  # frames side by side
KINDS: dict[blend.Kind, tuple[str, str]] = {"gif": ("Keep as GIF", "blend.gif"), "apng": ("Keep as APNG", "blend.png")}


def why_not(space: Workspace) -> str | None:
    return space.why_not("tokenizer")


def build(space: Workspace) -> Tab:
    with gr.Row():
        with gr.Column(min_width=280):
            first = picker(space, "From", "blend-first")
        with gr.Column(min_width=280):
            last = picker(space, "To", "blend-last")
    way = gr.Radio(blend.WAYS, value="latent", label="Way", elem_id="blend-way")
    said = gr.Markdown(elem_id="blend-said")
    frames = gr.State(None)
    fraction = gr.Slider(0, 1, 0.5, step=1 / (blend.FRAMES - 1), label="Fraction of the way", elem_id="blend-fraction")
    with gr.Row():
        frame = gr.Image(label="Here", elem_id="blend-frame", scale=1, **PLAIN)
        strip = gr.Image(label="The whole way", elem_id="blend-strip", scale=3, **PLAIN)
    with gr.Row():
        keep = [
            gr.DownloadButton(title, interactive=False, elem_id=f"blend-{kind}") for kind, (title, _) in KINDS.items()
        ]

    @told
    def walk(a: Picture | None, b: Picture | None, way: interpolation.Mode, at: float) -> tuple[Any, ...]:
        nothing = None, None, None, *(gr.DownloadButton(value=None, interactive=False) for _ in KINDS)
        if a is None or b is None:
            return *nothing, ""
        try:
            found = blend.frames(space, a, b, way)
        except InputError as error:  # in the place of the way before, which is not what was asked for
            return *nothing, plain(error)
        files = [
            gr.DownloadButton(value=to_download(blend.animation(found, kind), name), interactive=True)
            for kind, (_, name) in KINDS.items()
        ]
        return found, cells.enlarged(nearest(found, at)), blend.strip(found, STRIP), *files, ""

    @told
    def move(found: np.ndarray | None, at: float) -> Any:
        return None if found is None else cells.enlarged(nearest(found, at))

    given, shown = [first.picture, last.picture, way, fraction], [frames, frame, strip, *keep, said]
    for part in (first.picture.change, last.picture.change, way.input):
        part(walk, given, shown)
    fraction.input(move, [frames, fraction], frame, show_progress="hidden", trigger_mode="always_last")
    return Tab([], names=(first.names, last.names))


def nearest(found: np.ndarray, fraction: float) -> np.ndarray:
    return found[round(fraction * (len(found) - 1))]
