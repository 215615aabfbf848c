"""VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446): two levels of codes, a coarse top and a bottom encoded given the top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from tessera.codebooks import delay
from tessera.core.contracts import ImageShape, MakeQuantizer, Output, Quantized, Quantizer, Tokenizer
from tessera.core.space import CodeSpace
from tessera.networks import conv
from tessera.networks.doubling import Doubling

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(conv.Autoencoder):
    """`downsampling` is for the bottom level; every encoder and decoder has `blocks` residual blocks."""

    top_downsampling: Literal[2, 4] = Field(description="bottom codes per top code along each side", examples=[2])

    def smallest_grid(self, image_size: int) -> int:
        return super().smallest_grid(image_size) // self.top_downsampling

    def rule(self, params: Params) -> Iterator[str]:
        yield from super().rule(params)
        yield from conv.trained_along(self, params)
        yield from delay.rule(params)
        size = params.value("dataset.image_size")
        if size % self.downsampling == 0 and size // self.downsampling % self.top_downsampling:
            yield (
                f"tokenizer.vqvae2.top_downsampling: must divide the bottom grid's {size // self.downsampling} codes a "
                f"side (dataset.image_size {size} / downsampling {self.downsampling}), got {self.top_downsampling}"
            )


class VQVAE2(nn.Module):
    """See `core.contracts.Tokenizer`. 32x32 images downsampled by 4, then by 2, become 4x4 top codes and 8x8 bottom codes,
    T = 80; with R depths per level, T = R * 80. Each level has its own quantizer and codebook."""

    def __init__(self, config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> None:
        super().__init__()
        image_channels, height, width = image_shape
        self.image_shape = image_shape
        top_and_bottom = cast("list[nn.Module]", [make_quantizer(), make_quantizer()])
        self.quantizers = cast("Sequence[Quantizer]", nn.ModuleList(top_and_bottom))
        top_dim, bottom_dim = (quantizer.dim for quantizer in self.quantizers)
        self.encoder = nn.Sequential(*conv.features(config, image_channels))
        self.top_encoder = _top_encoder(config, top_dim)
        self.top_decoder = _top_decoder(config, top_dim)
        self.bottom_projection = nn.Sequential(*conv.projection(config, 2 * config.channels, bottom_dim))
        self.upsampling = _upsampling(config, top_dim)
        self.decoder = conv.decoder(config, image_channels, top_dim + bottom_dim)
        bottom = (height // config.downsampling, width // config.downsampling)
        top = (bottom[0] // config.top_downsampling, bottom[1] // config.top_downsampling)
        sizes = [tuple(quantizer.codebook_sizes) for quantizer in self.quantizers]
        self.depths = [len(level) for level in sizes]
        self.space = CodeSpace((top,) * self.depths[0] + (bottom,) * self.depths[1], sizes[0] + sizes[1])

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (*self.quantizers[0].codebooks, *self.quantizers[1].codebooks)

    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """(z_top [B,D,h,w], z_bottom [B,D,m*h,m*w]), m = `top_downsampling`. z_bottom depends on the *quantized* top, so the
        top is quantized here, and again by `quantize`. In training use `forward`, which quantizes each level once:
        otherwise the statistics of an EMA codebook would be updated twice."""
        z_top, _, z_bottom = self._up_to_bottom(x)
        return z_top, z_bottom

    def _up_to_bottom(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Quantized, Tensor]:
        """z_top, quantized z_top, z_bottom: lines 1-4 of algorithm 1 (training)."""
        features = self.encoder(x)
        z_top = self.top_encoder(features)
        top = self.quantizers[0](z_top)
        z_bottom = self.bottom_projection(torch.cat([features, self.top_decoder(top.z_q)], dim=1))
        return z_top, top, z_bottom

    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]:
        return tuple(quantizer(z) for quantizer, z in zip(self.quantizers, latents, strict=True))

    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        parts = self.space.split(codes)
        levels = parts[: self.depths[0]], parts[self.depths[0] :]
        return tuple(q.decode(torch.stack(level, dim=1)) for q, level in zip(self.quantizers, levels, strict=True))

    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        top, bottom = z_q
        return self.decoder(torch.cat([bottom, self.upsampling(top)], dim=1))

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        _, top, z_bottom = self._up_to_bottom(x)
        return self.space.join([top.codes, self.quantizers[1](z_bottom).codes])

    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self.decode_vectors(self.vectors(codes))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Output:
        z_top, top, z_bottom = self._up_to_bottom(x)
        bottom = self.quantizers[1](z_bottom)
        return Output(self.decode_vectors((top.z_q, bottom.z_q)), (z_top, z_bottom), (top, bottom))


def _top_encoder(config: Config, dim: int) -> nn.Sequential:
    """Features of the bottom grid to z_top."""
    layers: list[nn.Module] = []
    for _ in range(conv.halvings(config.top_downsampling)):
        layers += conv.activated(config, config.channels)
        layers.append(nn.Conv2d(config.channels, config.channels, 4, stride=2, padding=1))
    return nn.Sequential(*layers, *conv.residual_blocks(config), *conv.projection(config, config.channels, dim))


def _top_decoder(config: Config, dim: int) -> nn.Sequential:
    """The quantized top to features of the bottom grid, so that the bottom need not repeat the top's information."""
    layers: list[nn.Module] = [nn.Conv2d(dim, config.channels, 3, padding=1), *conv.residual_blocks(config)]
    for _ in range(conv.halvings(config.top_downsampling)):
        layers += conv.activated(config, config.channels)
        layers.append(Doubling(config.channels, config.channels))
    return nn.Sequential(*layers)


def _upsampling(config: Config, dim: int) -> nn.Sequential:
    """z_q of the top to the size of the bottom grid, for the decoder."""
    layers: list[nn.Module] = []
    for index in range(conv.halvings(config.top_downsampling)):
        layers += conv.activated(config, dim) if index else []
        layers.append(Doubling(dim, dim))
    return nn.Sequential(*layers)


def build(config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> Tokenizer:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return VQVAE2(config, image_shape, make_quantizer).to(memory_format=torch.channels_last)
