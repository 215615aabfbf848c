"""Causally regularised tokenization (Ramanujan et al. 2024, arXiv 2412.16326): latents should be easy to predict in the
order of the prior.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.attention.causal import CausalTransformer, Size, raster
from tessera.codebooks import codebook
from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.levels import Level, levels_of

if TYPE_CHECKING:
    from tessera.core.params import Params
    from tessera.core.run import Run


class Config(Size):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])

    def rule(self, params: Params) -> Iterator[str]:
        if self.weight:
            yield from codebook.blind_to_length("predictability", params)


class Predictability(nn.Module):
    """One small causal network per level, trained with the tokenizer, predicts each latent (before quantization) from the
    latents before it in raster order; the first has no input. Squared error, mean over positions and dimensions, then over
    levels.

    The gradient reaches both the predicted latents and the latents they are predicted from. Smaller latents lower the loss
    too: without a reconstruction or commitment term they shrink.

    Args:
        levels: those that count, the last of the tokenizer's: global codes before them have a term of their own.
    """

    def __init__(self, config: Config, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            CausalTransformer(level.dim, level.dim, level.height * level.width, config) for level in levels
        )

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        sequences = [raster(z) for z in output.latents[-len(self.networks) :]]
        pairs = zip(self.networks, sequences, strict=True)
        return torch.stack([F.mse_loss(network(z).float(), z.float()) for network, z in pairs]).mean()


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return Predictability(config, tokenizer.space.placed(levels_of(tokenizer)))
