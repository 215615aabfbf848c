"""VQ-VAE (van den Oord et al. 2017): one grid of codes between a convolutional encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from tessera.core.contracts import ImageShape, MakeQuantizer, Output, Quantized
from tessera.core.params import Strict
from tessera.nn import conv
from tessera.nn.sequences import flatten_levels, unflatten

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(Strict):
    downsampling: Literal[2, 4, 8, 16, 32] = Field(description="image pixels per code, each way", examples=[4])
    channels: int = Field(ge=1, description="channels at the grid of codes", examples=[8])
    outer_channels: int = Field(ge=1, description="channels at finer resolutions", examples=[4])
    blocks: int = Field(ge=0, description="residual blocks, in encoder and decoder each", examples=[1])
    block_channels: int = Field(ge=1, description="channels inside a residual block", examples=[4])
    normalisation: Literal["batch", "group", "none"] = Field(description="of activations", examples=["batch"])
    dropout: float = Field(ge=0, lt=1, description="probability, inside residual blocks", examples=[0.1])

    def rule(self, params: Params) -> Iterator[str]:
        size = params.dataset.image_size
        if size % self.downsampling:
            yield (
                f"tokenizer.vqvae.downsampling: must divide dataset.image_size {size}, got {self.downsampling}; "
                f"the nearest sizes are {size // self.downsampling * self.downsampling or self.downsampling} and "
                f"{(size // self.downsampling + 1) * self.downsampling}"
            )


class VQVAE(nn.Module):
    """See `core.contracts.Tokenizer`. 32x32 images downsampled by 4 become one grid of 8x8 codes, T = 64."""

    def __init__(self, config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.quantizer = make_quantizer()
        levels = conv.widths(config.downsampling, config.channels, config.outer_channels)
        shape = (config.blocks, config.block_channels, config.normalisation, config.dropout)
        self.encoder = conv.encoder(channels, levels, self.quantizer.dim, *shape)
        self.decoder = conv.decoder(channels, levels, self.quantizer.dim, *shape)
        grid = (height // config.downsampling, width // config.downsampling)
        self.codebook_sizes = tuple(self.quantizer.codebook_sizes)
        self.grids = (grid,) * len(self.codebook_sizes)  # one per depth of a residual quantizer

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return self.quantizer.codebooks

    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        return (self.encoder(x),)

    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]:
        return (self.quantizer(latents[0]),)

    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        return (self.quantizer.decode(torch.stack(unflatten(codes, self.grids), dim=1)),)

    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        return self.decoder(z_q[0])

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        return flatten_levels([level.codes for level in self.quantize(self.latents(x))])

    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self.decode_vectors(self.vectors(codes))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Output:
        latents = self.latents(x)
        quantized = self.quantize(latents)
        return Output(self.decode_vectors(tuple(level.z_q for level in quantized)), latents, quantized)


def build(config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> VQVAE:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return VQVAE(config, image_shape, make_quantizer).to(memory_format=torch.channels_last)
