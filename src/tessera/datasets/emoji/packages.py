"""npm packages of emoji drawings, as `npm pack` leaves them (`.tgz`) or unpacked: where each holds its drawings, and what its
licence says of them. An archive is read in one pass, and nothing is unpacked onto the disk.

A package may be licensed otherwise than its drawings: `emoji-datasource-apple` calls itself MIT and means its tables.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tessera.core.errors import InputError, listed
from tessera.decoding.compressed import reason

CARD = "package.json"
SUFFIXES = (".png", ".webp", ".svg")
MEASURE_ONLY = "no free licence: for measuring by those who have them; commit no picture and no weight made from them"


class Layout(NamedTuple):
    """Where a package holds what.

    `folders` has the folder of each vendor's drawings; what lies deeper (`_alt/`, sprites) is not read. `table` is the JSON file
    that gives emoji their classes and names, if there is one. `slugs`: files are named by words instead of code points.
    `licence` is that of the drawings.
    """

    folders: Mapping[str, str]
    licence: str
    table: str = ""
    slugs: bool = False


LAYOUTS = {
    "emoji-datasource-apple": Layout({"apple": "img/apple/64"}, MEASURE_ONLY, "emoji.json"),
    "emoji-datasource-facebook": Layout({"facebook": "img/facebook/64"}, MEASURE_ONLY, "emoji.json"),
    "emoji-datasource-google": Layout({}, "Apache 2.0", "emoji.json"),  # Noto again, newer: not a second vendor
    "emoji-datasource-twitter": Layout({"twitter": "img/twitter/64"}, "CC BY 4.0", "emoji.json"),
    "@lobehub/fluent-emoji-3d": Layout({"fluent-3d": "assets"}, "MIT"),
    "fluentui-emoji": Layout({"fluent-flat": "icons/flat", "fluent-modern": "icons/modern"}, "MIT", slugs=True),
    "emojione-assets": Layout({"emojione": "png/128"}, "a free licence with limits, which the package only links to"),
    "openmoji": Layout({"openmoji": "color/svg"}, "CC BY-SA 4.0", "data/openmoji.json"),
}
FOLDERS = {folder for layout in LAYOUTS.values() for folder in layout.folders.values()}
TABLES = {layout.table for layout in LAYOUTS.values()}


class Package(NamedTuple):
    """One package. `files` maps paths below its root to what reads them; `title` names it in errors."""

    title: str
    name: str
    version: str
    files: Mapping[str, Callable[[], bytes]]

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.name]

    def drawings(self) -> Iterator[tuple[str, str]]:
        """Vendor and path of each drawing, sorted by both."""
        for vendor, folder in sorted(self.layout.folders.items()):
            yield from ((vendor, path) for path in sorted(self.files) if _is_drawing(path, folder))

    def table(self) -> Any:
        """The content of the table.

        Raises:
            InputError: it is missing or no JSON.
        """
        path = self.layout.table
        if path not in self.files:
            raise InputError(f"{self.title} lacks {path}, which its package has. Fetch it again")
        return _json(self.files[path](), f"{self.title}, {path}")


def unpacked(source: Path, paths: Iterable[Path]) -> dict[Path, Package]:
    """The known packages among the files `paths` below `source`: root -> package."""
    there, found = set(paths), {}
    for card in sorted(path for path in there if path.name == CARD):
        about = _json((source / card).read_bytes(), str(source / card))
        if isinstance(about, dict) and about.get("name") in LAYOUTS:
            root = card.parent
            below = {path.relative_to(root).as_posix(): path for path in there if root in path.parents}
            found[root] = Package(
                str(source / root),
                about["name"],
                str(about.get("version")),
                {name: (source / path).read_bytes for name, path in below.items() if _is_wanted(name)},
            )
    return found


def packed(path: Path) -> Package:
    """The package in the archive at `path`. Its drawings are kept in memory as they are encoded, 4 to 30 MB a package.

    Raises:
        InputError: the archive is cut short or none, or holds no package that is known here.
    """
    try:
        with tarfile.open(
            path, "r|gz"
        ) as archive:  # a stream: an archive that is read by name is decompressed anew for each
            contents = {
                name: partial(bytes, archive.extractfile(member).read())  # type: ignore[union-attr]  # a file has content
                for member in archive
                if member.isfile() and _is_wanted(name := _below(member.name))
            }
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        what = reason(path, error, itself="compressed by gzip")
        raise InputError(f"{path} is not a whole archive ({what}). Fetch it again, or remove it") from None
    if CARD not in contents:
        raise InputError(f"{path} is no npm package: it has no {CARD}. Remove it")
    about = _json(contents[CARD](), f"{path}, {CARD}")
    if not isinstance(about, dict) or about.get("name") not in LAYOUTS:
        what = f"the package {about['name']!r}" if isinstance(about, dict) and "name" in about else "no package"
        raise InputError(f"{path} is {what}; known are {listed(LAYOUTS)}. Remove it")
    return Package(str(path), about["name"], str(about.get("version")), contents)


def _below(name: str) -> str:
    """A path in an archive without its first folder, whatever that is called: npm drops it."""
    return "/".join(PurePosixPath(name).parts[1:])


def _is_wanted(path: str) -> bool:
    return path == CARD or path in TABLES or any(_is_drawing(path, folder) for folder in FOLDERS)


def _is_drawing(path: str, folder: str) -> bool:
    parent, _, name = path.rpartition("/")
    return parent == folder and name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _json(data: bytes, title: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # UnicodeDecodeError is one too
        raise InputError(f"{title} is no JSON ({error}). Fetch the package again, or remove it") from None
