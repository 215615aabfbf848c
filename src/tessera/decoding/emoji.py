"""Shared by the emoji data sets: the table that describes emoji, and the families of their variants. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tessera.core.errors import InputError
from tessera.decoding.compressed import reason

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("image", "name", "group", "subgroup", "codepoints")

TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
HAIR = {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
GENDERS = {"2640", "2642"}
JOINERS = {"fe0f", "200d"}
PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman -> person

# A couple of one tone is a single code point; with two different tones, or other genders, the same image is spelt as a sequence
# of people. As separate families, a test emoji would have its tone variants in training.
SPELT_OUT = {
    "1f46b": "1f9d1-1f91d-1f9d1",  # woman and man, men, women holding hands
    "1f46c": "1f9d1-1f91d-1f9d1",
    "1f46d": "1f9d1-1f91d-1f9d1",
    "1f48f": "1f9d1-2764-1f48b-1f9d1",  # kiss
    "1f491": "1f9d1-2764-1f9d1",  # couple with heart
    "1f91d": "1faf1-1faf2",  # handshake; with two tones it is a rightwards and a leftwards hand
}


def read(source: Path) -> pa.Table:
    """The parquet file at `source`, with the columns of `COLUMNS` and one row per emoji.

    Raises:
        InputError: the file is missing, is not parquet, or lacks a column; a column has the wrong type or missing values.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(source)
    except FileNotFoundError:
        own = "data/noto-emoji.parquet"
        raise InputError(f"dataset.source {str(source)!r}: there is no such file; the project's own is {own}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"dataset.source {str(source)!r} is not a whole parquet file ({reason(source, error)})"
        ) from None
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        there = ", ".join(table.column_names)
        raise InputError(
            f"dataset.source {str(source)!r} lacks the columns {', '.join(missing)}; it has {there}. "
            "Other files are read by dataset.name: huggingface"
        )
    for column in COLUMNS:
        kind, rows = table.schema.field(column).type, table[column]
        if not (_is_image(kind) if column == "image" else _is_text(kind)):
            wanted = "images as structs with the binary field `bytes`" if column == "image" else "text"
            raise InputError(f"dataset.source {str(source)!r}: column {column} must hold {wanted}, got {kind}")
        if rows.null_count:
            row = rows.is_null().index(True).as_py()
            raise InputError(f"dataset.source {str(source)!r}: column {column} is empty in row {row}")
    return table


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, plain or dictionary-encoded (as pandas stores categories)."""
    import pyarrow as pa

    of = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(of) or pa.types.is_large_string(of)


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column holds images as `datasets` stores them: structs with a binary field `bytes`."""
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    of = kind.field("bytes").type
    return pa.types.is_binary(of) or pa.types.is_large_binary(of)


def family(codepoints: str) -> str:
    """The code points common to all variants of an emoji: `1f44b-1f3fb` (waving hand, light skin) -> `1f44b`.

    Skin tone, hair, gender and joiners are dropped; man and woman become person. A sequence of nothing else (a gender sign,
    a skin-tone swatch) keeps its code points.
    """
    dropped = TONES | HAIR | GENDERS | JOINERS
    kept = "-".join(PEOPLE.get(point, point) for point in codepoints.split("-") if point not in dropped)
    return SPELT_OUT.get(kept, kept) or codepoints


def spelling(codepoints: str) -> str:
    """The common spelling: `0023_FE0F_20E3` -> `23-20e3`. Vendors differ in zeros, case, separators and variation selectors."""
    points = [point.lstrip("0") or "0" for point in codepoints.lower().replace("_", "-").split("-")]
    return "-".join(point for point in points if point != "fe0f")
