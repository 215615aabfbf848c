"""Random changes to training images, for every stage that has a section `augmentation` in params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tessera.core.params import Strict

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


class Augmentation(Strict):
    """Random changes to training images only."""

    flip: float = Field(ge=0, le=1, description="probability of a horizontal flip", examples=[0.5])
    shift: int = Field(ge=0, description="largest shift in pixels, in both directions; padding is white", examples=[1])
    scale: float = Field(ge=0, le=1, description="largest change of size; 0.1: from 1/1.1 to 1.1 times; padding is white",
                         examples=[0.1])  # fmt: skip
    recolour: float = Field(ge=0, le=1, description="probability of putting the colour channels in a random order",
                            examples=[0.0])  # fmt: skip


def augment(
    x: Float[Tensor, "b c h w"], flip: float, shift: int, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Flip each image with probability `flip`, and shift each by up to `shift` pixels, with white (1) padding."""
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
    """Shrink or enlarge each image about its centre, bilinearly, by a factor from 1 / (1 + largest) to 1 + largest, uniform in its
    logarithm. Padding is white (1), and parts outside the frame are lost."""
    import math

    import torch
    import torch.nn.functional as F

    if not largest:
        return x
    exponent = 2 * torch.rand(len(x), generator=generator) - 1
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.exp(-exponent * math.log1p(largest))
    grid = F.affine_grid(theta.to(x.device, x.dtype), list(x.shape), align_corners=False)
    # grid_sample fills with zeros, so white must be zero
    return F.grid_sample(x - 1, grid, align_corners=False).add(1).contiguous(memory_format=torch.channels_last)


def recolour(x: Float[Tensor, "b c h w"], probability: float, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Permute the colour channels of each image at random, with the given probability: shapes stay, hues change, and white stays
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
    """Augment images as params.yaml asks under `augmentation`. Every amount and probability is multiplied by `strength` (shifts
    are rounded to whole pixels). All random numbers come from `generator`."""
    x = augment(x, how.flip * strength, round(how.shift * strength), generator)
    return recolour(rescale(x, how.scale * strength, generator), how.recolour * strength, generator)
