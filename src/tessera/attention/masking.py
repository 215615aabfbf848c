"""Masked codes: the network that predicts them, and the choice of masks in training, in the bound on the likelihood, and in
each pass of parallel decoding.

A mask [B,T] is True where a code is hidden. It is computed from uniform random numbers of the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tessera.attention.blocks import Block, Places
from tessera.attention.causal import Size
from tessera.autoregression.condition import embedding_of
from tessera.autoregression.sampling import sample_codes, truncate
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Sampling
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped
from tessera.networks.linear import Linear

Decoding = Literal["random", "confidence"]


class MaskedTransformer(nn.Module):
    """Logits of every code given the conditions and all codes that are not hidden. All grids form one sequence, and attention is
    bidirectional. No time embedding: the number of masked codes already gives the time."""

    def __init__(self, size: Size, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__()
        channels = size.channels
        self.lengths = space.lengths
        codes = [nn.Embedding(k + 1, channels) for k in space.sizes]  # the last row: the mask
        self.codes = cast("Sequence[nn.Embedding]", nn.ModuleList(codes))
        self.places = Places(space.grids, channels)
        self.given = embedding_of(conditioning, channels)
        self.blocks = nn.ModuleList(Block(channels, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(channels)
        self.heads = nn.ModuleList(Linear(channels, k) for k in space.sizes)

    def forward(
        self,
        codes: Int[Tensor, "b t"],
        conditions: Int[Tensor, "b c"] | None,
        masked: Bool[Tensor, "b t"],
        dropout: float,
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """`dropout` is a probability, 0 outside training; it acts on the input of the first block and in blocks."""
        parts = zip(self.codes, codes.split(self.lengths, dim=1), masked.split(self.lengths, dim=1), strict=True)
        visible = [table(torch.where(hidden, table.num_embeddings - 1, part)) for table, part, hidden in parts]
        x = torch.cat(visible, dim=1) + self.places()
        if self.given is not None:
            x = x + self.given(conditions)[:, None]
        x = dropped(x, dropout)
        for block in self.blocks:
            x = block(x, causal=False, dropout=dropout)
        x = self.norm(x).split(self.lengths, dim=1)
        return tuple(head(part) for head, part in zip(self.heads, x, strict=True))


def masks(offset: Float[Tensor, "*m"], keys: Float[Tensor, "m t"]) -> Bool[Tensor, "m t"]:
    """M masks of T positions. Each hides k positions, k uniform on 1..T, and all sets of k positions are equally likely.

    The M numbers k are spaced evenly from one common offset modulo 1, as the times of Kingma et al. 2021 (arXiv 2107.00630,
    "low-discrepancy sampler"). Together they cover 1..T, and each alone is uniform in every row. The order of rows may
    therefore be that of the data set.

    Args:
        offset: one number, uniform on [0, 1). For M masks of one image it may be M numbers, uniform on [0, 1/M), which makes
            the mean over the masks less noisy.
        keys: uniform on [0, 1); the positions of the k smallest keys of a row are hidden.
    """
    count, length = keys.shape
    fraction = (torch.arange(count, device=keys.device) / count + offset) % 1
    hidden = (fraction * length).long().clamp(max=length - 1) + 1  # clamp: a fraction can be rounded to 1
    return places(keys) < hidden[:, None]


def mean(values: Float[Tensor, "b t"], masked: Bool[Tensor, "*b t"]) -> Float[Tensor, " b"]:
    """Mean over the hidden codes of each image."""
    return (values * masked).sum(1) / masked.sum(-1)


def places(keys: Float[Tensor, "m t"]) -> Int[Tensor, "m t"]:
    """The place of each value in the ascending order of its row, from 0; on a tie the left value comes first."""
    return keys.argsort(dim=1, stable=True).argsort(dim=1)


def left(unknown: Int[Tensor, " n"], index: int, passes: int, decoding: Decoding) -> Int[Tensor, " n"]:
    """How many of the codes that were `unknown` at the start are still hidden after pass `index` of `passes`.

    `random` reveals equally many codes in each pass. `confidence` reveals few codes at first and many at the end, when most
    are known: the cosine schedule of MaskGIT (Chang et al. 2022, arXiv 2202.04200, sec. 3.3). As there, each pass reveals at
    least one code, so `passes` >= `unknown` reveals one at a time. The last pass reveals all that are left.
    """
    linear = unknown * (passes - index) // passes  # in integers: rounding must not reveal two codes instead of one
    cosine = (unknown * math.cos(math.pi / 2 * index / passes)).long()
    return (linear if decoding == "random" else cosine).minimum(unknown - index).clamp(min=0)


def chosen(
    scores: Float[Tensor, "n t"], masked: Bool[Tensor, "n t"], remaining: Int[Tensor, " n"]
) -> Bool[Tensor, "n t"]:
    """Hidden positions to reveal: those with the highest scores, except `remaining` of them."""
    last = (-scores).masked_fill(~masked, math.inf)  # known positions come last
    return places(last) < (masked.sum(1) - remaining)[:, None]


def gumbel(uniforms: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise from numbers uniform on [0, 1); always finite in float64."""
    return -(-uniforms.clamp(min=2**-60).log()).log()


def sampled(
    logits: tuple[Float[Tensor, "n _ k"], ...],
    sampling: Sampling,
    uniforms: Float[Tensor, "n t"],
    where: Bool[Tensor, "n t"],
) -> tuple[Int[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Codes sampled independently at the positions `where`, and their log-probabilities in nats; elsewhere both are 0. The
    log-probabilities are those before temperature and truncation: after `top_k` 1 all codes would be equally certain."""
    codes, log_prob = torch.zeros_like(where, dtype=torch.int64), torch.zeros_like(uniforms)
    lengths = [grid.shape[1] for grid in logits]
    for grid, *parts in zip(logits, *(x.split(lengths, 1) for x in (where, uniforms, codes, log_prob)), strict=True):
        here, numbers, code, certain = parts  # the last two are views that are written to
        rows = grid[here].double()
        code[here] = picked = sample_codes(truncate(rows, sampling), numbers[here])
        certain[here] = rows.log_softmax(1).gather(1, picked[:, None])[:, 0]
    return codes, log_prob


def revealed(
    logits: tuple[Float[Tensor, "n _ k"], ...],
    masked: Bool[Tensor, "n t"],
    remaining: Int[Tensor, " n"],
    sampling: Sampling,
    numbers: Float[Tensor, "2 n t"],
    heat: float | None,
) -> tuple[Bool[Tensor, "n t"], Int[Tensor, "n t"]]:
    """The positions that one pass reveals, all that are `masked` except `remaining`, and the codes there.

    If `heat` is None, the positions are random. Otherwise a code is sampled for every masked position, and those with the
    highest log-probability + heat * Gumbel noise are revealed (Chang et al. 2022, sec. 3.2). `numbers` are uniform on [0, 1).
    """
    uniforms, noise = numbers
    if heat is None:
        where = chosen(noise, masked, remaining)
        return where, sampled(logits, sampling, uniforms, where)[0]
    codes, log_prob = sampled(logits, sampling, uniforms, masked)
    return chosen(log_prob + heat * gumbel(noise), masked, remaining), codes
