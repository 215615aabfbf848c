"""The space of an image's codes: how the sequence [T] folds into grids, and how many codes each grid may choose from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tessera.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tessera.core.contracts import Grids

Codes = TypeVar("Codes", "np.ndarray", "Tensor")


@dataclass(frozen=True)
class CodeSpace:
    """Grids of codes, level by level, then depth by depth, coarse first, and the codebook size K of each.

    Grids ((1, 2), (2, 2)) give T = 6: codes[:, 0:2] are the only row of the first, codes[:, 2:4] and codes[:, 4:6] the rows
    of the second. Without grids, as of a tokenizer whose quantizer is not fitted yet, T = 0. Methods take NumPy arrays and
    torch tensors; torch is not imported for the former.

    Attributes:
        grids: (height, width) of each grid.
        sizes: K of each grid.

    Raises:
        InputError: there are not as many sizes as grids.
    """

    grids: Grids
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple((height, width) for height, width in self.grids))
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if len(self.grids) != len(self.sizes):
            raise InputError(f"codebook sizes must be one per grid, got {self.sizes} for grids {self.grids}")

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> CodeSpace:
        """From the keys that `facts` has."""
        return cls(facts["grids"], facts["codebook_sizes"])

    @property
    def facts(self) -> dict[str, Any]:
        """As it stands in `artifacts/codes/facts.json` and in the recipe of a prior."""
        return {"grids": self.grids, "codebook_sizes": self.sizes}

    @property
    def lengths(self) -> tuple[int, ...]:
        """Codes of each grid, h * w."""
        return tuple(height * width for height, width in self.grids)

    @property
    def length(self) -> int:
        """T, the codes of an image."""
        return sum(self.lengths)

    @property
    def bits(self) -> float:
        """Bits of an image if all K codes of a grid are equally likely: the sum of log2 K over its T codes."""
        return sum(length * math.log2(size) for length, size in zip(self.lengths, self.sizes, strict=True))

    def split(self, codes: Codes) -> list[Codes]:
        """What is [N,T], codes or a value for each, to one [N,h,w] per grid, in raster order, as views.

        Raises:
            ValueError: T is not the number of codes of these grids.
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

    def join(self, parts: Iterable[Codes]) -> Codes:
        """The inverse of `split`. A part is a grid [N,h,w], or a level [N,R,h,w] with all its R depths.

        Raises:
            ValueError: the parts are not those of these grids.
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
        """Which grid position t of a sequence lies in, and which place of its raster.

        Raises:
            ValueError: the sequence has no such position.
        """
        place = t
        for grid, length in enumerate(self.lengths):
            if 0 <= place < length:
                return grid, place
            place -= length
        raise ValueError(f"position must be from 0 to {self.length - 1} for grids {self.grids}, got {t}")
