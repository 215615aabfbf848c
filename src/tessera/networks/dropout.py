"""Dropout that is fast on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

VALUES = 2**16  # of 16 bits: a probability is rounded to a multiple of 1 / VALUES


def dropped(x: Float[Tensor, "*shape"], probability: float) -> Float[Tensor, "*shape"]:
    """Dropout (Srivastava et al. 2014), scaled to keep the mean. The mask of `F.dropout` takes a fifth of a whole training step
    on a CPU; comparing uniform numbers is four times as fast, and seven if one random number of 64 bits serves four entries."""
    if not probability:
        return x
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    strides = torch.empty_like(x, device="meta").stride()  # the mask lies in memory as x does
    kept = numbers.view(torch.int16).as_strided(x.shape, strides) >= round(probability * VALUES) - VALUES // 2
    return x * kept.to(x.dtype).mul_(1 / (1 - probability))
