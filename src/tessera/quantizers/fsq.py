"""Finite scalar quantization: every channel is bounded and rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505).

The codebook is fixed: all combinations of levels. No code vector is learned, so none can die, and no loss term is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from tessera.core.contracts import Quantized, Quantizer
from tessera.core.errors import InputError
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params

LEVELS = {
    1 << 8: (8, 6, 5),
    1 << 10: (8, 5, 5, 5),
    1 << 12: (7, 5, 5, 5, 5),
    1 << 14: (8, 8, 8, 6, 5),
    1 << 16: (8, 8, 8, 5, 5, 5),
}  # table 1: levels for a codebook of about that size
EPSILON = 1e-3  # tanh never reaches its limits: a range wider by this fraction includes the outermost levels
LARGEST = 1000  # most levels per channel: with more than 1 / EPSILON, the wider range would round to one level too many
MOST = 1 << 20  # most codes


class Config(Strict):
    codebook_size: int = Field(
        ge=2, le=MOST, description="if `levels` is empty: about K, a size of the paper's table 1", examples=[8]
    )
    levels: list[Annotated[int, Field(ge=2, le=LARGEST)]] = Field(
        description="number of values of each of D channels; their product is K; empty: set by codebook_size",
        examples=[[4, 3]],
    )

    @model_validator(mode="after")
    def _few(self) -> Config:
        if math.prod(self.levels) > MOST:
            raise ValueError(f"levels must have a product of at most {MOST}, got {math.prod(self.levels)}: give fewer")
        return self

    def rule(self, params: Params | None = None) -> Iterator[str]:
        """Holds only if FSQ is chosen: other quantizers also read codebook_size, and allow other values."""
        if not self.levels and self.codebook_size not in LEVELS:
            yield (
                f"quantizer.codebook_size: must be one of {', '.join(map(str, LEVELS))} while quantizer.fsq.levels is "
                f"empty, got {self.codebook_size}; give quantizer.fsq.levels"
            )


class FSQ(nn.Module):
    """Channel d has `levels[d]` values: the whole numbers around 0, divided by the largest magnitude. They go from -1 to 1,
    or for an even number of levels from -1 to less than 1. Channel 0 is the lowest digit of a code, in base `levels[0]`, as
    in the paper's appendix.

    The bound is the paper's (sec. 3.1, appendix A.1) with two changes. It has arctanh where the paper's listing has tan, so
    that z = 0 is exactly level 0. Its range is wider by epsilon, not narrower. The state dict is empty.
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = len(levels), (math.prod(levels),)
        reach = [(n - 1) * (1 + EPSILON) / 2 for n in levels]
        offset = [0.0 if n % 2 else 0.5 for n in levels]
        # z = 0 becomes level 0. Of two levels that is an outermost one, where tanh is flat: they are split at z = 0 instead
        shift = [math.atanh(o / r) if n > 2 else 0.0 for n, o, r in zip(levels, offset, reach, strict=True)]
        basis = [math.prod(levels[:d]) for d in range(len(levels))]
        constants = {"reach": reach, "offset": offset, "shift": shift, "levels": list(levels), "basis": basis}
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)  # [D,1,1]

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        codes = torch.arange(self.codebook_sizes[0], device=self.basis.device)
        return (self.decode(codes.view(-1, 1, 1, 1)).flatten(1),)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return self._values(codes // self.basis % self.levels)

    def _values(self, digits: Int[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Values of the digits. `decode` and `forward` both use it, so that their values are equal to the bit."""
        centre = self.levels // 2
        return (digits - centre).float() / centre

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):  # half precision would give other codes
            bounded = torch.tanh(z.float() + self.shift) * self.reach - self.offset
            centre = self.levels // 2
            digits = (bounded.detach().round().long() + centre).clamp(min=0)  # also for NaN
            # not `codebook.straight_through`: without a loss on z, only z_q can show a NaN; else x - x is 0 and z_q exact
            z_q = self._values(digits) + (bounded - bounded.detach()) / centre
        return Quantized(z_q, (digits * self.basis).sum(1, keepdim=True), {})


def build(config: Config, dim: int | None) -> Quantizer:
    """
    Raises:
        InputError: there are no levels for `codebook_size`, or their number is not the `dim` that the tokenizer fixes.
    """
    for problem in config.rule():
        raise InputError(problem)
    levels = tuple(config.levels) or LEVELS[config.codebook_size]
    if dim not in (None, len(levels)):
        raise InputError(
            f"quantizer.fsq.levels: must have one entry for each of the {dim} channels that the tokenizer fixes, got "
            f"{len(levels)} ({list(levels)}); give {dim}, or choose another quantizer.name"
        )
    return FSQ(levels)
