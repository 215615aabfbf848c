"""The only two conversions between stored images, uint8 [N,H,W,C], and what models see, float [-1,1] [B,C,H,W]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int, UInt8
    from torch import Tensor

    from tessera.core.contracts import Tokenizer
    from tessera.core.params import Augmentation


def to_model(pixels: UInt8[np.ndarray, "b h w c"], device: str | torch.device = "cpu") -> Float[Tensor, "b c h w"]:
    """0 becomes -1, 255 becomes 1."""
    import torch

    x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(device)  # a read-only map is copied
    return x.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(x: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """The nearest 8-bit values; outside [-1, 1] is clipped."""
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
    """(where, function(images there)) batch by batch, without gradients: any number of images in constant memory."""
    import torch

    for where in batches(len(pixels), batch_size):
        with torch.no_grad():
            result = function(to_model(pixels[where], device))
        yield where, result


def decoded(
    tokenizer: Tokenizer,
    codes: Int[Tensor | np.ndarray, "n t"],
    batch_size: int,
    device: str | torch.device | None = None,
) -> UInt8[np.ndarray, "n h w c"]:
    """Pixels of codes, `batch_size` images at a time, without gradients. `device`: None, where the codes are."""
    import torch

    with torch.no_grad():
        parts = (torch.as_tensor(codes[where], device=device) for where in batches(len(codes), batch_size))
        return np.concatenate([to_pixels(tokenizer.decode(part)) for part in parts])


def augment(
    x: Float[Tensor, "b c h w"], flip: float, shift: int, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Flip each image with probability `flip`, and shift each by up to `shift` pixels; white (1) comes in."""
    import torch
    import torch.nn.functional as F

    b, _, h, w = x.shape
    if flip:
        mirrored = torch.rand(b, generator=generator) < flip
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)
    if shift:
        dy, dx = torch.randint(0, 2 * shift + 1, (2, b), generator=generator).to(x.device)
        rows = dy[:, None] + torch.arange(h, device=x.device)
        columns = dx[:, None] + torch.arange(w, device=x.device)
        padded = F.pad(x, (shift,) * 4, value=1.0).permute(0, 2, 3, 1)
        image = torch.arange(b, device=x.device)[:, None, None]
        x = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def rescale(x: Float[Tensor, "b c h w"], largest: float, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Shrink or enlarge each image about its centre by a factor between 1 / (1 + largest) and 1 + largest, uniform in its
    logarithm, bilinear; white (1) comes in, and what leaves the frame is lost."""
    import math

    import torch
    import torch.nn.functional as F

    if not largest:
        return x
    exponent = 2 * torch.rand(len(x), generator=generator) - 1
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.exp(-exponent * math.log1p(largest))
    grid = F.affine_grid(theta.to(x.device, x.dtype), list(x.shape), align_corners=False)
    # zeros come in, so white has to be zero
    return F.grid_sample(x - 1, grid, align_corners=False).add(1).contiguous(memory_format=torch.channels_last)


def recolour(x: Float[Tensor, "b c h w"], probability: float, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Give each image, with `probability`, its colour channels in a random order: shapes stay, hues change, white is
    white. Images of one channel stay as they are."""
    import torch

    b, c, _, _ = x.shape
    if not probability or c == 1:
        return x
    order = torch.rand(b, c, generator=generator).argsort(dim=1)
    order = torch.where(torch.rand(b, 1, generator=generator) < probability, order, torch.arange(c))
    image = torch.arange(b, device=x.device)[:, None]
    return x[image, order.to(x.device)].contiguous(memory_format=torch.channels_last)


def augmented(
    x: Float[Tensor, "b c h w"], how: Augmentation, generator: torch.Generator, strength: float = 1.0
) -> Float[Tensor, "b c h w"]:
    """What params.yaml asks for under `augmentation`, every amount and probability times `strength` (shifts are rounded
    to whole pixels); every draw comes from `generator`."""
    x = augment(x, how.flip * strength, round(how.shift * strength), generator)
    return recolour(rescale(x, how.scale * strength, generator), how.recolour * strength, generator)
