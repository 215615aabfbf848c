"""Convolutional encoder and decoder with residual blocks: the parts of VQ-VAE and its kin."""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 8


def normalisation(kind: str, channels: int) -> nn.Module:
    """`batch`, `group` (in as many groups as divide the channels, at most 8) or `none`."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(max(g for g in range(1, GROUPS + 1) if channels % g == 0), channels)
    return nn.Identity()


class ResidualBlock(nn.Module):
    """x + conv1x1(act(norm(conv3x3(act(norm(x)))))): pre-activation (He et al. 2016), `inner` channels between, so that
    a block adds nothing to the scale of its input at the start."""

    def __init__(self, channels: int, inner: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            normalisation(norm, channels),
            nn.SiLU(),
            nn.Conv2d(channels, inner, 3, padding=1),
            normalisation(norm, inner),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.branch(x)


def widths(downsampling: int, channels: int, outer_channels: int) -> list[int]:
    """Channels after each halving, from the image inwards: `outer_channels`, and `channels` at the coarsest."""
    halvings = downsampling.bit_length() - 1
    return [outer_channels] * (halvings - 1) + [channels]


def encoder(
    image_channels: int, levels: list[int], dim: int, blocks: int, inner: int, norm: str, dropout: float
) -> nn.Sequential:
    """Images to latents [B,dim,h,w]: one strided 4x4 convolution per halving, then residual blocks."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip([image_channels, *levels], levels, strict=False)):
        if index:
            layers += [normalisation(norm, before), nn.SiLU()]
        layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
    layers += [ResidualBlock(levels[-1], inner, norm, dropout) for _ in range(blocks)]
    return nn.Sequential(*layers, normalisation(norm, levels[-1]), nn.SiLU(), nn.Conv2d(levels[-1], dim, 1))


def decoder(
    image_channels: int, levels: list[int], dim: int, blocks: int, inner: int, norm: str, dropout: float
) -> nn.Sequential:
    """The mirror of `encoder`: residual blocks, then one transposed 4x4 convolution per doubling."""
    layers: list[nn.Module] = [nn.Conv2d(dim, levels[-1], 3, padding=1)]
    layers += [ResidualBlock(levels[-1], inner, norm, dropout) for _ in range(blocks)]
    outward = [*levels[::-1], image_channels]
    for before, after in itertools.pairwise(outward):
        layers += [normalisation(norm, before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)
