"""A small causal transformer over a sequence of vectors (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as in GPT-2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessera.attention.blocks import Block
from tessera.core.params import Strict
from tessera.networks.linear import Linear


class Size(Strict):
    """Size of a transformer, for the `Config` of a plug-in that trains one."""

    channels: int = Field(ge=1, le=4096, description="width of the network", examples=[8])
    layers: int = Field(ge=1, le=64, description="transformer blocks", examples=[1])
    heads: int = Field(ge=1, le=256, description="attention heads; divides channels", examples=[2])

    @model_validator(mode="after")
    def _whole(self) -> Size:
        if self.channels % self.heads:
            raise ValueError(f"heads must divide channels {self.channels}, got {self.heads}")
        return self


def raster(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h*w d"]:
    """A grid of vectors as a sequence, row by row, which is the order of codes."""
    return z.flatten(2).transpose(1, 2)


class CausalTransformer(nn.Module):
    """[B,T,D] to [B,T,out_dim]; output t depends on inputs < t only, the first output on a learned start vector.

    Args:
        dim: D, dimension of the inputs.
        length: largest T; each position has a learned vector.
    """

    def __init__(self, dim: int, out_dim: int, length: int, size: Size) -> None:
        super().__init__()
        channels = size.channels
        self.embedding = Linear(dim, channels)
        self.start = nn.Parameter(0.02 * torch.randn(channels))
        self.positions = nn.Parameter(0.02 * torch.randn(length, channels))
        self.blocks = nn.Sequential(*(Block(channels, size.heads) for _ in range(size.layers)))
        self.norm, self.head = nn.LayerNorm(channels), Linear(channels, out_dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t out"]:
        b, t, _ = x.shape
        before = self.embedding(x[:, :-1])  # shifted right by one, so that the blocks may attend to <=
        hidden = torch.cat([self.start.to(before.dtype).expand(b, 1, -1), before], dim=1) + self.positions[:t]
        return self.head(self.norm(self.blocks(hidden)))
