"""Preparation and checks of the latents that post-hoc quantizers are fitted to.

Always on the CPU: sums on a GPU depend on the order of its threads, and a fit must be reproducible.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tessera.core.errors import InputError


def rule(name: str, latents: int, codebook_size: int) -> Iterator[str]:
    """Rule on params, checked before any work: at least as many latents as codes."""
    if latents < codebook_size:
        yield (
            f"quantizer.{name}.latents: must be at least quantizer.codebook_size {codebook_size}, got {latents}; "
            "raise it, or lower quantizer.codebook_size"
        )


def checked(name: str, latents: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n d"]:
    """The latents in float32 on the CPU.

    Raises:
        InputError: there are fewer than `k`, or some are not finite.
    """
    rows = latents.detach().float().cpu()
    broken = int((~torch.isfinite(rows)).any(1).sum())
    if broken:
        raise InputError(
            f"quantizer.{name}: the latents it is fitted to must be finite, {broken} of {len(rows)} are not; "
            "train the tokenizer again, with a lower tokenizer.training.lr"
        )
    if len(rows) < k:
        raise _too_few(name, len(rows), "latents", k)
    return rows


def distinct(name: str, rows: Float[Tensor, "n d"], k: int) -> Int[Tensor, " u"]:
    """`firsts`, with a check.

    Raises:
        InputError: fewer than `k` rows differ, so some code vectors would be copies of others.
    """
    first = firsts(rows)
    if len(first) < k:
        raise _too_few(name, len(first), f"distinct latents among {len(rows)}", k)
    return first


def firsts(rows: Float[Tensor, "n d"]) -> Int[Tensor, " u"]:
    """Indices of the first of each set of equal rows, in ascending order."""
    values = rows.numpy()
    order = np.lexsort(values.T)  # stable: the first of equal rows stays first
    differs = (values[order[1:]] != values[order[:-1]]).any(1)
    return torch.from_numpy(np.sort(order[np.concatenate([[True], differs])]))


def _too_few(name: str, found: int, what: str, k: int) -> InputError:
    return InputError(
        f"quantizer.{name}: needs at least as many distinct latents as quantizer.codebook_size {k}, got {found} {what}; "
        "lower quantizer.codebook_size, or encode more images"
    )
