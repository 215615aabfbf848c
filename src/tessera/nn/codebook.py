"""What quantizers with a codebook share: nearest code, straight-through estimator, initialisation, EMA step, restarts.

Pure functions on z [N,D] and codebook [K,D], without host synchronisation; with several ranks, statistics are summed over
them, so that every rank ends with the codebook that one process with the whole batch would have.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 1 << 22  # entries of the [N,K] score matrix held at once: bounds the memory, not the result


def nearest(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """Index of the nearest code vector in Euclidean distance (van den Oord et al. 2017, eq. 1).

    argmin |z - e|^2 = argmin |e|^2 - 2 z.e: |z|^2 and the root change no order.
    """
    half = 0.5 * codebook.square().sum(1)
    rows = max(1, CHUNK // len(codebook))
    return torch.cat([torch.addmm(half, part, codebook.t(), alpha=-1).argmin(1) for part in z.split(rows)])


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q forward, the gradient of z_q handed to z unchanged (van den Oord et al. 2017, sec. 3.2).

    z - sg(z) is exactly 0, so this is z_q to the last bit, as `decode` gives it; the usual z + sg(z_q - z) is not.
    """
    return z_q.detach() + (z - z.detach())


def initial_codes(z: Float[Tensor, "n d"], k: int, how: str) -> Float[Tensor, "k d"]:
    """K code vectors to start from, drawn from torch's global generator: `normal` N(0, 1), `latents` distinct rows of z
    (with repetition only where there are fewer than K), or `kmeans` on z started from those. Rank 0 decides."""
    if how == "normal":
        return _from_rank_0(torch.randn(k, z.shape[1], device=z.device))
    order = torch.randperm(len(z), device="cpu").to(z.device)
    codes = z[order.repeat(-(-k // len(z)))[:k]]
    if len(z) < k:  # copies of one latent would never part again
        codes = codes + 1e-2 * z.std() * torch.randn_like(codes)
    return _from_rank_0(kmeans(z, codes) if how == "kmeans" else codes)


def kmeans(z: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], iterations: int = 10) -> Float[Tensor, "k d"]:
    """Lloyd's iterations from `codes`; a cluster that empties keeps its centre."""
    for _ in range(iterations):
        counts, sums = statistics(z, nearest(z, codes), len(codes))
        codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes)
    return codes


def statistics(
    z: Float[Tensor, "n d"], codes: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """How many latents chose each code, and their sum. No one-hot matrix: index_add costs N*D, not N*K*D."""
    counts = torch.zeros(k, device=z.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
    return counts, torch.zeros(k, z.shape[1], device=z.device).index_add_(0, codes, z)


def summed_over_ranks(*tensors: Tensor) -> None:
    """In place; nothing to do in one process."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def _from_rank_0(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor


def ema_codes(counts: Float[Tensor, " k"], sums: Float[Tensor, "k d"], epsilon: float = 1e-5) -> Float[Tensor, "k d"]:
    """Code vectors m_i / N_i from their running statistics (van den Oord et al. 2017, eq. 8), with Laplace smoothing of
    the counts, so that a code that nobody chooses does not divide by zero."""
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return sums / smoothed[:, None]


def dead(counts: Float[Tensor, " k"], below: float) -> Bool[Tensor, " k"]:
    """Codes whose running count is under `below` times the mean count."""
    return counts < below * counts.mean()


def drawn(z: Float[Tensor, "n d"], k: int) -> Float[Tensor, "k d"]:
    """K random rows of z, the same on every rank."""
    return _from_rank_0(z[torch.randint(len(z), (k,), device="cpu").to(z.device)])
