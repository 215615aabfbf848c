"""Levels of a finished tokenizer, found from outside by one forward pass that leaves its state unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from tessera.core.contracts import Model, Tokenizer


class Level(NamedTuple):
    """One level with latents [B,D,h,w]. Its codebooks and its entries of `codebook_sizes` are `depth` in number, from index
    `start` on. Depth 0: the level has no codes (yet)."""

    dim: int
    height: int
    width: int
    start: int
    depth: int


@contextmanager
def evaluating(module: nn.Module | Model) -> Iterator[None]:
    """Evaluation mode within the block: no dropout, and statistics do not change. Afterwards the previous mode is restored."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def levels_of(tokenizer: Tokenizer) -> tuple[Level, ...]:
    """The levels of a tokenizer, coarse first, from one forward pass of a grey image."""
    device = next((tensor.device for tensor in chain(tokenizer.parameters(), tokenizer.buffers())), None)
    with evaluating(tokenizer), torch.no_grad():
        output = tokenizer(torch.zeros(1, *tokenizer.image_shape, device=device))
    found: list[Level] = []
    for z, quantized in zip(output.latents, output.quantized, strict=True):
        start = found[-1].start + found[-1].depth if found else 0
        dim, height, width = z.shape[1:]
        found.append(Level(dim, height, width, start, depth=quantized.codes.shape[1]))
    return tuple(found)
