"""Idx files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST (described at yann.lecun.com/exdb/mnist), packed by gzip or not.

`train-images-idx3-ubyte` and `t10k-images-idx3-ubyte` hold the images of the splits train and test, `...-labels-idx1-ubyte` their
classes. Debian's package dataset-fashion-mnist puts such files into /usr/share/datasets/fashion-mnist.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from tessera.core import files
from tessera.core.contracts import Source
from tessera.core.errors import InputError, listed
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params

PARTS = {"train": "train", "t10k": "test"}  # first part of a file's name -> split
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
BYTES = b"\0\0\x08"  # the first bytes of a file whose values are uint8
REMEDY = "put the four files of the set there, as they are published (.gz or unpacked)"


class Config(Strict):
    label_names: list[str] = Field(description="names of the classes 0, 1, ...; empty: their numbers", examples=[[]])

    def rule(self, params: Params) -> Iterator[str]:
        if len(set(self.label_names)) < len(self.label_names):
            yield f"dataset.idx.label_names: must differ from each other, got {self.label_names}; rename one"


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """All images under `source`, train before test; nothing is random. Each image is its own family, named by its split and row.
    Other files in the folder are left out, and `notes` name them.

    Raises:
        InputError: a file is missing, is no idx file of bytes, or is cut short; images and labels differ in number; a class has no
            name.
    """
    found, hidden = files.visible(source)
    unread = {path.as_posix() for path in (*found, *hidden)}
    images, labels, splits, names = [], [], [], []
    for part, split in PARTS.items():
        paths = [_place(source, f"{part}-{kind}") for kind in (IMAGES, LABELS)]
        pixels, classes = (_read(path, dimensions) for path, dimensions in zip(paths, (3, 1), strict=True))
        if len(pixels) != len(classes):
            raise InputError(
                f"dataset.source {str(source)!r}: there are {len(pixels)} images of {part} and {len(classes)} labels; {REMEDY}"
            )
        unread -= {path.name for path in paths}
        images.append(pixels)
        labels.append(classes)
        splits += [split] * len(pixels)
        names += [f"{split}-{row:05}" for row in range(len(pixels))]
    largest = int(max(classes.max(initial=0) for classes in labels))
    label_names = config.label_names or [str(label) for label in range(largest + 1)]
    if largest >= len(label_names):
        raise InputError(
            f"dataset.idx.label_names: must name each of the classes 0 to {largest}, got {len(label_names)} names; "
            "add names, or leave the list empty"
        )
    if images[0].shape[1:] != images[1].shape[1:]:
        raise InputError(f"dataset.source {str(source)!r}: images must be of one size, got {images[0].shape[1:]} in train and "
                         f"{images[1].shape[1:]} in t10k; {REMEDY}")  # fmt: skip
    notes = (
        (f"{len(unread)} files are not read, being none of the four of a set: {listed(sorted(unread))}",)
        if unread
        else ()
    )
    return Source(
        list(np.concatenate(images)), names, names, np.concatenate(labels).tolist(), label_names, splits, notes
    )


def _place(source: Path, name: str) -> Path:
    """The file `name` of a set, or that file packed, which goes before it.

    Raises:
        InputError: there is neither.
    """
    path, packed = source / name, source / f"{name}.gz"
    if not (path.exists() or packed.exists()):
        raise InputError(f"dataset.source {str(source)!r}: there is no such file as {name} or {name}.gz; {REMEDY}")
    return packed if packed.exists() else path


def _read(path: Path, dimensions: int) -> UInt8[np.ndarray, ...]:
    """The values of the idx file `path`: after 0, 0 and 8 (uint8) come the number of dimensions, the dimensions as big-endian
    uint32, and the values.

    Raises:
        InputError: see `load`.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            begun = file.read(4 + 4 * dimensions)
            if begun[:4] != BYTES + bytes([dimensions]) or len(begun) < 4 + 4 * dimensions:
                raise InputError(f"{path} must be an idx file of bytes in {dimensions} dimensions; {REMEDY}")
            shape = tuple(map(int, np.frombuffer(begun, ">u4", offset=4)))
            values = file.read(math.prod(shape) + 1)  # no more than the file says, whatever it would unpack to
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} must be an idx file: {error}; {REMEDY}") from None
    if math.prod(shape) != len(values):
        more = "more" if len(values) > math.prod(shape) else len(values)
        raise InputError(
            f"{path} must hold {math.prod(shape)} values, as its first bytes say, got {more}; "
            "it is damaged, fetch it anew"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
