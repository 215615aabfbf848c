"""VQ-VAE (van den Oord et al. 2017): one grid of codes between a convolutional encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tessera.codebooks import delay
from tessera.core.contracts import ImageShape, MakeQuantizer, Output, Quantized, Tokenizer
from tessera.core.space import CodeSpace
from tessera.networks import conv

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(conv.Autoencoder):
    def rule(self, params: Params) -> Iterator[str]:
        yield from super().rule(params)
        yield from conv.trained_along(self, params)
        yield from delay.rule(params)


class VQVAE(nn.Module):
    """See `core.contracts.Tokenizer`. 32x32 images downsampled by 4 become one grid of 8x8 codes, T = 64."""

    def __init__(self, config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.quantizer = make_quantizer()
        self.encoder = conv.encoder(config, channels, self.quantizer.dim)
        self.decoder = conv.decoder(config, channels, self.quantizer.dim)
        grid = (height // config.downsampling, width // config.downsampling)
        sizes = self.quantizer.codebook_sizes
        self.space = CodeSpace((grid,) * len(sizes), sizes)  # one grid per depth of a residual quantizer

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return self.quantizer.codebooks

    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        return (self.encoder(x),)

    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]:
        return (self.quantizer(latents[0]),)

    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        return (self.quantizer.decode(torch.stack(self.space.split(codes), dim=1)),)

    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        return self.decoder(z_q[0])

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        return self.space.join([level.codes for level in self.quantize(self.latents(x))])

    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self.decode_vectors(self.vectors(codes))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Output:
        latents = self.latents(x)
        quantized = self.quantize(latents)
        return Output(self.decode_vectors(tuple(level.z_q for level in quantized)), latents, quantized)


def build(config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> Tokenizer:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return VQVAE(config, image_shape, make_quantizer).to(memory_format=torch.channels_last)
