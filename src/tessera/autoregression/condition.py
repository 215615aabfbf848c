"""What is known before the first code of a grid: positions, the conditions, and all earlier grids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tessera.core.conditioning import NEIGHBOUR, Condition, Conditioning
from tessera.core.contracts import Model, Prior
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace
from tessera.networks.conv import ResidualBlock
from tessera.networks.dropout import dropped

if TYPE_CHECKING:
    from tessera.core.run import Run


def resized(codes: Int[Tensor, "b y x"], height: int, width: int) -> Int[Tensor, "b h w"]:
    """Nearest neighbour, before embedding: codes cannot be interpolated, and integers are cheaper to resize than vectors."""
    rows = torch.arange(height, device=codes.device) * codes.shape[1] // height
    columns = torch.arange(width, device=codes.device) * codes.shape[2] // width
    return codes[:, rows[:, None], columns]


class ConditionEmbedding(nn.Module):
    """[B,C] to [B,channels]: the sum of a learned vector for each condition. Where nothing is said, that is a vector of its own.

    A bag of n words has the sum of their vectors, divided by the root of n: so a name of many words weighs as much as one of few,
    and as much as a class (Deep Sets, Zaheer et al. 2017, arXiv 1703.06114: a sum does not depend on the order). Of a condition
    that is told by features, see `FeatureEmbedding`.
    """

    def __init__(self, conditioning: Conditioning, channels: int) -> None:
        super().__init__()
        self.conditioning = conditioning
        tables = [_table(part, channels) for part in conditioning]
        self.tables = cast("Sequence[nn.Embedding]", nn.ModuleList(tables))

    def forward(self, conditions: Int[Tensor, "b c"]) -> Float[Tensor, "b channels"]:
        columns = self.conditioning.split(conditions)
        parts = zip(self.conditioning, self.tables, columns, strict=True)
        return reduce(torch.add, [_embedded(*part) for part in parts])


class FeatureEmbedding(nn.Module):
    """[B] to [B,channels]: a linear map of the feature of each id, and a learned vector for the id past the last: nothing is said.

    So the feature of an id decides and not its number, and images of near features are told alike (instance-conditioned GANs,
    Casanova et al. 2021, arXiv 2109.05070, where the feature is that of a training image). Features are no weights: they are
    zeros until `with_features`, and saved with the model, so that it can be asked for an image without the data set.
    """

    features: Tensor

    def __init__(self, count: int, features: int, channels: int) -> None:
        """
        Args:
            count: ids that have a feature.
            features: F, the numbers of a feature.
        """
        super().__init__()
        self.register_buffer("features", torch.zeros(count, features))
        self.linear = nn.Linear(features, channels)
        self.nothing = nn.Parameter(torch.randn(channels))  # as a row of nn.Embedding

    def forward(self, ids: Int[Tensor, " b"]) -> Float[Tensor, "b channels"]:
        said = ids < len(self.features)
        vectors = self.linear(self.features[ids.clamp(max=len(self.features) - 1)])
        return torch.where(said[:, None], vectors, self.nothing.to(vectors.dtype))


def with_features(prior: Prior, run: Run) -> Prior:
    """The same prior, which is new. If it is told a neighbour, it has the features of the training images from now on."""
    if NEIGHBOUR in prior.conditioning:
        set_features(prior, torch.from_numpy(np.array(run.neighbour_features())))
    return prior


def set_features(prior: Model, features: Float[Tensor, "n f"]) -> None:
    """
    Args:
        features: of each id, a row.

    Raises:
        InputError: they have another shape than the prior was made for.
    """
    for part in prior.modules():
        if isinstance(part, FeatureEmbedding):
            if features.shape != part.features.shape:
                raise InputError(
                    f"features must have shape {tuple(part.features.shape)}, as the prior was made for, got "
                    f"{tuple(features.shape)}; run `dvc repro prior`"
                )
            part.features.copy_(features)


def _table(part: Condition, channels: int) -> nn.Module:
    if part.features:
        return FeatureEmbedding(part.none, part.features, channels)
    return nn.Embedding(part.none + 1, channels)  # the last row: nothing is said


def _embedded(part: Condition, table: nn.Embedding, ids: Int[Tensor, "b m"]) -> Float[Tensor, "b channels"]:
    if part.columns == 1:
        return table(ids[:, 0])
    said = ids != part.none
    vectors = table(ids) * said[:, :, None]
    count = said.sum(1, keepdim=True)
    return torch.where(count > 0, vectors.sum(1) / count.clamp(min=1).to(vectors.dtype).sqrt(), table.weight[part.none])


def embedding_of(conditioning: Conditioning, channels: int) -> ConditionEmbedding | None:
    """None for an unconditional prior."""
    return ConditionEmbedding(conditioning, channels) if conditioning else None


class ConditionMap(nn.Module):
    """A map [1 or B,C,h,w], known before any code of the grid: learned positions, embedded conditions, and embedded earlier
    grids through a small residual network (Razavi et al. 2019, sec. 3.2).

    Emoji are centred, so the absolute position is informative, and convolutions alone do not know it.

    Args:
        space: of all codes.
        index: of the grid; all before it are earlier grids.
        conditioning: what the prior is told of an image.
        blocks: residual blocks, if there are earlier grids.
    """

    def __init__(self, channels: int, space: CodeSpace, index: int, conditioning: Conditioning, blocks: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, channels, *space.grids[index]) / 8)
        self.given = embedding_of(conditioning, channels)
        self.global_grids = space.global_grids
        lengths = [length if grid < space.global_grids else 1 for grid, length in enumerate(space.lengths[:index])]
        tables = [nn.Embedding(size * n, channels) for size, n in zip(space.sizes, lengths, strict=False)]
        self.earlier = cast("Sequence[nn.Embedding]", nn.ModuleList(tables))
        blocks = blocks if index else 0
        self.refine = nn.Sequential(*(ResidualBlock(channels, channels, "none", 0.0) for _ in range(blocks)))

    def forward(
        self, earlier: list[Int[Tensor, "b ..."]], conditions: Int[Tensor, "b c"] | None, dropout: float = 0.0
    ) -> Float[Tensor, "#b c h w"]:
        return reduce(torch.add, self.parts(earlier, conditions, dropout))

    def parts(
        self, earlier: list[Int[Tensor, "b ..."]], conditions: Int[Tensor, "b c"] | None, dropout: float = 0.0
    ) -> tuple[Float[Tensor, "#b c #h #w"], ...]:
        """Maps whose sum is the condition: one that differs by place, and, of a conditional prior, one [B,C,1,1] that does not.
        What is linear in the condition costs less of these than of their sum."""
        condition: Tensor = self.positions
        if earlier:
            grids = zip(self.earlier, earlier, strict=True)
            embedded = reduce(torch.add, [self._everywhere(grid, *of_grid) for grid, of_grid in enumerate(grids)])
            refined = self.refine(embedded.permute(0, 3, 1, 2) + self.positions)
            condition = condition + dropped(refined, dropout)
        if self.given is not None:
            return condition, self.given(conditions)[:, :, None, None]
        return (condition,)

    def _everywhere(
        self, grid: int, table: nn.Embedding, codes: Int[Tensor, "b y x"]
    ) -> Float[Tensor, "b h w channels"]:
        """An earlier grid, embedded, at each place of this one. A global code has a vector of its own for each of its positions,
        and is known at every place: the sum of these, over the root of their number."""
        height, width = self.positions.shape[2:]
        if grid >= self.global_grids:
            return table(resized(codes, height, width))
        flat = codes.flatten(1)
        count = flat.shape[1]
        first = torch.arange(count, device=codes.device) * (table.num_embeddings // count)
        return (table(flat + first).sum(1) / count**0.5)[:, None, None].expand(-1, height, width, -1)
