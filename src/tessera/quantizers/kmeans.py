"""k-means on the latents of a finished autoencoder: post-hoc quantization of a continuous model.

Start: k-means++ (Arthur & Vassilvitskii 2007). Then Lloyd's iterations (Lloyd 1982).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Quantized
from tessera.core.params import Strict
from tessera.nn import clusters, codebook

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(Strict):
    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    latents: int = Field(ge=2, description="most latents fitted to, drawn at random", examples=[64])
    iterations: int = Field(ge=1, description="most of Lloyd's iterations", examples=[20])

    def rule(self, params: Params) -> Iterator[str]:
        yield from clusters.rule("kmeans", self.latents, self.codebook_size)


class KMeans(nn.Module):
    """Nearest code by Euclidean distance; the codes are means of latents. Nothing is trained.

    Buffers: `codes` [K,D], zeros until `fit`, and whether it was `fitted`.
    """

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
            InputError: fewer distinct latents than codes, or some that are not finite; nothing is changed then.
        """
        k = self.config.codebook_size
        rows = clusters.checked("kmeans", latents, k)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        drawn = rows[: self.config.latents]
        if len(clusters.firsts(drawn)) < k:  # nearly all are equal: then each of them once
            drawn = rows[clusters.distinct("kmeans", rows, k)[: self.config.latents]]
        self.codes.copy_(clusters.lloyd(drawn, clusters.first_codes(drawn, k, generator), self.config.iterations))
        self.fitted.fill_(True)

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (self.codes,)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codes).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        assert self.training or self.fitted, "kmeans quantizes nothing before `fit`"
        with torch.autocast(z.device.type, enabled=False):  # half precision would choose other codes
            b, d, h, w = z.shape
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, d)
            chosen = codebook.nearest(rows.detach(), self.codes)
            z_q = codebook.straight_through(rows, F.embedding(chosen, self.codes))
        return Quantized(z_q.view(b, h, w, d).permute(0, 3, 1, 2), chosen.view(b, 1, h, w), {})


def build(config: Config, dim: int | None) -> KMeans:
    """`dim`: channels of the latents where the tokenizer fixes them; None: `code_dim`."""
    return KMeans(config, config.code_dim if dim is None else dim)
