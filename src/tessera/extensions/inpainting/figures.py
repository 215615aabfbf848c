"""The figure of all masks: one sheet per mask, with the names of masks and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from tessera.images import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rows(strips: list[tuple[str, UInt8[np.ndarray, "n h w c"]]], columns: list[str]) -> Figure:
    """Sheets below each other, each with its name at the left; the names of their common columns are on top."""
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
