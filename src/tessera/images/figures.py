"""Figures of many images that name their rows and columns: sheets of `images.pictures` with words around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from tessera.images import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rows(strips: list[tuple[str, UInt8[np.ndarray, "n h w c"]]], columns: list[str]) -> Figure:
    """Sheets one below the other, each with its name at the left; the names of the columns, which all share, on top."""
    from matplotlib.figure import Figure

    sheets = [pictures.sheet(strip, len(columns)) for _, strip in strips]
    height, width = sum(len(sheet) for sheet in sheets), sheets[0].shape[1]
    figure = Figure(figsize=(width / 55, height / 55))
    axes = figure.subplots(len(sheets), 1, squeeze=False, gridspec_kw={"hspace": 0.02})[:, 0]
    for axis, (name, _), sheet in zip(axes, strips, sheets, strict=True):
        axis.imshow(sheet if sheet.shape[2] == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=255,
                    interpolation="nearest")  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    places = (np.arange(len(columns)) + 0.5) * width / len(columns)
    axes[0].set_xticks(places, columns)
    axes[0].tick_params(length=0, labeltop=True, labelbottom=False)
    return figure


def blocks(titles: list[str], names: list[str], strips: list[UInt8[np.ndarray, "n h w c"]], columns: int) -> Figure:
    """A sheet of `columns` for each of the titles, two beside each other, with the names at their rows. Places are in pixels,
    of which a sheet keeps its own: resampled, the file would be three times as large."""
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
