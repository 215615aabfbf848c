"""The figure of all modes: one sheet per pair of images, with the names of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from tessera.images import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blocks(titles: list[str], names: list[str], strips: list[UInt8[np.ndarray, "n h w c"]], columns: int) -> Figure:
    """One sheet with `columns` per title, two side by side, with the names at their rows. Positions are in pixels, so that
    sheets are not resampled: resampling would make the file three times as large."""
    from matplotlib.figure import Figure

    sheets = [pictures.sheet(strip, columns) for strip in strips]
    height, width, _ = sheets[0].shape
    beside, below, left, top, dpi = min(2, len(sheets)), -(-len(sheets) // 2), 100, 30, 110
    whole = np.array([beside * (left + width), below * (top + height)])
    figure = Figure(figsize=(whole[0] / dpi, whole[1] / dpi), dpi=dpi)
    for number, (sheet, title) in enumerate(zip(sheets, titles, strict=True)):
        row, column = divmod(number, beside)
        corner = np.array([column * (left + width) + left, (below - 1 - row) * (top + height)])
        axis = figure.add_axes((*(corner / whole), *([width, height] / whole)), frame_on=False)
        shown = sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
        axis.set_yticks((np.arange(len(names)) + 0.5) * height / len(names), names, fontsize=8)
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.set_title(title, fontsize=9)
    return figure
