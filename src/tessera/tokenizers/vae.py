"""Continuous VAE (Kingma & Welling 2013, arXiv 1312.6114). It has codes after a post-hoc quantizer is fitted to its means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera.core.contracts import GenerativeTokenizer, ImageShape, MakeQuantizer, Output, Quantized
from tessera.core.space import CodeSpace
from tessera.networks import conv

if TYPE_CHECKING:
    from tessera.core.params import Params

LOG_VARIANCE = (-30.0, 20.0)  # beyond these, exp() is negligible in float32 or overflows


class Config(conv.Autoencoder):
    latent: Literal["spatial", "vector"] = Field(
        description="spatial: a grid of latents; vector: one latent, and one code, per image", examples=["spatial"]
    )
    latent_dim: int = Field(ge=1, description="D, dimension of a latent", examples=[4])
    kl_weight: float = Field(
        ge=0, description="weight of KL(q(z|x) | N(0, I)), in nats per value of the image; 1: the ELBO", examples=[0.1]
    )

    def rule(self, params: Params) -> Iterator[str]:
        yield from super().rule(params)
        if not params.post_hoc:
            yield (
                "quantizer.name: must be fitted to a finished autoencoder (it has fit) under tokenizer.name vae, got "
                f"{params.value('quantizer.name')!r}; choose kmeans or geodesic"
            )
        if fraction := params.value("tokenizer.unquantized"):
            yield (
                f"tokenizer.unquantized: must be 0 under tokenizer.name vae, whose whole training is without quantization, got "
                f"{fraction}; set it to 0"
            )
        if params.value("tokenizer.keep") == "best_usage":
            yield (
                "tokenizer.keep: must be best or last under tokenizer.name vae, whose codes are found after training, got "
                "'best_usage'"
            )


class VAE(nn.Module):
    """See `core.contracts.Tokenizer`. 32x32 images downsampled by 4 become 8x8 latents of dimension D, or one [B,D,1,1].

    It is trained without a quantizer: in training mode it decodes samples of q(z|x) = N(mean, variance), in evaluation
    mode the mean. With a quantizer it decodes quantized means. Weights have the same names in both cases.
    """

    def __init__(self, config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer | None = None) -> None:
        super().__init__()
        channels, height, width = image_shape
        grid = (height // config.downsampling, width // config.downsampling)
        self.image_shape, self.kl_weight = image_shape, config.kl_weight
        if config.latent == "vector":
            self.encoder, self.decoder = _vector_coders(config, channels, grid)
            grid = (1, 1)
        else:
            self.encoder = conv.encoder(config, channels, 2 * config.latent_dim)
            self.decoder = conv.decoder(config, channels, config.latent_dim)
        self.latent_shape = (config.latent_dim, *grid)
        # last, so that the random initial weights do not depend on it
        self.quantizer = None if make_quantizer is None else make_quantizer(config.latent_dim)
        sizes = () if self.quantizer is None else self.quantizer.codebook_sizes
        self.space = CodeSpace((grid,) * len(sizes), sizes)

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return () if self.quantizer is None else self.quantizer.codebooks

    def posterior(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h w"]]:
        """Mean and log variance of q(z|x), in float32 also under autocast."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        return (self.posterior(x)[0],)

    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]:
        (z,) = latents
        if self.quantizer is not None:
            return (self.quantizer(z),)
        return (Quantized(z, torch.empty(len(z), 0, *z.shape[2:], dtype=torch.int64, device=z.device), {}),)

    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b d h w"], ...]:
        """
        Raises:
            ValueError: there is no quantizer, hence no codes.
        """
        if self.quantizer is None:
            raise ValueError("this vae has no codes: it was built without a quantizer")
        return (self.quantizer.decode(torch.stack(self.space.split(codes), dim=1)),)

    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        return self.decoder(z_q[0])

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        return self.space.join([level.codes for level in self.quantize(self.latents(x))])

    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self.decode_vectors(self.vectors(codes))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Output:
        mean, log_variance = self.posterior(x)
        z = mean
        if self.training and self.quantizer is None:  # eq. 10, z = mean + std * eps
            z = torch.addcmul(mean, (0.5 * log_variance).exp(), torch.randn_like(mean))
        (level,) = self.quantize((z,))
        kl = self.kl_weight * divergence(mean, log_variance) / x.shape[1:].numel()
        level = level._replace(losses={**level.losses, "kl": kl})
        return Output(self.decode_vectors((level.z_q,)), (mean,), (level,))

    @torch.no_grad()
    def sample(self, n: int, generator: Generator) -> Float[Tensor, "n c h w"]:
        """Decoded latents from N(0, I), without codes. The result depends on `generator` alone."""
        z = torch.randn(n, *self.latent_shape, generator=generator, device=generator.device)
        return self.decode_vectors((z.to(next(self.parameters()).device),))


def divergence(mean: Float[Tensor, "b d h w"], log_variance: Float[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """KL(N(mean, variance) | N(0, I)) in nats per image (appendix B), mean over the batch."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()


def _vector_coders(config: Config, image_channels: int, grid: tuple[int, int]) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder to [B,2D,1,1] and decoder from [B,D,1,1], each with one linear map from or to the whole feature map."""
    shape = (config.channels, *grid)
    size, moments = config.channels * grid[0] * grid[1], 2 * config.latent_dim
    encoder = nn.Sequential(
        *conv.features(config, image_channels),
        *conv.activated(config, config.channels),
        nn.Flatten(),
        nn.Linear(size, moments),
        nn.Unflatten(1, (moments, 1, 1)),
    )
    inwards = [nn.Flatten(), nn.Linear(config.latent_dim, size), nn.Unflatten(1, shape)]
    return encoder, nn.Sequential(*inwards, *conv.decoder(config, image_channels, config.channels))


def build(config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer | None = None) -> GenerativeTokenizer:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return VAE(config, image_shape, make_quantizer).to(memory_format=torch.channels_last)
