"""Turn the images of a folder into codes, by a trained tokenizer:

    python -m tessera.encode photos codes.npz

Images are read as the pipeline reads them: opaque (on white), square, averaged
to the size that the tokenizer was trained on. `python -m tessera.decode` turns
the codes into images again. In Python, `numpy.load("codes.npz")` has `codes`
[N,T] and `names`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from tessera.commands import encoded, line, trained
from tessera.core import files
from tessera.core.contracts import Device, Tokenizer
from tessera.core.errors import InputError
from tessera.decoding import compressed, squares

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8

SHOWN = 20  # broken images named in an error


def arguments() -> line.Parser:
    parser = line.Parser("encode", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, also in folders below it")
    parser.add_argument("codes", type=line.ending(".npz"), metavar="NPZ", help="the file that the codes are written to")
    parser.add_argument(
        "--extensions", default="png,jpg,jpeg,webp", metavar="A,B", help="endings of the files that are images"
    )
    parser.add_argument(
        "--aspect", choices=get_args(squares.Aspect), default="pad", help="how an image becomes square: white at its sides, "
        "its centre, or stretched",
    )  # fmt: skip
    machine = parser.add_argument_group("models and machine")
    trained.add_options(machine)
    machine.add_argument("--batch-size", type=line.whole(1), default=64, metavar="B", help="images at a time")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    return line.enter(arguments(), work, given)


def work(options: argparse.Namespace) -> None:
    paths = images_of(options.folder, options.extensions.split(","))
    models = trained.find(options, "tokenizer")
    device = trained.device(options)
    tokenizer = models.tokenizer(device)
    codes = encode(tokenizer, paths, options, device)
    names = [path.as_posix() for path in paths]
    encoded.write(options.codes, encoded.Encoded(codes, names, tokenizer.space, models.digest("tokenizer")))
    print(
        f"{options.codes}: {len(codes)} images, {tokenizer.space.length} codes each, by {models.folder / 'tokenizer'}"
    )


def images_of(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """Paths below `folder`, sorted.

    Raises:
        InputError: there is no such folder, or it holds no image, or has a broken link or a link to a folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder. Name one that holds images")
    paths, _ = files.pictures(folder, extensions)
    if not paths:
        raise InputError(
            f"{folder} holds no file that ends in {', '.join(files.endings(extensions))}, at any depth. Name the endings of its "
            "images by --extensions"
        )
    return paths


def encode(
    tokenizer: Tokenizer, paths: Sequence[Path], options: argparse.Namespace, device: Device
) -> Int[np.ndarray, "n t"]:
    """Codes of the images, a batch at a time.

    Raises:
        InputError: images are broken. The message names up to `SHOWN`.
    """
    import torch

    from tessera.images import arrays

    codes, broken = [], list[str]()
    with line.progress(len(paths), "encode", "image") as bar:
        for where in arrays.batches(len(paths), options.batch_size):
            pixels = []
            for path in paths[where]:
                try:
                    pixels.append(read(options.folder / path, tokenizer, options.aspect))
                except InputError as error:  # go on, so that one message names all broken images
                    broken.append(str(error))
                bar.update(1)
            if not broken:
                with torch.no_grad():
                    codes.append(tokenizer.encode(arrays.to_model(np.stack(pixels), device)).cpu().numpy())
    if broken:
        more = [f"and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
        raise InputError("\n  ".join([f"{len(broken)} of {len(paths)} images cannot be used:", *broken[:SHOWN], *more]))
    return np.concatenate(codes)


def read(path: Path, tokenizer: Tokenizer, aspect: str) -> UInt8[np.ndarray, "s s c"]:
    """One image file as the tokenizer takes it.

    Raises:
        InputError: it cannot be read or decoded.
    """
    channels, size, _ = tokenizer.image_shape
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    pixels = compressed.decode(data, str(path))
    colour = "grey" if channels == 1 else "rgb"
    return squares.resized(squares.square(pixels, colour, aspect, str(path), "Take --aspect crop, or remove it"), size)


if __name__ == "__main__":
    sys.exit(main())
