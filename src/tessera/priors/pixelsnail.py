"""PixelSNAIL (Chen et al. 2018, arXiv 1712.09763): causal convolutions and causal attention in turn, as the prior of
VQ-VAE-2 (Razavi et al. 2019, sec. 3.2) has on its top grid.

p(codes | label) = product over grids of p(grid | earlier grids, label), each its own network. Sampling remembers
activations, keys and values: one code costs one position per layer and one query per block.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tessera.core.contracts import Grids
from tessera.core.params import Strict
from tessera.nn import sequences
from tessera.nn.autoregressive import Autoregressive
from tessera.nn.condition import Condition
from tessera.nn.sampling import Steps
from tessera.nn.snail import Snail


class Config(Strict):
    channels: int = Field(ge=2, le=4096, description="of features, and of embedded codes", examples=[8])
    blocks: int = Field(ge=1, le=64, description="of gated layers and one attention each, in each grid's network",
                        examples=[2])  # fmt: skip
    layers: int = Field(ge=1, le=64, description="gated layers of a block", examples=[1])
    kernel_size: int = Field(ge=3, le=15, description="side of the whole kernel in codes, odd", examples=[3])
    heads: int = Field(ge=1, le=256, description="of attention, whose keys and values take half the channels",
                       examples=[2])  # fmt: skip
    dropout: float = Field(ge=0, lt=1, description="probability, of activations before each gate", examples=[0.1])
    condition_blocks: int = Field(ge=0, description="residual blocks on embedded earlier grids, where there are any",
                                  examples=[1])  # fmt: skip

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, to be centred on a code, got {value}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if self.channels % (2 * self.heads):
            raise ValueError(f"heads must divide half of channels {self.channels}, got {self.heads}")
        return self


class PixelSNAIL(Autoregressive):
    """See `core.contracts.Prior`. Dropout acts in `losses` of a module in training mode, nowhere else."""

    def __init__(self, config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> None:
        super().__init__(grids, codebook_sizes, classes, config.dropout)
        shape = (config.channels, config.blocks, config.layers, config.kernel_size, config.heads)
        self.networks = nn.ModuleList(Snail(size, *shape) for size in codebook_sizes)
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
        """The cached walk, grid by grid (`nn.snail`)."""
        earlier: list[Tensor] = []
        for network, condition in zip(self.networks, self.conditions, strict=True):
            earlier.append((yield from network.steps(n, condition(earlier, labels))))


def build(config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> PixelSNAIL:
    return PixelSNAIL(config, grids, codebook_sizes, classes)
