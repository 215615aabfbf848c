"""The tab Sample."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from tessera.core.conditioning import WORDS
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.playground import samples
from tessera.playground.page.parts import Fresh, Tab, row, to_download, told
from tessera.playground.samples import Asked, Sample
from tessera.playground.workspace import Workspace

TITLE = "Sample"
COLUMNS = 4
KEEP = "Click a sample to keep it"
WITHOUT = (
    "The prior is told nothing that you could ask for: `dvc exp run -S prior.conditions.label=0.1` trains one that is."
)
CLASSES = ("label", "vendor")
AS_IN_TRAINING = ""


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
            without = gr.Markdown(WITHOUT, visible=False)
            wishes: dict[str, Any] = {
                name: gr.Dropdown([], label=name.capitalize(), visible=False, elem_id=f"samples-{name}")
                for name in CLASSES
            }
            wishes[WORDS] = gr.Textbox("", label="Words", visible=False, elem_id="samples-words",
                                       info="as in a name, such as woman: dark skin tone; empty: as in training")  # fmt: skip
            guidance = {
                name: gr.Slider(0, 5, own["guidance"][name], label=f"Guidance of the {name}", visible=False,
                                info="1: p(codes given all that is asked); more exaggerates this")
                for name in own["guidance"]
            }  # fmt: skip
            go = gr.Button("Draw samples", variant="primary", elem_id="samples-go")
        with gr.Column(scale=3):
            found = row("wide", label="Samples, each beside the training image with the nearest codes", columns=COLUMNS,
                        elem_id="samples-found")  # fmt: skip
            keep = gr.DownloadButton(KEEP, interactive=False, elem_id="samples-keep")
    state = gr.State([])

    @told
    def sample(n: int, heat: float, top_k: int, top_p: float, seed: int | None, *rest: Any) -> Iterator[Any]:
        if seed is None:
            raise InputError("Seed must be a whole number; write one there")
        known = space.prior().conditioning.names
        asks = {name: text for name, text in zip(wishes, rest, strict=False) if text and name in known}
        pulls = {name: pull for name, pull in zip(guidance, rest[len(wishes) :], strict=True) if name in known}
        asked = Asked(Sampling(heat, int(top_k), top_p, pulls), int(seed), asks)
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

    go.click(sample, [n, temperature, top_k, top_p, seed, *wishes.values(), *guidance.values()], [state, found, keep])
    found.select(kept, state, keep, show_progress="hidden")
    nothing = Fresh(without, lambda: gr.Markdown(visible=not why_not(space) and not space.prior().conditioning))
    fresh = [Fresh(wishes[name], partial(_classes, space, name)) for name in CLASSES]
    fresh.append(Fresh(wishes[WORDS], lambda: gr.Textbox(visible=_is_told(space, WORDS))))
    fresh += [Fresh(slider, partial(_strength, space, name)) for name, slider in guidance.items()]
    return Tab([nothing, *fresh])


def _is_told(space: Workspace, condition: str) -> bool:
    return not why_not(space) and condition in space.prior().conditioning


def _classes(space: Workspace, condition: str) -> Any:
    if not _is_told(space, condition):
        return gr.Dropdown([], visible=False)
    choices = [
        ("as in training", AS_IN_TRAINING),
        *((name, name) for name in space.prior().conditioning[condition].names),
    ]
    return gr.Dropdown(choices, value=AS_IN_TRAINING, visible=True)


def _strength(space: Workspace, condition: str) -> Any:
    """Guidance compares with predictions without the condition, which the prior must have learned to make."""
    shown = _is_told(space, condition)
    prior = space.prior() if shown else None
    return gr.Slider(visible=prior is not None and (prior.conditioning[condition].dropout > 0 or hasattr(prior, "fit")))
