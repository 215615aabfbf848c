"""Emoji of several vendors in one folder, the same emoji of all of them in one split and one class. Nothing is moved.

    source/noto-emoji.parquet     any number of parquet files with the columns of `decoding.emoji.COLUMNS`
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
from tessera.core.errors import InputError, listed
from tessera.core.params import Strict
from tessera.decoding.compressed import Encoded
from tessera.decoding.emoji import family, read, spelling

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# 1f468-200d-1f4bb, u1f600, U+1F600, and as Noto's own repository has it: emoji_u1f468_200d_1f4bb
FILE_NAME = re.compile(r"(?:emoji_)?(?:u\+?)?([0-9a-f]{1,6}(?:[-_][0-9a-f]{1,6})*)", re.IGNORECASE)
SHOWN = 500  # files that an error names: all that a vendor's set has too many


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
    the name is then made of the code points themselves. Files of other kinds are named in the notes.

    Raises:
        InputError: there is no such folder, or no parquet in it; a folder in it is a link, or holds no image, or a link
            leads nowhere; files are not named by code points, are of an emoji that no parquet has, or stand in no folder;
            images of one vendor are of the same emoji. All such files are named at once.
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
    if problems := [*problems, *classless, *doubled]:  # in one go: each run of DVC would tell of one only
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
    """The images of the folders, and what is wrong with others."""
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
    relatives = {meaning.family: meaning for meaning in reversed(known.values())}  # of a family the first row
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
    """Titles by name, in the order of the images, and what is wrong where several have one name."""
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
