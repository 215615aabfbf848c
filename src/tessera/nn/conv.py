"""Convolutional encoder and decoder with residual blocks: the parts of VQ-VAE and its kin, and the params they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera.core.params import Strict
from tessera.nn.doubling import Doubling

if TYPE_CHECKING:
    from tessera.core.params import Params

GROUPS = 8
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}


class Autoencoder(Strict):
    """Base of the `Config` of tokenizers with an `encoder` and a `decoder`."""

    downsampling: Literal[2, 4, 8, 16, 32] = Field(description="image pixels per code, each way", examples=[4])
    channels: int = Field(ge=1, description="channels at the grid of codes", examples=[8])
    outer_channels: int = Field(ge=1, description="channels at finer resolutions", examples=[4])
    convolutions: int = Field(
        ge=0, description="further 3x3 convolutions at the grid of codes, before the encoder's blocks", examples=[0]
    )
    blocks: int = Field(ge=0, description="residual blocks, in encoder and decoder each", examples=[1])
    block_channels: int = Field(ge=1, description="channels inside a residual block", examples=[4])
    normalisation: Literal["batch", "group", "none"] = Field(description="of activations", examples=["batch"])
    activation: Literal["silu", "relu"] = Field(description="between convolutions", examples=["silu"])
    dropout: float = Field(ge=0, lt=1, description="probability, inside residual blocks", examples=[0.1])
    output: Literal["linear", "tanh"] = Field(description="of the decoder", examples=["linear"])

    def rule(self, params: Params) -> Iterator[str]:
        size = params.dataset.image_size
        if size % self.downsampling:
            below = size // self.downsampling * self.downsampling
            sizes = f"sizes are {below} and {below + self.downsampling}" if below else f"size is {self.downsampling}"
            yield (
                f"tokenizer.{plug_in(self)}.downsampling: must divide dataset.image_size {size}, got "
                f"{self.downsampling}; the nearest {sizes}"
            )


def plug_in(config: Strict) -> str:
    """The plug-in whose `Config` it is: the name of its file."""
    return type(config).__module__.rpartition(".")[2]


def trained_along(config: Strict, params: Params) -> Iterator[str]:
    """Rule of a tokenizer that is trained through its quantizer."""
    if params.post_hoc:
        yield (
            f"quantizer.name: must be one that is trained with the tokenizer under tokenizer.name {plug_in(config)}, "
            f"got {params.quantizer.name!r}, which is fitted to a finished autoencoder; choose tokenizer.name vae"
        )


def normalisation(kind: str, channels: int) -> nn.Module:
    """`batch`, `group` (in as many groups as divide the channels, at most 8, of two channels at least: one channel of a 1x1
    grid has no variance) or `none`."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(
            max(g for g in range(1, GROUPS + 1) if channels % g == 0 and (g == 1 or channels >= 2 * g)), channels
        )
    return nn.Identity()


class Tanh(nn.Module):
    """In float32 under autocast too: in bfloat16 tanh is exactly 1 from 3.5 on, and has no gradient there."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x.to(torch.promote_types(x.dtype, torch.float32)).tanh()


class ResidualBlock(nn.Module):
    """x + conv1x1(act(norm(conv3x3(act(norm(x)))))): pre-activation (He et al. 2016), `inner` channels between, so that
    a block adds nothing to the scale of its input at the start."""

    def __init__(self, channels: int, inner: int, norm: str, dropout: float, activation: str = "silu") -> None:
        super().__init__()
        self.branch = nn.Sequential(
            normalisation(norm, channels),
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, inner, 3, padding=1),
            normalisation(norm, inner),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.branch(x)


def widths(downsampling: int, channels: int, outer_channels: int) -> list[int]:
    """Channels after each halving, from the image inwards: `outer_channels`, and `channels` at the coarsest."""
    return [outer_channels] * (halvings(downsampling) - 1) + [channels]


def halvings(factor: int) -> int:
    """log2 of a power of two."""
    return factor.bit_length() - 1


def activated(config: Autoencoder, channels: int) -> list[nn.Module]:
    """What stands before a convolution."""
    return [normalisation(config.normalisation, channels), ACTIVATIONS[config.activation]()]


def residual_blocks(config: Autoencoder) -> list[nn.Module]:
    shape = (config.channels, config.block_channels, config.normalisation, config.dropout, config.activation)
    return [ResidualBlock(*shape) for _ in range(config.blocks)]


def projection(config: Autoencoder, channels: int, dim: int) -> list[nn.Module]:
    """Features to latents, place by place."""
    return [*activated(config, channels), nn.Conv2d(channels, dim, 1)]


def features(config: Autoencoder, image_channels: int) -> list[nn.Module]:
    """Images to features [B,channels,h,w]: one strided 4x4 convolution per halving, then residual blocks."""
    levels = widths(config.downsampling, config.channels, config.outer_channels)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip([image_channels, *levels], levels, strict=False)):
        layers += activated(config, before) if index else []
        layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
    for _ in range(config.convolutions):
        layers += [*activated(config, config.channels), nn.Conv2d(config.channels, config.channels, 3, padding=1)]
    return layers + residual_blocks(config)


def encoder(config: Autoencoder, image_channels: int, dim: int) -> nn.Sequential:
    """Images to latents [B,dim,h,w]."""
    return nn.Sequential(*features(config, image_channels), *projection(config, config.channels, dim))


def decoder(config: Autoencoder, image_channels: int, dim: int) -> nn.Sequential:
    """The mirror of `encoder`: residual blocks, then one transposed 4x4 convolution per doubling."""
    layers: list[nn.Module] = [nn.Conv2d(dim, config.channels, 3, padding=1), *residual_blocks(config)]
    outward = [*widths(config.downsampling, config.channels, config.outer_channels)[::-1], image_channels]
    for before, after in itertools.pairwise(outward):
        layers += [*activated(config, before), Doubling(before, after)]
    return nn.Sequential(*layers, *([Tanh()] if config.output == "tanh" else []))
