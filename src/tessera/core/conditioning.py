"""What a prior is told of an image: its conditions, and the columns of integers that hold them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tessera.core.errors import InputError, listed

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int
    from torch import Tensor

Ids = TypeVar("Ids", "np.ndarray", "Tensor")
WORDS = "words"  # the words of an image's name
CLUSTER = "cluster"  # made by the stage `codes`, as is the next; all other conditions are columns of the table
NEIGHBOUR = "neighbour"  # a near training image, told by its feature
MADE_OF_CODES = (CLUSTER, NEIGHBOUR)


class Condition(NamedTuple):
    """One thing that a prior is told of an image: `label`, `vendor`, `words`, `cluster`, `neighbour`.

    Attributes:
        names: what each id from 0 means: classes in the order of the data set, words, or the names of the training images.
        columns: how many ids an image has. A class has one. Words have several, in any order: a bag, filled up with `none`.
        dropout: the probability with which a training example went without it. 0: the prior never learned to do without.
        features: F, where each id stands for a feature [F] and nothing else of it counts. 0: each id has a learned vector.
    """

    name: str
    names: tuple[str, ...]
    columns: int
    dropout: float
    features: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """As the recipe of a prior stores it. Recipes of priors without features are as they were before there were any."""
        facts = self._asdict()
        return facts if self.features else {key: value for key, value in facts.items() if key != "features"}

    @property
    def none(self) -> int:
        """The id that means that nothing is said: the one past the last."""
        return len(self.names)


@dataclass(frozen=True)
class Conditioning:
    """All conditions of a prior, in the order of their columns in `conditions` [B,C]. Of an unconditional prior it is empty, false,
    and `conditions` are None.

    The methods that take tensors read no value from the device, except `require`.
    """

    parts: tuple[Condition, ...] = ()

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Conditioning:
        """From a dictionary with the key of `facts`."""
        known = [Condition(**part) for part in facts["conditions"]]
        return cls(tuple(part._replace(names=tuple(part.names)) for part in known))

    @property
    def facts(self) -> dict[str, Any]:
        """As the recipe of a prior stores it."""
        return {"conditions": [part.facts for part in self.parts]}

    def __iter__(self) -> Iterator[Condition]:
        return iter(self.parts)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Condition:
        """
        Raises:
            InputError: there is no such condition. The message names those that there are.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise InputError(self.unknown(name))

    def unknown(self, name: str) -> str:
        """The error message for a condition that the prior has not."""
        there = f"it is told {listed(self.names)}" if self.parts else "it is told nothing"
        return f"this prior knows no {name}: {there}. Train one with prior.conditions.{name}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def columns(self) -> int:
        """C, over all conditions."""
        return sum(part.columns for part in self.parts)

    @property
    def dropout(self) -> dict[str, float]:
        return {part.name: part.dropout for part in self.parts}

    def always(self) -> Conditioning:
        """The same of a prior that never goes without any of them in training."""
        return Conditioning(tuple(part._replace(dropout=0.0) for part in self.parts))

    def single(self, prior: str) -> Condition | None:
        """The one condition of a prior that can take one class at most; None if there is none.

        Raises:
            InputError: there are several conditions, or words, or one that is told by features. The message begins with the name of
                the prior.
        """
        if any(part.features for part in self.parts):
            raise InputError(
                f"{prior} counts classes and cannot be told a feature, got {listed(self.names)}; set "
                f"prior.conditions.{NEIGHBOUR} to none, or choose a prior that is trained, such as transformer"
            )
        if len(self.parts) > 1 or WORDS in self:
            raise InputError(
                f"{prior} can be told one class, not words nor several conditions, got {listed(self.names)}"
            )
        return self.parts[0] if self.parts else None

    def split(self, conditions: Ids) -> list[Ids]:
        """The columns of each condition, as views; of an array or a tensor [B,C]."""
        parts, start = [], 0
        for part in self.parts:
            parts.append(conditions[:, start : start + part.columns])
            start += part.columns
        return parts

    def without(self, conditions: Int[Tensor, "b c"], names: Collection[str]) -> Int[Tensor, "b c"]:
        """A copy in which nothing is said of these conditions."""
        conditions = conditions.clone()
        for part, columns in zip(self.parts, self.split(conditions), strict=True):
            if part.name in names:
                columns.fill_(part.none)
        return conditions

    def nothing(self, count: int, device: Any = None) -> Int[Tensor, "b c"]:
        """Conditions of `count` images of which nothing is said."""
        import torch

        return self.without(torch.zeros(count, self.columns, dtype=torch.int64, device=device), self.names)

    def require(self, conditions: Int[Tensor, "b c"] | None, count: int) -> None:
        """Check that conditions are given if and only if the prior has some: a row for each image, and ids in range.

        Raises:
            InputError: conditions are missing or not allowed, of another shape, or out of range.
        """
        if conditions is None and not self.parts:
            return
        if conditions is None:
            raise InputError(
                f"this prior is conditioned on {listed(self.names)}: conditions must be given, one row per image"
            )
        if not self.parts:
            raise InputError("this prior is not conditioned on anything: conditions must be None")
        if tuple(conditions.shape) != (count, self.columns):
            raise InputError(f"conditions must have shape ({count}, {self.columns}), one row per image and columns for "
                             f"{listed(self.names)}, got {tuple(conditions.shape)}")  # fmt: skip
        for part, ids in zip(self.parts, self.split(conditions), strict=True):
            if count and not 0 <= int(ids.min()) <= int(ids.max()) <= part.none:
                raise InputError(f"{part.name} must be from 0 to {part.none - 1}, or {part.none} for none, "
                                 f"got {int(ids.min())} to {int(ids.max())}")  # fmt: skip

    def require_guidance(self, guidance: Iterable[str]) -> None:
        """
        Raises:
            InputError: guidance is given for a condition that the prior has not.
        """
        for name in guidance:
            if name not in self:
                raise InputError(f"guidance: {self.unknown(name)}")


UNCONDITIONAL = Conditioning()
