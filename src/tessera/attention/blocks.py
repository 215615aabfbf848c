"""Transformer blocks (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as in GPT-2): causal or in both directions."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Grids
from tessera.networks.dropout import dropped

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

    `kv_heads`, which divides `heads`, is how many heads keys and values have; each is shared by a group of heads of
    queries (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245; 1: multi-query, Shazeer 2019, arXiv 1911.02150).
    None: as many as `heads`. `dropout` is a probability, 0 outside training: of what each of the two adds (Vaswani et al.
    2017, sec. 5.4).
    """

    def __init__(self, channels: int, heads: int, kv_heads: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.parts = (channels, *2 * (channels // heads * self.kv_heads,))  # of query, key, value
        self.qkv, self.out = nn.Linear(channels, sum(self.parts)), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, RATIO * channels), nn.GELU(), nn.Linear(RATIO * channels, channels)
        )

    def forward(self, x: Float[Tensor, "b t c"], causal: bool = True, dropout: float = 0.0) -> Float[Tensor, "b t c"]:
        heads = (self.heads, self.kv_heads, self.kv_heads)
        parts = self.qkv(self.norm_attention(x)).split(self.parts, dim=2)
        q, k, v = (part.unflatten(2, (n, -1)).transpose(1, 2) for part, n in zip(parts, heads, strict=True))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=self.heads != self.kv_heads)
        x = x + dropped(self.out(attended.transpose(1, 2).flatten(2)), dropout)
        return x + dropped(self.mlp(self.norm_mlp(x)), dropout)


class Walk:
    """A causal block, one position of `n` sequences at a time. Keys and values of the positions so far live in this object
    alone, so that walks do not disturb each other.

    On CPU a step takes about as long as it takes to read what is kept and the weights. Fewer `kv_heads` are less to read.
    Keys are kept transposed, [n*kv_heads,d,t]: scores are then sums of whole rows, as attended values are, and both
    products read in the order of memory. So do those with weights, transposed once. Room grows by `ROOM` positions at a
    time, though the length is known: memory is read faster without gaps for positions to come.
    """

    def __init__(self, block: Block, n: int) -> None:
        self.norm_attention, self.norm_mlp, groups = block.norm_attention, block.norm_mlp, block.kv_heads
        dim, self.queries = block.out.in_features // block.heads, block.heads // groups
        self.batch, self.filled = n * groups, 0

        def grouped(whole: Tensor) -> Tensor:
            """The queries of a group, its key and its value side by side: of all groups of all sequences they are then
            views, not copies. Scores are scaled here, once."""
            query, key, value = (part.unflatten(0, (groups, -1)) for part in whole.split(block.parts))
            return torch.cat([query * dim**-0.5, key, value], dim=1).flatten(0, 1)

        self.qkv = grouped(block.qkv.weight).t().contiguous(), grouped(block.qkv.bias)
        linears = (block.out, cast("nn.Linear", block.mlp[0]), cast("nn.Linear", block.mlp[2]))
        self.out, self.up, self.down = ((linear.weight.t().contiguous(), linear.bias) for linear in linears)
        self.keys, self.values = (block.out.weight.new_empty(self.batch, *room) for room in ((dim, 0), (0, dim)))

    def advance(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The next position of a causal `forward`. `x` is overwritten."""
        (qkv, b_qkv), (out, b_out), (up, b_up), (down, b_down) = self.qkv, self.out, self.up, self.down
        projected = torch.addmm(b_qkv, self.norm_attention(x), qkv).view(self.batch, self.queries + 2, -1)
        attended = self._attend(projected[:, :-2], projected[:, -2], projected[:, -1])
        x.addmm_(attended.view(x.shape), out).add_(b_out)
        return x.addmm_(F.gelu(torch.addmm(b_up, self.norm_mlp(x), up)), down).add_(b_down)

    def _attend(
        self, q: Float[Tensor, "b q d"], k: Float[Tensor, "b d"], v: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b q d"]:
        """Keeps the next key and value, and attends to all so far, these included (Vaswani et al. 2017, eq. 1, whose
        scale the queries have already); b is n * kv_heads, each with q queries."""
        if self.filled == self.values.shape[1]:  # padding would fill the whole with zeros first
            self.keys = torch.cat([self.keys, self.keys.new_empty(*self.keys.shape[:2], ROOM)], dim=2)
            self.values = torch.cat([self.values, self.values.new_empty(self.batch, ROOM, v.shape[1])], dim=1)
        self.keys[:, :, self.filled], self.values[:, self.filled] = k, v
        self.filled += 1
        # by matrix products: for so few queries, `scaled_dot_product_attention` on CPU takes up to 1.8 times as long
        scores = torch.bmm(q, self.keys[:, :, : self.filled])
        return torch.bmm(scores.softmax(2), self.values[:, : self.filled])
