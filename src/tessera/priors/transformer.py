"""Decoder-only transformer over codes (Vaswani et al. 2017, arXiv 1706.03762). The grids form one sequence, one by one.

Training can begin with random orders and anneal to raster order: RAR (Yu et al. 2024, "Randomized Autoregressive Visual
Generation", arXiv 2411.00776). Likelihood and samples are always in raster order. Sampling caches keys and values: one
code costs one position per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessera import sequences
from tessera.attention.blocks import Block, Places, Walk
from tessera.attention.causal import Size
from tessera.autoregression.base import Autoregressive
from tessera.autoregression.condition import embedding_of
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Prior
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped
from tessera.networks.linear import Linear


class Config(Size):
    kv_heads: int = Field(ge=1, description="heads of keys and values, each shared by heads / kv_heads query heads; divides "
                          "heads. 1: multi-query attention, for which sampling reads least", examples=[1])  # fmt: skip
    dropout: float = Field(ge=0, lt=1, description="dropout probability of embedded inputs and of each block's output",
                           examples=[0.1])  # fmt: skip
    random_order: float = Field(ge=0, le=1, description="initial fraction of training in which the probability of a random "
                                "order falls from 1 to 0; 0: always raster order", examples=[0.5])  # fmt: skip

    @model_validator(mode="after")
    def _shared(self) -> Config:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads {self.heads}, got {self.kv_heads}")
        return self


class Transformer(Autoregressive):
    """See `core.contracts.Prior`. The input at a position sums the embeddings of the code before it, of that code's place,
    of the place to predict, and of the conditions. Without the place to predict, the network could not know in a random order
    which code comes next (RAR, sec. 3.2)."""

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning, config.dropout)
        channels, self.random_order = config.channels, config.random_order
        self.start = nn.Parameter(torch.randn(channels))
        self.places, self.targets = Places(space.grids, channels), Places(space.grids, channels)
        self.given = embedding_of(conditioning, channels)
        self.embeddings = nn.ModuleList(nn.Embedding(size, channels) for size in space.sizes)
        blocks = [Block(channels, config.heads, config.kv_heads) for _ in range(config.layers)]
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), Linear(channels, size)) for size in space.sizes
        )

    def losses(
        self,
        codes: Int[Tensor, "b t"],
        conditions: Int[Tensor, "b c"] | None,
        done: float = 1.0,
        inputs: Int[Tensor, "b t"] | None = None,
    ) -> dict[str, Tensor]:
        """In training, a fraction r of the images is predicted in random orders. r falls linearly from 1 at the start to 0
        when the fraction `random_order` of training is done (RAR, sec. 3.2, with annealing from the start)."""
        if not (self.training and done < self.random_order):
            return super().losses(codes, conditions, done, inputs)
        self.require(codes, conditions)
        order = self.random_orders(len(codes), 1 - done / self.random_order, codes.device)
        seen = (codes if inputs is None else inputs).gather(1, order)
        return {"nll": sequences.nll(self.ordered(seen, conditions, order, self.dropout), codes.gather(1, order))}

    def random_orders(self, count: int, fraction: float, device: torch.device) -> Int[Tensor, "b t"]:
        """Positions in the order of their prediction, for each image: random with probability `fraction`, else raster.
        Only the order within a grid is random. Grids keep their order, since coarse grids guide finer ones."""
        lengths = torch.tensor(self.space.lengths, device=device)
        grids = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
        shuffled = torch.rand(count, 1, device=device) < fraction
        return (grids + shuffled * torch.rand(count, len(grids), device=device)).argsort(dim=1, stable=True)

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        return self.ordered(codes, conditions, torch.arange(codes.shape[1], device=codes.device)[None], dropout)

    def ordered(
        self,
        codes: Int[Tensor, "b t"],
        conditions: Int[Tensor, "b c"] | None,
        order: Int[Tensor, "#b t"],
        dropout: float,
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits per grid of each code given the codes before it. `codes` and logits are both in `order`."""
        lengths = self.space.lengths
        parts = zip(self.embeddings, codes.split(lengths, dim=1), strict=True)
        embedded = torch.cat([embedding(part) for embedding, part in parts], dim=1) + F.embedding(order, self.places())
        before = torch.cat([self.start.expand(len(codes), 1, -1), embedded[:, :-1]], dim=1)  # shifted: causal is <=
        x = before + F.embedding(order, self.targets())
        if self.given is not None:
            x = x + self.given(conditions)[:, None]
        x = dropped(x, dropout)
        for block in self.blocks:
            x = block(x, causal=True, dropout=dropout)
        return tuple(head(part) for head, part in zip(self.heads, x.split(lengths, dim=1), strict=True))

    @torch.no_grad()
    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        """The cached walk: one position of all images at a time. The cache lives only in this call."""
        places, targets = self.places(), self.targets()
        if self.given is not None:
            targets = targets + self.given(conditions)[:, None]
        targets = targets.expand(n, -1, -1)
        before = self.start.expand(n, -1)
        walks = [Walk(block, n) for block in self.blocks]
        for t in range(self.space.length):
            x = before + targets[:, t]
            for walk in walks:
                x = walk.advance(x)
            grid, _ = self.space.locate(t)
            codes = yield self.heads[grid](x)
            before = self.embeddings[grid](codes) + places[t]


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> Prior:
    return Transformer(config, space, conditioning)
