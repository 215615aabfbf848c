"""Tab Blend: from one picture to another, in the ways of the extension `interpolation`."""

from __future__ import annotations

import io
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tessera.core.errors import InputError
from tessera.extensions import interpolation
from tessera.extensions.interpolation.paths import Ends, Walk
from tessera.images import arrays
from tessera.playground import cells
from tessera.playground.workspace import TWO_LEVELS, Picture, Workspace

Kind = Literal["gif", "apng"]
WAYS: tuple[interpolation.Mode, ...] = ("index", "embedding", "latent", "slerp", "hierarchical", "prior", "learned")
FRAMES = 25  # both ends included
SIDE, SMALL = 256, 96
MILLISECONDS = 60  # of a frame of an animation


def frames(space: Workspace, first: Picture, last: Picture, way: interpolation.Mode) -> UInt8[np.ndarray, "f h w c"]:
    """The way from one picture to the other; its ends are the reconstructions.

    Raises:
        InputError: the way does not apply to this tokenizer, or what it needs is not there.
    """
    tokenizer, chosen = space.tokenizer(), walk(space, way)
    x = arrays.to_model(np.stack([first.pixels, last.pixels]), space.device)
    with torch.no_grad():
        ends = Ends([first.name, last.name], _told(space, way, first, last), tokenizer.latents(x), tokenizer.encode(x))
        found = chosen(tokenizer, ends, torch.linspace(0, 1, FRAMES))
    return arrays.to_pixels(found)


def walk(space: Workspace, way: interpolation.Mode) -> Walk:
    if "interpolation" not in space.params.keys("extensions"):
        raise InputError(
            "params.yaml has no extensions.interpolation, whose values the ways need; write it there again"
        )
    needs = {"prior": ("prior",), "learned": ("dataset", "tokenizer", "codes")}.get(way, ())
    if reason := space.why_not(*needs):
        raise InputError(reason)
    config = space.params.config("extensions", "interpolation").model_copy(update={"modes": [way]})

    def make() -> tuple[dict[str, Walk], dict[str, str]]:
        return interpolation.available(config, space, space.tokenizer())

    if way == "learned":  # its graph of the training images takes a second
        train = [space.folder(stage) / "train.npy" for stage in ("dataset", "codes")]
        walks, reasons = space.kept.get("learned", [*space.files_of("tokenizer"), *train], make)
    else:
        walks, reasons = make()
    if way not in walks:
        remedy = f": {TWO_LEVELS} trains one of two" if way == "hierarchical" else ""
        raise InputError(f"The way {way} does not apply, since {reasons[way]}{remedy}.")
    return walks[way]


def _told(space: Workspace, way: str, *pictures: Picture) -> Tensor | None:
    """What the prior is told of the two, if the way asks it."""
    if way != "prior" or not (conditioning := space.prior().conditioning):
        return None
    return torch.cat([cast("Tensor", space.told(picture, conditioning)) for picture in pictures])


def strip(found: UInt8[np.ndarray, "f h w c"], count: int) -> Image.Image:
    """Frames side by side, evenly spread over the way."""
    chosen = found[arrays.evenly(len(found), count)]
    return cells.enlarged(np.concatenate(list(chosen), axis=1), SMALL * len(chosen))


def animation(found: UInt8[np.ndarray, "f h w c"], kind: Kind) -> bytes:
    """There and back, endlessly. A GIF has 256 colours a frame; an animated PNG has every one."""
    images = [cells.enlarged(frame, SIDE).convert("RGB") for frame in (*found, *found[-2:0:-1])]
    stream = io.BytesIO()
    rest = {"save_all": True, "append_images": images[1:], "duration": MILLISECONDS, "loop": 0}
    images[0].save(stream, "GIF" if kind == "gif" else "PNG", **rest)
    return stream.getvalue()
