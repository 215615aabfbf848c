"""Vector quantization with a codebook of exponential moving averages (van den Oord et al. 2017, appendix A.1)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tessera.codebooks import codebook
from tessera.core.contracts import Quantized, Quantizer


class Config(codebook.EMASettings):
    beta: float = Field(ge=0, description="weight of the commitment term |z - sg(e)|^2 (eq. 3)", examples=[0.25])
    estimator: codebook.Estimator = Field(description="gradient estimator", examples=["rotation"])
    distance: Literal["euclidean", "cosine"] = Field(
        description="cosine: latents and code vectors are projected to the unit sphere (Yu et al. 2021, arXiv 2110.04627)",
        examples=["euclidean"],
    )


class EMA(codebook.EMACodebook):
    """The nearest code vector. Running means of the latents move the codebook, not a gradient: there are no parameters."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim, unit=config.distance == "cosine")
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codes).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            rows = codebook.to_rows(z)
            if self.unit:
                rows = F.normalize(rows)
            if self.training:
                self.prepare(rows)
            chosen = codebook.nearest(rows.detach(), self.codes)
            z_q = F.embedding(chosen, self.codes)
            error = F.mse_loss(rows, z_q)
            if self.training:
                self.update(rows.detach(), chosen)
            out = codebook.to_map(codebook.ESTIMATORS[self.config.estimator](rows, z_q), z)
        codes = chosen.view(len(z), 1, *z.shape[2:])
        return Quantized(out, codes, {"commitment": self.config.beta * error}, {"codebook_error": error.detach()})


def build(config: Config, dim: int | None) -> Quantizer:
    """`dim`: channels of the latents if the tokenizer fixes them; None: `code_dim`."""
    return EMA(config, config.code_dim if dim is None else dim)
