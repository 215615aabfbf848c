"""The condition of a grid of codes, known before its first code: positions, the label, and all earlier grids."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tessera.core.contracts import Grid
from tessera.networks.conv import ResidualBlock
from tessera.networks.dropout import dropped


def resized(codes: Int[Tensor, "b y x"], height: int, width: int) -> Int[Tensor, "b h w"]:
    """Nearest neighbour, before embedding: codes cannot be interpolated, and integers are cheaper to resize than vectors."""
    rows = torch.arange(height, device=codes.device) * codes.shape[1] // height
    columns = torch.arange(width, device=codes.device) * codes.shape[2] // width
    return codes[:, rows[:, None], columns]


class Condition(nn.Module):
    """A map [1 or B,C,h,w], known before any code of the grid: learned positions, an embedded label, and embedded earlier
    grids through a small residual network (Razavi et al. 2019, sec. 3.2).

    Emoji are centred, so the absolute position is informative, and convolutions alone do not know it.

    Args:
        earlier_sizes: codebook sizes of the earlier grids.
        classes: number of labels, 0 if not conditional; a further row means no label.
        blocks: residual blocks, if there are earlier grids.
    """

    def __init__(self, channels: int, grid: Grid, earlier_sizes: tuple[int, ...], classes: int, blocks: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, channels, *grid) / 8)
        self.labels = nn.Embedding(classes + 1, channels) if classes else None
        self.earlier = nn.ModuleList(nn.Embedding(size, channels) for size in earlier_sizes)
        blocks = blocks if earlier_sizes else 0
        self.refine = nn.Sequential(*(ResidualBlock(channels, channels, "none", 0.0) for _ in range(blocks)))

    def forward(
        self, earlier: list[Int[Tensor, "b ..."]], labels: Int[Tensor, " b"] | None, dropout: float = 0.0
    ) -> Float[Tensor, "#b c h w"]:
        condition: Tensor = self.positions
        if earlier:
            height, width = self.positions.shape[2:]
            embedded = sum(embedding(resized(codes, height, width))
                           for embedding, codes in zip(self.earlier, earlier, strict=True))  # fmt: skip
            refined = self.refine(embedded.permute(0, 3, 1, 2) + self.positions)
            condition = condition + dropped(refined, dropout)
        if self.labels is not None:
            condition = condition + self.labels(labels)[:, :, None, None]
        return condition
