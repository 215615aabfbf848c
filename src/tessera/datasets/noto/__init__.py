"""The emoji that come with the project: data/noto-emoji.parquet, 128x128, drawn by Google's font Noto Color Emoji.

Half of the rows are skin-tone or gender variants of another. The family of an emoji is what remains of its code points
without them: variants stay in one split, or test images would be near copies of training images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tessera.core.contracts import Source
from tessera.core.params import Strict
from tessera.decoding.compressed import Encoded
from tessera.decoding.emoji import family, read

if TYPE_CHECKING:
    import numpy as np


class Config(Strict):
    label: Literal["group", "subgroup"] = Field(
        description="Unicode's division that gives the classes: 10 groups or 101 subgroups", examples=["group"]
    )


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """The parquet at `source`, with the columns of `decoding.emoji.COLUMNS`; nothing is random.

    Raises:
        InputError: it is missing, no parquet, or lacks a column.
    """
    table = read(source)
    names, codepoints, labels = (table[column].to_pylist() for column in ("name", "codepoints", config.label))
    label_names = list(dict.fromkeys(labels))  # in Unicode's order
    index = {name: i for i, name in enumerate(label_names)}
    return Source(
        images=Encoded(len(names), lambda i: table["image"][i]["bytes"].as_py(), lambda i: f"{source}, {names[i]!r}"),
        names=names,
        families=[family(sequence) for sequence in codepoints],
        labels=[index[label] for label in labels],
        label_names=label_names,
        splits=None,
    )
