"""Transformer blocks (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as in GPT-2): causal or in both directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Grids
from tessera.nn.condition import dropped

RATIO = 4  # width of the MLP, in channels
ROOM = 32  # positions by which a cache grows


class Places(nn.Module):
    """A vector [T,C] for each position of all grids: one of its row, one of its column, one of its grid, summed.

    All start as standard normal numbers, as embeddings in torch do. At 0.02, as in GPT-2, what blocks add drowns them: a
    rule about neighbours is then learnt several times later.
    """

    def __init__(self, grids: Grids, channels: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList(torch.randn(height, 1, channels) for height, _ in grids)
        self.columns = nn.ParameterList(torch.randn(width, channels) for _, width in grids)
        self.grids = nn.Parameter(torch.randn(len(grids), channels))

    def forward(self) -> Float[Tensor, "t c"]:
        parts = zip(self.rows, self.columns, self.grids, strict=True)
        return torch.cat([(row + column + grid).flatten(0, 1) for row, column, grid in parts])


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), on [B,T,C].

    `dropout` is a probability, 0 outside training: of what each of the two adds (Vaswani et al. 2017, sec. 5.4).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, RATIO * channels), nn.GELU(), nn.Linear(RATIO * channels, channels)
        )

    def forward(self, x: Float[Tensor, "b t c"], causal: bool = True, dropout: float = 0.0) -> Float[Tensor, "b t c"]:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + dropped(self.out(attended.transpose(1, 2).flatten(2)), dropout)
        return x + dropped(self.mlp(self.norm_mlp(x)), dropout)


class Walk:
    """A causal block, one position of `n` sequences at a time. Keys and values of the positions so far live in this object
    alone, so that walks do not disturb each other.

    On CPU a step takes about as long as it takes to read what is kept and the weights. Keys are kept transposed,
    [n*heads,d,t]: scores are then sums of whole rows, as attended values are, and both products read in the order of
    memory. So do those with weights, transposed once. Room grows by `ROOM` positions at a time, though the length is
    known: memory is read faster without gaps for positions to come.
    """

    def __init__(self, block: Block, n: int) -> None:
        self.norm_attention, self.norm_mlp, heads = block.norm_attention, block.norm_mlp, block.heads
        dim = block.out.in_features // heads
        self.batch, self.scale, self.filled = n * heads, dim**-0.5, 0
        # query, key and value of a head side by side: of all heads of all sequences they are then views, not copies
        weight, bias = (
            part.unflatten(0, (3, heads, dim)).transpose(0, 1).flatten(0, 2)
            for part in (block.qkv.weight, block.qkv.bias)
        )
        self.qkv = _linear(weight, bias)
        self.out, self.up, self.down = (
            _linear(linear.weight, linear.bias) for linear in (block.out, block.mlp[0], block.mlp[2])
        )
        self.keys, self.values = weight.new_empty(self.batch, dim, 0), weight.new_empty(self.batch, 0, dim)

    def advance(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The next position of a causal `forward`."""
        q, k, v = self.qkv(self.norm_attention(x)).view(self.batch, 3, -1).split(1, dim=1)
        x = x + self.out(self._attend(q, k, v).view(x.shape))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))

    def _attend(
        self, q: Float[Tensor, "b 1 d"], k: Float[Tensor, "b 1 d"], v: Float[Tensor, "b 1 d"]
    ) -> Float[Tensor, "b 1 d"]:
        """Keeps the next key and value, and attends to all so far, these included (Vaswani et al. 2017, eq. 1); b is
        n * heads."""
        if self.filled == self.values.shape[1]:  # padding would fill the whole with zeros first
            self.keys = torch.cat([self.keys, self.keys.new_empty(*self.keys.shape[:2], ROOM)], dim=2)
            self.values = torch.cat([self.values, self.values.new_empty(self.batch, ROOM, v.shape[2])], dim=1)
        self.keys[:, :, self.filled], self.values[:, self.filled] = k[:, 0], v[:, 0]
        self.filled += 1
        # by matrix products: for one query, `scaled_dot_product_attention` on CPU takes up to 1.8 times as long
        scores = torch.bmm(q, self.keys[:, :, : self.filled]).mul_(self.scale)
        return torch.bmm(scores.softmax(2), self.values[:, : self.filled])


def _linear(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"]) -> Callable[[Tensor], Tensor]:
    """x W^T + b for many x of few rows: with W transposed once, such a product takes two thirds of the time on CPU."""
    return partial(torch.addmm, bias, mat2=weight.t().contiguous())
