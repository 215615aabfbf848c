"""Dropout that is fast on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def dropped(x: Float[Tensor, "*shape"], probability: float) -> Float[Tensor, "*shape"]:
    """Dropout (Srivastava et al. 2014), scaled to keep the mean. The mask of `F.dropout` takes a fifth of a whole training
    step on CPU; comparing uniform numbers is four times as fast."""
    if not probability:
        return x
    return x * (torch.rand_like(x) >= probability).to(x.dtype).mul_(1 / (1 - probability))
