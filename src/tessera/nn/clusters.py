"""What quantizers fitted to finished latents share: the rows they are fitted to, and k-means on them.

Always on the CPU: sums of a GPU depend on the order in which its threads come, and a fit must give the same codebook twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from tessera.core.errors import InputError
from tessera.nn import codebook


def rule(name: str, latents: int, codebook_size: int) -> Iterator[str]:
    """What must hold between params, before any work: there are no more codes than latents to fit them to."""
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
    """`firsts`.

    Raises:
        InputError: fewer than `k` rows differ: some codes would be copies of others.
    """
    first = firsts(rows)
    if len(first) < k:
        raise _too_few(name, len(first), f"distinct latents among {len(rows)}", k)
    return first


def firsts(rows: Float[Tensor, "n d"]) -> Int[Tensor, " u"]:
    """Indices, in ascending order, of the first of each set of equal rows."""
    values = rows.numpy()
    order = np.lexsort(values.T)  # stable: the first of equal rows stays first
    differs = (values[order[1:]] != values[order[:-1]]).any(1)
    return torch.from_numpy(np.sort(order[np.concatenate([[True], differs])]))


def _too_few(name: str, found: int, what: str, k: int) -> InputError:
    return InputError(
        f"quantizer.{name}: needs at least as many distinct latents as quantizer.codebook_size {k}, got {found} {what}; "
        "lower quantizer.codebook_size, or encode more images"
    )


def first_codes(z: Float[Tensor, "n d"], k: int, generator: Generator) -> Float[Tensor, "k d"]:
    """K distinct rows of z by k-means++ (Arthur & Vassilvitskii 2007): each next one is drawn with probability
    proportional to the squared distance D(x)^2 to the nearest one so far. As in their section 5, several are drawn and
    the one that lowers the sum of D(x)^2 most is kept, 2 + ln K of them, as scikit-learn does."""
    chosen = [int(torch.randint(len(z), (1,), generator=generator))]
    squares = _squares(z, z[chosen])[:, 0]
    for _ in range(k - 1):
        cumulated = squares.cumsum(0)
        draws = torch.rand(2 + int(math.log(k)), generator=generator, dtype=torch.float64) * cumulated[-1]
        tried = torch.searchsorted(cumulated, draws, right=True)  # right: never a row of distance 0
        tried = tried.clamp(max=len(z) - 1)
        after = torch.minimum(squares[:, None], _squares(z, z[tried]))
        best = int(after.sum(0).argmin())
        chosen.append(int(tried[best]))
        squares = after[:, best]
    return z[chosen]


def lloyd(z: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], iterations: int) -> Float[Tensor, "k d"]:
    """Lloyd's iterations from `codes` until no row changes its cluster, or `iterations` of them. A cluster that empties is
    moved to the row that is farthest from its code (as scikit-learn does), so that every code stays in use; z must have
    at least K distinct rows."""
    before = None
    for _ in range(iterations):
        chosen = codebook.nearest(z, codes)
        if before is not None and torch.equal(chosen, before):
            break
        counts, sums = codebook.statistics(z, chosen, len(codes))
        codes = sums / counts[:, None].clamp(min=1)
        empty = (counts == 0).nonzero().flatten().tolist()
        errors = (z - codes[chosen]).square().sum(1) if empty else None
        for k in empty:
            codes[k] = z[errors.argmax()]
            errors = torch.minimum(errors, (z - codes[k]).square().sum(1))  # the next one goes elsewhere
        before = chosen
    return codes


def _squares(z: Float[Tensor, "n d"], points: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """From the differences themselves: exactly 0 between equal rows. float64, for sums over many of them."""
    return torch.cdist(z, points, compute_mode="donot_use_mm_for_euclid_dist").double().square()
