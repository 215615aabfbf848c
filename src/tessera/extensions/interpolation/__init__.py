"""Interpolation between two images in seven modes, from rounded code indices to a path along the training images.

`index` rounds (1 - a) c_1 + a c_2 of the codes, although their order has no meaning; the published mean SSIM of consecutive
frames is 0.72 (happy to sad face), 0.65 (heart to star) and 0.58 (sun to moon). `embedding` blends code vectors and decodes
the blends, which are not code vectors. `latent` blends z, then quantizes; `slerp` does so on the sphere. `hierarchical` blends
z level by level, coarse codes first. `prior` takes codes that the prior finds likely near the blend. `learned` follows the
shortest path on the nearest-neighbour graph of the training images. In every mode the ends are the reconstructions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from pydantic import Field

from tessera import conditions, scores
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import SPLITS, Report, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, generator, numpy_generator
from tessera.extensions.interpolation import figures, paths, roads
from tessera.extensions.interpolation.paths import Ends, Walk
from tessera.images import arrays
from tessera.levels import levels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["index", "embedding", "latent", "slerp", "hierarchical", "prior", "learned"]
Place = tuple[str, int]  # split and row of an image


class Config(Strict):
    frames: int = Field(ge=2, description="frames from one image to the other, both ends included", examples=[3])
    pairs: int = Field(ge=1, description="pairs of test images, sampled by the seed", examples=[2])
    named: list[Annotated[str, Field(pattern="^.+/.+$")]] = Field(
        description="further pairs first/last by the names of images, of any split; first//last if a / in names is ambiguous",
        examples=[["picture 1/picture 20"]],
    )
    modes: list[Mode] = Field(
        min_length=1,
        description="modes of interpolation",
        examples=[["index", "embedding", "latent", "slerp", "hierarchical", "prior", "learned"]],
    )
    freedom: float = Field(
        gt=0,
        description="of prior: scale of the distance from code to blend, relative to the blend's distance to the nearer image",
        examples=[0.5],
    )
    points: int = Field(ge=2, description="of learned: most training images on the graph", examples=[12])
    neighbours: int = Field(ge=1, description="of learned: k of the nearest-neighbour graph", examples=[3])


@torch.no_grad()
def measure(config: Config, run: Run) -> Report:
    """Metrics over the pairs sampled by the seed: `smoothness` is the mean SSIM of consecutive frames (uniform windows,
    `scores.ssim`; the source of the published values does not state its windows), `smoothness_min` the smallest. For named
    pairs: `smoothness_named`, the mean. The two metrics at the top are those of `latent`."""
    tokenizer, device = run.tokenizer(), run.runtime.device
    walks, reasons = available(config, run, tokenizer)
    fraction = torch.linspace(0, 1, config.frames, device=device)
    pairs = [("named", *pair) for pair in named(config, run)] + [("drawn", *pair) for pair in sampled(config, run)]
    rows, blocks = [], []
    for origin, *places in pairs:
        ends = loaded(config, run, tokenizer, places)
        for mode, walk in walks.items():
            frames = arrays.to_pixels(walk(tokenizer, ends, fraction))
            differences = scores.ssim(frames[:-1], frames[1:])
            pair = {"mode": mode, "origin": origin, "first": ends.names[0], "last": ends.names[1]}
            rows.append({**pair, "smoothness": differences.mean(), "min": differences.min()})
            blocks.append(frames)
    table = pd.DataFrame(rows, columns=["mode", "origin", "first", "last", "smoothness", "min"])
    modes = pd.DataFrame([{"mode": mode, "why_not": reasons.get(mode, "")} for mode in dict.fromkeys(config.modes)])
    return Report(summary(table, reasons), {"pairs": table, "modes": modes},
                  {"frames": picture(table, blocks)} if blocks else {})  # fmt: skip


def summary(table: pd.DataFrame, reasons: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode, rows in table.groupby("mode", sort=False):
        own, others = rows[rows["origin"] == "drawn"], rows[rows["origin"] == "named"]
        found[str(mode)] = {"smoothness": own["smoothness"].mean(), "smoothness_min": own["min"].min()}
        found[str(mode)] |= {"smoothness_named": others["smoothness"].mean()} if len(others) else {}
    top = {name: found["latent"][name] for name in ("smoothness", "smoothness_min") if "latent" in found}
    return {**top, "modes": found | {mode: {"applies": 0} for mode in reasons}}


def sampled(config: Config, run: Run) -> Iterator[tuple[Place, Place]]:
    count, rng = len(run.images("test")), numpy_generator(run.params.seed, "interpolation", "pairs")
    for _ in range(config.pairs):
        first, last = rng.choice(count, size=2, replace=count < 2)
        yield ("test", int(first)), ("test", int(last))


def named(config: Config, run: Run) -> Iterator[tuple[Place, Place]]:
    """The named pairs whose two images are in the data set; prints a line for each other pair."""
    tables = {split: run.table(split)["name"] for split in reversed(SPLITS)}  # for equal names, `test` comes first
    known: dict[str, Place] = {}
    for split, names in tables.items():
        for row, name in enumerate(names):
            known.setdefault(name, (split, row))
    for pair in config.named:
        found = [(first, last) for first, last in readings(pair) if first in known and last in known]
        if len(found) == 1:
            yield known[found[0][0]], known[found[0][1]]
        else:
            doubt = f"pair {pair!r} may be {' or '.join(map('//'.join, found))}: write the one that is meant"
            print(f"extensions@interpolation: {doubt if found else f'the data set has no pair {pair!r}'}", flush=True)


def readings(pair: str) -> list[tuple[str, str]]:
    """All ways to split a pair into two names. Names may be paths (`cats/1.png/dogs/2.png`); the right split is the one whose
    two sides are both names. A double slash, if there is one, is the split."""
    cuts = list(re.finditer("//", pair)) or list(re.finditer("/", pair))
    return [(pair[: cut.start()], pair[cut.end() :]) for cut in cuts]


def loaded(config: Config, run: Run, tokenizer: Tokenizer, places: list[Place]) -> Ends:
    tables = [run.table(split).iloc[row] for split, row in places]
    x = arrays.to_model(np.stack([run.images(split)[row] for split, row in places]), run.runtime.device)
    conditioning = run.prior().conditioning if "prior" in config.modes else UNCONDITIONAL
    told = [conditions.of_split(run, conditioning, split, [row]) for split, row in places]
    given = torch.from_numpy(np.concatenate([row for row in told if row is not None])) if conditioning else None
    return Ends([row["name"] for row in tables], given, tokenizer.latents(x), tokenizer.encode(x))


def available(config: Config, run: Run, tokenizer: Tokenizer) -> tuple[dict[str, Walk], dict[str, str]]:
    """The modes that apply to this tokenizer, and the reasons why others do not."""
    walks: dict[str, Walk] = {
        "index": paths.index,
        "embedding": paths.embedding,
        "latent": paths.latent,
        "slerp": paths.slerp,
    }
    wanted, reasons = set(config.modes), {}
    if len(tokenizer.space.placed(levels_of(tokenizer))) > 1:
        walks["hierarchical"] = paths.hierarchical
    elif "hierarchical" in wanted:
        reasons["hierarchical"] = "the tokenizer decodes one level of codes only"
    if "prior" in wanted:
        rng = generator(run.params.seed, "interpolation", "prior")
        walks["prior"] = partial(paths.refined, prior=run.prior(), rng=rng, freedom=config.freedom)
    if "learned" in wanted:
        found = training_roads(config, run, tokenizer)
        if found.edges is not None:
            walks["learned"] = partial(roads.learned, roads=found)
        else:
            reasons["learned"] = "all training images have the same codes"
    for mode, reason in reasons.items():
        print(f"extensions@interpolation: {mode} does not apply: {reason}", flush=True)
    return {mode: walks[mode] for mode in dict.fromkeys(config.modes) if mode in walks}, reasons


def training_roads(config: Config, run: Run, tokenizer: Tokenizer) -> roads.Roads:
    seed = derive(run.params.seed, "interpolation", "directions") % 2**32
    pixels, codes = run.images("train"), run.codes("train")
    return roads.training_roads(tokenizer, pixels, codes, config.points, config.neighbours, seed, run.runtime.device)


def picture(table: pd.DataFrame, strips: list[UInt8[np.ndarray, "frames h w c"]]) -> Figure:
    """One block per pair, with one row per mode."""
    modes = list(table["mode"].unique())
    starts = range(0, len(table), len(modes))
    titles = [f"{table['first'][at]} to {table['last'][at]}" for at in starts]
    sheets = [np.concatenate(strips[at : at + len(modes)]) for at in starts]
    return figures.blocks(titles, modes, sheets, columns=len(strips[0]))
