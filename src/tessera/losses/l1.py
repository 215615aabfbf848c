"""Mean absolute error on [-1, 1]: the Laplacian reconstruction term (Isola et al. 2017, arXiv 1611.07004, eq. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.run import Run


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])


class L1(nn.Module):
    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        return F.l1_loss(output.reconstruction, x)


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return L1()
