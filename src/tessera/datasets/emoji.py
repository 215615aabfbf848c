"""Emoji of several vendors in one folder, the same emoji of all of them in one split and one class. Nothing is moved.

    source/noto-emoji.parquet     any number of parquet files with the columns of `nn.emoji.COLUMNS`
    source/twemoji/1f44b.png      any number of folders of images named by code points, at any depth

The parquet files say what an emoji is called and which class it has, so at least one must be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from tessera.core import files
from tessera.core.contracts import Source
from tessera.core.decoding import Encoded
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.nn.emoji import family, read, spelling

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# 1f468-200d-1f4bb, u1f600, U+1F600, and as Noto's own repository has it: emoji_u1f468_200d_1f4bb
FILE_NAME = re.compile(r"(?:emoji_)?(?:u\+?)?([0-9a-f]{1,6}(?:[-_][0-9a-f]{1,6})*)", re.IGNORECASE)


class Config(Strict):
    label: Literal["group", "subgroup"] = Field(
        description="Unicode's division that gives the classes: 10 groups or 101 subgroups", examples=["group"]
    )
    extensions: list[str] = Field(min_length=1, description="file names of images end in one of these, in either case",
                                  examples=[["png", "webp"]])  # fmt: skip


class Drawing(NamedTuple):
    """One vendor's image of one emoji; `title` is what an error calls it."""

    title: str
    vendor: str
    codepoints: str  # spelt alike for all, see `spelling`
    read: Callable[[], bytes]


class Meaning(NamedTuple):
    """What the parquet files say of an emoji."""

    name: str
    family: str
    label: str


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """All rows of the parquet files of `source`, then all images of its folders, both sorted; nothing is random.

    A name is `<vendor>/<emoji>`, the vendor being the name of the parquet file or of the folder. Emoji, family and class
    are those of the first row with the same code points (but for variation selectors, fe0f), or else of the same family;
    the name is then made of the code points themselves.

    Raises:
        InputError: there is no such folder, or no parquet in it; a folder in it is a link, or holds no image; a file is
            not named by code points, is of an emoji that no parquet has, or stands in no folder; two images of one vendor
            are of the same emoji.
    """
    parquets, pictures = _files(source, config.extensions)
    drawings: list[Drawing] = []
    known: dict[str, Meaning] = {}
    for path in parquets:
        table = read(path)
        columns = (table[column].to_pylist() for column in ("name", "codepoints", config.label))
        for i, (name, codepoints, label) in enumerate(zip(*columns, strict=True)):
            drawings.append(Drawing(f"{path}, {name!r}", path.stem, spelling(codepoints), partial(_row, table, i)))
            known.setdefault(drawings[-1].codepoints, Meaning(name, family(codepoints), label))
    if not known:
        raise InputError(f"{source} holds no parquet to take classes from. Copy data/noto-emoji.parquet into it")
    for path in pictures:
        file = source / path
        drawings.append(Drawing(str(file), path.parts[0], _codepoints(file), file.read_bytes))
    meanings = _meanings(drawings, known)
    label_names = list(dict.fromkeys(meaning.label for meaning in known.values()))  # in the order of the rows
    index = {name: i for i, name in enumerate(label_names)}
    return Source(
        images=Encoded(len(drawings), lambda i: drawings[i].read(), lambda i: drawings[i].title),
        names=_names(drawings, meanings),
        families=[meaning.family for meaning in meanings],
        labels=[index[meaning.label] for meaning in meanings],
        label_names=label_names,
        splits=None,
    )


def _files(source: Path, extensions: list[str]) -> tuple[list[Path], list[Path]]:
    """Parquet files at the top, and images below `source`, relative to it. What is hidden and other files are left out."""
    found, pictures = files.pictures(source, extensions)
    files.require_filled(source, extensions, found, pictures)
    for path in pictures:
        if len(path.parts) == 1:
            raise InputError(f"{source / path} stands in no folder. Move it into one that is called like its vendor")
    return [source / path for path in found if len(path.parts) == 1 and path.suffix.lower() == ".parquet"], pictures


def _row(table: pa.Table, i: int) -> bytes:
    return table["image"][i]["bytes"].as_py()


def _codepoints(path: Path) -> str:
    match = FILE_NAME.fullmatch(path.stem)
    if match is None:
        raise InputError(f"{path} is not named by code points, such as 1f600 or 1f468-200d-1f4bb. Rename or remove it")
    return spelling(match[1])


def _meanings(drawings: list[Drawing], known: dict[str, Meaning]) -> list[Meaning]:
    relatives = {meaning.family: meaning for meaning in reversed(known.values())}  # of a family the first row
    found, unknown = [], []
    for drawing in drawings:
        if drawing.codepoints in known:
            found.append(known[drawing.codepoints])
        elif relative := relatives.get(family(drawing.codepoints)):
            found.append(relative._replace(name=drawing.codepoints))
        else:
            unknown.append(drawing.title)
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(f"{len(unknown)} images have no class, for no parquet has their emoji. Remove {shown}")
    return found


def _names(drawings: list[Drawing], meanings: list[Meaning]) -> list[str]:
    titles: dict[str, str] = {}
    for drawing, meaning in zip(drawings, meanings, strict=True):
        name = f"{drawing.vendor}/{meaning.name}"
        if name in titles:
            raise InputError(f"{titles[name]} and {drawing.title} are both {name!r}. Remove one, or rename its folder")
        titles[name] = drawing.title
    return list(titles)
