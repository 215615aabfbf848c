"""Binary cross entropy of intensities: the Bernoulli reconstruction term (Kingma & Welling 2014, arXiv 1312.6114,
appendix C.1).

Intensities between 0 and 1 are taken as probabilities. A perfect reconstruction has the smallest loss, which is not zero
but the entropy of the intensities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params
    from tessera.core.run import Run


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])

    def rule(self, params: Params) -> Iterator[str]:
        kind = getattr(params.config("tokenizer"), "output", "tanh")
        if self.weight and kind != "tanh":
            where = f"tokenizer.{params.value('tokenizer.name')}.output"
            yield (
                f"losses.bce.weight: must be 0 where {where} is {kind!r}, which leaves [-1, 1], got {self.weight}; "
                f"set {where} to tanh"
            )


class BCE(nn.Module):
    """Nats, mean over all image values. The target is (x + 1) / 2, the probability (reconstruction + 1) / 2."""

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        with torch.autocast(
            x.device.type, enabled=False
        ):  # half precision is too coarse near 0 and 1; `conv.Tanh` avoids it too
            probability = (output.reconstruction.float() + 1) / 2
            # clamp: without the rule, a linear output outside [-1, 1] would fail an assertion on the device
            return F.binary_cross_entropy(probability.clamp(0, 1), (x.float() + 1) / 2)


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return BCE()
