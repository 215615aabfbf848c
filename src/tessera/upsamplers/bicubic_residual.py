"""A residual on the bicubic enlargement of the reconstruction (VDSR, Kim et al. 2016, arXiv 1511.04587, sec. 3.2), decoded from
all levels at once, coarse ones upsampled to the finest grid (VQ-VAE-2, Razavi et al. 2019, arXiv 1906.00446, algorithm 1).

Untrained, its output is that enlargement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera.core.contracts import ImageShape, Upsampler
from tessera.core.params import Strict
from tessera.networks import conv
from tessera.networks.doubling import Doubling
from tessera.upsampling import FACTOR, enlarged, unused

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(Strict):
    channels: int = Field(ge=1, description="channels at the finest grid of codes", examples=[8])
    outer_channels: int = Field(ge=1, description="channels at finer resolutions", examples=[4])
    blocks: int = Field(ge=0, description="residual blocks at the finest grid of codes", examples=[1])
    outer_blocks: int = Field(ge=0, description="residual blocks at the size of the originals", examples=[1])
    normalisation: Literal["batch", "group", "none"] = Field(description="kind of normalisation", examples=["batch"])

    def rule(self, params: Params) -> Iterator[str]:
        finest = params.value("dataset.image_size") // getattr(params.config("tokenizer"), "downsampling", 1)
        if finest == 1 and unused(params) is None:  # otherwise nothing is trained
            narrowest = inner(self.channels) if self.blocks else self.channels
            batch_size, own = params.value("upsampler.training.batch_size"), f"upsampler.{conv.plug_in(self)}"
            yield from conv.on_one_place(self.normalisation, narrowest, batch_size, "upsampler", own, params)


class BicubicResidual(nn.Module):
    """See `core.contracts.Upsampler`. For example, 8x8 code vectors of 32x32 images are decoded at 8x8, upsampled to 16x16 and
    32x32, joined there with the reconstruction, and end at 64x64.

    Args:
        vectors: shape (D, h, w) of the code vectors of each level, coarse first.
    """

    def __init__(self, config: Config, image_shape: ImageShape, vectors: tuple[tuple[int, int, int], ...]) -> None:
        super().__init__()
        image_channels, size, _ = image_shape
        c, kind = config.channels, config.normalisation
        dims, grid = [dim for dim, *_ in vectors], vectors[-1][1]
        layers: list[nn.Module] = [nn.Conv2d(sum(dims), c, 3, padding=1), *_blocks(config.blocks, c, kind)]
        for _ in range(conv.halvings(size // grid)):
            layers += [conv.normalisation(kind, c), nn.SiLU()]
            layers.append(Doubling(c, config.outer_channels))
            c = config.outer_channels
        self.inner = nn.Sequential(*layers)
        self.look = nn.Conv2d(image_channels, c, 3, padding=1)
        layers = [*_blocks(config.outer_blocks, c, kind), conv.normalisation(kind, c), nn.SiLU()]
        last = nn.Conv2d(c, FACTOR**2 * image_channels, 3, padding=1)
        self.outer = nn.Sequential(*layers, last, nn.PixelShuffle(FACTOR))
        for parameter in last.parameters():  # initially the residual is zero
            nn.init.zeros_(parameter)

    def forward(
        self, vectors: tuple[Float[Tensor, "b _ _ _"], ...], reconstruction: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c 2*h 2*w"]:
        finest = vectors[-1].shape[2:]
        joined = torch.cat([F.interpolate(level, size=finest) for level in vectors], dim=1)
        features = self.inner(joined) + self.look(reconstruction)
        return enlarged(reconstruction) + self.outer(features)


def _blocks(count: int, channels: int, kind: str) -> list[nn.Module]:
    return [conv.ResidualBlock(channels, inner(channels), kind, dropout=0.0) for _ in range(count)]


def inner(channels: int) -> int:
    """Channels inside a residual block."""
    return max(1, channels // 2)


def build(config: Config, image_shape: ImageShape, vectors: tuple[tuple[int, int, int], ...]) -> Upsampler:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return BicubicResidual(config, image_shape, vectors).to(memory_format=torch.channels_last)
