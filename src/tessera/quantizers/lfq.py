"""Lookup-free quantization: the sign of every channel is one bit of the code (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.codebooks import codebook
from tessera.core.contracts import Quantized, Quantizer
from tessera.core.errors import InputError
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params

MOST = 1 << 16  # most codes: the entropy of the mean needs the probability of each


class Config(Strict):
    beta: float = Field(ge=0, description="weight of the commitment term |z - sg(z_q)|^2", examples=[0.25])
    codebook_size: int = Field(ge=2, le=1 << 20, description=f"K, a power of two, at most {MOST}; D = log2 K",
                               examples=[8])  # fmt: skip
    entropy_weight: float = Field(ge=0, description="weight of the entropy term; 0: not computed", examples=[0.1])
    diversity: float = Field(ge=0, description="gamma, weight of H(E[p(c|z)]) in the entropy term",
                             examples=[1.0])  # fmt: skip
    temperature: float = Field(gt=0, description="of p(c|z) = softmax(-|z - c|^2 / temperature)", examples=[1.0])

    def rule(self, params: Params | None = None) -> Iterator[str]:
        """Holds only if LFQ is chosen: other quantizers also read codebook_size, and allow other values."""
        size, below = self.codebook_size, 1 << (self.codebook_size.bit_length() - 1)
        if size != below or size > MOST:
            near = f"{below} or {2 * below}" if 2 * below <= MOST else str(MOST)
            yield (
                f"quantizer.codebook_size: must be a power of two, at most {MOST}, under quantizer.name lfq, "
                f"got {size}; give {near}"
            )


class LFQ(nn.Module):
    """z_q is sign(z), a corner of the cube {-1, 1}^D, and channel d is the bit 2^d of the code. sign(0) is defined as 1.
    There is nothing to learn: the state dict is empty.

    The entropy term (sec. 3.1: E[H(p(c|z))] - gamma H(E[p(c|z)]), in nats) rewards confident codes and even use of all
    codes. Its means are over the batch of this rank: several ranks average the terms, not p.
    """

    place: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.dim = config, config.codebook_size.bit_length() - 1
        self.codebook_sizes = (config.codebook_size,)
        self.register_buffer("place", (2 ** torch.arange(self.dim)).view(-1, 1, 1), persistent=False)  # [D,1,1]

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        codes = torch.arange(self.codebook_sizes[0], device=self.place.device)
        return (self.decode(codes.view(-1, 1, 1, 1)).flatten(1),)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return _corner(codes // self.place % 2 == 1)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):  # half precision would give other codes
            z = z.float()
            bits = z.detach() >= 0
            z_q = _corner(bits)
            losses = {"commitment": self.config.beta * F.mse_loss(z, z_q)}
            if self.config.entropy_weight:
                each, mean = entropies(codebook.to_rows(z), self.config.temperature)
                losses["entropy"] = self.config.entropy_weight * (each - self.config.diversity * mean)
            out = codebook.straight_through(z, z_q)
        return Quantized(out, (bits * self.place).sum(1, keepdim=True), losses)


def _corner(bits: Tensor) -> Tensor:
    return 2 * bits.float() - 1


def entropies(z: Float[Tensor, "n d"], temperature: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean entropy of p(c|z) over z, and entropy of the mean of p(c|z), in nats. Exact, without an [N,K] matrix.

    Only the part -2 z.c of |z - c|^2 depends on c, so p(c|z) is a product over bits: bit d is 1 with probability
    sigmoid(4 z_d / temperature). The entropies of the bits add up. The mean of p(c|z) over z is a matrix product of two
    [N,sqrt(K)] matrices: the probabilities of the first half of the bits, and of the last half.
    """
    logits = 4 * z / temperature
    one, zero = torch.sigmoid(logits), torch.sigmoid(-logits)  # not 1 - one, which becomes 0 too early
    each = -(one * F.logsigmoid(logits) + zero * F.logsigmoid(-logits)).sum(1).mean()
    half = z.shape[1] // 2
    low, high = _joint(one[:, :half], zero[:, :half]), _joint(one[:, half:], zero[:, half:])
    mean = high.t() @ low / len(z)  # [high bits, low bits], in the order of codes
    # a probability can underflow: 0 log 0 is 0, and the log in its gradient must stay finite
    return each, -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


def _joint(one: Float[Tensor, "n d"], zero: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    """Probability of each of the C = 2^D combinations of independent bits; the first bit is the lowest."""
    joint = one.new_ones(len(one), 1)
    for d in range(one.shape[1]):
        joint = torch.cat([joint * zero[:, d : d + 1], joint * one[:, d : d + 1]], dim=1)
    return joint


def build(config: Config, dim: int | None) -> Quantizer:
    """
    Raises:
        InputError: `codebook_size` is not a power of two, or not 2^dim for the `dim` that the tokenizer fixes.
    """
    for problem in config.rule():
        raise InputError(problem)
    quantizer = LFQ(config)
    if dim not in (None, quantizer.dim):
        remedy = f"give {1 << dim}, or choose" if dim < MOST.bit_length() else "choose"
        raise InputError(
            f"quantizer.codebook_size: must be 2^{dim} under quantizer.name lfq, one bit for each of the {dim} channels "
            f"that the tokenizer fixes, got {config.codebook_size}; {remedy} another quantizer.name"
        )
    return quantizer
