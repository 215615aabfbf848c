"""The emoji that come with the project: data/noto-emoji.parquet, 128x128, drawn by Google's font Noto Color Emoji.

Half of the rows are skin-tone or gender variants of another. The family of an emoji is what remains of its code points
without them: variants stay in one split, or test images would be near copies of training images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tessera.core.contracts import Source
from tessera.core.decoding import Encoded
from tessera.core.errors import InputError
from tessera.core.params import Strict

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

COLUMNS = ("image", "name", "group", "subgroup", "codepoints")

TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
HAIR = {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
GENDERS = {"2640", "2642"}
JOINERS = {"fe0f", "200d"}
PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman -> person

# Couples of one tone are a code point of their own; with two different tones, or with another pair of genders, the same
# drawing is spelt as a sequence of people. Left apart, a test emoji would have its tone variants in training.
SPELT_OUT = {
    "1f46b": "1f9d1-1f91d-1f9d1",  # woman and man, men, women holding hands
    "1f46c": "1f9d1-1f91d-1f9d1",
    "1f46d": "1f9d1-1f91d-1f9d1",
    "1f48f": "1f9d1-2764-1f48b-1f9d1",  # kiss
    "1f491": "1f9d1-2764-1f9d1",  # couple with heart
    "1f91d": "1faf1-1faf2",  # handshake; with two tones it is a rightwards and a leftwards hand
}


class Config(Strict):
    label: Literal["group", "subgroup"] = Field(
        description="Unicode's division that gives the classes: 10 groups or 101 subgroups", examples=["group"]
    )


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """The parquet at `source`, with the columns of `COLUMNS`; nothing is random.

    Raises:
        InputError: it is missing, no parquet, or lacks a column.
    """
    table = _read(source)
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


def _read(source: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(source)
    except FileNotFoundError:
        own = "data/noto-emoji.parquet"
        raise InputError(f"dataset.source {str(source)!r}: there is no such file; the project's own is {own}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"dataset.source {str(source)!r} is not a whole parquet file ({error})") from None
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        there = ", ".join(table.column_names)
        raise InputError(
            f"dataset.source {str(source)!r} lacks the columns {', '.join(missing)}; it has {there}. "
            "Other files are read by dataset.name: huggingface"
        )
    return table


def family(codepoints: str) -> str:
    """What the variants of an emoji share: `1f44b-1f3fb` (waving hand, light skin) -> `1f44b`.

    Dropped are skin tone, hair, gender and joiners; man and woman become person. A sequence of nothing else (the sign
    of a gender, a sample of a tone) keeps its code points.
    """
    dropped = TONES | HAIR | GENDERS | JOINERS
    kept = "-".join(PEOPLE.get(point, point) for point in codepoints.split("-") if point not in dropped)
    return SPELT_OUT.get(kept, kept) or codepoints
