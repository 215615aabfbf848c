"""Vector quantization with a codebook of exponential moving averages (van den Oord et al. 2017, appendix A.1)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Quantized
from tessera.core.errors import NonFiniteError
from tessera.core.params import Strict
from tessera.nn import codebook


class Config(Strict):
    beta: float = Field(ge=0, description="weight of the commitment term |z - sg(e)|^2 (eq. 3)", examples=[0.25])
    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    decay: float = Field(ge=0, lt=1, description="EMA rate per step (gamma of eq. 6)", examples=[0.9])
    initialisation: Literal["normal", "latents", "kmeans"] = Field(
        description="first code vectors: N(0, 1), or latents of the first batch, or k-means on them",
        examples=["latents"],
    )
    restart: Literal["none", "dead"] = Field(
        description="dead: a code hardly used is put on a latent of the batch, with its EMA statistics",
        examples=["dead"],
    )
    restart_below: float = Field(ge=0, lt=1, description="share of the mean use under which a code is dead",
                                 examples=[0.1])  # fmt: skip


class EMA(nn.Module):
    """Nearest code by Euclidean distance; the codebook follows the latents instead of a gradient.

    Buffers: `codes` [K,D]; their running statistics `counts` N_i [K] and `sums` m_i [K,D], which move in training only,
    after the batch was quantized with the codebook as it stood.
    """

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)
        self.register_buffer("codes", torch.randn(config.codebook_size, dim))
        self.register_buffer("counts", torch.ones(config.codebook_size))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("initialised", torch.tensor(config.initialisation == "normal"))

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (self.codes,)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codes).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        """
        Raises:
            NonFiniteError: z is not finite in training; the codebook is not touched.
        """
        with torch.autocast(z.device.type, enabled=False):  # half precision would choose other codes
            b, d, h, w = z.shape
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, d)
            if self.training:
                if not torch.isfinite(rows).all():
                    raise NonFiniteError("the latents z are not finite")
                self._initialise(rows.detach())
            chosen = codebook.nearest(rows.detach(), self.codes)
            z_q = F.embedding(chosen, self.codes)
            commitment = self.config.beta * F.mse_loss(rows, z_q)
            if self.training:
                self._update(rows.detach(), chosen)
            out = codebook.straight_through(rows, z_q).view(b, h, w, d).permute(0, 3, 1, 2)
        return Quantized(out, chosen.view(b, 1, h, w), {"commitment": commitment})

    @torch.no_grad()
    def _initialise(self, rows: Float[Tensor, "n d"]) -> None:
        if self.initialised:
            return
        self.codes.copy_(codebook.initial_codes(rows, len(self.codes), self.config.initialisation))
        self._reset(torch.ones_like(self.counts, dtype=torch.bool), self.codes, len(rows) / len(self.codes))
        self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, rows: Float[Tensor, "n d"], chosen: Int[Tensor, " n"]) -> None:
        """Eq. 6-8, then restarts. A restarted code gets the statistics of a code of mean use: with its old ones it would
        be back at its old place, and dead again, one step later."""
        counts, sums = codebook.statistics(rows, chosen, len(self.codes))
        codebook.summed_over_ranks(counts, sums)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        self.codes.copy_(codebook.ema_codes(self.counts, self.sums))
        if self.config.restart == "dead":
            is_dead = codebook.dead(self.counts, self.config.restart_below)
            self._reset(is_dead, codebook.drawn(rows, len(self.codes)), self.counts.mean())

    def _reset(self, where: Tensor, codes: Float[Tensor, "k d"], count: Tensor | float) -> None:
        self.codes.copy_(torch.where(where[:, None], codes, self.codes))
        self.counts.copy_(torch.where(where, torch.as_tensor(count, dtype=self.counts.dtype), self.counts))
        self.sums.copy_(torch.where(where[:, None], self.codes * self.counts[:, None], self.sums))


def build(config: Config, dim: int | None) -> EMA:
    """`dim`: channels of the latents where the tokenizer fixes them; None: `code_dim`."""
    return EMA(config, config.code_dim if dim is None else dim)
