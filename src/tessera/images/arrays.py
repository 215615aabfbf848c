"""Conversions between stored images, uint8 [N,H,W,C], and the models' input, float [B,C,H,W] in [-1, 1]. There are no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int, UInt8
    from torch import Tensor

    from tessera.core.contracts import Tokenizer


def to_model(pixels: UInt8[np.ndarray, "b h w c"], device: str | torch.device = "cpu") -> Float[Tensor, "b c h w"]:
    """uint8 images as model input: 0 becomes -1, 255 becomes 1."""
    import torch

    x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(device)  # copies a read-only memory map
    return x.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(x: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Model output as the nearest 8-bit values; values outside [-1, 1] are clipped."""
    import torch

    pixels = x.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n) in order."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def evenly(n: int, count: int) -> np.ndarray:
    """At most `count` indices spread evenly over range(n)."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(int))


def map_batches(
    function: Callable[[Tensor], Tensor],
    pixels: UInt8[np.ndarray, "n h w c"],
    batch_size: int,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice, function(images of the slice)) batch by batch, without gradients, in constant memory."""
    import torch

    for where in batches(len(pixels), batch_size):
        with torch.no_grad():
            result = function(to_model(pixels[where], device))
        yield where, result


def mapped(
    function: Callable[[Tensor], Tensor],
    pixels: UInt8[np.ndarray, "n h w c"],
    batch_size: int,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Outputs [N,...] of a network (an extractor, a tokenizer's `encode`) for all images."""
    return np.concatenate([found.cpu().numpy() for _, found in map_batches(function, pixels, batch_size, device)])


def decoded(
    tokenizer: Tokenizer,
    codes: Int[Tensor | np.ndarray, "n t"],
    batch_size: int,
    device: str | torch.device | None = None,
) -> UInt8[np.ndarray, "n h w c"]:
    """Decoded images of codes, `batch_size` at a time, without gradients. `device` None: the device of the codes."""
    import torch

    with torch.no_grad():
        parts = (torch.as_tensor(codes[where], device=device) for where in batches(len(codes), batch_size))
        return np.concatenate([to_pixels(tokenizer.decode(part)) for part in parts])
