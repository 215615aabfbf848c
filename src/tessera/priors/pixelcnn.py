"""Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): each grid of codes given earlier grids and the label.

p(codes | label) = product over grids of p(grid | earlier grids, label), each its own network, as in VQ-VAE-2 (Razavi et
al. 2019, sec. 3.2). Sampling remembers activations: one code costs one position per layer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from tessera.core.contracts import Grids
from tessera.core.params import Strict
from tessera.nn import sequences
from tessera.nn.autoregressive import Autoregressive
from tessera.nn.condition import Condition
from tessera.nn.gated import GatedPixelCNN
from tessera.nn.sampling import Steps


class Config(Strict):
    channels: int = Field(ge=1, description="channels of each stack, and of embedded codes", examples=[6])
    layers: int = Field(ge=1, description="gated layers of each grid's network", examples=[3])
    kernel_size: int = Field(ge=3, le=15, description="side of the whole kernel in codes, odd", examples=[3])
    dropout: float = Field(ge=0, lt=1, description="probability, of activations in both stacks", examples=[0.1])
    condition_blocks: int = Field(ge=0, description="residual blocks on embedded earlier grids, where there are any",
                                  examples=[1])  # fmt: skip

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, to be centred on a code, got {value}")
        return value


class PixelCNN(Autoregressive):
    """See `core.contracts.Prior`. Dropout acts in `losses` of a module in training mode, nowhere else."""

    def __init__(self, config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> None:
        super().__init__(grids, codebook_sizes, classes, config.dropout)
        shape = (config.channels, config.layers, config.kernel_size)
        self.networks = nn.ModuleList(GatedPixelCNN(size, *shape) for size in codebook_sizes)
        self.conditions = nn.ModuleList(
            Condition(config.channels, grid, codebook_sizes[:index], classes, config.condition_blocks)
            for index, grid in enumerate(grids)
        )

    def predict(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        parts = sequences.unflatten(codes, self.grids)
        return tuple(
            network(part, condition(parts[:index], labels, dropout), dropout)
            for index, (part, network, condition) in enumerate(zip(parts, self.networks, self.conditions, strict=True))
        )

    def steps(self, n: int, labels: Int[Tensor, " n"] | None) -> Steps:
        """The cached walk, grid by grid (`nn.gated`)."""
        earlier: list[Tensor] = []
        for network, condition in zip(self.networks, self.conditions, strict=True):
            earlier.append((yield from network.steps(n, condition(earlier, labels))))


def build(config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> PixelCNN:
    # channels-last weights: embedded codes are channels-last, and convolutions on CPU are faster on them
    return PixelCNN(config, grids, codebook_sizes, classes).to(memory_format=torch.channels_last)
