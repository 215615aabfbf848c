"""Binary cross entropy of intensities: the Bernoulli reconstruction term (Kingma & Welling 2014, arXiv 1312.6114,
appendix C.1).

An intensity between 0 and 1 is read as a probability. Least, but not zero, for a perfect reconstruction: the entropy of
the intensities themselves is left.
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
    """Nats, mean over the values of images. The target is (x + 1) / 2, the probability (r + 1) / 2."""

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        with torch.autocast(
            x.device.type, enabled=False
        ):  # half precision has no room near 0 and 1; nor does `conv.Tanh` use it
            probability = (output.reconstruction.float() + 1) / 2
            # a tokenizer that was given to this class past the rule must not end in an assertion on the device
            return F.binary_cross_entropy(probability.clamp(0, 1), (x.float() + 1) / 2)


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return BCE()
