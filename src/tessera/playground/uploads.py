"""Uploaded files as pictures, behind the same guard as the files of a data set."""

from __future__ import annotations

from pathlib import Path

from tessera.core.errors import InputError
from tessera.decoding import compressed, squares
from tessera.playground.workspace import Picture, Workspace

MAX_BYTES = 32 << 20  # of a file; its pixels are limited by `compressed.MAX_PIXELS`
NAME = 60  # characters of a file's name that are shown


def picture(space: Workspace, path: Path) -> Picture:
    """The file as the stage `dataset` would render it: upright, on white, made square by `dataset.aspect`, in the tokenizer's size.
    Nothing but an image decoder looks at its content.

    Raises:
        InputError: the file is too large, or no image that can be decoded.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path.name} has {size >> 20} MiB; at most {MAX_BYTES >> 20} MiB are taken. Save it smaller")
    pixels, (channels, side, _) = compressed.decode(path.read_bytes(), path.name[:NAME]), space.tokenizer().image_shape
    aspect, remedy = space.params.value("dataset.aspect"), "Crop it to a square"
    square = squares.square(pixels, "grey" if channels == 1 else "rgb", aspect, path.name, remedy)
    return Picture(path.stem[:NAME], squares.resized(square, side))
