"""Tab Reconstruct: an image through the tokenizer, its codes as cells, and what another code in a cell does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from tessera import scores
from tessera.core.errors import InputError
from tessera.features import neighbours
from tessera.images import arrays
from tessera.playground import cells
from tessera.playground.workspace import Picture, Workspace

COUNTED = 20_000  # training images in which uses of a code are counted, at most
SMALL = 128  # side in pixels of the pictures in a row


class Edited(NamedTuple):
    """A picture, the codes that the tokenizer gives it, and those that a person has made of them. `chosen` is the position of the
    cell that was clicked."""

    picture: Picture
    own: Int[np.ndarray, " t"]
    codes: Int[np.ndarray, " t"]
    chosen: int | None = None

    @property
    def changed(self) -> int:
        return int((self.own != self.codes).sum())


class Use(NamedTuple):
    """How a code is used. `fraction`: of all codes of its grid, in `counted` training images; `images` holds the indices of those
    that use it most."""

    code: int
    here: int  # cells of the picture with this code
    fraction: float
    counted: int
    images: Int[np.ndarray, " m"]


def encoded(space: Workspace, picture: Picture) -> Edited:
    (own,) = space.encoded(picture.pixels[None])
    return Edited(picture, own, own)


def reconstruction(space: Workspace, edited: Edited) -> UInt8[np.ndarray, "h w c"]:
    return space.decoded(edited.codes[None])[0]


def psnr_db(edited: Edited, pixels: UInt8[np.ndarray, "h w c"]) -> float:
    """Of a reconstruction against the picture itself."""
    return float(scores.psnr_db(scores.mse(pixels[None], edited.picture.pixels[None]))[0])


def grid(space: Workspace, edited: Edited) -> Image.Image:
    return cells.picture(edited.codes, space.tokenizer().space, palettes(space), edited.chosen)


def palettes(space: Workspace) -> list[UInt8[np.ndarray, "k 3"]]:
    tokenizer = space.tokenizer()
    return space.kept.get("palettes", space.files_of("tokenizer"), lambda: [cells.colours(b) for b in books(tokenizer)])


def books(tokenizer: object) -> list[np.ndarray]:
    return [book.detach().float().cpu().numpy() for book in tokenizer.codebooks]  # type: ignore[attr-defined]


def clicked(space: Workspace, edited: Edited, x: float, y: float) -> Edited:
    """The cell at pixel (x, y) of `grid` is chosen; none, where there is no cell."""
    return edited._replace(chosen=cells.position(space.tokenizer().space, x, y))


def replaced(space: Workspace, edited: Edited, code: int) -> Edited:
    """
    Raises:
        InputError: no cell is chosen, or the codebook has no such code.
    """
    size = space.tokenizer().space.sizes[_grid(space, edited)]
    if not 0 <= code < size:
        raise InputError(f"a code must be from 0 to {size - 1}, as many as the codebook has, got {code}")
    codes = edited.codes.copy()
    codes[edited.chosen] = code
    return edited._replace(codes=codes)


def redrawn(
    space: Workspace, codes: Sequence[int], position: int, code: int
) -> tuple[UInt8[np.ndarray, "h w c"], Image.Image] | None:
    """The reconstruction and the grid with another code in one cell, in which that cell is chosen. None where these are no codes of
    the tokenizer that is loaded: a page may be older than it."""
    own = space.tokenizer().space
    if len(codes) != own.length or not 0 <= position < own.length:
        return None
    new = np.array([*codes[:position], code, *codes[position + 1 :]], np.int64)
    if any(((grid < 0) | (grid >= size)).any() for grid, size in zip(own.split(new[None]), own.sizes, strict=True)):
        return None
    return space.decoded(new[None])[0], cells.picture(new, own, palettes(space), position)


def restored(edited: Edited) -> Edited:
    return edited._replace(codes=edited.own)


def _grid(space: Workspace, edited: Edited) -> int:
    if edited.chosen is None:
        raise InputError("no cell is chosen; click a cell of the grid first")
    return space.tokenizer().space.locate(edited.chosen)[0]


def use(space: Workspace, edited: Edited, most: int) -> Use:
    """Of the code in the chosen cell; without codes of a training split, in no image."""
    at, codes = _grid(space, edited), space.tokenizer().space
    code = int(edited.codes[edited.chosen])
    here = int((codes.split(edited.codes[None])[at] == code).sum())
    if space.why_not("dataset", "tokenizer", "codes"):
        return Use(code, here, 0.0, 0, np.zeros(0, np.int64))
    train = space.codes("train")
    looked = arrays.evenly(len(train), COUNTED)
    times = (codes.split(np.asarray(train[looked]))[at] == code).sum((1, 2))
    order = np.argsort(-times, kind="stable")[:most]
    fraction = float(times.sum() / (len(looked) * codes.lengths[at]))
    return Use(code, here, fraction, len(looked), looked[order[times[order] > 0]])


def elsewhere(space: Workspace, edited: Edited, of: Use) -> list[tuple[Image.Image, str]]:
    """The training images that use the code most, with its cells framed, and their names."""
    at, codes, names = (
        _grid(space, edited),
        space.tokenizer().space,
        space.table("train")["name"] if len(of.images) else [],
    )
    found = []
    for row in of.images:
        where = np.argwhere(codes.split(np.asarray(space.codes("train")[row : row + 1]))[at][0] == of.code)
        pixels = np.asarray(space.images("train")[row])
        found.append((cells.framed(pixels, codes, at, where, SMALL), f"{names[row]}: {len(where)}"))
    return found


def nearest(space: Workspace, edited: Edited, most: int) -> list[tuple[int, float]]:
    """The codes whose code vectors are nearest to that of the chosen cell, and their distances; without that code itself."""
    book = books(space.tokenizer())[_grid(space, edited)]
    code = int(edited.codes[edited.chosen])
    distance = neighbours.distances(book[code : code + 1], book)[0]
    order = [int(other) for other in np.argsort(distance, kind="stable") if other != code][:most]
    return [(other, float(distance[other])) for other in order]


def with_each(space: Workspace, edited: Edited, found: list[tuple[int, float]]) -> list[tuple[Image.Image, str]]:
    """The picture with each of these codes in the chosen cell."""
    if not found:
        return []
    codes = np.tile(edited.codes, (len(found), 1))
    codes[:, edited.chosen] = [code for code, _ in found]
    return [
        (cells.enlarged(pixels, SMALL), f"{code}: {distance:.3g}")
        for pixels, (code, distance) in zip(space.decoded(codes), found, strict=True)
    ]
