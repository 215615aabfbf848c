"""Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), in the precision that is fast for it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def attended(
    query: Float[Tensor, "b heads t d"],
    keys: Float[Tensor, "b kv_heads s d"],
    values: Float[Tensor, "b kv_heads s d"],
    causal: bool,
) -> Float[Tensor, "b heads t d"]:
    """softmax(query keys^T / sqrt(d)) values, in the type of `query`; `causal`: place i sees places 0 to i. `kv_heads` divides
    `heads`, and groups of query heads share keys and values.

    On a CPU it is computed in float32 also under autocast: torch's backward pass in bfloat16 takes five times as long for the
    64 places of an 8x8 grid, and was two thirds of a step of `pixelsnail`.
    """
    grouped = query.shape[1] != keys.shape[1]
    if query.device.type != "cpu" or query.dtype == torch.float64:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=causal, enable_gqa=grouped)
    q, k, v = (x.float() for x in (query, keys, values))
    with torch.autocast("cpu", enabled=False):
        found = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    return found.to(query.dtype)
