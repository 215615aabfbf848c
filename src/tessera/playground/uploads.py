"""Uploaded files as pictures, behind the same guard as the files of a data set."""

from __future__ import annotations

import importlib
from pathlib import Path

from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.decoding import compressed
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
    dataset = importlib.import_module("stages.dataset")  # the class of its section and `render` stand in the stage
    pixels = compressed.decode(path.read_bytes(), path.name[:NAME])
    small, _ = dataset.render(
        pixels, settings(space.params, space.tokenizer().image_shape, dataset.Settings), path.name
    )
    return Picture(path.stem[:NAME], small)


def settings(params: Params, image_shape: tuple[int, int, int], kind: type) -> object:
    """The section `dataset` with the tokenizer's size and colours, which a params.yaml that was edited since need not have."""
    channels, height, _ = image_shape
    own = {"image_size": height, "target_size": height, "colour": "grey" if channels == 1 else "rgb"}
    return params.section("dataset", kind).model_copy(update=own)
