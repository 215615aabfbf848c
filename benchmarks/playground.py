"""How quick the playground is to the hand: `python -m benchmarks.playground`, after `dvc repro`.

Medians in milliseconds, three for each action: of the bare model calls; of what the tab computes, pictures included; and, where
Gradio, Playwright and Chromium are (`make test-playground` installs them), from a press in the browser to the changed picture on
the page. The goals are 1 s for the first picture of a tab once the model is loaded, 100 ms for decoding after a changed code, and
3 s for 16 samples; the page may add to the bare calls at most 50 ms, or half of them. Last come the seconds until the page is
up, and those of importing torch and Gradio, which it may take twice.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch

from benchmarks import browser
from tessera.core.contracts import ExactPrior, Sampling
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.seeding import generator
from tessera.extensions.inpainting import masks
from tessera.extensions.inpainting.metropolis import gibbs
from tessera.images import arrays
from tessera.playground import blend, cells, inpaint, reconstruct, samples, style
from tessera.playground.workspace import Workspace
from tessera.studies.pages import markdown

FILL_INS, CHOICES = 1, 500  # names among which two are looked for
WAY = "latent"
IMPORT = "import torch, gradio"


class Action(NamedTuple):
    """What a person does. `bare`: the model calls alone; `tab`: what the tab computes; `goal` in milliseconds."""

    name: str
    goal: float
    bare: Callable[[], Any]
    tab: Callable[[], Any]


def actions(space: Workspace) -> Iterator[Action]:
    """On the first and the last test image."""
    tokenizer, prior = space.tokenizer(), space.prior()
    first, last = (space.picture(f"test:{row}") for row in (0, len(space.images("test")) - 1))
    x = arrays.to_model(np.stack([first.pixels, last.pixels]))
    edited = reconstruct.encoded(space, first)._replace(chosen=0)
    asked = samples.Asked(Sampling(), 0)
    height, width = first.pixels.shape[:2]
    region = np.zeros((height, width), bool)
    region[height // 4 : height // 2, width // 4 : width // 2] = True

    def encoded() -> Any:
        return tokenizer.decode(tokenizer.encode(x[:1]))

    def chosen() -> Any:
        now = reconstruct.encoded(space, first)
        return cells.enlarged(reconstruct.reconstruction(space, now)), reconstruct.grid(space, now)

    def replaced() -> Any:
        now = reconstruct.replaced(space, edited, int(edited.codes[0] + 1) % tokenizer.space.sizes[0])
        return cells.enlarged(reconstruct.reconstruction(space, now)), reconstruct.grid(space, now)

    def sampled() -> Any:
        return tokenizer.decode(
            prior.sample(samples.AT_ONCE, generator(0), Sampling(), conditions=told(samples.AT_ONCE))
        )

    def told(n: int) -> Any:
        return prior.conditioning.nothing(n) if prior.conditioning else None

    def shown() -> Any:
        return [
            samples.shown(space, each) for batch in samples.sampled(space, samples.AT_ONCE, asked) for each in batch
        ]

    def methods() -> Any:
        known = space.told(first, prior.conditioning, hidden=True)
        scene = masks.seen(tokenizer, first.pixels[None], region[None], None, known, "cpu")
        given = (generator(0), Sampling(), scene.conditions, scene.known, ~scene.hidden)
        codes = [prior.sample(1, *given)]
        if prior.exact:
            asked = space.params.config("extensions", "inpainting").model_copy(update={"updates": inpaint.UPDATES})
            codes.append(
                gibbs(cast("ExactPrior", prior), codes[0], scene.hidden, scene.conditions, asked, generator(0))[0]
            )
        if space.there("infiller"):
            codes.append(space.infiller().sample(1, *given))
        return [tokenizer.decode(own) for own in (*codes, scene.known)]

    def filled() -> Any:
        *_, found = inpaint.filled(space, first, region, FILL_INS, 0)
        return [inpaint.shown(found, name) for name in found.found]

    def blended() -> Any:
        return tokenizer.decode_vectors(tuple(z.expand(blend.FRAMES, *z.shape[1:]) for z in vectors(tokenizer, x[:1])))

    def walked() -> Any:
        found = blend.frames(space, first, last, WAY)
        return blend.strip(found, 8), cells.enlarged(found[0])

    def styled() -> Any:
        return [cells.enlarged(pixels) for pixels in style.styled(space, first, last).found.values()]

    yield Action("reconstruct: first picture", 1000, encoded, chosen)
    yield Action(
        "reconstruct: a code replaced", 100, lambda: tokenizer.decode(torch.as_tensor(edited.codes[None])), replaced
    )
    yield Action("sample: 16 samples", 3000, sampled, shown)
    yield Action("inpaint: one fill-in of each method", 1000, methods, filled)
    yield Action("blend: first picture", 1000, blended, walked)
    yield Action("style: first picture", 1000, lambda: tokenizer.decode(tokenizer.encode(x)), styled)


def vectors(tokenizer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(level.z_q for level in tokenizer.quantize(tokenizer.latents(x)))


@torch.no_grad()
def measured(space: Workspace, repeats: int) -> pd.DataFrame:
    """Bare calls and tab take turns. The first turn, in which models are loaded, does not count."""
    rows = []
    for action in actions(space):
        found: dict[str, list[float]] = {"bare_ms": [], "tab_ms": []}
        for _ in range(repeats + 1):
            for name, act in (("bare_ms", action.bare), ("tab_ms", action.tab)):
                found[name].append(1000 * browser.seconds(act, lambda: None))
        medians = {name: median(each[1:]) for name, each in found.items()}
        added = medians["tab_ms"] - medians["bare_ms"]
        rows.append({"action": action.name, **medians, "added_ms": added, "goal_ms": action.goal})
    return pd.DataFrame(rows)


def in_browser(repeats: int) -> pd.DataFrame:
    """From a press to the changed picture, of the actions in which a person waits for one."""
    with browser.served(Path()) as address, browser.chromium() as chromium:
        visitor = browser.Visitor(chromium, address)
        titles = [name for name, _ in Workspace.here().names(CHOICES)]
        alone = (name for name in titles if sum(name.casefold() in other.casefold() for other in titles) == 1)
        names = list(itertools.islice(alone, 2))  # which a search finds alone
        found: dict[str, list[float]] = {}
        for turn in range(repeats + 1):
            for action, seconds in _turn(visitor, names, turn):
                found.setdefault(action, []).append(seconds)
    return pd.DataFrame([{"action": name, "page_ms": 1000 * median(each[1:])} for name, each in found.items()])


def _turn(visitor: browser.Visitor, names: Sequence[str], turn: int) -> Iterator[tuple[str, float]]:
    page, field = visitor.page, visitor.page.locator("#reconstruct-name input")
    visitor.tab("Reconstruct")
    field.click()
    field.fill("")  # else the name is put behind the one that is there
    field.press_sequentially(names[turn % len(names)])
    page.wait_for_timeout(500)
    yield "reconstruct: first picture", visitor.until_changed(lambda: field.press("Enter"), "reconstruct-result")
    visitor.click("reconstruct-grid", 0.1, 0.1)
    page.locator("#reconstruct-facts", has_text=re.compile(r"Code \d+ stands")).wait_for()
    code = page.locator("#reconstruct-code input")
    page.wait_for_timeout(500)
    code.fill(str((int(code.input_value()) + 1 + turn) % 8))
    put = page.locator("#reconstruct-put")
    yield "reconstruct: a code replaced", visitor.until_changed(put.click, "reconstruct-result")
    visitor.tab("Sample")
    page.locator("#samples-seed input").fill(str(turn))
    yield "sample: 16 samples", visitor.until_changed(page.locator("#samples-go").click, "samples-found")


def started() -> dict[str, float]:
    """Seconds until the page answers, and of importing torch and Gradio; they take turns, after one of each that does not count."""
    found: dict[str, list[float]] = {"imports": [], "page up": []}
    for _ in range(4):
        found["imports"].append(
            browser.seconds(lambda: subprocess.run([sys.executable, "-c", IMPORT], check=True), lambda: None)
        )
        begun = time.perf_counter()
        with browser.served(Path()) as address, urllib.request.urlopen(address):
            found["page up"].append(time.perf_counter() - begun)
    return {name: median(each[1:]) for name, each in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.playground",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=7, help="of each action; the median counts (default 7)")
    parser.add_argument("--no-browser", action="store_true", help="leave the page out")
    parser.add_argument("--table", type=Path, help="a CSV file to write")
    options = parser.parse_args(argv)
    try:
        params = Params(read())
        torch.set_num_threads(params.value("runtime.threads") or len(os.sched_getaffinity(0)))
        table = measured(Workspace(params), options.repeats)
        reason = "--no-browser" if options.no_browser else browser.missing()
        if reason is None:
            table = table.merge(in_browser(options.repeats), "left", "action")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.table:
        table.round(1).to_csv(options.table, index=False)
    print(markdown(table.map(lambda value: value if isinstance(value, str) else f"{value:.1f}")))
    if reason is not None:
        print(f"the page was not measured: {reason}")
        return 0
    up = started()
    print(f"page up in {up['page up']:.2f} s, importing torch and Gradio takes {up['imports']:.2f} s: "
          f"{up['page up'] / up['imports']:.2f}x")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
