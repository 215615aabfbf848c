"""Emoji of several vendors in one folder. The same emoji of all vendors is in one split and one class. No file is moved.

    source/noto-emoji.parquet     any number of parquet files with the columns of `decoding.emoji.COLUMNS`
    source/twemoji/1f44b.png      any number of folders of images named by code points, at any depth

The parquet files give the name and the class of each emoji, so at least one is required.
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
from tessera.core.errors import InputError, listed
from tessera.core.params import Strict
from tessera.decoding.compressed import Encoded
from tessera.decoding.emoji import family, read, spelling

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# 1f468-200d-1f4bb, u1f600, U+1F600; and as in Noto's repository: emoji_u1f468_200d_1f4bb
FILE_NAME = re.compile(r"(?:emoji_)?(?:u\+?)?([0-9a-f]{1,6}(?:[-_][0-9a-f]{1,6})*)", re.IGNORECASE)
SHOWN = 500  # files named in an error: enough for all surplus files of one vendor's set


class Config(Strict):
    label: Literal["group", "subgroup"] = Field(
        description="Unicode's classification to use for classes: 10 groups or 101 subgroups", examples=["group"]
    )
    extensions: list[str] = Field(min_length=1, description="endings of image files, in upper or lower case",
                                  examples=[["png", "webp"]])  # fmt: skip


class Drawing(NamedTuple):
    """One vendor's image of one emoji. `title` names it in errors."""

    title: str
    vendor: str
    codepoints: str  # in the common spelling of all vendors, see `spelling`
    read: Callable[[], bytes]


class Meaning(NamedTuple):
    """Name, family and class of an emoji in the parquet files."""

    name: str
    family: str
    label: str


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """All rows of the parquet files in `source`, then all images of its folders, both sorted; nothing is random.

    The name of an image is `<vendor>/<emoji>`; the vendor is the name of the parquet file or of the folder. Emoji, family and
    class come from the first row with the same code points (variation selectors, fe0f, are ignored), or else from the first
    row of the same family; in that case the code points serve as name. `notes` list files of other kinds.

    Raises:
        InputError: the folder is missing or has no parquet file; a folder in it is a link or holds no image, or a link is
            broken; files are not named by code points, show an emoji that no parquet file has, or lie in no folder; several
            images of one vendor show the same emoji. The message names all such files.
    """
    shown, others = files.pictures(source, config.extensions)
    files.require_filled(source, config.extensions, shown)
    parquets = [path for path in others if len(path.parts) == 1 and path.suffix.lower() == ".parquet"]
    drawings: list[Drawing] = []
    known: dict[str, Meaning] = {}
    for path in parquets:
        table = read(source / path)
        columns = (table[column].to_pylist() for column in ("name", "codepoints", config.label))
        for i, (name, codepoints, label) in enumerate(zip(*columns, strict=True)):
            title = f"{source / path}, {name!r}"
            drawings.append(Drawing(title, path.stem, spelling(codepoints), partial(_row, table, i)))
            known.setdefault(drawings[-1].codepoints, Meaning(name, family(codepoints), label))
    if not known:
        raise InputError(f"{source} holds no parquet to take classes from. Copy data/noto-emoji.parquet into it")
    found, problems = _drawings(source, shown)
    meant, classless = _meant([*drawings, *found], known)
    named, doubled = _named(meant)
    if problems := [*problems, *classless, *doubled]:  # reported together, not one kind per run
        raise InputError("\n  ".join(problems))
    label_names = list(dict.fromkeys(meaning.label for meaning in known.values()))  # in the order of the rows
    index = {name: i for i, name in enumerate(label_names)}
    unread = [path for path in others if path not in parquets]
    notes = [f"{len(unread)} files are not read, being hidden or of other kinds: {listed(unread)}"] if unread else []
    return Source(
        images=Encoded(len(meant), lambda i: meant[i][0].read(), lambda i: meant[i][0].title),
        names=list(named),
        families=[meaning.family for _, meaning in meant],
        labels=[index[meaning.label] for _, meaning in meant],
        label_names=label_names,
        splits=None,
        notes=tuple(notes),
    )


def _row(table: pa.Table, i: int) -> bytes:
    return table["image"][i]["bytes"].as_py()


def _drawings(source: Path, paths: list[Path]) -> tuple[list[Drawing], list[str]]:
    """The images in the folders, and the problems of other files."""
    drawings, homeless, nameless = [], [], []
    for path in paths:
        file, match = source / path, FILE_NAME.fullmatch(path.stem)
        if len(path.parts) == 1:
            homeless.append(file)
        elif match is None:
            nameless.append(file)
        else:
            drawings.append(Drawing(str(file), path.parts[0], spelling(match[1]), file.read_bytes))
    problems = []
    if homeless:
        many = "stands in no folder. Move it" if len(homeless) == 1 else "stand in no folder. Move each"
        problems.append(f"{listed(homeless, SHOWN)} {many} into one that is called like its vendor")
    if nameless:
        many = "is" if len(nameless) == 1 else "are"
        example = "such as 1f600 or 1f468-200d-1f4bb. Rename or remove it"
        problems.append(f"{listed(nameless, SHOWN)} {many} not named by code points, {example}")
    return drawings, problems


def _meant(drawings: list[Drawing], known: dict[str, Meaning]) -> tuple[list[tuple[Drawing, Meaning]], list[str]]:
    relatives = {meaning.family: meaning for meaning in reversed(known.values())}  # family -> its first row
    found, unknown = [], []
    for drawing in drawings:
        if drawing.codepoints in known:
            found.append((drawing, known[drawing.codepoints]))
        elif relative := relatives.get(family(drawing.codepoints)):
            found.append((drawing, relative._replace(name=drawing.codepoints)))
        else:
            unknown.append(drawing.title)
    if not unknown:
        return found, []
    many = "image has" if len(unknown) == 1 else "images have"
    return found, [f"{len(unknown)} {many} no class, for no parquet has their emoji. Remove {listed(unknown, SHOWN)}"]


def _named(meant: list[tuple[Drawing, Meaning]]) -> tuple[dict[str, list[str]], list[str]]:
    """Titles by name, in the order of the images, and one problem for each name that several images have."""
    titles: dict[str, list[str]] = {}
    for drawing, meaning in meant:
        titles.setdefault(f"{drawing.vendor}/{meaning.name}", []).append(drawing.title)
    doubled = {name: found for name, found in titles.items() if len(found) > 1}
    problems = [
        f"{' and '.join(found)} are {'both' if len(found) == 2 else 'all'} {name!r}. Remove one, or rename its folder"
        for name, found in list(doubled.items())[:SHOWN]
    ]
    more = [f"and {len(doubled) - SHOWN} more such names"] if len(doubled) > SHOWN else []
    return titles, problems + more
