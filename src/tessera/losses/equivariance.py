"""EQ-VAE in its implicit form (Kouzelis et al. 2025, arXiv 2502.09509, eq. 5): a rotated or scaled latent must decode to
the image rotated or scaled in the same way.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.levels import evaluating, levels_of

if TYPE_CHECKING:
    from tessera.core.run import Run


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])
    smallest: float = Field(gt=0, lt=1, description="smallest scale of a latent; scales are those from here to 1 that "
                            "keep the sides of every grid whole", examples=[0.25])  # fmt: skip


class Turn(NamedTuple):
    quarters: int

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return x.rot90(self.quarters, (2, 3))


class Scale(NamedTuple):
    """Scales by numerator / denominator, which must give whole sides."""

    numerator: int
    denominator: int

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        size = [side * self.numerator // self.denominator for side in x.shape[2:]]
        return F.interpolate(x.float(), size, mode="bilinear", antialias=True)


class Equivariance(nn.Module):
    """Mean squared error on [-1, 1] between tau(x) and the decoded tau(z), z before quantization.

    In training, tau is sampled per batch from torch's global generator: rotation or scaling with equal probability, then
    any member of that family. In evaluation, the loss is the mean over a quarter turn and the scale nearest to one half.

    The tokenizer runs in evaluation mode here. Statistics of its codebook and batch normalisation must follow only the
    original images, once per step. The commitment terms of tau(z) are left out.

    Args:
        tokenizer: not a sub-module, since the objective trains it already; a deep copy copies both together.
        families: rotations and scales that the tokenizer's grids allow; empty families are left out.
    """

    def __init__(self, tokenizer: Tokenizer, *families: tuple[Turn | Scale, ...]) -> None:
        super().__init__()
        self._others = (tokenizer,)
        self.families = tuple(family for family in families if family)

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        chosen = [self.sampled()] if self.training else [typical(family) for family in self.families]
        return torch.stack([self.error(tau, x, output.latents) for tau in chosen]).mean()

    def sampled(self) -> Turn | Scale:
        """A random tau, sampled on the CPU, so that it is the same on every device."""
        family = self.families[int(torch.randint(len(self.families), ()))]
        return family[int(torch.randint(len(family), ()))]

    def error(self, tau: Turn | Scale, x: Tensor, latents: tuple[Tensor, ...]) -> Float[Tensor, ""]:
        (tokenizer,) = self._others
        with evaluating(tokenizer):
            first = tokenizer.space.global_levels  # global codes have no place, and stay
            quantized = tokenizer.quantize(latents[:first] + tuple(tau(z) for z in latents[first:]))
            decoded = tokenizer.decode_vectors(tuple(level.z_q for level in quantized))
        return F.mse_loss(decoded, tau(x))


def typical(family: tuple[Turn | Scale, ...]) -> Turn | Scale:
    if isinstance(family[0], Turn):
        return family[0]
    return min(
        (tau for tau in family if isinstance(tau, Scale)),
        key=lambda scale: abs(scale.numerator / scale.denominator - 0.5),
    )


def turns(sides: list[tuple[int, int]]) -> tuple[Turn, ...]:
    """90, 180 and 270 degrees, for squares only: the tokenizer decodes only images of its own shape."""
    return tuple(Turn(quarters) for quarters in (1, 2, 3)) if all(h == w for h, w in sides) else ()


def scales(sides: list[tuple[int, int]], smallest: float) -> tuple[Scale, ...]:
    """The scales in [smallest, 1) that keep all sides whole: fractions whose denominator is the sides' common divisor."""
    common = gcd(*(side for pair in sides for side in pair))
    return tuple(Scale(i, common) for i in range(1, common) if i / common >= smallest)


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    grids = [(level.height, level.width) for level in tokenizer.space.placed(levels_of(tokenizer))]
    sides = [tokenizer.image_shape[1:], *grids]
    families = turns(sides), scales(sides, config.smallest)
    if max(max(grid) for grid in grids) == 1 or not any(families):
        raise InputError(
            "losses.equivariance.weight: must be 0 where latents have no grid that can be turned or scaled, got "
            f"{config.weight} with grids {', '.join(f'{h}x{w}' for h, w in grids)}; choose a tokenizer with larger ones"
        )
    return Equivariance(tokenizer, *families)
