"""Drawings of the same emoji by several vendors. All drawings of one emoji are in one class, and a family may be kept in one split.

    source/noto-emoji.parquet     any number of parquet files with the columns of `decoding.emoji.COLUMNS`
    source/openmoji-17.0.0.tgz    any number of npm packages (`packages.LAYOUTS`), packed or unpacked, at any depth
    source/twemoji/1f44b.png      any number of folders of images named by code points, at any depth

The first parquet file, by name, is the set that figures are compared on: its images stand in the splits that `noto` gives them. Its
table gives the emoji their names and classes, and the tables of packages add those that it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from tessera.core import files
from tessera.core.contracts import Source
from tessera.core.errors import InputError, listed
from tessera.core.params import Strict
from tessera.datasets.emoji import packages, svg
from tessera.datasets.emoji.meanings import Meaning, Meanings
from tessera.decoding.collection import Collection
from tessera.decoding.compressed import Encoded
from tessera.decoding.emoji import read, spelling

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SHOWN = 500  # files named in an error
VENDORS = True  # `dataset.split.by` may be vendor_and_family
REASONS = {  # why a drawing is left out -> as the log says it
    "without_class": "without a class, for no table has their emoji or they are not named as one",
    "twice": "of an emoji that the vendor drew twice, of which the first by name is kept",
}


class Config(Strict):
    label: Literal["group", "subgroup"] = Field(
        description="Unicode's classification to use for classes: 10 groups or 101 subgroups", examples=["group"]
    )
    vendors: list[str] = Field(description="vendors to read beside those of parquet files; empty: all that are there",
                               examples=[[]])  # fmt: skip
    extensions: list[str] = Field(min_length=1, description="endings of image files in folders that are no packages, in upper or "
                                  "lower case", examples=[["png", "webp"]])  # fmt: skip
    svg_size: int = Field(ge=4, le=2048, description="side in pixels at which SVG is drawn", examples=[16])


class Drawing(NamedTuple):
    """One vendor's drawing of one emoji, encoded: the file or row `name` of its vendor. `title` names it in errors.

    `codepoints`, in the common spelling of all vendors (`decoding.emoji.spelling`), are None if its file is not named as an emoji.
    `of_package`: it is of a package as it comes.
    """

    title: str
    name: str
    vendor: str
    codepoints: str | None
    read: Callable[[], bytes]
    of_package: bool = False

    @property
    def is_svg(self) -> bool:
        return self.name.lower().endswith(".svg")


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """All rows of the parquet files in `source`, sorted by file; then the drawings of packages and folders, sorted by vendor and
    path, the same whether packed or not. Nothing is random. The result is a `Collection`.

    The name of an image is `<vendor>/<emoji>`; the vendor is the name of the parquet file or of the folder, or that of
    `packages.LAYOUTS`. Emoji, family and class come from the first table that has the same code points (variation
    selectors, fe0f, are ignored), or else from its first row of the same family; in that case the code points serve as name.
    Drawings without a class are left out, and so are all but the first that a vendor has of an emoji. `notes` name them, and
    the files of other kinds.

    Raises:
        InputError: the folder is missing or has no parquet file; a folder in it is a link or holds no image, or a link is
            broken; an image lies in no folder; an archive is damaged, or no package that is known; a vendor stands in two places,
            or in none and is named in `vendors`; there is SVG to draw, and resvg-py is not installed.
    """
    found, hidden = files.visible(source)
    archives = [path for path in found if path.suffix.lower() == ".tgz"]
    roots = packages.unpacked(source, found)
    loose = [path for path in found if path not in archives and not any(root in path.parents for root in roots)]
    parquets = [path for path in loose if len(path.parts) == 1 and path.suffix.lower() == ".parquet"]
    shown = [path for path in loose if path.suffix.lower() in files.endings(config.extensions)]
    files.require_utf8(source, shown)
    files.require_filled(source, config.extensions, [*shown, *archives, *(root / packages.CARD for root in roots)])
    if homeless := [source / path for path in shown if len(path.parts) == 1]:
        many = "stands in no folder. Move it" if len(homeless) == 1 else "stand in no folder. Move each"
        raise InputError(f"{listed(homeless, SHOWN)} {many} into one that is called like its vendor")
    known = [*(packages.packed(source / path) for path in archives), *roots.values()]
    _require_one_place(source, parquets, shown, known)

    meanings = Meanings(config.label)
    own = [drawing for path in parquets for drawing in _rows(source / path, meanings)]
    if not own:
        raise InputError(f"{source} holds no parquet to take classes from. Copy data/noto-emoji.parquet into it")
    for package in sorted(known, key=lambda package: package.name):  # OpenMoji's is last: it lacks names of classes
        meanings.add_package(package)
    others = [*_of_packages(known, meanings), *_of_folders(source, shown, meanings)]
    others = sorted(_wanted(others, config.vendors), key=lambda drawing: drawing.vendor)
    if any(drawing.is_svg for drawing in others):
        svg.renderer()

    kept, left_out = _kept([*own, *others], meanings)
    unread = sorted({*loose, *hidden} - {*parquets, *shown})
    notes = [*_of_licences(known, others), *_of_left_out(left_out)]
    if unread:
        notes.append(f"{len(unread)} files are not read, being hidden or of other kinds: {listed(unread)}")
    return _collection(kept, left_out, meanings.label_names, own[0].vendor, config.svg_size, notes)


# what there is


def _require_one_place(
    source: Path, parquets: Sequence[Path], shown: Sequence[Path], known: Sequence[packages.Package]
) -> None:
    places: dict[str, dict[str, None]] = {}
    for path in parquets:
        places.setdefault(path.stem, {})[str(source / path)] = None
    for path in shown:
        places.setdefault(path.parts[0], {})[str(source / path.parts[0])] = None
    for package in known:
        for vendor in package.layout.folders:
            places.setdefault(vendor, {})[package.title] = None
    if doubled := [f"{' and '.join(found)} are both {vendor!r}" for vendor, found in places.items() if len(found) > 1]:
        raise InputError(f"{'; '.join(doubled)}. Remove one, or rename its file or folder")


def _rows(path: Path, meanings: Meanings) -> list[Drawing]:
    """The drawings of a parquet file, whose table is added to `meanings`."""
    table = read(path)
    names, codepoints, labels = (table[column].to_pylist() for column in ("name", "codepoints", meanings.label))
    for row in zip(codepoints, labels, names, strict=True):
        meanings.add(row[0], row[1], [row[2]])
    return [
        Drawing(f"{path}, {name!r}", repr(name), path.stem, spelling(points), partial(_row, table, i))
        for i, (name, points) in enumerate(zip(names, codepoints, strict=True))
    ]


def _row(table: pa.Table, i: int) -> bytes:
    return table["image"][i]["bytes"].as_py()


def _of_packages(known: Iterable[packages.Package], meanings: Meanings) -> Iterator[Drawing]:
    for package in known:
        for vendor, path in package.drawings():
            codepoints = meanings.codepoints(Path(path).stem, package.layout.slugs)
            yield Drawing(f"{package.title}, {path}", path, vendor, codepoints, package.files[path], of_package=True)


def _of_folders(source: Path, shown: Iterable[Path], meanings: Meanings) -> Iterator[Drawing]:
    for path in shown:
        codepoints = meanings.codepoints(path.stem, slugs=False)
        name = path.relative_to(path.parts[0]).as_posix()
        yield Drawing(str(source / path), name, path.parts[0], codepoints, (source / path).read_bytes)


def _wanted(drawings: Sequence[Drawing], vendors: Sequence[str]) -> list[Drawing]:
    there = dict.fromkeys(drawing.vendor for drawing in drawings)
    if missing := [vendor for vendor in vendors if vendor not in there]:
        raise InputError(
            f"dataset.emoji.vendors must name vendors of dataset.source, got {listed(missing)}; there are "
            f"{listed(sorted(there)) or 'none'}. Remove it from the list, or see docs/data.md for where to get it"
        )
    return [drawing for drawing in drawings if not vendors or drawing.vendor in vendors]


# what is read of it


def _kept(
    drawings: Iterable[Drawing], meanings: Meanings
) -> tuple[list[tuple[Drawing, Meaning]], dict[str, dict[str, list[str]]]]:
    """The drawings with what they mean; and of each vendor, by the keys of `REASONS`, the names of those that are left out."""
    kept: dict[tuple[str, str], tuple[Drawing, Meaning]] = {}
    left_out: dict[str, dict[str, list[str]]] = {}
    for drawing in drawings:
        out = left_out.setdefault(drawing.vendor, {why: [] for why in REASONS})
        meaning = meanings.of(drawing.codepoints) if drawing.codepoints else None
        if meaning is None:
            out["without_class"].append(drawing.name)
        elif (drawing.vendor, meaning.name) in kept:
            out["twice"].append(drawing.name)
        else:
            kept[drawing.vendor, meaning.name] = drawing, meaning
    return list(kept.values()), left_out


def _of_licences(known: Iterable[packages.Package], others: Iterable[Drawing]) -> Iterator[str]:
    used = {drawing.vendor for drawing in others}
    for package in known:
        if vendors := sorted(used & set(package.layout.folders)):
            yield f"{', '.join(vendors)} ({package.name} {package.version}): {package.layout.licence}"


def _of_left_out(left_out: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    for vendor, reasons in left_out.items():
        for why, names in reasons.items():
            if names:
                yield f"{vendor}: left out are {len(names)} {REASONS[why]}: {listed(names)}"


def _collection(
    kept: Sequence[tuple[Drawing, Meaning]],
    left_out: dict[str, dict[str, list[str]]],
    label_names: list[str],
    lead: str,
    size: int,
    notes: Sequence[str],
) -> Collection:
    """
    Args:
        lead: the vendor whose drawings come first.
        size: side in pixels at which SVG is drawn.
    """

    def encoded(i: int) -> bytes:
        drawing, _ = kept[i]
        return svg.rendered(drawing.read(), size, drawing.title) if drawing.is_svg else drawing.read()

    label_of = {name: i for i, name in enumerate(label_names)}
    vendor_of = {name: i for i, name in enumerate(left_out)}
    source = Source(
        images=Encoded(len(kept), encoded, lambda i: kept[i][0].title),
        names=[f"{drawing.vendor}/{meaning.name}" for drawing, meaning in kept],
        families=[meaning.family for _, meaning in kept],
        labels=[label_of[meaning.label] for _, meaning in kept],
        label_names=label_names,
        splits=None,
        notes=tuple(notes),
    )
    return Collection.of(
        source,
        lead=sum(drawing.vendor == lead for drawing, _ in kept),
        optional=[drawing.of_package for drawing, _ in kept],
        vendors=[vendor_of[drawing.vendor] for drawing, _ in kept],
        vendor_names=list(left_out),
        left_out={vendor: {why: len(names) for why, names in reasons.items()} for vendor, reasons in left_out.items()},
    )
