"""All codes are equally likely: the prior under which a VQ-VAE is trained, where KL(q | p) is the constant log K (van den
Oord et al. 2017, arXiv 1711.00937, sec. 3.2). Its decoded samples show what a learned prior adds.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import ClosedFormPrior
from tessera.core.params import Strict
from tessera.core.space import CodeSpace

CLOSED_FORM = True  # fitted in one pass, by `fit`


class Config(Strict):
    """No settings."""


class Uniform(Autoregressive):
    """See `core.contracts.Prior`. -log p of an image is the sum of log K over its codes; conditions have no effect."""

    logit: Tensor

    def __init__(self, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning)
        self.register_buffer("logit", torch.zeros(()))  # of every code; its device is the prior's device

    def fit(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> None:
        """Does nothing: the distribution does not depend on codes."""

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        return tuple(
            self.logit.expand(len(codes), length, size)
            for length, size in zip(self.space.lengths, self.space.sizes, strict=True)
        )

    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        for length, size in zip(self.space.lengths, self.space.sizes, strict=True):
            for _ in range(length):
                yield self.logit.expand(n, size)


fit = Uniform.fit  # also a name of the module, so callers see without building it that this prior is fitted


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> ClosedFormPrior:
    return Uniform(space, conditioning)
