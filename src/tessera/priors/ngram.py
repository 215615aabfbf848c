"""Counts of each code given its neighbours, smoothed by counts given fewer neighbours: the baseline of local structure.

Hierarchical Dirichlet back-off (MacKay & Peto 1995, "A hierarchical Dirichlet language model") with a single strength:

    p_m(c | s_1 ... s_m) = (count(s_1 ... s_m, c) + strength p_{m-1}(c | s_1 ... s_{m-1})) / (N(s_1 ... s_m) + strength)

s_1 is the code at the same place of the grid before, if there is one. Then follow the neighbours, from near to far, and last
the class, of a prior that is told one. p_0 has no context and is smoothed by the uniform distribution. An unseen context backs
off to the shorter one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.condition import resized
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import WORDS, Conditioning
from tessera.core.contracts import ClosedFormPrior
from tessera.core.params import Params, Strict
from tessera.core.space import CodeSpace

Neighbour = Literal["left", "above", "above_left", "above_right"]
PLACES = {"left": (1, 0), "above": (0, 1), "above_left": (0, 0), "above_right": (0, 2)}  # (y, x), padded by one

CLOSED_FORM = True  # fitted in one pass, by `fit`


class Config(Strict):
    context: list[Neighbour] = Field(min_length=1, description="nearest neighbour first", examples=[["left", "above"]])
    strength: float = Field(gt=0, description="pseudo-count of the shorter context's distribution", examples=[2.0])
    smoothing: float = Field(gt=0, description="pseudo-count of each code without context", examples=[0.5])

    @field_validator("context")
    @classmethod
    def _once(cls, value: list[Neighbour]) -> list[Neighbour]:
        if len(set(value)) < len(value):
            raise ValueError(f"must name a neighbour once, got {value}")
        return value

    def rule(self, params: Params) -> Iterator[str]:
        if len(told := params.conditions) > 1 or WORDS in told:
            yield (
                f"prior.name: ngram can be told one class, not words nor several conditions, got {', '.join(told)}; set "
                "others of prior.conditions to none, or choose another prior"
            )


class Counts(nn.Module):
    """How often each code followed each seen context of one length. Contexts are numbered in the order of (number of the
    shorter context, last symbol), so a key has two digits for any context length."""

    sized_by_data = ("contexts", "entries", "counts")  # buffers whose length depends on the data

    def __init__(self, symbols: int, codebook_size: int) -> None:
        super().__init__()
        self.symbols, self.codebook_size = symbols, codebook_size
        # sorted shorter * symbols + symbol; sorted context * K + code; how often this code followed this context
        for name in self.sized_by_data:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))

    def _keys(self, shorter: Int[Tensor, " n"], symbols: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Negative if the shorter context was never seen, or if the symbol is the id that means no class."""
        return torch.where(symbols < self.symbols, shorter * self.symbols + symbols, -1)

    def fit(self, shorter: Int[Tensor, " n"], symbols: Int[Tensor, " n"], codes: Int[Tensor, " n"]) -> None:
        keys = self._keys(shorter, symbols)
        self.contexts, contexts = torch.unique(keys[keys >= 0], return_inverse=True)
        self.entries, self.counts = torch.unique(contexts * self.codebook_size + codes[keys >= 0], return_counts=True)

    def find(self, shorter: Int[Tensor, " n"], symbols: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The number of each context; -1 for an unseen one."""
        keys = self._keys(shorter, symbols)
        first, after = (torch.searchsorted(self.contexts, keys, right=right) for right in (False, True))
        return torch.where(after > first, first, -1)

    def forward(self, contexts: Int[Tensor, " n"], p: Float[Tensor, "n k"], strength: float) -> Float[Tensor, "n k"]:
        """p_m from p_{m-1}, which is overwritten. Visits only the seen codes, those of all contexts at once."""
        first = torch.searchsorted(self.entries, contexts * self.codebook_size)
        many = torch.searchsorted(self.entries, (contexts + 1) * self.codebook_size) - first
        rows = torch.arange(len(p), device=p.device).repeat_interleave(many)
        # index of an entry: the first of its context, plus the number of earlier entries of the same row
        places = torch.arange(len(rows), device=p.device) + (first + many - many.cumsum(0))[rows]
        counts = self.counts[places].to(p.dtype)
        totals = p.new_zeros(len(p)).index_add_(0, rows, counts)
        p.mul_(strength)[rows, self.entries[places] % self.codebook_size] += counts  # a row has each code once
        return p.div_((totals + strength)[:, None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.sized_by_data:
            if prefix + name in state_dict:
                setattr(self, name, self.counts.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class NGram(Autoregressive):
    """See `core.contracts.Prior`. `fit` is in closed form; there is nothing to train. Logits are log p in float64."""

    capturable = False  # contexts are looked up

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning)
        self.config, told = config, conditioning.single("ngram")
        tables = nn.ModuleList()
        for index, size in enumerate(space.sizes):
            symbols = [1, *space.sizes[:index][-1:], *[size + 1] * len(config.context), *([told.none] if told else [])]
            tables.append(nn.ModuleList(Counts(count, size) for count in symbols))
        # per grid, from the empty context to the longest
        self.tables = cast("Sequence[Sequence[Counts]]", tables)

    def _symbols(self, codes: Int[Tensor, "b t"], index: int, conditions: Int[Tensor, "b c"] | None) -> list[Tensor]:
        """Symbols [b,h,w] of one grid's contexts, one tensor per table. The first table has no context: its symbol is 0."""
        *earlier, grid = self.space.split(codes)[: index + 1]
        height, width = self.space.grids[index]
        padded = F.pad(grid, (1, 1, 1, 0), value=self.space.sizes[index])  # K is the symbol outside the grid
        symbols = [torch.zeros_like(grid), *(resized(part, height, width) for part in earlier[-1:])]
        symbols += [padded[:, y : y + height, x : x + width] for y, x in (PLACES[name] for name in self.config.context)]
        return symbols if conditions is None else [*symbols, conditions.to(grid.device)[:, :, None].expand_as(grid)]

    def fit(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> None:
        self.require(codes, conditions)
        codes = codes.to(self.tables[0][0].counts.device)
        for index, (tables, part) in enumerate(zip(self.tables, self.space.split(codes), strict=True)):
            contexts = torch.zeros_like(part).flatten()
            for table, symbols in zip(tables, self._symbols(codes, index, conditions), strict=True):
                table.fit(contexts, symbols.flatten(), part.flatten())
                contexts = table.find(contexts, symbols.flatten())

    def _logits(self, index: int, symbols: list[Int[Tensor, " n"]]) -> Float[Tensor, "n k"]:
        """Computes one row of p per distinct context, table by table; `rows` maps positions to rows."""
        size, strength = self.space.sizes[index], self.config.smoothing * self.space.sizes[index]
        contexts = rows = torch.zeros_like(symbols[0])
        p = torch.full((1, size), 1 / size, dtype=torch.float64, device=rows.device)
        for table, symbol in zip(self.tables[index], symbols, strict=True):
            contexts, base = table.find(contexts, symbol), len(table.contexts) + 1
            pairs, rows = torch.unique(rows * base + contexts + 1, return_inverse=True)  # unseen contexts keep p_{m-1}
            p, strength = table(pairs % base - 1, p.index_select(0, pairs // base), strength), self.config.strength
        return p.log_().index_select(0, rows)

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        symbols = [
            [symbol.flatten() for symbol in self._symbols(codes, i, conditions)] for i in range(len(self.space.grids))
        ]
        return tuple(self._logits(i, given).unflatten(0, (len(codes), -1)) for i, given in enumerate(symbols))

    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        """A position costs one look-up in each table."""
        codes = self.tables[0][0].counts.new_zeros(n, self.space.length)
        for t in self.order:
            index, place = self.space.locate(t)
            y, x = divmod(place, self.space.grids[index][1])
            codes[:, t] = yield self._logits(
                index, [symbol[:, y, x] for symbol in self._symbols(codes, index, conditions)]
            )


fit = NGram.fit  # also a name of the module, so callers see without building it that this prior is fitted


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> ClosedFormPrior:
    return NGram(config, space, conditioning)
