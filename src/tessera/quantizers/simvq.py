"""SimVQ: the codebook is a learned linear map of fixed random vectors (Zhu et al. 2024, arXiv 2411.02038).

Every step changes the map and so moves all code vectors, also those that no latent chose. The codebook does not collapse
and needs no restarts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.codebooks import codebook
from tessera.core.contracts import Quantized, Quantizer
from tessera.core.params import Strict


class Config(Strict):
    beta: float = Field(ge=0, description="weight of the commitment term |z - sg(e)|^2; the codebook term has weight 1",
                        examples=[0.25])  # fmt: skip
    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    estimator: codebook.Estimator = Field(description="gradient estimator", examples=["rotation"])


class SimVQ(nn.Module):
    """Code vectors C W: the coefficients C [K,D] ~ N(0, 1/D) are fixed, the map W [D,D] is learned."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)
        self.register_buffer("coefficients", torch.randn(config.codebook_size, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=False)

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (self.map(self.coefficients),)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        with torch.autocast(codes.device.type, enabled=False):
            return F.embedding(codes[:, 0], self.codebooks[0]).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            rows, book = codebook.to_rows(z), self.codebooks[0]
            chosen = codebook.nearest(rows.detach(), book.detach())
            z_q = F.embedding(chosen, book)
            losses = {
                "commitment": self.config.beta * F.mse_loss(rows, z_q.detach()),
                "codebook": F.mse_loss(z_q, rows.detach()),
            }
            out = codebook.to_map(codebook.ESTIMATORS[self.config.estimator](rows, z_q), z)
        reported = {"codebook_error": losses["codebook"].detach()}
        return Quantized(out, chosen.view(len(z), 1, *z.shape[2:]), losses, reported)


def build(config: Config, dim: int | None) -> Quantizer:
    """`dim`: channels of the latents if the tokenizer fixes them; None: `code_dim`."""
    return SimVQ(config, config.code_dim if dim is None else dim)
