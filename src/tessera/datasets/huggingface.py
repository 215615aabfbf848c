"""Any set of images that `datasets` reads: of the Hugging Face hub at a fixed commit, or a local file or folder
(parquet, or class folders under train/ and test/). https://huggingface.co/docs/datasets

Splits called test and val (validation, valid) keep their rows; all others are train, from which what the set lacks is
taken. No code of a set is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tessera.core.contracts import Source
from tessera.core.decoding import Encoded
from tessera.core.errors import InputError
from tessera.core.params import Params, Strict

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

SPLIT_NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


class Config(Strict):
    hub: str = Field(description="name on the hub, owner/name; empty: the local dataset.source", examples=[""])
    revision: str = Field(description="commit of the hub set, 40 hex digits; empty: local", examples=[""])
    configuration: str = Field(description="configuration (subset) of the set; empty: its default", examples=[""])
    image_column: str = Field(min_length=1, description="column of the images", examples=["image"])
    label_column: str = Field(description="column of the classes; empty: no labels", examples=[""])
    name_column: str = Field(description="column of the names; empty: split and row", examples=[""])
    family_column: str = Field(description="rows of one value stay in one split; empty, or no value: each by itself",
                               examples=[""])  # fmt: skip

    @model_validator(mode="after")
    def _pinned(self) -> Config:
        if self.hub and not (len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")):
            raise ValueError(
                f"revision must be a commit of {self.hub}, 40 hex digits, got {self.revision!r}: a branch moves. "
                f"Commits stand at https://huggingface.co/datasets/{self.hub}/commits/main"
            )
        return self

    def rule(self, params: Params) -> Iterator[str]:
        if params.prior.conditional and not self.label_column:
            yield (
                "prior.conditional: must be false while dataset.huggingface.label_column is empty, since the data set has no "
                "labels then, got true; name the column of the classes"
            )


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """The set that `config` names, or the local `source`; nothing is random.

    Raises:
        InputError: there is no such set, it lacks a column, or a label is missing.
    """
    title = config.hub or str(source)
    parts = _parts(config, source)
    own = [SPLIT_NAMES.get(part) for part, data in parts.items() for _ in range(len(data))]
    places = [(part, row) for part, data in parts.items() for row in range(len(data))]
    for data in parts.values():
        _require_columns(config, data, title)
    encoded = {part: _encoded(data, config.image_column, title) for part, data in parts.items()}
    ids = [f"{part}-{row}" for part, row in places]
    column = partial(_column, parts)
    labels, label_names = _labels(parts, config.label_column, title) if config.label_column else (None, [])
    return Source(
        images=Encoded(len(ids), lambda i: _bytes(encoded[places[i][0]][places[i][1]][config.image_column]),
                       lambda i: f"{title}, split {places[i][0]}, row {places[i][1]}"),
        names=[str(name) for name in column(config.name_column)] if config.name_column else ids,
        families=_families(column(config.family_column), ids) if config.family_column else ids,
        labels=labels,
        label_names=label_names,
        splits=own if set(own) - {"train", None} else None,
    )  # fmt: skip


def _parts(config: Config, source: Path) -> dict[str, Dataset]:
    """Split name -> rows. A local set is read without the network, whatever it asks for."""
    if not config.hub:
        if not source.exists():
            raise InputError(f"dataset.source {str(source)!r}: there is no such file or folder; or set huggingface.hub")
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported; a stage is a process of its own
    import datasets

    cache = Path(os.environ.get("DVC_ROOT") or ".").resolve() / ".scratch" / "huggingface"
    where: dict[str, Any] = {"path": str(source.resolve())}
    if config.hub:
        where = {"path": config.hub, "revision": config.revision}
    elif source.is_file():
        where = {"path": str(source.resolve().parent), "data_files": source.name}
    try:
        return dict(datasets.load_dataset(**where, name=config.configuration or None, cache_dir=str(cache)))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        texts = [str(said).strip() for said in (error.__cause__, error) if said is not None]
        reason = next((text.splitlines()[0] for text in texts if text), "no more is said")
        raise InputError(f"cannot load {config.hub or source}: {type(error).__name__}: {reason}") from error


def _require_columns(config: Config, data: Dataset, title: str) -> None:
    for key in ("image_column", "label_column", "name_column", "family_column"):
        wanted = getattr(config, key)
        if wanted and wanted not in data.column_names:
            there = ", ".join(data.column_names)
            raise InputError(f"dataset.huggingface.{key}: {title} has no column {wanted!r}; there is {there}")


def _encoded(data: Dataset, column: str, title: str) -> Dataset:
    """The column as encoded bytes: decoded here, a corrupt image can be named."""
    from datasets import Image

    try:
        if "string" in str(getattr(data.features[column], "dtype", "")):  # would be taken for the paths of images
            raise TypeError("text")
        return data.select_columns([column]).cast_column(column, Image(decode=False))
    except (TypeError, ValueError) as error:
        kind = data.features[column]
        raise InputError(f"dataset.huggingface.image_column: {column!r} of {title} holds {kind}, no images") from error


def _bytes(value: dict[str, Any] | None) -> bytes:
    if value and value["bytes"] is not None:
        return value["bytes"]
    if value and value["path"]:
        return Path(value["path"]).read_bytes()
    raise OSError("the row has no image")


def _families(values: list[Any], ids: list[str]) -> list[str]:
    """A row without a value is a family of its own, by a name that no value has."""
    taken = {str(value) for value in values if value is not None}
    found = []
    for value, own in zip(values, ids, strict=True):
        while value is None and own in taken:
            own = f"{own}-"
        found.append(own if value is None else str(value))
    return found


def _column(parts: dict[str, Dataset], column: str) -> list[Any]:
    return [value for data in parts.values() for value in data.select_columns([column])[:][column]]


def _labels(parts: dict[str, Dataset], column: str, title: str) -> tuple[Sequence[int], list[str]]:
    """Class indices and names: of a ClassLabel as it says, otherwise the values there are, sorted."""
    values = _column(parts, column)
    names = [getattr(data.features[column], "names", None) for data in parts.values()]
    if any(names) and names.count(names[0]) == len(names):
        known = dict(enumerate(names[0]))
    else:
        known = {value: str(value) for value in sorted({v for v in values if isinstance(v, str | int)}, key=_natural)}
    index = {value: i for i, value in enumerate(known)}
    for i, value in enumerate(values):
        if not isinstance(value, str | int) or value not in index:
            raise InputError(
                f"dataset.huggingface.label_column: row {i} of {title} has the label {value!r}, no class. "
                "Leave label_column empty, or take another column"
            )
    return [index[value] for value in values], list(known.values())


def _natural(value: str | int) -> tuple[bool, Any]:
    return isinstance(value, str), value  # numbers by size, before words
