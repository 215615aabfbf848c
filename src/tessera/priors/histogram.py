"""Independent codes with their frequencies in the training split: the order-0 baseline that any prior must beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from tessera import sequences
from tessera.autoregression.base import Autoregressive
from tessera.autoregression.sampling import CodeWalk
from tessera.core.contracts import ClosedFormPrior
from tessera.core.params import Strict
from tessera.core.space import CodeSpace

CLOSED_FORM = True  # fitted in one pass, by `fit`


class Config(Strict):
    per_position: bool = Field(description="true: one histogram per position of a grid; false: one per grid",
                               examples=[False])  # fmt: skip
    smoothing: float = Field(ge=0, description="pseudo-count added to each code; at 0 a code unseen in training has "
                             "probability 0, and held-out codes can cost infinite nats", examples=[0.5])  # fmt: skip


class Frequencies(nn.Module):
    """log p(code | label, position) of one grid, in nats, [classes or 1, positions or 1, K]; uniform until fitted."""

    log_probabilities: Float[Tensor, "labels positions k"]

    def __init__(self, labels: int, positions: int, codebook_size: int) -> None:
        super().__init__()
        table = torch.full((labels, positions, codebook_size), -math.log(codebook_size))
        self.register_buffer("log_probabilities", table)

    def fit(self, codes: Int[Tensor, "b n"], labels: Int[Tensor, " b"], smoothing: float) -> None:
        """Maximum likelihood at smoothing 0, else the mean under a symmetric Dirichlet prior: (count + s) / (N + s K).
        The row of a label without images stays uniform."""
        rows, positions, size = self.log_probabilities.shape
        place = torch.arange(codes.shape[1], device=codes.device) % positions  # all 0 if positions share a histogram
        cells = (labels[:, None] * positions + place) * size + codes
        counts = torch.bincount(cells.flatten(), minlength=rows * positions * size).view(rows, positions, size)
        weights = counts.double() + smoothing
        weights[weights.sum(-1) == 0] = 1
        self.log_probabilities.copy_((weights / weights.sum(-1, keepdim=True)).log())

    def forward(self, labels: Int[Tensor, " b"], positions: int) -> Float[Tensor, "b n k"]:
        return self.log_probabilities[labels].expand(-1, positions, -1)


class Histogram(Autoregressive):
    """See `core.contracts.Prior`. `fit` is in closed form; there is nothing to train."""

    def __init__(self, config: Config, space: CodeSpace, classes: int) -> None:
        super().__init__(space, classes)
        self.smoothing = config.smoothing
        frequencies = [
            Frequencies(classes + 1, length if config.per_position else 1, size)
            for length, size in zip(space.lengths, space.sizes, strict=True)
        ]
        self.frequencies = cast("Sequence[Frequencies]", nn.ModuleList(frequencies))

    def fit(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> None:
        sequences.require_labels(labels, self.classes, len(codes))
        rows = self._rows(labels, len(codes))
        everyone = torch.full_like(rows, self.classes)  # the row for no label counts all images
        for part, table in zip(self.space.split(codes), self.frequencies, strict=True):
            own = part.flatten(1).to(rows.device)
            given = (own, rows) if labels is None else (torch.cat([own, own]), torch.cat([rows, everyone]))
            table.fit(*given, self.smoothing)

    def _rows(self, labels: Int[Tensor, " b"] | None, count: int) -> Int[Tensor, " b"]:
        """Row of the tables for each image: its label, or the last row without labels."""
        device = self.frequencies[0].log_probabilities.device
        none = torch.full((count,), self.classes, dtype=torch.int64, device=device)
        return none if labels is None else labels.to(device)

    def predict(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """log p of every code; earlier codes do not matter."""
        rows = self._rows(labels, len(codes))
        return tuple(table(rows, length) for table, length in zip(self.frequencies, self.space.lengths, strict=True))

    def walk(self, n: int, labels: Int[Tensor, " n"] | None) -> CodeWalk:
        """The codes sampled at a position do not affect later ones."""
        rows = self._rows(labels, n)
        for table, length in zip(self.frequencies, self.space.lengths, strict=True):
            for logits in table(rows, length).unbind(1):  # noqa: UP028  `yield from` a tuple cannot receive codes
                yield logits


fit = Histogram.fit  # also a name of the module, so callers see without building it that this prior is fitted


def build(config: Config, space: CodeSpace, classes: int) -> ClosedFormPrior:
    return Histogram(config, space, classes)
