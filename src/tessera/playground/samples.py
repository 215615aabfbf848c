"""Tab Sample: codes from the prior, their images, and beside each the nearest training image by codes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, PngImagePlugin

from tessera import conditions
from tessera.core.conditioning import WORDS
from tessera.core.contracts import Prior, Sampling
from tessera.core.errors import InputError
from tessera.core.seeding import generator, numpy_generator
from tessera.features.neighbours import BLOCK
from tessera.images import arrays
from tessera.playground import cells
from tessera.playground.workspace import Workspace

AT_ONCE = 16  # samples of a batch: fewer than would be divided among forks, which a server with threads must not start
MOST = 64
SIDE = 160  # pixels of a sample, and of its neighbour
STREAM = "playground"


class Asked(NamedTuple):
    """How samples are to be drawn, and what for: condition -> a class by its name, or words; others are as often as in training."""

    sampling: Sampling
    seed: int
    conditions: Mapping[str, str] = {}


class Neighbour(NamedTuple):
    """The training image nearest by codes. `copy` 0 is the image itself, above 0 the augmented copy of that number."""

    row: int
    copy: int
    distance: float  # fraction of the codes that differ


class Sample(NamedTuple):
    number: int  # from 0, among those of its seed
    asked: Asked
    codes: Int[np.ndarray, " t"]
    pixels: UInt8[np.ndarray, "h w c"]
    said: dict[str, str]  # what it was drawn for, in words
    neighbour: Neighbour | None


def sampled(space: Workspace, n: int, asked: Asked) -> Iterator[list[Sample]]:
    """`n` samples, batch by batch. The first ones do not depend on how many follow.

    Raises:
        InputError: a value is out of range.
    """
    if not 1 <= n <= MOST:
        raise InputError(f"between 1 and {MOST} samples can be drawn at once, got {n}")
    prior = space.prior()
    told = _told(space, prior, asked)
    said = [{} for _ in range(MOST)] if told is None else _said(prior, told)
    for index, where in enumerate(arrays.batches(n, AT_ONCE)):
        given = None if told is None else torch.from_numpy(told[where])
        with torch.no_grad():
            found = prior.sample(
                where.stop - where.start, generator(asked.seed, STREAM, index), asked.sampling, conditions=given
            )
        codes = found.cpu().numpy()
        near = nearest(space, codes)
        images = space.decoded(codes)
        yield [
            Sample(number, asked, codes[i], images[i], said[number], near[i] if near else None)
            for i, number in enumerate(range(where.start, where.stop))
        ]  # fmt: skip


def _told(space: Workspace, prior: Prior, asked: Asked) -> Int[np.ndarray, "n c"] | None:
    """Of `MOST` samples; None of an unconditional prior. Without a data set, or its codes where they matter, nothing is said of
    what is not asked for."""
    if space.tells(prior.conditioning):
        rng = numpy_generator(asked.seed, STREAM, "labels")
        return conditions.as_in_training(space, prior.conditioning, MOST, rng, asked.conditions)
    given = conditions.conditions_of(prior, {name: [text] for name, text in asked.conditions.items()}, MOST)
    return None if given is None else given.numpy()


def _said(prior: Prior, told: Int[np.ndarray, "n c"]) -> list[dict[str, str]]:
    table = conditions.described(prior.conditioning, told)
    columns = {name: table[name if name == WORDS else f"{name}_name"] for name in prior.conditioning.names}
    return [{name: str(column[row]) for name, column in columns.items()} for row in range(len(told))]


def nearest(space: Workspace, codes: Int[np.ndarray, "n t"]) -> list[Neighbour]:
    """Of each sample, among the training images and their augmented copies; empty where there are no codes of them. The
    distances are those of the measure `memorisation`, in codes."""
    if space.why_not("dataset", "tokenizer", "codes"):
        return []
    train, best = space.codes("train"), [Neighbour(0, 0, np.inf)] * len(codes)
    augmented = space.augmented_codes() if (space.folder("codes") / "augmented.npy").exists() else ()
    for copy, reference in enumerate((train, *augmented)):
        for where in arrays.batches(len(reference), BLOCK):
            far = _hamming(codes, np.asarray(reference[where]))
            for i, row in enumerate(far.argmin(1)):
                if far[i, row] < best[i].distance:
                    best[i] = Neighbour(where.start + int(row), copy, float(far[i, row]))
    return best


def _hamming(codes: Int[np.ndarray, "n t"], references: Int[np.ndarray, "m t"]) -> Float[np.ndarray, "n m"]:
    from scipy.spatial.distance import cdist

    return cdist(codes.astype(np.float64), references.astype(np.float64), "hamming")


def shown(space: Workspace, sample: Sample) -> tuple[Image.Image, str]:
    """The sample, at its right the nearest training image, and a caption."""
    pixels, near = sample.pixels, sample.neighbour
    said = {name: f"{name} {text}" if text.isdecimal() else text for name, text in sample.said.items()}
    label = "".join(f"{text}, " for text in said.values() if text)
    if near is None:
        return cells.enlarged(pixels, SIDE), f"{label}no. {sample.number + 1}"
    other = np.asarray(space.images("train")[near.row])
    both = np.concatenate([pixels, np.full_like(pixels[:, : max(1, pixels.shape[1] // 16)], 255), other], axis=1)
    of = space.table("train")["name"].iloc[near.row] + (", augmented" if near.copy else "")
    return cells.enlarged(
        both, 2 * SIDE
    ), f"no. {sample.number + 1}: {label}{near.distance:.0%} of codes differ from {of}"


def png(space: Workspace, sample: Sample) -> bytes:
    """The sample as a PNG at its own size. Its text chunks hold what it takes to make it again: codes, seed and number, and how
    it was drawn."""
    facts = {
        "codes": json.dumps(sample.codes.tolist()),
        "seed": str(sample.asked.seed),
        "number": str(sample.number),
        "sampling": json.dumps(sample.asked.sampling._asdict()),
        "conditions": json.dumps(sample.said),
        "Software": "tessera",
    }
    text = PngImagePlugin.PngInfo()
    for name, value in facts.items():
        text.add_text(name, value)
    stream = io.BytesIO()
    cells.enlarged(sample.pixels, 1).save(stream, "PNG", pnginfo=text)
    return stream.getvalue()
