"""Codes of which some are hidden: the network that predicts them, and which ones are hidden in training, in the bound on
the likelihood, and from step to step of parallel decoding.

A mask [B,T] is True where a code is hidden. It is made of uniform numbers that the caller draws.
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
from tessera.autoregression.sampling import sample_codes, truncate
from tessera.core.contracts import Sampling
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped

Decoding = Literal["random", "confidence"]


class MaskedTransformer(nn.Module):
    """Logits of every code given all that are not hidden and the label: all grids are one sequence, and attention goes in
    both directions. It is told no time, which the number of masks says."""

    def __init__(self, size: Size, space: CodeSpace, classes: int) -> None:
        super().__init__()
        channels = size.channels
        self.lengths = space.lengths
        codes = [nn.Embedding(k + 1, channels) for k in space.sizes]  # the last row: the mask
        self.codes = cast("Sequence[nn.Embedding]", nn.ModuleList(codes))
        self.places = Places(space.grids, channels)
        self.labels = nn.Embedding(classes + 1, channels) if classes else None  # the last row: no label
        self.blocks = nn.ModuleList(Block(channels, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(channels)
        self.heads = nn.ModuleList(nn.Linear(channels, k) for k in space.sizes)

    def forward(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, masked: Bool[Tensor, "b t"], dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """`dropout` is a probability, 0 outside training: of what enters the first block, and in blocks."""
        parts = zip(self.codes, codes.split(self.lengths, dim=1), masked.split(self.lengths, dim=1), strict=True)
        visible = [table(torch.where(hidden, table.num_embeddings - 1, part)) for table, part, hidden in parts]
        x = torch.cat(visible, dim=1) + self.places()
        if self.labels is not None:
            x = x + self.labels(labels)[:, None]
        x = dropped(x, dropout)
        for block in self.blocks:
            x = block(x, causal=False, dropout=dropout)
        x = self.norm(x).split(self.lengths, dim=1)
        return tuple(head(part) for head, part in zip(self.heads, x, strict=True))


def masks(offset: Float[Tensor, "*m"], keys: Float[Tensor, "m t"]) -> Bool[Tensor, "m t"]:
    """M masks of T positions. Each hides k, uniform on 1..T, and each set of k positions is equally likely.

    The M numbers k are spread evenly from one common offset modulo 1, as are the times of Kingma et al. 2021 (arXiv
    2107.00630, "low-discrepancy sampler"): together they cover 1..T from few to all, and each alone is uniform, whichever
    row it is. Rows may stand in the order of the data set.

    Args:
        offset: one number, uniform on [0, 1). Masks of one and the same image may have one each instead, uniform on [0, 1/M):
            its mean over them is then less noisy.
        keys: uniform on [0, 1); the k smallest of a row are hidden.
    """
    count, length = keys.shape
    fraction = (torch.arange(count, device=keys.device) / count + offset) % 1
    hidden = (fraction * length).long().clamp(max=length - 1) + 1  # the clamp: a share may be rounded to 1
    return places(keys) < hidden[:, None]


def mean(values: Float[Tensor, "b t"], masked: Bool[Tensor, "*b t"]) -> Float[Tensor, " b"]:
    """Over the hidden codes of each image."""
    return (values * masked).sum(1) / masked.sum(-1)


def places(keys: Float[Tensor, "m t"]) -> Int[Tensor, "m t"]:
    """The place of each value in its row, 0 for the smallest; of equals the left one comes first."""
    return keys.argsort(dim=1, stable=True).argsort(dim=1)


def left(unknown: Int[Tensor, " n"], index: int, passes: int, decoding: Decoding) -> Int[Tensor, " n"]:
    """How many of the codes that were `unknown` at the start are still hidden after pass `index` of `passes`.

    `random` reveals equally many in each pass; `confidence` few at first and many at last, when most is known already:
    the cosine of MaskGIT (Chang et al. 2022, arXiv 2202.04200, sec. 3.3). As there, a pass reveals one at least, so
    that `passes` >= `unknown` reveal one at a time, and the last pass leaves none.
    """
    linear = unknown * (passes - index) // passes  # in integers: rounding must not reveal two where one is due
    cosine = (unknown * math.cos(math.pi / 2 * index / passes)).long()
    return (linear if decoding == "random" else cosine).minimum(unknown - index).clamp(min=0)


def chosen(
    scores: Float[Tensor, "n t"], masked: Bool[Tensor, "n t"], remaining: Int[Tensor, " n"]
) -> Bool[Tensor, "n t"]:
    """Hidden positions to be revealed: those of the highest scores, all but `remaining` of them."""
    last = (-scores).masked_fill(~masked, math.inf)  # what is known already comes after all that is hidden
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
    """Codes drawn at the positions `where`, each by itself, and their log-probabilities in nats before temperature and
    truncation, which would make all codes of `top_k` 1 equally certain. Elsewhere both are 0."""
    codes, log_prob = torch.zeros_like(where, dtype=torch.int64), torch.zeros_like(uniforms)
    lengths = [grid.shape[1] for grid in logits]
    for grid, *parts in zip(logits, *(x.split(lengths, 1) for x in (where, uniforms, codes, log_prob)), strict=True):
        here, numbers, code, certain = parts  # the last two are views, to be written to
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
    """Which codes one step reveals, and what they are there: all that are `masked` but `remaining` of them.

    At random, where `heat` is None; else a code is drawn for every masked position, and those of the highest
    log-probability + heat * Gumbel noise stay (Chang et al. 2022, sec. 3.2). `numbers` are uniform on [0, 1).
    """
    uniforms, noise = numbers
    if heat is None:
        where = chosen(noise, masked, remaining)
        return where, sampled(logits, sampling, uniforms, where)[0]
    codes, log_prob = sampled(logits, sampling, uniforms, masked)
    return chosen(log_prob + heat * gumbel(noise), masked, remaining), codes
