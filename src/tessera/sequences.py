"""Likelihood of codes [B,T] from logits: one [B,h*w,K] per grid, in the order of `core.space.CodeSpace`. K may differ by grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def code_log_prob(logits: Sequence[Float[Tensor, "b n k"]], codes: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """log p of each code under its logits, in nats (at most 0)."""
    parts = codes.split([grid.shape[1] for grid in logits], dim=1)
    # as [B * n, K]: cross_entropy over a middle axis is several times slower
    terms = [
        F.cross_entropy(grid.flatten(0, 1), part.flatten(), reduction="none").view(part.shape)
        for grid, part in zip(logits, parts, strict=True)
    ]
    return -torch.cat(terms, dim=1)


def log_prob(logits: Sequence[Float[Tensor, "b n k"]], codes: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """log p of each image's codes in nats: by the chain rule, the sum over its T codes."""
    return code_log_prob(logits, codes).sum(1)


def nll(logits: Sequence[Float[Tensor, "b n k"]], codes: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood in nats per code (at least 0), over all T codes of all images."""
    return -code_log_prob(logits, codes).mean()


def right(logits: Sequence[Float[Tensor, "b n k"]], codes: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """Fraction of each image's codes, from 0 to 1, that have the largest logit."""
    return (torch.cat([grid.argmax(2) for grid in logits], dim=1) == codes).float().mean(1)
