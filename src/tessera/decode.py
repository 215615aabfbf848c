"""Turn codes into images again, one PNG for each, by the tokenizer that made them:

    python -m tessera.decode codes.npz images

`codes.npz` is what `python -m tessera.encode` or `python -m tessera.sample
--codes` has written. Each image gets its name; one that does not end in .png
gets this ending too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tessera.commands import encoded, line, trained
from tessera.core import files
from tessera.core.contracts import Device, Tokenizer
from tessera.core.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Int


def arguments() -> line.Parser:
    parser = line.Parser("decode", __doc__)
    parser.add_argument("codes", type=Path, metavar="NPZ", help="the file of codes")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that the images are written to")
    machine = parser.add_argument_group("models and machine")
    trained.add_options(machine)
    machine.add_argument("--batch-size", type=line.whole(1), default=64, metavar="B", help="images at a time")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    return line.enter(arguments(), work, given)


def work(options: argparse.Namespace) -> None:
    found = encoded.read(options.codes)
    names = encoded.pictures(found.names)
    if options.folder.exists() and not options.folder.is_dir():
        raise InputError(f"{options.folder} is a file. Name a folder for the images")
    models = trained.find(options, "tokenizer")
    if (own := models.digest("tokenizer")) != found.tokenizer:
        raise InputError(
            f"{options.codes} was made by another tokenizer ({found.tokenizer[:8]}) than {models.folder / 'tokenizer'} "
            f"({own[:8]}), which would decode other images. Name the folder of that one by --models, or encode the images again"
        )
    device = trained.device(options)
    tokenizer = models.tokenizer(device)
    if tokenizer.space != found.space:
        raise InputError(
            f"{options.codes} has grids {found.space.grids} of {found.space.sizes} codes, {models.folder / 'tokenizer'} has "
            f"{tokenizer.space.grids} of {tokenizer.space.sizes}. Encode the images again"
        )
    decode(tokenizer, found.codes, [options.folder / name for name in names], options.batch_size, device)
    print(f"{options.folder}: {len(found.codes)} images, by {models.folder / 'tokenizer'}")


def decode(
    tokenizer: Tokenizer, codes: Int[np.ndarray, "n t"], paths: Sequence[Path], batch_size: int, device: Device
) -> None:
    """Write the image of each row of `codes` to its path."""
    import torch

    from tessera.images import arrays

    with line.progress(len(codes), "decode", "image") as bar, torch.no_grad():
        for where in arrays.batches(len(codes), batch_size):
            part = torch.from_numpy(codes[where].astype(np.int64)).to(device)
            for path, image in zip(paths[where], arrays.to_pixels(tokenizer.decode(part)), strict=True):
                files.write_picture(path, image)
                bar.update(1)


if __name__ == "__main__":
    sys.exit(main())
