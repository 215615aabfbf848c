"""The entropy term of LFQ (Yu et al. 2023, arXiv 2310.05737, sec. 3.1; Jansen et al. 2020, arXiv 1911.05894) for any
tokenizer with a codebook. It rewards latents near a single code vector, and even use of all codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera.attention.causal import raster
from tessera.codebooks import codebook, delay
from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.levels import levels_of

if TYPE_CHECKING:
    from tessera.core.params import Params
    from tessera.core.run import Run


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])
    diversity: float = Field(ge=0, description="weight of H(mean p(c|z)) in the term", examples=[1.0])
    temperature: float = Field(gt=0, description="temperature of p(c|z), in squared units of the latents",
                               examples=[1.0])  # fmt: skip

    def rule(self, params: Params) -> Iterator[str]:
        if self.weight and params.post_hoc:
            yield (
                f"losses.code_entropy.weight: must be 0 where codes are found after training (quantizer.name "
                f"{params.value('quantizer.name')}), got {self.weight}; choose another quantizer"
            )
        elif self.weight and params.value("quantizer.name") == "fsq":
            yield (
                "losses.code_entropy.weight: must be 0 with quantizer.name fsq, which bounds the latents before it rounds "
                f"them, so that the nearest code is not theirs, got {self.weight}; choose lfq or a learned codebook"
            )
        if self.weight:
            yield from codebook.blind_to_length("code_entropy", params)
            yield from delay.only_quantized("code_entropy", params)


class CodeEntropy(nn.Module):
    """mean H(p(c|z)) - diversity * H(mean p(c|z)), nats, mean over the levels; p(c|z) = softmax(-|z - e_c|^2 / temperature).

    Means are over the latents in this process's part of the batch. The gradient reaches z; code vectors are constants. For
    a residual quantizer only the first depth counts, since deeper ones quantize residuals.

    Args:
        tokenizer: not a sub-module, since the objective trains it already; a deep copy copies both together.
        starts: index of the first codebook of each level.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, starts: tuple[int, ...]) -> None:
        super().__init__()
        self.diversity, self.temperature, self.starts = config.diversity, config.temperature, starts
        self._others = (tokenizer,)

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        codebooks = self._others[0].codebooks
        terms = []
        with torch.autocast(x.device.type, enabled=False):  # half precision would confuse nearly equal distances
            for z, start in zip(output.latents, self.starts, strict=True):
                rows, codes = raster(z.float()).flatten(0, 1), codebooks[start].detach().float()
                sure, even = entropies(rows, codes, self.temperature)
                terms.append(sure - self.diversity * even)
        return torch.stack(terms).mean()


def entropies(
    z: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean entropy of the assignments, and entropy of the mean assignment, nats.

    Computed in logarithms: the gradient of p log p is not finite where p underflows. |z|^2 is left out, since it does not
    change the softmax. `codebook.nearest` explains why both are centred.
    """
    middle = codebook.centre(z.detach())
    z, codes = z - middle, codes - middle
    log_p = ((2 * z @ codes.t() - codes.square().sum(1)) / temperature).log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.tensor(float(len(z)), device=z.device).log()
    return -(log_p.exp() * log_p).sum(1).mean(), -(log_mean.exp() * log_mean).sum()


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    levels = levels_of(tokenizer)
    for index, level in enumerate(levels):
        has = tuple(tokenizer.codebooks[level.start].shape) if level.depth else None
        if has is None or has[1] != level.dim:
            raise InputError(
                "losses.code_entropy.weight: must be 0 where a level of latents has no codebook of its dimension, got "
                f"{config.weight} with {level.dim} channels and a codebook [K,D] of {has} at level {index}; choose "
                "another quantizer"
            )
    return CodeEntropy(config, tokenizer, tuple(level.start for level in levels))
