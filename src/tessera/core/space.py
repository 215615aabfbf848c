"""The space of an image's codes: how the sequence [T] folds into grids, and how many different codes each grid can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tessera.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tessera.core.contracts import Grids

Codes = TypeVar("Codes", "np.ndarray", "Tensor")
Level = TypeVar("Level")


@dataclass(frozen=True)
class CodeSpace:
    """Grids of codes, level by level, then depth by depth, coarse first, and the codebook size K of each.

    Example: grids ((1, 2), (2, 2)) give T = 6. codes[:, 0:2] are the only row of the first grid; codes[:, 2:4] and codes[:, 4:6]
    are the rows of the second. Without grids T = 0: the space of a tokenizer whose quantizer is not fitted yet. The methods
    take NumPy arrays and torch tensors. For NumPy arrays they do not import torch.

    Attributes:
        grids: (height, width) of each grid.
        sizes: K of each grid.
        global_grids: the first so many grids, the depths of the first level, hold *global codes*: each is about the whole image,
            has no place in it and is not decoded.

    Raises:
        InputError: the numbers of sizes and grids differ, or no grid is left that is decoded.
    """

    grids: Grids
    sizes: tuple[int, ...]
    global_grids: int = 0

    FACTS: ClassVar = ("grids", "codebook_sizes", "global_grids")  # keys of `facts`

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple((height, width) for height, width in self.grids))
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if len(self.grids) != len(self.sizes):
            raise InputError(f"codebook sizes must be one per grid, got {self.sizes} for grids {self.grids}")
        if self.global_grids and not 0 < self.global_grids < len(self.grids):
            raise InputError(
                f"global_grids must be from 0 to {max(0, len(self.grids) - 1)}, so that a grid is left that is decoded, got "
                f"{self.global_grids} for grids {self.grids}"
            )

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> CodeSpace:
        """The space from a dictionary with the keys of `facts`."""
        return cls(facts["grids"], facts["codebook_sizes"], facts.get("global_grids", 0))

    @property
    def facts(self) -> dict[str, Any]:
        """The space as `artifacts/codes/facts.json` and the recipe of a prior store it."""
        facts = {"grids": self.grids, "codebook_sizes": self.sizes}
        return facts | ({"global_grids": self.global_grids} if self.global_grids else {})

    @property
    def global_codes(self) -> int:
        """Number of global codes of an image, which are the first of its sequence."""
        return sum(self.lengths[: self.global_grids])

    @property
    def global_levels(self) -> int:
        """Number of levels of global codes, 0 or 1."""
        return int(self.global_grids > 0)

    @property
    def placed_grids(self) -> Grids:
        """The grids whose codes have a place in the image, which are those that are decoded."""
        return self.grids[self.global_grids :]

    def placed(self, levels: Sequence[Level]) -> tuple[Level, ...]:
        """Of one entry per level, coarse first, those of the levels that are decoded: all but that of global codes."""
        return tuple(levels[self.global_levels :])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of codes of each grid, h * w."""
        return tuple(height * width for height, width in self.grids)

    @property
    def length(self) -> int:
        """T, the number of codes of an image."""
        return sum(self.lengths)

    @property
    def bits(self) -> float:
        """Bits per image if all K codes of a grid are equally likely: the sum of log2 K over the T codes."""
        return sum(length * math.log2(size) for length, size in zip(self.lengths, self.sizes, strict=True))

    def split(self, codes: Codes) -> list[Codes]:
        """Codes [N,T], or a value for each of them, as one [N,h,w] per grid, in raster order, as views.

        Raises:
            ValueError: T does not fit these grids.
        """
        if codes.shape[1] != self.length:
            raise ValueError(
                f"codes must have {self.length} columns for grids {self.grids}, got shape {tuple(codes.shape)}"
            )
        parts, start = [], 0
        for grid, length in zip(self.grids, self.lengths, strict=True):
            parts.append(codes[:, start : start + length].reshape(len(codes), *grid))
            start += length
        return parts

    def neighbourhoods(self, codes: Codes) -> list[Codes]:
        """As `split`, for what asks of neighbours: global codes have none, so each is a grid of its own, [N*h*w,1,1]."""
        return [
            part.reshape(-1, 1, 1) if grid < self.global_grids else part for grid, part in enumerate(self.split(codes))
        ]

    def join(self, parts: Iterable[Codes]) -> Codes:
        """The inverse of `split`. A part is a grid [N,h,w], or a level [N,R,h,w] with all its R depths.

        Raises:
            ValueError: the parts do not fit these grids.
        """
        flat: list[Any] = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
        if sum(part.shape[1] for part in flat) != self.length:
            raise ValueError(
                f"parts must hold {self.length} codes for grids {self.grids}, got {[part.shape[1] for part in flat]}"
            )
        if hasattr(flat[0], "__array_interface__"):
            import numpy as np

            joined: Any = np.concatenate(flat, axis=1)
        else:
            import torch

            joined = torch.cat(flat, dim=1)
        return joined

    def locate(self, t: int) -> tuple[int, int]:
        """The grid that holds position t of the sequence, and the position within that grid in raster order.

        Raises:
            ValueError: t is out of range.
        """
        place = t
        for grid, length in enumerate(self.lengths):
            if 0 <= place < length:
                return grid, place
            place -= length
        raise ValueError(f"position must be from 0 to {self.length - 1} for grids {self.grids}, got {t}")
