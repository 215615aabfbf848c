"""Independent codes with their frequencies in the training split: the order-0 baseline that any prior must beat."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import WORDS, Conditioning
from tessera.core.contracts import ClosedFormPrior
from tessera.core.params import Params, Strict
from tessera.core.space import CodeSpace

CLOSED_FORM = True  # fitted in one pass, by `fit`


class Config(Strict):
    per_position: bool = Field(description="true: one histogram per position of a grid; false: one per grid",
                               examples=[False])  # fmt: skip
    smoothing: float = Field(ge=0, description="pseudo-count added to each code; at 0 a code unseen in training has "
                             "probability 0, and held-out codes can cost infinite nats", examples=[0.5])  # fmt: skip

    def rule(self, params: Params) -> Iterator[str]:
        if len(told := params.conditions) > 1 or WORDS in told:
            yield (
                f"prior.name: histogram can be told one class, not words nor several conditions, got {', '.join(told)}; set "
                "others of prior.conditions to none, or choose another prior"
            )


class Frequencies(nn.Module):
    """log p(code | class, position) of one grid, in nats, [classes + 1, positions or 1, K]; uniform until fitted."""

    log_probabilities: Float[Tensor, "classes positions k"]

    def __init__(self, classes: int, positions: int, codebook_size: int) -> None:
        super().__init__()
        table = torch.full((classes, positions, codebook_size), -math.log(codebook_size))
        self.register_buffer("log_probabilities", table)

    def fit(self, codes: Int[Tensor, "b n"], classes: Int[Tensor, " b"], smoothing: float) -> None:
        """Maximum likelihood at smoothing 0, else the mean under a symmetric Dirichlet prior: (count + s) / (N + s K).
        The row of a class without images stays uniform."""
        rows, positions, size = self.log_probabilities.shape
        place = torch.arange(codes.shape[1], device=codes.device) % positions  # all 0 if positions share a histogram
        cells = (classes[:, None] * positions + place) * size + codes
        counts = torch.bincount(cells.flatten(), minlength=rows * positions * size).view(rows, positions, size)
        weights = counts.double() + smoothing
        weights[weights.sum(-1) == 0] = 1
        self.log_probabilities.copy_((weights / weights.sum(-1, keepdim=True)).log())

    def forward(self, classes: Int[Tensor, " b"], positions: int) -> Float[Tensor, "b n k"]:
        return self.log_probabilities[classes].expand(-1, positions, -1)


class Histogram(Autoregressive):
    """See `core.contracts.Prior`. `fit` is in closed form; there is nothing to train."""

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning)
        told = conditioning.single("histogram")
        self.smoothing, self.none = config.smoothing, told.none if told else 0
        frequencies = [
            Frequencies(self.none + 1, length if config.per_position else 1, size)
            for length, size in zip(space.lengths, space.sizes, strict=True)
        ]
        self.frequencies = cast("Sequence[Frequencies]", nn.ModuleList(frequencies))

    def fit(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> None:
        self.conditioning.require(conditions, len(codes))
        rows = self._rows(conditions, len(codes))
        everyone = torch.full_like(rows, self.none)  # the row for no class counts all images
        for part, table in zip(self.space.split(codes), self.frequencies, strict=True):
            own = part.flatten(1).to(rows.device)
            given = (own, rows) if conditions is None else (torch.cat([own, own]), torch.cat([rows, everyone]))
            table.fit(*given, self.smoothing)

    def _rows(self, conditions: Int[Tensor, "b c"] | None, count: int) -> Int[Tensor, " b"]:
        """Row of the tables for each image: its class, or the last row without one."""
        device = self.frequencies[0].log_probabilities.device
        none = torch.full((count,), self.none, dtype=torch.int64, device=device)
        return none if conditions is None else conditions[:, 0].to(device)

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """log p of every code; earlier codes do not matter."""
        rows = self._rows(conditions, len(codes))
        return tuple(table(rows, length) for table, length in zip(self.frequencies, self.space.lengths, strict=True))

    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        """The codes sampled at a position do not affect later ones."""
        rows = self._rows(conditions, n)
        for table, length in zip(self.frequencies, self.space.lengths, strict=True):
            for logits in table(rows, length).unbind(1):  # noqa: UP028  `yield from` a tuple cannot receive codes
                yield logits


fit = Histogram.fit  # also a name of the module, so callers see without building it that this prior is fitted


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> ClosedFormPrior:
    return Histogram(config, space, conditioning)
