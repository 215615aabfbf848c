"""Quantization that begins late: for the first part of training the decoder sees the latents themselves.

Zhao et al. 2026 ("Continuous first, discrete later", arXiv 2605.06870): quantization from the start suppresses directions of low
variance, and latents that have collapsed into few dimensions never leave them. An autoencoder that is trained without it first
fills more dimensions; its codebook then starts from these latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tessera.codebooks.codebook import RANDOM
from tessera.core.contracts import Quantized, Quantizer, Tokenizer

if TYPE_CHECKING:
    from tessera.core.params import Params


class Delayed(nn.Module):
    """In the place of a quantizer while a tokenizer is trained. Before `begin` z_q is z, all codes are 0, and nothing of the
    quantizer changes; afterwards it is the quantizer. Buffer: `begun`, so that a resumed training knows."""

    begun: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = cast("nn.Module", quantizer)
        self.register_buffer("begun", torch.tensor(False))
        self._begun = False  # caches the buffer once it is True: reading it again would wait for the device

    @property
    def own(self) -> Quantizer:
        return cast("Quantizer", self.quantizer)

    @property
    def dim(self) -> int:
        return self.own.dim

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.own.codebook_sizes

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return self.own.codebooks

    def decode(self, codes: Int[Tensor, "b r h w"]) -> Float[Tensor, "b d h w"]:
        return self.own.decode(codes)

    def begin(self) -> None:
        self.begun.fill_(True)
        self._begun = True

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        self._begun = self._begun or bool(self.begun)
        if self._begun:
            return self.own(z)
        z_q = z
        for parameter in self.quantizer.parameters():  # ranks wait for a gradient of each parameter
            z_q = z_q + 0 * parameter.sum()
        codes = torch.zeros(len(z), len(self.codebook_sizes), *z.shape[2:], dtype=torch.int64, device=z.device)
        return Quantized(z_q, codes, {})


def delay(tokenizer: Tokenizer) -> None:
    """Put a `Delayed` in the place of each quantizer. One that is learned with the tokenizer has `codebook_sizes` and `decode`."""
    module = cast("nn.Module", tokenizer)
    for name, part in list(module.named_modules()):
        if name and hasattr(part, "codebook_sizes") and hasattr(part, "decode"):
            module.set_submodule(name, Delayed(cast("Quantizer", part)))


def undelay(tokenizer: Tokenizer) -> None:
    """Put the quantizers back: the tokenizer is then as its recipe describes it."""
    for name, part in delayed(tokenizer).items():
        cast("nn.Module", tokenizer).set_submodule(name, part.quantizer)


def delayed(tokenizer: Tokenizer) -> dict[str, Delayed]:
    """Place -> module."""
    named = cast("nn.Module", tokenizer).named_modules()
    return {name: part for name, part in named if isinstance(part, Delayed)}


def state_without_delay(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights under the names that they have after `undelay`."""
    state = dict(tokenizer.state_dict())
    for name in delayed(tokenizer):
        del state[f"{name}.begun"]
        for key in [key for key in state if key.startswith(f"{name}.quantizer.")]:
            state[f"{name}.{key.removeprefix(f'{name}.quantizer.')}"] = state.pop(key)
    return state


def rule(params: Params) -> Iterator[str]:
    """Rule on params: a codebook must be able to start from the latents of an autoencoder that was trained without it."""
    fraction, quantizer = params.value("tokenizer.unquantized"), params.value("quantizer.name")
    config = params.config("quantizer")
    if not fraction:
        return
    first = getattr(config, "initialisation", None)
    if first is None:
        yield (
            f"tokenizer.unquantized: must be 0 with quantizer.name {quantizer}, whose code vectors do not start from latents that "
            f"are trained with them, got {fraction}; choose ema, gradient or residual"
        )
    elif first in RANDOM:
        yield (
            f"quantizer.initialisation: must be latents or kmeans while tokenizer.unquantized is above 0, got {first!r}: the "
            "codebook starts from the latents that are there when quantization begins"
        )
    if getattr(config, "distance", "euclidean") == "cosine":
        yield (
            f"tokenizer.unquantized: must be 0 with quantizer.distance cosine, whose z_q have length 1 where the decoder has "
            f"learned from latents of any, got {fraction}; set quantizer.distance to euclidean"
        )


def only_quantized(loss: str, params: Params) -> Iterator[str]:
    """Rule of a loss term that reads codes or code vectors: there must be some from the first step on."""
    if fraction := params.value("tokenizer.unquantized"):
        yield (
            f"losses.{loss}.weight: must be 0 while tokenizer.unquantized is above 0 ({fraction}), since training begins without "
            f"codes, got {params.raw['losses'][loss]['weight']}; set tokenizer.unquantized to 0"
        )
