"""Residual quantization: each depth quantizes the residual of the depths before it (Lee et al. 2022, arXiv 2203.01941)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.codebooks import codebook
from tessera.core.contracts import Quantized, Quantizer


class Config(codebook.EMASettings):
    beta: float = Field(ge=0, description="weight of the commitment terms, summed over depths", examples=[0.25])
    estimator: codebook.Estimator = Field(description="gradient estimator", examples=["rotation"])
    depth: int = Field(ge=1, le=32, description="codes per latent, one grid each", examples=[2])


class Residual(nn.Module):
    """z ~ e_1 + ... + e_R, each the nearest code vector to the residual so far. Each depth has its own EMA codebook:
    residuals shrink with depth, and a shared codebook would have to cover all scales."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,) * config.depth
        depths = [codebook.EMACodebook(config, dim) for _ in range(config.depth)]
        self.depths = cast("Sequence[codebook.EMACodebook]", nn.ModuleList(depths))

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return tuple(depth.codes for depth in self.depths)

    def decode(self, codes: Int[Tensor, "b r h w"]) -> Float[Tensor, "b d h w"]:
        """The sum over depths, in the order in which `forward` adds them."""
        z_q = torch.zeros((), device=codes.device)
        for depth, chosen in zip(self.depths, codes.unbind(1), strict=True):
            z_q = z_q + F.embedding(chosen, depth.codes)
        return z_q.permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            rows = codebook.to_rows(z)
            z_q, chosen, error = torch.zeros_like(rows), [], rows.new_zeros(())
            for depth in self.depths:
                residual = rows.detach() - z_q
                if self.training:
                    depth.prepare(residual)
                nearest = codebook.nearest(residual, depth.codes)
                z_q = z_q + F.embedding(nearest, depth.codes)
                error = error + F.mse_loss(rows, z_q)  # the latent commits to every partial sum
                if self.training:
                    depth.update(residual, nearest)
                chosen.append(nearest.view(len(z), *z.shape[2:]))
            out = codebook.to_map(codebook.ESTIMATORS[self.config.estimator](rows, z_q), z)
        reported = {"codebook_error": F.mse_loss(rows, z_q).detach()}
        return Quantized(out, torch.stack(chosen, 1), {"commitment": self.config.beta * error}, reported)


def build(config: Config, dim: int | None) -> Quantizer:
    """`dim`: channels of the latents if the tokenizer fixes them; None: `code_dim`."""
    return Residual(config, config.code_dim if dim is None else dim)
