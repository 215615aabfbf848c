"""The tab Judge."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from tessera.core.errors import InputError
from tessera.playground import cells, judge
from tessera.playground.page.parts import PLAIN, Tab, told
from tessera.playground.workspace import Workspace

TITLE = "Judge"
SEEDS = 2**31  # of which one is the number of a session
RULE = (
    f"One of two images is real, the other a sample; both have passed the decoder. Which is the real one? {judge.PAIRS} pairs. "
    "You learn at the end how often you were right."
)


class Session(NamedTuple):
    number: int
    pairs: list[judge.Pair]
    done: int = 0

    @property
    def over(self) -> bool:
        return self.done == len(self.pairs)


def why_not(space: Workspace) -> str | None:
    return space.why_not("dataset", "tokenizer", "reconstruction", "samples")


def build(space: Workspace) -> Tab:
    gr.Markdown(RULE)
    session = gr.State(None)
    start = gr.Button("Begin", variant="primary", elem_id="judge-start")
    with gr.Column(visible=False) as pair:
        where = gr.Markdown(elem_id="judge-where")
        with gr.Row():
            pictures, buttons = [], []
            for side in judge.SIDES:
                with gr.Column(min_width=140):
                    pictures.append(gr.Image(label=side.capitalize(), elem_id=f"judge-{side}", **PLAIN))
                    buttons.append(gr.Button(f"The {side} one is real", elem_id=f"judge-{side}-real"))
    with gr.Column(visible=False) as end:
        said = gr.Markdown(elem_id="judge-said")
        table = gr.Dataframe(interactive=False, elem_id="judge-table")

    def shown(now: Session) -> tuple[Any, ...]:
        if now.over:
            return (
                now,
                gr.Button("Another session", visible=True),
                gr.Column(visible=False),
                "",
                None,
                None,
                gr.Column(visible=True),
            )
        images = judge.images(space, now.pairs[now.done])
        title = f"Pair {now.done + 1} of {len(now.pairs)}"
        sides = [cells.enlarged(images[side]) for side in judge.SIDES]
        return now, gr.Button(visible=False), gr.Column(visible=True), title, *sides, gr.Column(visible=False)

    @told
    def begin() -> tuple[Any, ...]:
        number = secrets.randbelow(SEEDS)
        return *shown(Session(number, judge.pairs(space, number))), "", None

    def vote(side: str) -> Any:
        @told
        def run(now: Session | None) -> tuple[Any, ...]:
            if now is None or now.over:
                raise InputError("this session is over; begin another one")
            judge.vote(space, now.number, now.done, now.pairs[now.done], side)
            now = now._replace(done=now.done + 1)
            return *shown(now), *(verdict(space, now) if now.over else ("", None))

        return run

    parts = [session, start, pair, where, *pictures, end, said, table]
    start.click(begin, None, parts, show_progress="hidden")
    for side, button in zip(judge.SIDES, buttons, strict=True):
        button.click(vote(side), session, parts, show_progress="hidden")
    return Tab([])


def verdict(space: Workspace, now: Session) -> tuple[str, pd.DataFrame]:
    """How often this session was right, and the votes of all on these samples."""
    votes = judge.votes(judge.version(space))
    own = votes[votes["session"] == now.number]
    right = int(own["right"].sum())
    text = (
        f"You were right about **{right} of {len(own)}** pairs; guessing gives half. Below are all votes on these samples, with "
        f"the interval that holds the true fraction with a confidence of {judge.CONFIDENCE:.0%}. They stand in `{judge.VOTES}`."
    )
    return text, judge.summary(votes).round(3)
