"""Grids of codes as coloured cells: near code vectors have near colours. NumPy and Pillow only.

The grids of a picture stand side by side, coarse first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from tessera.core.space import CodeSpace

SIDE, GAP = 384, 12  # pixels of the longer side of a grid, at least, and between grids
NUMBERED = 28  # pixels of the smallest cell that has room for its code
LIGHT, DARK = (255, 255, 255), (20, 20, 20)
BRIGHT = 0.55  # from this luminance on, dark text can be read better than light text
QUANTILES = (0.02, 0.98)  # of each principal component: the ends of the scale of its colour
LEAST, MOST = 30.0, 240.0  # of a colour channel


def colours(book: Float[np.ndarray, "k d"]) -> UInt8[np.ndarray, "k 3"]:
    """A colour for each code: its code vector's place along the three principal directions of the codebook, as red, green and
    blue."""
    centred = np.asarray(book, np.float64) - np.mean(book, axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    places = centred @ directions[:, ::-1][:, :3]
    signs = np.where(np.abs(places.max(0)) < np.abs(places.min(0)), -1.0, 1.0)  # eigenvectors have no sign of their own
    places = np.pad(places * signs, ((0, 0), (0, 3 - places.shape[1])))
    low, high = np.quantile(places, QUANTILES, axis=0)
    scaled = (places - low) / np.where(high > low, high - low, 1)
    return np.rint(LEAST + np.clip(scaled, 0, 1) * (MOST - LEAST)).astype(np.uint8)


class Box(NamedTuple):
    """Where a grid stands in the picture, in pixels, and the side of its cells."""

    left: int
    top: int
    cell: int
    height: int  # in cells
    width: int


def boxes(space: CodeSpace) -> list[Box]:
    found, left = [], 0
    for height, width in space.grids:
        cell = -(-SIDE // max(height, width))
        found.append(Box(left, 0, cell, height, width))
        left += cell * width + GAP
    return found


def picture(
    codes: Int[np.ndarray, " t"], space: CodeSpace, palettes: Sequence[UInt8[np.ndarray, "k 3"]], chosen: int | None
) -> Image.Image:
    """The grids of one image. The cell at position `chosen` has a thick frame, other cells of the same grid with its code thin
    ones."""
    places = boxes(space)
    size = (max(box.left + box.cell * box.width for box in places), max(box.cell * box.height for box in places))
    canvas = Image.new("RGB", size, LIGHT)
    pen = ImageDraw.Draw(canvas)
    for box, (grid,), palette in zip(places, space.split(codes[None]), palettes, strict=True):
        large = palette[grid].repeat(box.cell, axis=0).repeat(box.cell, axis=1)
        canvas.paste(Image.fromarray(large), (box.left, box.top))
        if box.cell >= NUMBERED:
            font = ImageFont.load_default(size=max(10, box.cell // 3))
            for (row, column), code in np.ndenumerate(grid):
                middle = (box.left + (column + 0.5) * box.cell, box.top + (row + 0.5) * box.cell)
                pen.text(middle, str(code), fill=_readable(palette[code]), font=font, anchor="mm")
    if chosen is not None:
        grid_index, place = space.locate(chosen)
        grid = space.split(codes[None])[grid_index][0]
        box = places[grid_index]
        for row, column in np.argwhere(grid == grid[divmod(place, box.width)]):
            _frame(pen, box, int(row), int(column), thick=(row, column) == divmod(place, box.width))
    return canvas


def _readable(colour: UInt8[np.ndarray, " 3"]) -> tuple[int, int, int]:
    """Black or white, whichever can be read on this colour (luminance by ITU-R BT.709)."""
    return DARK if colour @ np.array([0.2126, 0.7152, 0.0722]) > BRIGHT * 255 else LIGHT


def _frame(pen: ImageDraw.ImageDraw, box: Box, row: int, column: int, thick: bool) -> None:
    left, top = box.left + column * box.cell, box.top + row * box.cell
    width = max(2, box.cell // (8 if thick else 20))
    corners = [left, top, left + box.cell - 1, top + box.cell - 1]
    pen.rectangle(corners, outline=DARK, width=width)
    if thick:
        inner = [corners[0] + width, corners[1] + width, corners[2] - width, corners[3] - width]
        pen.rectangle(inner, outline=LIGHT, width=max(1, width // 2))


def position(space: CodeSpace, x: float, y: float) -> int | None:
    """The position in the sequence of the code whose cell holds the pixel (x, y) of `picture`; None between the grids."""
    start = 0
    for box, length in zip(boxes(space), space.lengths, strict=True):
        row, column = int(y - box.top) // box.cell, int(x - box.left) // box.cell
        if x >= box.left and 0 <= row < box.height and 0 <= column < box.width:
            return start + row * box.width + column
        start += length
    return None


def enlarged(pixels: UInt8[np.ndarray, "h w c"], side: int = SIDE) -> Image.Image:
    """The image with its longer side at `side` pixels at least, each pixel a square, so that none is smoothed away."""
    factor = max(1, -(-side // max(pixels.shape[:2])))
    large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return Image.fromarray(large[..., 0] if large.shape[2] == 1 else large)


def framed(pixels: UInt8[np.ndarray, "h w c"], space: CodeSpace, grid: int, where: Int[np.ndarray, "m 2"], side: int = SIDE
           ) -> Image.Image:  # fmt: skip
    """The image enlarged, with a frame around the cells (row, column) `where` of a grid."""
    canvas = enlarged(pixels, side).convert("RGB")
    pen, (height, width) = ImageDraw.Draw(canvas), space.grids[grid]
    down, across = canvas.height / height, canvas.width / width
    for row, column in where:
        corners = [column * across, row * down, (column + 1) * across - 1, (row + 1) * down - 1]
        pen.rectangle(corners, outline=LIGHT, width=4)
        pen.rectangle(corners, outline=DARK, width=2)
    return canvas
