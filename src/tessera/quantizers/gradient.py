"""Vector quantization with a codebook trained by gradient (van den Oord et al. 2017, eq. 3)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tessera.codebooks import codebook
from tessera.core.contracts import Quantized, Quantizer


class Config(codebook.Settings):
    beta: float = Field(ge=0, description="weight of the commitment term |z - sg(e)|^2 (eq. 3)", examples=[0.25])
    estimator: codebook.Estimator = Field(description="gradient estimator", examples=["rotation"])
    distance: Literal["euclidean", "cosine"] = Field(
        description="cosine: latents and code vectors are projected to the unit sphere", examples=["euclidean"]
    )
    codebook_weight: float = Field(
        ge=0,
        description="weight of the codebook term |sg(z) - e|^2; 0: no term, so only restarts move code vectors",
        examples=[1.0],
    )


class Gradient(codebook.GradientCodebook):
    """The nearest code vector; the optimizer moves the codebook towards the latents that choose it."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)
        self.codes.requires_grad_(config.codebook_weight > 0)

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        if self.config.distance == "euclidean":
            return (self.codes,)
        return (F.normalize(self.codes.clone()),)  # backward needs a copy: restarts write to the parameter

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codebooks[0]).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            rows = codebook.to_rows(z)
            if self.config.distance == "cosine":
                rows = F.normalize(rows)
            if self.training:
                self.prepare(rows)
            book = self.codebooks[0]
            chosen = codebook.nearest(rows.detach(), book.detach())
            z_q = F.embedding(chosen, book)
            losses, reported = self._terms(rows, z_q)
            out = codebook.to_map(codebook.ESTIMATORS[self.config.estimator](rows, z_q), z)
            if self.training:  # last, since a restart overwrites code vectors
                self.update(rows.detach(), chosen)
        return Quantized(out, chosen.view(len(z), 1, *z.shape[2:]), losses, reported)

    def _terms(self, z: Float[Tensor, "n d"], z_q: Float[Tensor, "n d"]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses = {"commitment": self.config.beta * F.mse_loss(z, z_q.detach())}
        if self.config.codebook_weight:
            losses["codebook"] = self.config.codebook_weight * F.mse_loss(z_q, z.detach())
        return losses, {"codebook_error": F.mse_loss(z.detach(), z_q.detach())}


def build(config: Config, dim: int | None) -> Quantizer:
    """`dim`: channels of the latents if the tokenizer fixes them; None: `code_dim`."""
    return Gradient(config, config.code_dim if dim is None else dim)
