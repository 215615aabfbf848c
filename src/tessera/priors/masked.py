"""Masked (absorbing) discrete diffusion: codes are revealed in any order, many at a time, each given all known codes.

The training loss and the bound are those of D3PM's absorbing diffusion (Austin et al. 2021, arXiv 2107.03006) in the simple
form of ARDM (Hoogeboom et al. 2021, arXiv 2110.02037) and MDLM (Sahoo et al. 2024, arXiv 2406.07524). With k of T codes masked,

    log p(x) >= T * E[1/k * sum over masked codes of log p(code | codes that are not masked)]

where the expectation is over k, uniform on 1..T, and over masks of k codes. There is no time embedding: the number of
masked codes already gives the time. Decoding is the reverse process of this diffusion in equal steps, or MaskGIT's decoding
(Chang et al. 2022, arXiv 2202.04200). All grids form one sequence. Known codes (inpainting) are never masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera import sequences
from tessera.attention import masking
from tessera.attention.causal import Size
from tessera.autoregression.sampling import Guided, require_known, require_range
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Likelihood, Prior, Sampling
from tessera.core.space import CodeSpace

BOUND = True  # its likelihood is a lower bound
PATTERNS = 2107_03006  # seed of the masks of the bound, which are the same in every run


class Config(Size):
    dropout: float = Field(ge=0, lt=1, description="dropout probability of embedded codes and of each block's output",
                           examples=[0.1])  # fmt: skip
    bound_draws: int = Field(ge=1, description="masks per image in the estimate of the likelihood bound; each costs a forward "
                             "pass", examples=[5])  # fmt: skip
    decoding: masking.Decoding = Field(description="order of revealing codes; random: any order; confidence: the most "
                                       "probable codes first, as in MaskGIT", examples=["random"])  # fmt: skip
    steps: int = Field(ge=1, description="most forward passes per sample; codes revealed in one pass do not see each "
                       "other. With as many passes as codes, each pass reveals one code", examples=[4])  # fmt: skip
    choice_temperature: float = Field(ge=0, description="with confidence: scale of the Gumbel noise on the compared "
                                      "log-probabilities; falls to 0 over the passes; 0: no noise", examples=[1.0])  # fmt: skip


class Masked(nn.Module):
    """See `core.contracts.Prior`. Dropout acts only in `losses`, and only in training mode."""

    exact, capturable = False, False

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__()
        self.config, self.space, self.conditioning = config, space, conditioning
        self.network = masking.MaskedTransformer(config, space, conditioning)

    def logits(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, masked: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits per grid of p(code | conditions, all codes that are not masked). The values of masked codes do not matter."""
        self._require(codes, conditions)
        return self.network(codes, conditions, masked, 0.0)

    def losses(
        self,
        codes: Int[Tensor, "b t"],
        conditions: Int[Tensor, "b c"] | None,
        done: float = 1.0,
        inputs: Int[Tensor, "b t"] | None = None,
    ) -> dict[str, Tensor]:
        """The bound in nats per code. In training mode: an unbiased estimate of it from one random mask per image."""
        if not self.training:
            return {"nll": -self.log_prob(codes, conditions).mean() / codes.shape[1]}
        self._require(codes, conditions)
        keys = torch.rand(codes.shape, device=codes.device)
        masked = masking.masks(torch.rand((), device=codes.device), keys)
        logits = self.network(codes if inputs is None else inputs, conditions, masked, self.config.dropout)
        return {"nll": -masking.mean(sequences.code_log_prob(logits, codes), masked).mean()}

    def likelihood(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> Likelihood:
        """An estimate of the bound from `bound_draws` masks per image, seeded by the image's codes alone. The estimate is
        unbiased: it can be too high or too low for one image, but is accurate in the mean over many images. Accuracy is
        over the masked codes; every mask has the same weight."""
        self._require(codes, conditions)
        masks, length, terms = self._masks(codes).to(codes.device), codes.shape[1], []
        for masked in masks.unbind(1):  # one at a time, to save memory
            logits = self.network(codes, conditions, masked, 0.0)
            right = torch.cat([grid.argmax(2) for grid in logits], dim=1) == codes
            log_prob = length * masking.mean(sequences.code_log_prob(logits, codes), masked)
            terms.append(torch.stack([log_prob, masking.mean(right.to(log_prob.dtype), masked)]))
        return Likelihood(*torch.stack(terms).mean(0))

    def log_prob(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> Float[Tensor, " b"]:
        return self.likelihood(codes, conditions).log_prob

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: Generator,
        sampling: Sampling = Sampling(),  # noqa: B008  a NamedTuple does not change
        conditions: Int[Tensor, "n c"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]:
        self.conditioning.require(conditions, n)
        self.conditioning.require_guidance(sampling.guidance)
        require_range(sampling)
        require_known(self, n, known, known_mask)
        codes = torch.zeros(n, self.space.length, dtype=torch.int64, device=self.network.norm.weight.device)
        masked = torch.ones_like(codes, dtype=torch.bool)
        if known is not None and known_mask is not None:
            masked = ~known_mask.to(codes.device)
            codes = torch.where(masked, codes, known.to(codes.device))
        unknown = masked.sum(1)
        passes = min(self.config.steps, max(unknown.tolist(), default=0))
        for index in range(1, passes + 1):
            # two numbers per position and pass, known or not. Sampled before the first pass, they would be 2 n T^2 numbers
            numbers = torch.rand(2, *codes.shape, generator=generator, dtype=torch.float64, device=generator.device)
            logits = self._guided(codes, conditions, masked, sampling.guidance)
            remaining = masking.left(unknown, index, passes, self.config.decoding)
            heat = (
                self.config.choice_temperature * (1 - index / passes) if self.config.decoding == "confidence" else None
            )
            where, sampled = masking.revealed(logits, masked, remaining, sampling, numbers.to(codes.device), heat)
            codes, masked = torch.where(where, sampled, codes), masked & ~where
        return codes

    def _guided(
        self,
        codes: Int[Tensor, "n t"],
        conditions: Int[Tensor, "n c"] | None,
        masked: Bool[Tensor, "n t"],
        guidance: Mapping[str, float],
    ) -> tuple[Float[Tensor, "n _ k"], ...]:
        """As in `autoregression.sampling`."""
        if conditions is None:
            return self.network(codes, None, masked, 0.0)
        guided = Guided.of(conditions, self.conditioning, guidance)
        count = 1 + len(guided.strengths)
        logits = self.network(codes.repeat(count, 1), guided.parts, masked.repeat(count, 1), 0.0)
        return tuple(map(guided.blended, logits)) if guided.strengths else logits

    def _masks(self, codes: Int[Tensor, "b t"]) -> Bool[Tensor, "b m t"]:
        """Masks seeded by a checksum of each image's codes. The masks of an image do not depend on its batch and are the
        same in every epoch. Images have different masks, so that their errors are independent."""
        found, count = [], self.config.bound_draws
        for row in codes.cpu().numpy():
            generator = torch.Generator().manual_seed(PATTERNS + crc32(row.tobytes()))
            keys = torch.rand(count, len(row), generator=generator)
            found.append(masking.masks(torch.rand(count, generator=generator) / count, keys))
        return torch.stack(found)

    def _require(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> None:
        self.conditioning.require(conditions, len(codes))
        self.space.split(codes)


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> Prior:
    return Masked(config, space, conditioning)
