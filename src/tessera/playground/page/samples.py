"""The tab Sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.playground import samples
from tessera.playground.page.parts import Fresh, Tab, row, to_download, told
from tessera.playground.samples import Asked, Sample
from tessera.playground.workspace import Workspace

TITLE = "Sample"
COLUMNS = 4
KEEP = "Click a sample to keep it"
WITHOUT_LABELS = (
    "The prior has no labels to choose from: `dvc exp run -S prior.conditional=true -S prior.label_dropout=0.1` "
    "trains one that has."
)


def why_not(space: Workspace) -> str | None:
    return space.why_not("tokenizer", "prior")


def build(space: Workspace) -> Tab:
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            n = gr.Slider(1, samples.MOST, samples.AT_ONCE, step=1, label="Samples", elem_id="samples-n")
            own = space.params.value("samples")
            temperature = gr.Slider(0.05, 2, own["temperature"], label="Temperature", info="divides the logits")
            top_k = gr.Slider(0, 256, own["top_k"], step=1, label="Top-k", info="among the k likeliest codes; 0: all")
            top_p = gr.Slider(
                0.01, 1, own["top_p"], label="Top-p", info="among the fewest codes of this probability; 1: all"
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="samples-seed")
            without = gr.Markdown(WITHOUT_LABELS, visible=False)
            label = gr.Dropdown([], label="Label", visible=False, elem_id="samples-label")
            guidance = gr.Slider(0, 5, own["guidance"], label="Guidance", visible=False,
                                 info="1: p(codes given the label); more exaggerates the label")  # fmt: skip
            go = gr.Button("Draw samples", variant="primary", elem_id="samples-go")
        with gr.Column(scale=3):
            found = row("wide", label="Samples, each beside the training image with the nearest codes", columns=COLUMNS,
                        elem_id="samples-found")  # fmt: skip
            keep = gr.DownloadButton(KEEP, interactive=False, elem_id="samples-keep")
    state = gr.State([])

    @told
    def sample(
        n: int, heat: float, top_k: int, top_p: float, seed: int | None, of: int | None, pull: float
    ) -> Iterator[Any]:
        if seed is None:
            raise InputError("Seed must be a whole number; write one there")
        asked = Asked(Sampling(heat, int(top_k), top_p, pull), int(seed), None if of in (None, -1) else of)
        so_far: list[Sample] = []
        pictures: list[Any] = []
        for batch in samples.sampled(space, int(n), asked):
            so_far += batch
            pictures += [samples.shown(space, each) for each in batch]
            yield so_far, pictures, gr.DownloadButton(KEEP, value=None, interactive=False)

    @told
    def kept(now: list[Sample], at: gr.SelectData) -> Any:
        chosen = now[at.index]
        name = f"sample-seed{chosen.asked.seed}-no{chosen.number + 1}.png"
        path = to_download(samples.png(space, chosen), name)
        return gr.DownloadButton(
            f"Keep no. {chosen.number + 1} as a PNG with its codes and seed", value=path, interactive=True
        )

    go.click(sample, [n, temperature, top_k, top_p, seed, label, guidance], [state, found, keep])
    found.select(kept, state, keep, show_progress="hidden")
    no_labels = Fresh(without, lambda: gr.Markdown(visible=not why_not(space) and space.prior().classes == 0))
    return Tab(
        [no_labels, Fresh(label, lambda: _labels(space)), Fresh(guidance, lambda: gr.Slider(visible=_guided(space)))]
    )


def _labels(space: Workspace) -> Any:
    """The labels of a prior that has some."""
    if why_not(space) or not (classes := space.prior().classes):
        return gr.Dropdown([], visible=False)
    names = space.label_names if space.there("dataset") else tuple(map(str, range(classes)))
    choices = [("as in training", -1), *((name, index) for index, name in enumerate(names))]
    return gr.Dropdown(choices, value=-1, visible=True)


def _guided(space: Workspace) -> bool:
    return not why_not(space) and space.prior().classes > 0 and space.params.guidable
