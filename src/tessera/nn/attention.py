"""Transformer blocks (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as in GPT-2): causal or in both directions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Grids
from tessera.nn.condition import dropped

RATIO = 4  # width of the MLP, in channels
ROOM = 8  # positions by which a cache grows


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
        q, k, v = self._heads(x)
        return self._add(x, F.scaled_dot_product_attention(q, k, v, is_causal=causal), dropout)

    def step(self, x: Float[Tensor, "b 1 c"], cache: Cache) -> Float[Tensor, "b 1 c"]:
        """The next position of a causal `forward`, whose keys and values at earlier positions are in `cache`."""
        q, k, v = self._heads(x)
        return self._add(x, cache.attend(q, k, v), 0.0)

    def _heads(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "3 b heads t d"]:
        return self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _add(
        self, x: Float[Tensor, "b t c"], attended: Float[Tensor, "b heads t d"], dropout: float
    ) -> Float[Tensor, "b t c"]:
        x = x + dropped(self.out(attended.transpose(1, 2).flatten(2)), dropout)
        return x + dropped(self.mlp(self.norm_mlp(x)), dropout)


class Cache:
    """Keys and values of one block at the positions walked so far, of `n` sequences.

    Room grows by `ROOM` positions at a time, though the length is known: on CPU a step takes about as long as it takes to
    read what is kept, and memory is read faster without gaps for positions to come.
    """

    def __init__(self, block: Block, n: int) -> None:
        weight = block.out.weight
        self.kept = weight.new_empty(2, n, block.heads, 0, len(weight) // block.heads)
        self.filled = 0

    def attend(
        self, q: Float[Tensor, "n heads 1 d"], k: Float[Tensor, "n heads 1 d"], v: Float[Tensor, "n heads 1 d"]
    ) -> Float[Tensor, "n heads 1 d"]:
        """Keeps the next key and value, and attends to all so far, these included (Vaswani et al. 2017, eq. 1)."""
        if self.filled == self.kept.shape[3]:
            room = self.kept.new_empty(*self.kept.shape[:3], ROOM, self.kept.shape[4])
            self.kept = torch.cat([self.kept, room], dim=3)  # padding would fill the whole with zeros first
        self.filled += 1
        keys, values = self.kept[:, :, :, : self.filled]
        keys[:, :, -1:], values[:, :, -1:] = k, v
        # by matrix products: for one query, `scaled_dot_product_attention` on CPU takes up to 1.8 times as long
        return (q @ keys.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3) @ values
