"""The emoji included in the project: data/noto-emoji.parquet, 128x128 pixels, from Google's font Noto Color Emoji.

Half of the rows are skin-tone or gender variants of another emoji. The family of an emoji is its code points without tone and
gender. All variants of a family stay in one split; otherwise test images would be near copies of training images.
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
        description="Unicode's classification to use for classes: 10 groups or 101 subgroups", examples=["group"]
    )


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """The parquet file at `source`, with the columns of `decoding.emoji.COLUMNS`; nothing is random.

    Raises:
        InputError: the file is missing, is not parquet, or lacks a column.
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
