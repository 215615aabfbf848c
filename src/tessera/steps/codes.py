"""Images to codes, batch by batch: any number of images in constant memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tessera.core import files, images
from tessera.core.run import SPLITS, Run
from tessera.core.seeding import generator


def encode(tokenizer: Any, run: Run, folder: Path) -> None:
    """`<split>.npy` [N,T] int32 of every split as it is; `augmented.npy` [copies,N,T] of the training images changed at
    random, from weak to strong (`strengths`): on a small set, a prior that sees each image in one way only learns it by
    heart."""
    own, length = run.params.codes, sum(height * width for height, width in tokenizer.grids)
    for split in SPLITS:
        with files.streamed_array(folder / f"{split}.npy", (len(run.images(split)), length), "int32") as codes:
            _fill(codes, tokenizer.encode, run, split)
    with files.streamed_array(
        folder / "augmented.npy", (own.copies, len(run.images("train")), length), "int32"
    ) as codes:
        for copy, strength in enumerate(strengths(own.copies)):
            draws = generator(run.params.seed, "codes", "augmentation", copy)
            changed = partial(images.augmented, how=own.augmentation, generator=draws, strength=strength)
            _fill(codes[copy], lambda x, changed=changed: tokenizer.encode(changed(x)), run, "train")


def strengths(copies: int) -> tuple[float, ...]:
    """Of each copy: 1/copies, 2/copies ... 1."""
    return tuple((copy + 1) / copies for copy in range(copies))


def _fill(codes: Any, encoder: Any, run: Run, split: str) -> None:
    for where, batch in images.map_batches(encoder, run.images(split), run.params.codes.batch_size, run.runtime.device):
        codes[where] = batch.cpu().numpy()
