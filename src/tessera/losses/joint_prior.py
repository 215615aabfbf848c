"""A small prior trained together with the tokenizer: codes should be easy to predict from the codes before them. LARP (Wang
et al. 2024, arXiv 2410.21264) trains a tokenizer of videos with such a prior; here it is smaller and reads z_q of a grid.
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
from tessera.codebooks import delay
from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.errors import InputError
from tessera.levels import Level, levels_of

if TYPE_CHECKING:
    from tessera.core.params import Params
    from tessera.core.run import Run


class Config(Size):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])

    def rule(self, params: Params) -> Iterator[str]:
        if self.weight and params.post_hoc:
            yield (
                f"losses.joint_prior.weight: must be 0 where codes are found after training (quantizer.name "
                f"{params.value('quantizer.name')}), got {self.weight}; choose another quantizer"
            )
        elif self.weight:
            yield from delay.only_quantized("joint_prior", params)


class JointPrior(nn.Module):
    """One small causal network per level predicts each code from the z_q before it in raster order. Cross entropy in nats
    per code, over all levels and depths.

    The choice of codes has no gradient. The encoder gets its gradient through z_q, by the quantizer's estimator. The depths
    of a position do not see each other, nor do levels.

    Args:
        levels: those that count, the last of the tokenizer's: global codes before them have a term of their own.
        codebook_sizes: of all grids of the tokenizer.
    """

    def __init__(self, config: Config, levels: tuple[Level, ...], codebook_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = tuple(tuple(codebook_sizes[level.start : level.start + level.depth]) for level in levels)
        self.networks = nn.ModuleList(
            CausalTransformer(level.dim, sum(sizes), level.height * level.width, config)
            for level, sizes in zip(levels, self.sizes, strict=True)
        )

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        nats, count = x.new_zeros((), dtype=torch.float32), 0
        levels = output.quantized[-len(self.networks) :]
        for network, sizes, level in zip(self.networks, self.sizes, levels, strict=True):
            logits = network(raster(level.z_q)).float().split(sizes, dim=2)
            for depth, codes in zip(logits, level.codes.unbind(1), strict=True):
                nats = nats + F.cross_entropy(depth.transpose(1, 2), codes.flatten(1).long(), reduction="sum")
            count += level.codes.numel()
        return nats / count


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    levels = tokenizer.space.placed(levels_of(tokenizer))
    if not all(level.depth for level in levels):
        raise InputError(
            f"losses.joint_prior.weight: must be 0 where training has no codes, got {config.weight}; choose a tokenizer "
            "and a quantizer that are trained together"
        )
    return JointPrior(config, levels, tokenizer.space.sizes)
