"""Total variation of the latents: neighbours on the grid should be near each other.

As in total variation of images (Rudin et al. 1992) the norms are not squared. An edge costs as much as a gradual change of
the same height, so the term does not blur edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera.codebooks import codebook
from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params
    from tessera.core.run import Run


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])

    def rule(self, params: Params) -> Iterator[str]:
        if not self.weight:
            return
        if getattr(params.config("tokenizer"), "latent", "spatial") == "vector":
            yield (
                f"losses.smoothness.weight: must be 0 where a latent has no neighbours (tokenizer.{params.value('tokenizer.name')}"
                f".latent vector), got {self.weight}; set it to spatial"
            )
        yield from codebook.blind_to_length("smoothness", params)


class Smoothness(nn.Module):
    """sum_ij |z_ij - z_i+1,j| + |z_ij - z_i,j+1|, Euclidean norms, in units of the latents; summed over the levels, mean
    over the batch.

    Args:
        first: index of the first level that counts; global codes before it have no neighbours.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        levels = output.latents[self.first :]
        total = sum((differences(z.float(), axis) for z in levels for axis in (2, 3)), start=x.new_zeros(()))
        return total / len(x)


def differences(z: Float[Tensor, "b d h w"], axis: int) -> Float[Tensor, ""]:
    """Sum of the distances to the next latent along a spatial axis. The norm's gradient at 0 is 0 in torch."""
    return z.diff(dim=axis).norm(dim=1).sum()


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return Smoothness(tokenizer.space.global_levels)
