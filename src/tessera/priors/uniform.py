"""Every code equally likely: the "wrong" prior that a VQ-VAE is trained under, where KL(q | p) is the constant log K
(van den Oord et al. 2017, arXiv 1711.00937, sec. 3.2). What codes drawn from it decode to shows what a prior is for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.sampling import CodeWalk
from tessera.core.contracts import ClosedFormPrior
from tessera.core.params import Strict
from tessera.core.space import CodeSpace

CLOSED_FORM = True  # fitted in one pass, by `fit`


class Config(Strict):
    """Nothing to choose."""


class Uniform(Autoregressive):
    """See `core.contracts.Prior`. -log p of an image is the sum of log K over its codes; labels change nothing."""

    logit: Tensor

    def __init__(self, space: CodeSpace, classes: int) -> None:
        super().__init__(space, classes)
        self.register_buffer("logit", torch.zeros(()))  # of every code; it says on which device the prior lives

    def fit(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> None:
        """Codes change nothing."""

    def predict(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        return tuple(
            self.logit.expand(len(codes), length, size)
            for length, size in zip(self.space.lengths, self.space.sizes, strict=True)
        )

    def walk(self, n: int, labels: Int[Tensor, " n"] | None) -> CodeWalk:
        for length, size in zip(self.space.lengths, self.space.sizes, strict=True):
            for _ in range(length):
                yield self.logit.expand(n, size)


fit = Uniform.fit  # a name of the file too: that a prior is fitted, not trained, is then seen without building it


def build(config: Config, space: CodeSpace, classes: int) -> ClosedFormPrior:
    return Uniform(space, classes)
