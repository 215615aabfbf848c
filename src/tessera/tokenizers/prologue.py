"""VQ-VAE with a few global codes before its grid (Prologue: Zheng et al. 2026, arXiv 2605.06137).

A small causal network predicts the codes of the grid given the global codes, and its cross entropy alone trains the branch that
makes them. A prior then draws them first, the layout of an image, and the grid given them. The decoder does not read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.attention.blocks import Block
from tessera.attention.causal import CausalTransformer, Size, raster
from tessera.core.contracts import ImageShape, MakeQuantizer, Output, Quantized, Tokenizer
from tessera.core.space import CodeSpace
from tessera.networks import conv

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(conv.Autoencoder):
    count: int = Field(ge=1, le=64, description="global codes of an image", examples=[3])
    codebook_size: int = Field(ge=2, le=1 << 16, description="K of the global codes", examples=[8])
    weight: float = Field(gt=0, description="weight of the terms of the global codes: the cross entropy of the grid's codes given "
                          "them, in nats per code, and those of their quantizer", examples=[1.0])  # fmt: skip
    nested: float = Field(
        ge=0, lt=1, description="probability that a training image keeps only its first m global codes in the cross entropy, m "
        "uniform from 0 to count - 1 (nested dropout); 0: all are kept", examples=[0.5],
    )  # fmt: skip
    transformer: Size = Field(description="size of the branch and of the network that predicts the grid")

    def rule(self, params: Params) -> Iterator[str]:
        yield from super().rule(params)
        yield from conv.trained_along(self, params)
        quantizer = params.config("quantizer")
        if "codebook_size" not in type(quantizer).model_fields:
            yield (
                "quantizer.name: must be one that has codebook_size under tokenizer.name prologue, whose global codes have "
                f"another K, got {params.value('quantizer.name')!r}; choose ema"
            )
        elif getattr(quantizer, "levels", None):
            yield (
                f"quantizer.fsq.levels: must be empty under tokenizer.name prologue, whose global codes have another K, got "
                f"{quantizer.levels}; choose another quantizer.name"
            )
        elif hasattr(quantizer, "rule"):
            for line in quantizer.model_copy(update={"codebook_size": self.codebook_size}).rule(params):
                yield f"tokenizer.prologue.codebook_size: {line.partition(': ')[2]}"


class Branch(nn.Module):
    """Latents of the grid [B,D,h,w] to one latent per global code [B,E,1,count]: learned queries beside the places of the grid,
    in transformer blocks where all attend to all."""

    def __init__(self, dim: int, places: int, count: int, out_dim: int, size: Size) -> None:
        super().__init__()
        self.inward = nn.Linear(dim, size.channels)
        self.positions = nn.Parameter(torch.randn(places, size.channels))
        self.queries = nn.Parameter(torch.randn(count, size.channels))
        self.blocks = nn.ModuleList(Block(size.channels, size.heads) for _ in range(size.layers))
        self.norm, self.outward = nn.LayerNorm(size.channels), nn.Linear(size.channels, out_dim)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e 1 count"]:
        count = len(self.queries)
        hidden = torch.cat([self.queries.expand(len(z), -1, -1), self.inward(raster(z)) + self.positions], dim=1)
        for block in self.blocks:
            hidden = block(hidden, causal=False)
        return self.outward(self.norm(hidden[:, :count])).transpose(1, 2).unsqueeze(2)


class Prologue(nn.Module):
    """See `core.contracts.Tokenizer`. 32x32 images downsampled by 4 become 4 global codes and a grid of 8x8, T = 68.

    The level of global codes comes first. The branch reads the latents of the grid as constants, and the network that predicts
    reads the grid's code vectors as constants: its gradient reaches the branch alone, through the quantizer's estimator. So
    encoder, decoder and codebook of the grid are trained as those of `vqvae`, and begin with the same weights.
    """

    def __init__(self, config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.quantizer = make_quantizer()
        self.encoder = conv.encoder(config, channels, self.quantizer.dim)
        self.decoder = conv.decoder(config, channels, self.quantizer.dim)
        self.global_quantizer = make_quantizer(codebook_size=config.codebook_size)
        grid = (height // config.downsampling, width // config.downsampling)
        places, dim = grid[0] * grid[1], self.global_quantizer.dim
        self.count, self.weight, self.nested = config.count, config.weight, config.nested
        self.branch = Branch(self.quantizer.dim, places, self.count, dim, config.transformer)
        sizes = self.quantizer.codebook_sizes
        self.predictor = CausalTransformer(
            dim + self.quantizer.dim, sum(sizes), self.count + places, config.transformer
        )
        global_sizes = self.global_quantizer.codebook_sizes
        depths = len(global_sizes)
        self.space = CodeSpace(((1, self.count),) * depths + (grid,) * len(sizes), (*global_sizes, *sizes), depths)

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (*self.global_quantizer.codebooks, *self.quantizer.codebooks)

    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b e 1 count"], Float[Tensor, "b d h w"]]:
        z = self.encoder(x)
        return self.branch(z.detach()), z

    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]:
        return self.global_quantizer(latents[0]), self.quantizer(latents[1])

    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        parts, first = self.space.split(codes), self.space.global_grids
        return (
            self.global_quantizer.decode(torch.stack(parts[:first], dim=1)),
            self.quantizer.decode(torch.stack(parts[first:], dim=1)),
        )

    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        return self.decoder(z_q[1])

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        return self.space.join([level.codes for level in self.quantize(self.latents(x))])

    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self.decode_vectors(self.vectors(codes))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Output:
        latents = self.latents(x)
        first, grid = self.quantize(latents)
        return Output(self.decode_vectors((first.z_q, grid.z_q)), latents, (self._predicting(first, grid), grid))

    def _predicting(self, first: Quantized, grid: Quantized) -> Quantized:
        """The level of global codes with the term that trains it. Reported in evaluation: `grid_nats`, that cross entropy, and
        under nested dropout `grid_nats_alone`, the same without any global code.

        The weight is that of all terms of the level: between the cross entropy and the commitment it would decide how far
        global codes may move, and under a small one they would not.
        """
        nats = self.grid_nats(first.z_q, grid, self._kept(len(first.z_q)))
        reported = dict(first.reported)
        if not self.training:
            reported["grid_nats"] = nats.detach()
            if self.nested:
                none = torch.zeros(len(first.z_q), dtype=torch.int64)
                reported["grid_nats_alone"] = self.grid_nats(first.z_q, grid, none).detach()
        terms = {**first.losses, "prologue": nats}
        return first._replace(losses={name: self.weight * term for name, term in terms.items()}, reported=reported)

    def _kept(self, n: int) -> Int[Tensor, " n"]:
        """How many global codes each image keeps. Drawn on the CPU, so that it is the same on every device."""
        every = torch.full((n,), self.count)
        if not (self.training and self.nested):
            return every
        return torch.where(torch.rand(n) < self.nested, torch.randint(self.count, (n,)), every)

    def grid_nats(
        self, z_q: Float[Tensor, "b e 1 count"], grid: Quantized, kept: Int[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Mean cross entropy of the grid's codes, nats per code, given those before and the first `kept` global codes of each
        image; the others are zeros (nested dropout, Rippel et al. 2014, arXiv 1402.0915, sec. 3). The depths of a place do not
        see each other."""
        known = torch.arange(self.count) < kept[:, None]
        given = raster(z_q) * known.to(z_q.device)[:, :, None]
        before = raster(grid.z_q.detach())
        inputs = torch.cat([F.pad(given, (0, before.shape[2])), F.pad(before, (given.shape[2], 0))], dim=1)
        logits = self.predictor(inputs)[:, self.count :].float().split(self.quantizer.codebook_sizes, dim=2)
        depths = zip(logits, grid.codes.unbind(1), strict=True)
        nats = [F.cross_entropy(depth.transpose(1, 2), codes.flatten(1).long()) for depth, codes in depths]
        return torch.stack(nats).mean()


def build(config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer) -> Tokenizer:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return Prologue(config, image_shape, make_quantizer).to(memory_format=torch.channels_last)
