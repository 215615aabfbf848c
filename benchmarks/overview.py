"""The picture of README.md: originals of the test split, their reconstructions, and samples of the prior, side by side.

python -m benchmarks.overview

It writes docs/overview.png from the sheets that the stages `reconstruction` and `samples` keep in plots/. Equal sheets give
equal pixels, and a test compares the committed picture with the committed sheets: run this after a new committed run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

PATH, PLOTS = Path("docs/overview.png"), Path("plots")
SHEET_COLUMNS, GAP = 12, 4  # of the sheets
COLUMNS, ROWS = 6, 4  # of each panel
MARGIN = 32  # pixels between panels

Pixels = UInt8[np.ndarray, "height width 3"]


def picture(plots: Path = PLOTS) -> Pixels:
    """Three panels of 4 x 6 images each: originals, reconstructions, samples. Nothing is selected: each panel shows the left
    half of the first rows of its sheet."""
    compared = rows(read(plots / "reconstruction" / "test.png"))
    sampled = rows(read(plots / "samples" / "samples.png"))
    panels = [
        compared[0 : 2 * ROWS : 2],
        compared[1 : 2 * ROWS : 2],
        sampled[:ROWS],
    ]  # originals stand over reconstructions
    columns = [np.concatenate(list(panel)) for panel in panels]
    margin = np.full((len(columns[0]), MARGIN, 3), 255, np.uint8)
    return np.concatenate([columns[0], margin, columns[1], margin, columns[2]], axis=1)


def rows(sheet: Pixels) -> UInt8[np.ndarray, "rows height width 3"]:
    """The rows of a sheet, their left `COLUMNS` images, each image with the gap above it and left of it."""
    cell = (sheet.shape[1] - GAP) // SHEET_COLUMNS
    whole = sheet[: (len(sheet) - GAP) // cell * cell, : COLUMNS * cell]
    return whole.reshape(-1, cell, *whole.shape[1:])


def read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def main() -> None:
    Image.fromarray(picture()).save(PATH, optimize=True)
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
