"""Convolutional encoder and decoder with residual blocks, for VQ-VAE and similar tokenizers, and their common params."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.networks.dot_product import attended
from tessera.networks.doubling import Doubling
from tessera.networks.linear import Linear

if TYPE_CHECKING:
    from tessera.core.params import Params

GROUPS = 8
REMEDY = "Give each training process two images a step, or choose another normalisation or a finer grid of codes"
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}


class Autoencoder(Strict):
    """Base of the `Config` of tokenizers with an `encoder` and a `decoder`."""

    downsampling: Literal[2, 4, 8, 16, 32] = Field(description="image pixels per code along each side", examples=[4])
    channels: int = Field(ge=1, description="channels at the grid of codes", examples=[8])
    outer_channels: int = Field(ge=1, description="channels at finer resolutions", examples=[4])
    convolutions: int = Field(
        ge=0, description="extra 3x3 convolutions at the grid of codes, before the encoder's blocks", examples=[0]
    )
    blocks: int = Field(ge=0, description="residual blocks in the encoder, and in the decoder", examples=[1])
    block_channels: int = Field(ge=1, description="channels inside a residual block", examples=[4])
    attention: int = Field(
        ge=0,
        description="heads of self-attention after the residual blocks, which divide block_channels; 0: no attention",
        examples=[0],
    )
    outer_blocks: int = Field(ge=0, description="residual blocks at each finer resolution", examples=[0])
    normalisation: Literal["batch", "group", "none"] = Field(description="kind of normalisation", examples=["batch"])
    activation: Literal["silu", "relu"] = Field(description="activation between convolutions", examples=["silu"])
    dropout: float = Field(ge=0, lt=1, description="dropout probability in residual blocks", examples=[0.1])
    output: Literal["linear", "tanh"] = Field(description="last activation of the decoder", examples=["linear"])

    def smallest_grid(self, image_size: int) -> int:
        """Side of the smallest grid of activations, in places."""
        return image_size // self.downsampling

    def rule(self, params: Params) -> Iterator[str]:
        if self.attention and self.block_channels % self.attention:
            yield (
                f"tokenizer.{plug_in(self)}.attention: must divide block_channels {self.block_channels}, got {self.attention}; "
                f"{math.gcd(self.block_channels, self.attention)} does"
            )
        size = params.value("dataset.image_size")
        if self.smallest_grid(size) == 1:
            narrowest = min(self.channels, self.block_channels) if self.blocks else self.channels
            own = f"tokenizer.{plug_in(self)}"
            yield from on_one_place(
                self.normalisation, narrowest, params.value("tokenizer.training.batch_size"), "tokenizer", own, params
            )
        if size % self.downsampling:
            below = size // self.downsampling * self.downsampling
            sizes = f"sizes are {below} and {below + self.downsampling}" if below else f"size is {self.downsampling}"
            yield (
                f"tokenizer.{plug_in(self)}.downsampling: must divide dataset.image_size {size}, got "
                f"{self.downsampling}; the nearest {sizes}"
            )


def on_one_place(kind: str, channels: int, batch_size: int, trained_by: str, own: str, params: Params) -> Iterator[str]:
    """Rule for training a network that normalises a 1x1 grid with `channels` at its narrowest. Batch normalisation needs two
    values per channel on each training process, group normalisation two channels. `trained_by` and `own` are the sections of
    `batch_size` and of the network's own values."""
    processes = params.value("runtime.devices") * params.value("runtime.nodes")
    if kind == "batch" and batch_size < 2 * processes:
        each = f", two for each of the {processes} training processes," if processes > 1 else ""
        yield (
            f"{trained_by}.training.batch_size: must be at least {2 * processes}{each} with batch normalisation on a 1x1 grid, got "
            f"{batch_size}: one value has no variance. {REMEDY}"
        )
    if kind == "group" and channels == 1:
        yield (
            f"{own}.normalisation: must not be group where a 1x1 grid has one channel, whose one value has no "
            "variance, got 'group'; give more channels, or choose a smaller downsampling"
        )


def plug_in(config: Strict) -> str:
    """Name of the plug-in that `config` belongs to, which is the name of its file."""
    return type(config).__module__.rpartition(".")[2]


def trained_along(config: Strict, params: Params) -> Iterator[str]:
    """Rule of a tokenizer that is trained together with its quantizer."""
    if params.post_hoc:
        yield (
            f"quantizer.name: must be one that is trained with the tokenizer under tokenizer.name {plug_in(config)}, "
            f"got {params.value('quantizer.name')!r}, which is fitted to a finished autoencoder; choose tokenizer.name vae"
        )


