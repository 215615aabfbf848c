"""Independent codes with the frequencies of the training split: the order-0 baseline that any prior must beat."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera.core.contracts import Grids, Sampling
from tessera.core.params import Strict
from tessera.nn import sampling as draws
from tessera.nn import sequences


class Config(Strict):
    per_position: bool = Field(description="a histogram for each position of a grid; false: one for the whole grid",
                               examples=[False])  # fmt: skip
    smoothing: float = Field(ge=0, description="pseudo-count added to each code; at 0 a code unseen in training has "
                             "probability 0, and held-out codes may cost infinite nats", examples=[0.5])  # fmt: skip


class Frequencies(nn.Module):
    """log p(code | label, position) of one grid, in nats, [classes or 1, positions or 1, K]; uniform until fitted."""

    def __init__(self, labels: int, positions: int, codebook_size: int) -> None:
        super().__init__()
        table = torch.full((labels, positions, codebook_size), -math.log(codebook_size))
        self.register_buffer("log_probabilities", table)

    def fit(self, codes: Int[Tensor, "b n"], labels: Int[Tensor, " b"], smoothing: float) -> None:
        """Maximum likelihood at smoothing 0, else the mean under a symmetric Dirichlet prior: (count + s) / (N + s K).
        A label that no image has stays uniform."""
        rows, positions, size = self.log_probabilities.shape
        place = torch.arange(codes.shape[1], device=codes.device) % positions  # all 0 where positions share a histogram
        cells = (labels[:, None] * positions + place) * size + codes
        counts = torch.bincount(cells.flatten(), minlength=rows * positions * size).view(rows, positions, size)
        weights = counts.double() + smoothing
        weights[weights.sum(-1) == 0] = 1
        self.log_probabilities.copy_((weights / weights.sum(-1, keepdim=True)).log())

    def forward(self, labels: Int[Tensor, " b"], positions: int) -> Float[Tensor, "b n k"]:
        return self.log_probabilities[labels].expand(-1, positions, -1)


class Histogram(nn.Module):
    """See `core.contracts.Prior`. Its fit is in closed form; there is nothing to train."""

    def __init__(self, config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.config, self.grids, self.codebook_sizes, self.classes = config, grids, codebook_sizes, classes
        self.frequencies = nn.ModuleList(
            Frequencies(max(classes, 1), height * width if config.per_position else 1, size)
            for (height, width), size in zip(grids, codebook_sizes, strict=True)
        )

    def fit(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> None:
        rows = self._rows(labels, len(codes))
        for part, table in zip(sequences.unflatten(codes, self.grids), self.frequencies, strict=True):
            table.fit(part.flatten(1).to(rows.device), rows, self.config.smoothing)

    def _rows(self, labels: Int[Tensor, " b"] | None, count: int) -> Int[Tensor, " b"]:
        """Which row of the tables is an image's: its label, or the only one."""
        sequences.require_labels(labels, self.classes, count)
        device = self.frequencies[0].log_probabilities.device
        return torch.zeros(count, dtype=torch.int64, device=device) if labels is None else labels.to(device)

    def losses(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> dict[str, Tensor]:
        return {"nll": sequences.nll(self.logits(codes, labels), codes)}

    def logits(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> tuple[Float[Tensor, "b n k"], ...]:
        """log p of every code, whatever the codes before."""
        sequences.unflatten(codes, self.grids)  # refuses another length
        rows = self._rows(labels, len(codes))
        return tuple(
            table(rows, height * width) for table, (height, width) in zip(self.frequencies, self.grids, strict=True)
        )

    def log_prob(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, " b"]:
        return sequences.log_prob(self.logits(codes, labels), codes)

    def steps(self, n: int, labels: Int[Tensor, " n"] | None) -> draws.Steps:
        """Yields logits [n,K] of each position in turn; what is drawn there changes nothing later."""
        rows = self._rows(labels, n)
        for table, (height, width) in zip(self.frequencies, self.grids, strict=True):
            for logits in table(rows, height * width).unbind(1):  # noqa: UP028  a tuple cannot be sent codes
                yield logits

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: Generator,
        sampling: Sampling = Sampling(),  # noqa: B008  a NamedTuple does not change
        labels: Int[Tensor, " n"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]:
        return draws.sample(self, self.steps(n, labels), n, generator, sampling, known, known_mask)


fit = Histogram.fit  # a name of the file too: that a prior is fitted, not trained, is then seen without building it


def build(config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> Histogram:
    return Histogram(config, grids, codebook_sizes, classes)
