"""k-means on the latents of a finished autoencoder: post-hoc quantization of a continuous model.

Initialised by k-means++ (Arthur & Vassilvitskii 2007), then Lloyd's iterations (Lloyd 1982).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tessera.codebooks import codebook, posthoc
from tessera.core.contracts import PostHocQuantizer, Quantized
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params

POST_HOC = True  # fitted to the latents of a finished autoencoder, by `fit`


class Config(Strict):
    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    latents: int = Field(ge=2, description="most latents in the fit, sampled at random", examples=[64])
    iterations: int = Field(ge=1, description="most iterations of Lloyd's algorithm", examples=[20])

    def rule(self, params: Params) -> Iterator[str]:
        yield from posthoc.rule("kmeans", self.latents, self.codebook_size)


class KMeans(nn.Module):
    """Nearest code vector by Euclidean distance; code vectors are means of latents. Nothing is trained.

    Buffers: `codes` [K,D], zeros until `fit`; `fitted`.
    """

    codes: Tensor
    fitted: Tensor

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)
        self.register_buffer("codes", torch.zeros(config.codebook_size, dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, latents: Float[Tensor, "n d"], generator: Generator) -> None:
        """
        Raises:
            InputError: there are fewer distinct latents than codes, or some are not finite. Nothing is changed then.
        """
        k = self.config.codebook_size
        rows = posthoc.checked("kmeans", latents, k)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        sampled = rows[: self.config.latents]
        if len(posthoc.firsts(sampled)) < k:  # most are equal: use each distinct latent once
            sampled = rows[posthoc.distinct("kmeans", rows, k)[: self.config.latents]]
        self.codes.copy_(lloyd(sampled, first_codes(sampled, k, generator), self.config.iterations))
        self.fitted.fill_(True)

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (self.codes,)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codes).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        assert self.training or self.fitted, "kmeans quantizes nothing before `fit`"
        with torch.autocast(z.device.type, enabled=False):  # half precision would give other codes
            b, d, h, w = z.shape
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, d)
            chosen = codebook.nearest(rows.detach(), self.codes)
            z_q = codebook.straight_through(rows, F.embedding(chosen, self.codes))
        return Quantized(z_q.view(b, h, w, d).permute(0, 3, 1, 2), chosen.view(b, 1, h, w), {})


def first_codes(z: Float[Tensor, "n d"], k: int, generator: Generator) -> Float[Tensor, "k d"]:
    """K distinct rows of z by k-means++ (Arthur & Vassilvitskii 2007): the next row is sampled with probability
    proportional to D(x)^2, its squared distance to the nearest row so far. As in their section 5, several candidates are
    sampled (2 + ln K, as in scikit-learn), and the one that lowers the sum of D(x)^2 most is kept."""
    chosen = [int(torch.randint(len(z), (1,), generator=generator))]
    squares = _squares(z, z[chosen])[:, 0]
    for _ in range(k - 1):
        cumulated = squares.cumsum(0)
        rng = torch.rand(2 + int(math.log(k)), generator=generator, dtype=torch.float64) * cumulated[-1]
        tried = torch.searchsorted(cumulated, rng, right=True)  # right: never a row of distance 0
        tried = tried.clamp(max=len(z) - 1)
        after = torch.minimum(squares[:, None], _squares(z, z[tried]))
        best = int(after.sum(0).argmin())
        chosen.append(int(tried[best]))
        squares = after[:, best]
    return z[chosen]


def lloyd(z: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], iterations: int) -> Float[Tensor, "k d"]:
    """Lloyd's iterations from `codes`, until no row changes its cluster or `iterations` are done. The centre of an empty
    cluster moves to the row that is farthest from its code vector (as in scikit-learn), so that every code stays in use.
    z must have at least K distinct rows."""
    before = None
    for _ in range(iterations):
        chosen = codebook.nearest(z, codes)
        if before is not None and torch.equal(chosen, before):
            break
        counts, sums = codebook.statistics(z, chosen, len(codes))
        codes = sums / counts[:, None].clamp(min=1)
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            errors = (z - codes[chosen]).square().sum(1)
        for k in empty:
            codes[k] = z[errors.argmax()]
            errors = torch.minimum(errors, (z - codes[k]).square().sum(1))  # so the next one moves elsewhere
        before = chosen
    return codes


def _squares(z: Float[Tensor, "n d"], points: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Squared distances by differences, exactly 0 between equal rows; float64, since many are summed."""
    return torch.cdist(z, points, compute_mode="donot_use_mm_for_euclid_dist").double().square()


def build(config: Config, dim: int | None) -> PostHocQuantizer:
    """`dim`: channels of the latents if the tokenizer fixes them; None: `code_dim`."""
    return KMeans(config, config.code_dim if dim is None else dim)
