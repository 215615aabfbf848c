"""Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): each grid of codes given earlier grids and the label.

p(codes | label) = product over grids of p(grid | earlier grids, label), each its own network, as in VQ-VAE-2 (Razavi et
al. 2019, sec. 3.2). Sampling remembers activations: one code costs one position per layer.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Generator, Tensor, nn

from tessera.core.contracts import Grid, Grids, Sampling
from tessera.core.params import Strict
from tessera.nn import sampling as draws
from tessera.nn import sequences
from tessera.nn.conv import ResidualBlock
from tessera.nn.gated import GatedPixelCNN, dropped


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


class Condition(nn.Module):
    """What a grid is given before its first code, as a map [1 or B,C,h,w]: the position, the label, all earlier grids.

    Emoji are centred, so the absolute position says much, and convolutions alone do not know it.
    """

    def __init__(self, config: Config, grid: Grid, earlier_sizes: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels = config.channels
        self.positions = nn.Parameter(torch.randn(1, channels, *grid) / 8)
        self.labels = nn.Embedding(classes, channels) if classes else None
        self.earlier = nn.ModuleList(nn.Embedding(size, channels) for size in earlier_sizes)
        blocks = config.condition_blocks if earlier_sizes else 0
        self.refine = nn.Sequential(*(ResidualBlock(channels, channels, "none", 0.0) for _ in range(blocks)))

    def forward(
        self, earlier: list[Int[Tensor, "b ..."]], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> Float[Tensor, "#b c h w"]:
        condition = self.positions
        if earlier:
            height, width = self.positions.shape[2:]
            embedded = sum(embedding(_resized(codes, height, width))
                           for embedding, codes in zip(self.earlier, earlier, strict=True))  # fmt: skip
            refined = self.refine(embedded.permute(0, 3, 1, 2) + self.positions)
            condition = condition + dropped(refined, dropout)
        if self.labels is not None:
            condition = condition + self.labels(labels)[:, :, None, None]
        return condition


def _resized(codes: Int[Tensor, "b y x"], height: int, width: int) -> Int[Tensor, "b h w"]:
    """Nearest neighbour, before embedding: a code is no number to interpolate, and the smaller grid is the cheaper."""
    rows = torch.arange(height, device=codes.device) * codes.shape[1] // height
    columns = torch.arange(width, device=codes.device) * codes.shape[2] // width
    return codes[:, rows[:, None], columns]


class PixelCNN(nn.Module):
    """See `core.contracts.Prior`. Dropout acts in `losses` of a module in training mode, nowhere else."""

    def __init__(self, config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.config, self.grids, self.codebook_sizes, self.classes = config, grids, codebook_sizes, classes
        shape = (config.channels, config.layers, config.kernel_size)
        self.networks = nn.ModuleList(GatedPixelCNN(size, *shape) for size in codebook_sizes)
        self.conditions = nn.ModuleList(
            Condition(config, grid, codebook_sizes[:index], classes) for index, grid in enumerate(grids)
        )

    def _logits(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        sequences.require_labels(labels, self.classes, len(codes))
        parts = sequences.unflatten(codes, self.grids)
        return tuple(
            network(part, condition(parts[:index], labels, dropout), dropout)
            for index, (part, network, condition) in enumerate(zip(parts, self.networks, self.conditions, strict=True))
        )

    def losses(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> dict[str, Tensor]:
        logits = self._logits(codes, labels, self.config.dropout if self.training else 0.0)
        return {"nll": sequences.nll(logits, codes)}

    def logits(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> tuple[Float[Tensor, "b n k"], ...]:
        """Of each grid's codes, given all before them: in row t stands p(code t | codes before t)."""
        return self._logits(codes, labels, 0.0)

    def log_prob(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, " b"]:
        return sequences.log_prob(self.logits(codes, labels), codes)

    def steps(self, n: int, labels: Int[Tensor, " n"] | None) -> draws.Steps:
        """The cached walk over all positions: yields logits [n,K], is sent codes [n] (`nn.sampling`)."""
        earlier: list[Tensor] = []
        for network, condition in zip(self.networks, self.conditions, strict=True):
            earlier.append((yield from network.steps(n, condition(earlier, labels, 0.0))))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: Generator,
        sampling: Sampling = Sampling(),  # noqa: B008  a NamedTuple does not change
        labels: Int[Tensor, " n"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]:
        sequences.require_labels(labels, self.classes, n)
        return draws.sample(self, self.steps(n, labels), n, generator, sampling, known, known_mask)


def build(config: Config, grids: Grids, codebook_sizes: tuple[int, ...], classes: int) -> PixelCNN:
    # channels-last weights: embedded codes are channels-last, and convolutions on CPU are faster on them
    return PixelCNN(config, grids, codebook_sizes, classes).to(memory_format=torch.channels_last)
