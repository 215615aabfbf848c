"""Base class of autoregressive priors: loss, likelihood and sampling, from the two methods a prior defines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from tessera import sequences
from tessera.autoregression import sampling as walks
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Likelihood, Sampling
from tessera.core.space import CodeSpace


class Autoregressive(nn.Module):
    """See `core.contracts.Prior`. p(codes | conditions) = product over positions of p(code | codes before, conditions).

    A prior defines `predict`, one pass over finished codes, and `walk`, the loop over positions with a cache. `order` is the
    sequence of positions in which codes are sampled; "before" means before in this order.
    """

    exact = True
    capturable = True

    def __init__(self, space: CodeSpace, conditioning: Conditioning, dropout: float = 0.0) -> None:
        super().__init__()
        self.space, self.conditioning, self.dropout = space, conditioning, dropout

    @property
    def order(self) -> Sequence[int]:
        return range(self.space.length)

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits per grid of each code given the codes before it; `dropout` is a probability, 0 outside training."""
        raise NotImplementedError

    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> walks.CodeWalk:
        """Yields logits [n,K] of each position in `order`, and receives the codes [n] sampled there."""
        raise NotImplementedError

    def losses(
        self,
        codes: Int[Tensor, "b t"],
        conditions: Int[Tensor, "b c"] | None,
        done: float = 1.0,
        inputs: Int[Tensor, "b t"] | None = None,
    ) -> dict[str, Tensor]:
        self.require(codes, conditions)
        seen = codes if inputs is None else inputs
        logits = self.predict(seen, conditions, self.dropout if self.training else 0.0)
        return {"nll": sequences.nll(logits, codes)}

    def logits(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits per grid: row t is p(code t | codes before t), and does not depend on the codes from t on."""
        self.require(codes, conditions)
        return self.predict(codes, conditions, 0.0)

    def likelihood(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> Likelihood:
        logits = self.logits(codes, conditions)
        return Likelihood(sequences.log_prob(logits, codes), sequences.right(logits, codes))

    def log_prob(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> Float[Tensor, " b"]:
        return self.likelihood(codes, conditions).log_prob

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: Generator,
        sampling: Sampling = Sampling(),  # noqa: B008  a NamedTuple does not change
        conditions: Int[Tensor, "n c"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]:
        return walks.sample(self, self.walk, n, generator, sampling, conditions, known, known_mask)

    def require(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> None:
        """
        Raises:
            InputError: conditions are missing, superfluous or out of range.
            ValueError: the number of codes does not fit the grids.
        """
        self.conditioning.require(conditions, len(codes))
        self.space.split(codes)
