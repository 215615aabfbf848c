"""PixelCNN: grids of codes given earlier grids and the label.

`gated` (van den Oord et al. 2016b, arXiv 1606.05328): p(codes | label) = product over grids of p(grid | earlier grids,
label), each its own network, as in VQ-VAE-2 (Razavi et al. 2019, sec. 3.2). `masked` (van den Oord et al. 2016a, arXiv
1601.06759), which came before it and has a blind spot: consecutive grids of one shape, such as red, green and blue, share
a network that is masked by channel, and are drawn place by place.

Sampling remembers activations: one code costs one position per layer.
"""

from __future__ import annotations

from itertools import accumulate, groupby
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.gated import GatedPixelCNN
from tessera.autoregression.masked_conv import MaskedPixelCNN
from tessera.autoregression.sampling import Steps
from tessera.core.contracts import Grids
from tessera.core.params import Strict
from tessera.core.space import CodeSpace
from tessera.networks.condition import Condition


class Config(Strict):
    architecture: Literal["gated", "masked"] = Field(
        description="gated: two stacks, grid after grid; masked: the original, grids of one shape place by place",
        examples=["gated"],
    )
    channels: int = Field(ge=1, description="channels of each stack, and of embedded codes; of masked, h of its 2h",
                          examples=[6])  # fmt: skip
    layers: int = Field(ge=1, description="gated layers, or masked residual blocks, of each network", examples=[3])
    kernel_size: int = Field(ge=3, le=15, description="side of the whole kernel in codes, odd", examples=[3])
    first_kernel_size: int = Field(ge=3, le=15, description="the same of the first layer of masked", examples=[5])
    dropout: float = Field(ge=0, lt=1, description="probability, of activations in both stacks, or of what a masked "
                           "block adds", examples=[0.1])  # fmt: skip
    condition_blocks: int = Field(ge=0, description="residual blocks on embedded earlier grids, where there are any",
                                  examples=[1])  # fmt: skip

    @field_validator("kernel_size", "first_kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, to be centred on a code, got {value}")
        return value


class GatedStack(GatedPixelCNN):
    """A stack of one grid."""

    def forward(self, parts: list[Tensor], condition: Tensor, dropout: float = 0.0) -> tuple[Tensor, ...]:
        return (super().forward(parts[0], condition, dropout),)

    def steps(self, n: int, condition: Tensor) -> Steps:
        return [(yield from super().steps(n, condition))]


class PixelCNN(Autoregressive):
    """See `core.contracts.Prior`. Dropout acts in `losses` of a module in training mode, nowhere else.

    A *stack* is what one network says: a grid of `gated`, a run of grids of one shape of `masked`.
    """

    def __init__(self, config: Config, space: CodeSpace, classes: int) -> None:
        super().__init__(space, classes, config.dropout)
        self.stacks = stacks(config, space.grids)
        self.networks = nn.ModuleList(network(config, space.sizes[stack]) for stack in self.stacks)
        self.conditions = nn.ModuleList(
            Condition(config.channels, space.grids[stack.start], space.sizes[: stack.start], classes,
                      config.condition_blocks)
            for stack in self.stacks
        )  # fmt: skip

    @property
    def order(self) -> list[int]:
        """Stack by stack; in each place by place, and grid by grid at a place."""
        order: list[int] = []
        for stack in self.stacks:
            count = sum(self.space.lengths[stack])
            step = self.space.lengths[stack.start]  # from a place to the same one in the next grid
            order += [len(order) + t for place in range(step) for t in range(place, count, step)]
        return order

    def predict(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        parts, logits = self.space.split(codes), []
        for stack, network, condition in zip(self.stacks, self.networks, self.conditions, strict=True):
            logits += network(parts[stack], condition(parts[: stack.start], labels, dropout), dropout)
        return tuple(logits)

    def steps(self, n: int, labels: Int[Tensor, " n"] | None) -> Steps:
        """The cached walk, stack by stack (`nn.gated`, `nn.masked_conv`)."""
        earlier: list[Tensor] = []
        for network, condition in zip(self.networks, self.conditions, strict=True):
            earlier += yield from network.steps(n, condition(earlier, labels))


def stacks(config: Config, grids: Grids) -> list[slice]:
    lengths = [1] * len(grids) if config.architecture == "gated" else [len(list(run)) for _, run in groupby(grids)]
    return [slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)]


def network(config: Config, codebook_sizes: tuple[int, ...]) -> GatedStack | MaskedPixelCNN:
    if config.architecture == "gated":
        return GatedStack(*codebook_sizes, config.channels, config.layers, config.kernel_size)
    return MaskedPixelCNN(codebook_sizes, config.channels, config.layers, config.first_kernel_size, config.kernel_size)


def build(config: Config, space: CodeSpace, classes: int) -> PixelCNN:
    # channels-last weights: embedded codes are channels-last, and convolutions on CPU are faster on them
    return PixelCNN(config, space, classes).to(memory_format=torch.channels_last)
