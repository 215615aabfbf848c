"""Masks of pixels, fill-ins without a model, and the codes that a mask hides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from tessera.core.contracts import Device, Tokenizer
from tessera.core.errors import InputError
from tessera.core.seeding import numpy_generator
from tessera.core.space import CodeSpace
from tessera.images import arrays

Pixels = UInt8[np.ndarray, "n h w c"]
Masks = Bool[np.ndarray, "n h w"]

KINDS = ("centre", "bottom", "random", "patches", "square")


class Regions(Protocol):
    """Params of the masks. For each of `KINDS` a list of fractions: of the image's side for `square`, of its pixels for all
    others."""

    @property
    def centre(self) -> Sequence[float]: ...
    @property
    def bottom(self) -> Sequence[float]: ...
    @property
    def random(self) -> Sequence[float]: ...
    @property
    def patches(self) -> Sequence[float]: ...
    @property
    def square(self) -> Sequence[float]: ...
    @property
    def tiles(self) -> int: ...  # of `patches`, per side
    @property
    def structured(self) -> Mapping[str, Sequence[float]]: ...  # top, left, bottom, right as fractions of the sides


class Scene(NamedTuple):
    """Images under one mask: `known`, the codes of the images with a fill-in; `hidden`, True for each code to sample."""

    pixels: Pixels
    masks: Masks
    known: Int[Tensor, "n t"]
    hidden: Bool[Tensor, "n t"]
    conditions: Int[Tensor, "n c"] | None


# pixels


def masks(config: Regions, n: int, height: int, width: int, seed: int) -> dict[str, Masks]:
    """Masks by name, True where hidden. Random masks differ between images and depend only on seed and name.

    Raises:
        InputError: a mask hides all of an image of this size.
    """
    found = {}
    for kind in KINDS:
        for fraction in getattr(config, kind):
            name = named(kind, fraction)
            rng = numpy_generator(seed, "inpainting", "masks", name)
            found[name] = _mask(kind, fraction, config.tiles, (n, height, width), rng)
    for name, box in config.structured.items():
        top, left, bottom, right = np.multiply(box, (height, width) * 2).round().astype(int)
        found[name] = np.zeros((n, height, width), bool)
        found[name][:, min(top, height - 1) : max(bottom, top + 1), min(left, width - 1) : max(right, left + 1)] = True
    for name, mask in found.items():
        if mask.all(axis=(1, 2)).any():
            raise InputError(f"extensions.inpainting: mask {name} leaves nothing of images of {height}x{width} pixels")
    return found


def named(kind: str, fraction: float) -> str:
    return f"{kind}_{100 * fraction:.0f}"


def _mask(kind: str, fraction: float, tiles: int, shape: tuple[int, int, int], rng: np.random.Generator) -> Masks:
    n, height, width = shape
    mask = np.zeros(shape, bool)
    if kind == "centre":
        h, w = (max(1, round(math.sqrt(fraction) * side)) for side in (height, width))
        mask[:, (height - h) // 2 : (height - h) // 2 + h, (width - w) // 2 : (width - w) // 2 + w] = True
    elif kind == "bottom":
        mask[:, height - max(1, round(fraction * height)) :] = True
    elif kind == "square":
        h, w = (max(1, round(fraction * side)) for side in (height, width))
        corners = rng.integers(0, (height - h + 1, width - w + 1), (n, 2))
        for image, (y, x) in zip(mask, corners, strict=True):
            image[y : y + h, x : x + w] = True
    else:
        rows, columns = (height, width) if kind == "random" else (min(tiles, height), min(tiles, width))
        order = rng.random((n, rows * columns)).argsort(1).argsort(1)
        chosen = (order < max(1, round(fraction * rows * columns))).reshape(n, rows, columns)
        mask = chosen[:, (np.arange(height) * rows // height)[:, None], np.arange(width) * columns // width]
    return mask


# fill-ins


def averaged(pixels: Pixels, masks: Masks) -> Pixels:
    """Masked pixels become the mean of the other pixels of their image, which stay as they are."""
    weights = ~masks[..., None]
    mean = (pixels * weights).sum((1, 2), keepdims=True) / weights.sum((1, 2), keepdims=True)
    return np.where(weights, pixels, mean.round()).astype(np.uint8)


def biharmonic(pixels: Pixels, masks: Masks) -> Pixels:
    """Masked pixels become the smooth continuation of the others, which stay (scikit-image; Damelin & Hoang 2018)."""
    from skimage.restoration import inpaint_biharmonic

    filled = pixels.copy()
    kinds, of = np.unique(masks, axis=0, return_inverse=True)
    for index, mask in enumerate(kinds):  # images with equal masks become channels: the equations are set up once
        where = np.flatnonzero(of.reshape(-1) == index)
        channels = np.moveaxis(pixels[where], 0, 2)
        h, w, count, c = channels.shape
        smooth = inpaint_biharmonic(channels.reshape(h, w, count * c) / 255, mask, channel_axis=-1)
        smooth = np.moveaxis((smooth.clip(0, 1) * 255).round().astype(np.uint8).reshape(h, w, count, c), 2, 0)
        filled[where] = np.where(mask[None, :, :, None], smooth, pixels[where])
    return filled


# codes


def cells(masks: Masks, space: CodeSpace) -> Bool[np.ndarray, "n t"]:
    """True for each code whose cell of the image overlaps the mask. If the grid does not divide the image, a cell includes
    every pixel that it covers in part. A global code is about the whole image and stays: it is that of the image with a fill-in."""
    x = torch.from_numpy(masks).float()[:, None]
    parts = [F.adaptive_max_pool2d(x, grid)[:, 0] > 0 for grid in space.grids]
    for part in parts[: space.global_grids]:
        part.fill_(False)
    return space.join(parts).numpy()


def seen(
    tokenizer: Tokenizer,
    pixels: Pixels,
    masks: Masks,
    smooth: Pixels | None,
    conditions: Int[Tensor, "n c"] | None,
    device: Device,
) -> Scene:
    """The input of the methods: the codes of the images with `smooth`, or the mean of the known pixels, under the mask."""
    if smooth is None:
        smooth = averaged(pixels, masks)
    with torch.no_grad():
        known = tokenizer.encode(arrays.to_model(smooth, device))
    hidden = torch.from_numpy(cells(masks, tokenizer.space)).to(device)
    return Scene(pixels, masks, known, hidden, conditions)


def decoded(tokenizer: Tokenizer, scene: Scene, codes: Int[Tensor, "n t"]) -> Pixels:
    """The images with the decoded codes under the mask; all other pixels are the original's."""
    with torch.no_grad():
        sampled = arrays.to_pixels(tokenizer.decode(codes))
    return np.where(scene.masks[..., None], sampled, scene.pixels)
