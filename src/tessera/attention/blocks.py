"""Transformer blocks (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as in GPT-2): causal or bidirectional."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Grids
from tessera.networks.dot_product import attended
from tessera.networks.dropout import dropped
from tessera.networks.linear import Linear

RATIO = 4  # width of the MLP, in channels
ROOM = 32  # positions by which the cache of keys and values grows


class Places(nn.Module):
    """Position embeddings [T,C] of all grids: the sum of one vector per row, one per column and one per grid.

    They are initialised as N(0, 1), as embeddings in torch are. With GPT-2's standard deviation of 0.02 they drown in the
    output of the blocks, and rules about neighbours are learned several times later.
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

    `kv_heads` is the number of heads of keys and values; it divides `heads`, and a group of query heads shares each
    (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245; 1: multi-query, Shazeer 2019, arXiv 1911.02150). None:
    as many as `heads`. `dropout` is a probability, 0 outside training; it acts on the output of attention and of the MLP
    (Vaswani et al. 2017, sec. 5.4).
    """

    def __init__(self, channels: int, heads: int, kv_heads: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.parts = (channels, *2 * (channels // heads * self.kv_heads,))  # channels of query, key, value
        self.qkv, self.out = Linear(channels, sum(self.parts)), Linear(channels, channels)
        self.mlp = nn.Sequential(Linear(channels, RATIO * channels), nn.GELU(), Linear(RATIO * channels, channels))

    def forward(self, x: Float[Tensor, "b t c"], causal: bool = True, dropout: float = 0.0) -> Float[Tensor, "b t c"]:
        heads = (self.heads, self.kv_heads, self.kv_heads)
        parts = self.qkv(self.norm_attention(x)).split(self.parts, dim=2)
        q, k, v = (part.unflatten(2, (n, -1)).transpose(1, 2) for part, n in zip(parts, heads, strict=True))
        x = x + dropped(self.out(attended(q, k, v, causal).transpose(1, 2).flatten(2)), dropout)
        return x + dropped(self.mlp(self.norm_mlp(x)), dropout)


class Walk:
    """A causal block, one position of `n` sequences at a time. Each walk holds its own cache of keys and values, so walks do
    not affect each other.

    On CPU the time of a position is about the time to read the cache and the weights. Fewer `kv_heads` mean less to read.
    Keys are cached transposed, [n*kv_heads,d,t], so that scores, like attended values, are sums of whole rows and both
    products read memory in order. Weights are transposed once for the same reason. The cache grows by `ROOM` positions at a
    time although the length is known: memory without gaps for later positions is read faster.
    """

    def __init__(self, block: Block, n: int) -> None:
        self.norm_attention, self.norm_mlp, groups = block.norm_attention, block.norm_mlp, block.kv_heads
        dim, self.queries = block.out.in_features // block.heads, block.heads // groups
        self.batch, self.filled = n * groups, 0

        def grouped(whole: Tensor) -> Tensor:
            """Places the queries of a group, its key and its value side by side, so that all groups of all sequences are
            views, not copies. Queries include the scale of the scores."""
            query, key, value = (part.unflatten(0, (groups, -1)) for part in whole.split(block.parts))
            return torch.cat([query * dim**-0.5, key, value], dim=1).flatten(0, 1)

        self.qkv = grouped(block.qkv.weight).t().contiguous(), grouped(block.qkv.bias)
        linears = (block.out, cast("Linear", block.mlp[0]), cast("Linear", block.mlp[2]))
        self.out, self.up, self.down = ((linear.weight.t().contiguous(), linear.bias) for linear in linears)
        self.keys, self.values = (block.out.weight.new_empty(self.batch, *room) for room in ((dim, 0), (0, dim)))

    def advance(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """`Block.forward` at the next position. `x` is overwritten."""
        (qkv, b_qkv), (out, b_out), (up, b_up), (down, b_down) = self.qkv, self.out, self.up, self.down
        projected = torch.addmm(b_qkv, self.norm_attention(x), qkv).view(self.batch, self.queries + 2, -1)
        attended = self._attend(projected[:, :-2], projected[:, -2], projected[:, -1])
        x.addmm_(attended.view(x.shape), out).add_(b_out)
        return x.addmm_(F.gelu(torch.addmm(b_up, self.norm_mlp(x), up)), down).add_(b_down)

    def _attend(
        self, q: Float[Tensor, "b q d"], k: Float[Tensor, "b d"], v: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b q d"]:
        """Caches the next key and value, then attends to all cached ones (Vaswani et al. 2017, eq. 1; the queries already
        include its scale). b is n * kv_heads, each with q queries."""
        if self.filled == self.values.shape[1]:  # not by padding, which would first fill the whole with zeros
            self.keys = torch.cat([self.keys, self.keys.new_empty(*self.keys.shape[:2], ROOM)], dim=2)
            self.values = torch.cat([self.values, self.values.new_empty(self.batch, ROOM, v.shape[1])], dim=1)
        self.keys[:, :, self.filled], self.values[:, self.filled] = k, v
        self.filled += 1
        # matrix products: `scaled_dot_product_attention` on CPU takes up to 1.8 times as long for so few queries
        scores = torch.bmm(q, self.keys[:, :, : self.filled])
        return torch.bmm(scores.softmax(2), self.values[:, : self.filled])
