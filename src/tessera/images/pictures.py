"""Sheets of images for readers of the results. NumPy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8

SHEET_PIXELS = 64  # smaller images are enlarged without smoothing, so that their pixels stay visible


def sheet(
    images: UInt8[np.ndarray, "n h w c"], columns: int, gap: int = 4, shade: int = 255
) -> UInt8[np.ndarray, "height width c"]:
    """Images row by row, `columns` per row, with a gap of `gap` pixels between them, enlarged to about `SHEET_PIXELS`."""
    factor = max(1, SHEET_PIXELS // images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), shade, np.uint8)
    for index, image in enumerate(images):
        top, left = gap + (index // columns) * (h + gap), gap + (index % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas


def rows_of_pairs(
    above: UInt8[np.ndarray, "n h w c"], below: UInt8[np.ndarray, "n h w c"], columns: int
) -> UInt8[np.ndarray, "height width c"]:
    """A sheet with each row of `above` over the same row of `below`: originals over reconstructions, samples over neighbours."""
    order, missing = [], ((0, -len(above) % columns), (0, 0), (0, 0), (0, 0))
    above, below = np.pad(above, missing, constant_values=255), np.pad(below, missing, constant_values=255)
    for start in range(0, len(above), columns):
        order += [above[start : start + columns], below[start : start + columns]]
    return sheet(np.concatenate(order), columns)
