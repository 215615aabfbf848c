"""Base class of autoregressive priors: loss, likelihood and sampling, from the two methods a prior defines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from tessera import sequences
from tessera.autoregression import sampling as walks
from tessera.core.contracts import Likelihood, Sampling
from tessera.core.space import CodeSpace


class Autoregressive(nn.Module):
    """See `core.contracts.Prior`. p(codes | label) = product over positions of p(code | codes before, label).

    A prior defines `predict`, one pass over finished codes, and `walk`, the loop over positions with a cache. `order` is the
    sequence of positions in which codes are sampled; "before" means before in this order.
    """

    exact = True
    capturable = True

    def __init__(self, space: CodeSpace, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.space, self.classes, self.dropout = space, classes, dropout

    @property
    def order(self) -> Sequence[int]:
        return range(self.space.length)

    def predict(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits per grid of each code given the codes before it; `dropout` is a probability, 0 outside training."""
        raise NotImplementedError

    def walk(self, n: int, labels: Int[Tensor, " n"] | None) -> walks.CodeWalk:
        """Yields logits [n,K] of each position in `order`, and receives the codes [n] sampled there."""
        raise NotImplementedError

    def losses(
        self,
        codes: Int[Tensor, "b t"],
        labels: Int[Tensor, " b"] | None,
        done: float = 1.0,
        inputs: Int[Tensor, "b t"] | None = None,
    ) -> dict[str, Tensor]:
        self.require(codes, labels)
        seen = codes if inputs is None else inputs
        logits = self.predict(seen, labels, self.dropout if self.training else 0.0)
        return {"nll": sequences.nll(logits, codes)}

    def logits(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits per grid: row t is p(code t | codes before t), and does not depend on the codes from t on."""
        self.require(codes, labels)
        return self.predict(codes, labels, 0.0)

    def likelihood(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> Likelihood:
        logits = self.logits(codes, labels)
        return Likelihood(sequences.log_prob(logits, codes), sequences.right(logits, codes))

    def log_prob(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, " b"]:
        return self.likelihood(codes, labels).log_prob

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
        return walks.sample(self, self.walk, n, generator, sampling, labels, known, known_mask)

    def require(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> None:
        """
        Raises:
            InputError: labels are missing, superfluous or out of range.
            ValueError: the number of codes does not fit the grids.
        """
        sequences.require_labels(labels, self.classes, len(codes))
        self.space.split(codes)