def normalisation(kind: str, channels: int) -> nn.Module:
    """`batch` (see `BatchNorm`), `group` or `none`. `group` has the largest number of groups, at most 8, that divides the
    channels and leaves at least two per group: one channel of a 1x1 grid has no variance."""
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "group":
        return nn.GroupNorm(
            max(g for g in range(1, GROUPS + 1) if channels % g == 0 and (g == 1 or channels >= 2 * g)), channels
        )
    return nn.Identity()


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with bias-corrected running statistics, as Adam corrects its moments (Kingma & Ba 2015, arXiv
    1412.6980, sec. 3). Without it the initial values have weight (1 - momentum)^n after n batches, 59 % after five.

    Raises:
        InputError: in training, a batch of one image on a 1x1 grid: one value has no variance.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.training:
            if x.numel() == x.shape[1]:
                raise InputError(
                    f"batch normalisation needs two values of a channel, got one image on a 1x1 grid. {REMEDY}"
                )
            return super().forward(x)
        seen, momentum = self.num_batches_tracked, self.momentum
        assert seen is not None
        assert momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        initial = torch.where(seen > 0, (1 - momentum) ** seen, 0)  # 0 if untrained: there are only initial values
        mean, variance = self.running_mean / (1 - initial), (self.running_var - initial) / (1 - initial)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)


class Tanh(nn.Module):
    """Tanh in float32, also under autocast: in bfloat16 tanh is exactly 1 from 3.5 on and has no gradient there."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x.to(torch.promote_types(x.dtype, torch.float32)).tanh()


class ResidualBlock(nn.Module):
    """x + conv1x1(act(norm(conv3x3(act(norm(x)))))): pre-activation (He et al. 2016), with `inner` channels between the
    convolutions, so that at initialisation a block does not enlarge the scale of its input."""

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


class SelfAttention(nn.Module):
    """x + out(attention(norm(x))): every place of the grid attends to every other, without positions (Esser et al. 2021, arXiv
    2012.09841, sec. A: attention at the lowest resolution of encoder and decoder). Queries, keys and values have `inner` channels
    each. At initialisation the branch is 0."""

    def __init__(self, channels: int, inner: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm = normalisation(norm, channels)
        self.qkv, self.out = Linear(channels, 3 * inner), Linear(inner, channels)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        places = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # [B,h*w,C], a view of channels-last memory
        parts = self.qkv(places).chunk(3, dim=2)
        query, keys, values = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        added = self.out(attended(query, keys, values, causal=False).transpose(1, 2).flatten(2))
        return x + added.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def widths(downsampling: int, channels: int, outer_channels: int) -> list[int]:
    """Channels after each halving, from the image inwards: `outer_channels`, but `channels` after the last."""
    return [outer_channels] * (halvings(downsampling) - 1) + [channels]


def halvings(factor: int) -> int:
    """log2 of a power of two."""
    return factor.bit_length() - 1


def activated(config: Autoencoder, channels: int) -> list[nn.Module]:
    """Normalisation and activation before a convolution."""
    return [normalisation(config.normalisation, channels), ACTIVATIONS[config.activation]()]


def residual_blocks(config: Autoencoder) -> list[nn.Module]:
    """The layers at the grid of codes: residual blocks, then self-attention where it is asked for."""
    shape = (config.channels, config.block_channels, config.normalisation, config.dropout, config.activation)
    layers: list[nn.Module] = [ResidualBlock(*shape) for _ in range(config.blocks)]
    if config.attention:
        layers.append(SelfAttention(config.channels, config.block_channels, config.attention, config.normalisation))
    return layers


def outer_blocks(config: Autoencoder) -> list[nn.Module]:
    """The residual blocks at one finer resolution."""
    shape = (config.outer_channels, config.outer_channels, config.normalisation, config.dropout, config.activation)
    return [ResidualBlock(*shape) for _ in range(config.outer_blocks)]


def projection(config: Autoencoder, channels: int, dim: int) -> list[nn.Module]:
    """Features to latents, place by place."""
    return [*activated(config, channels), nn.Conv2d(channels, dim, 1)]


def features(config: Autoencoder, image_channels: int) -> list[nn.Module]:
    """Images to features [B,channels,h,w]: one strided 4x4 convolution per halving, residual blocks after each."""
    levels = widths(config.downsampling, config.channels, config.outer_channels)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip([image_channels, *levels], levels, strict=False)):
        layers += [*outer_blocks(config), *activated(config, before)] if index else []
        layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
    for _ in range(config.convolutions):
        layers += [*activated(config, config.channels), nn.Conv2d(config.channels, config.channels, 3, padding=1)]
    return layers + residual_blocks(config)


def encoder(config: Autoencoder, image_channels: int, dim: int) -> nn.Sequential:
    """Images to latents [B,dim,h,w]."""
    return nn.Sequential(*features(config, image_channels), *projection(config, config.channels, dim))


def decoder(config: Autoencoder, image_channels: int, dim: int) -> nn.Sequential:
    """The mirror of `encoder`: residual blocks before each doubling, which is a transposed 4x4 convolution."""
    layers: list[nn.Module] = [nn.Conv2d(dim, config.channels, 3, padding=1), *residual_blocks(config)]
    outward = [*widths(config.downsampling, config.channels, config.outer_channels)[::-1], image_channels]
    for index, (before, after) in enumerate(itertools.pairwise(outward)):
        layers += [*(outer_blocks(config) if index else []), *activated(config, before), Doubling(before, after)]
    return nn.Sequential(*layers, *([Tanh()] if config.output == "tanh" else []))
