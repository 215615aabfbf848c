"""Any image data set in a format of the Hugging Face hub: from the hub at a fixed commit, or a local file or folder. Local data
are parquet or other tables that `datasets` reads, or image files in class folders, in zip archives or with metadata.csv.
https://huggingface.co/docs/datasets

Splits named test and val (or validation, valid, dev, eval), in upper or lower case, keep their rows. All others are train; the
splits that the set lacks are taken from it. No code of a data set is ever run.
"""

from __future__ import annotations

import glob
import lzma
import mmap
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, model_validator

from tessera.core.contracts import Source
from tessera.core.errors import InputError, listed
from tessera.core.files import ARTIFACTS
from tessera.core.params import Params, Strict
from tessera.datasets.huggingface import imagefolder
from tessera.datasets.huggingface.imagefolder import IMAGE, METADATA, OTHER, UNREAD, File, said
from tessera.decoding.compressed import Encoded, reason, taken_for

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, IterableDataset

OWN_SPLITS = {"train": "train", "validation": "val", "test": "test"}
ARROW_ENDS = (b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0")  # last bytes of a file and of a stream
BATCH = 256  # rows in memory at once


class Config(Strict):
    hub: str = Field(description="name on the hub, owner/name; empty: the local dataset.source", examples=[""])
    revision: str = Field(description="commit of the data set on the hub, 40 hex digits; empty: local", examples=[""])
    configuration: str = Field(description="configuration (subset) of the set; empty: its default", examples=[""])
    image_column: str = Field(min_length=1, description="column of the images", examples=["image"])
    label_column: str = Field(description="column of the classes; empty: no labels", examples=[""])
    name_column: str = Field(description="column of the names; empty: split and row", examples=[""])
    family_column: str = Field(description="column whose equal values keep rows in one split; without it, or without a value, "
                               "a row is a family of its own", examples=[""])  # fmt: skip

    @model_validator(mode="after")
    def _pinned(self) -> Config:
        if self.hub and not (len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")):
            raise ValueError(
                f"revision must be a commit of {self.hub}, 40 hex digits, got {self.revision!r}: a branch moves. "
                f"Commits stand at https://huggingface.co/datasets/{self.hub}/commits/main"
            )
        return self

    def rule(self, params: Params) -> Iterator[str]:
        if "label" in params.conditions and not self.label_column:
            yield (
                "prior.conditions.label: must be none while dataset.huggingface.label_column is empty, since the data set has no "
                f"labels then, got {params.conditions['label']:g}; name the column of the classes"
            )


class Rows(NamedTuple):
    """Rows by split, notes for the log, and the image files that rows name by path."""

    parts: dict[str, Dataset]
    notes: list[str]
    files: dict[str, File] = {}  # noqa: RUF012  it is never changed


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """The data set that `config` names, or the local `source`; nothing is random. `notes` say which files each split comes from,
    and which files are not read.

    Raises:
        InputError: the set does not exist, it lacks a column, or a label is missing; in a local set, a file that holds images
            or rows would not be read, or is damaged.
    """
    title = config.hub or str(source)
    rows = _hub(config) if config.hub else _local(config, source)
    parts = rows.parts
    own = [OWN_SPLITS.get(said([part]) or "") for part, data in parts.items() for _ in range(len(data))]
    places = [(part, row) for part, data in parts.items() for row in range(len(data))]
    for data in parts.values():
        _require_columns(config, data, title)
    encoded = {part: _encoded(data, config.image_column, title) for part, data in parts.items()}
    if not config.hub and not rows.files:
        for part, data in encoded.items():
            _require_inside(data, config.image_column, source, f"split {part} of {title}")
    ids = [f"{part}-{row}" for part, row in places]
    column = partial(_column, parts)
    labels, label_names = _labels(parts, config.label_column, title) if config.label_column else (None, [])

    def value(i: int) -> dict[str, Any]:
        return encoded[places[i][0]][places[i][1]][config.image_column] or {}

    def called(i: int) -> str:
        file = rows.files.get(value(i).get("path") or "") if rows.files else None
        return file.title if file else f"{title}, split {places[i][0]}, row {places[i][1]}"

    return Source(
        images=Encoded(len(ids), lambda i: _bytes(value(i), rows.files, source), called),
        names=[str(name) for name in column(config.name_column)] if config.name_column else ids,
        families=_families(column(config.family_column), ids) if config.family_column else ids,
        labels=labels,
        label_names=label_names,
        splits=own if set(own) - {"train", None} else None,
        notes=tuple(rows.notes),
    )


@contextmanager
def _loading(title: str) -> Iterator[None]:
    """
    Raises:
        InputError: `datasets` cannot load the data. The message names it by `title`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # on malformed bytes its readers raise errors of any type
        texts = [str(told).strip() for told in (error.__cause__, error) if told is not None]
        reason = next((text.splitlines()[0] for text in texts if text), "no more is said")
        raise InputError(f"cannot load {title}: {type(error).__name__}: {reason}") from error


# from the hub


def _hub(config: Config) -> Rows:
    """The data set at a commit of the hub. It is cached, because a commit never changes."""
    import datasets

    cache = Path(os.environ.get("DVC_ROOT") or ".").resolve() / ".scratch" / "huggingface"
    with _loading(config.hub):
        parts = dict(datasets.load_dataset(path=config.hub, revision=config.revision,
                                           name=config.configuration or None, cache_dir=str(cache)))  # fmt: skip
    return Rows(parts, [f"{config.hub}: {len(data)} rows of split {part}" for part, data in parts.items()])


# from this machine


def _local(config: Config, source: Path) -> Rows:
    """A local data set. Each file has a split, and every file with images or rows is read, or is an error. Nothing is cached,
    because neither name nor time of a file identifies its content."""
    if not source.exists():
        raise InputError(f"dataset.source {str(source)!r}: there is no such file or folder; or set huggingface.hub")
    os.environ["HF_HUB_OFFLINE"] = "1"  # `datasets` reads it when it is imported; a stage is a process of its own
    there, hidden = imagefolder.found(source)
    base, stated = _stated(config, source)
    chosen = [file for file in there if file.stands.is_relative_to(base)]
    if stated is not None:
        chosen = [file for file in chosen if any(file.stands in own for own in stated.values())]
    kinds, metadata = _kinds(chosen)
    others = kinds.pop(OTHER, [])
    kind = _only_kind(kinds, source, [*hidden, *(str(file.path) for file in others)])
    if source.is_dir():  # a single file may be one shard on purpose
        imagefolder.require_shards(chosen)
    if kind == "parquet":
        kinds[kind] = _whole(kinds[kind])
    elif kind != IMAGE:
        _require_whole(kind, kinds[kind])
    by_split = _by_split(kinds[kind], stated, source.is_file(), kind == IMAGE)
    if kind == IMAGE:
        parts, opened = _images(by_split, metadata, config.image_column), {str(file.path): file for file in kinds[kind]}
    else:
        parts, opened = _tables(kind, by_split, _features(config, source)), {}
    used = {file.path for file in (*kinds[kind], *metadata)}
    unread = [*hidden, *(str(file.path) for file in there if file.path not in used)]
    notes = [
        f"{source}: {len(data)} rows of split {split}, from {_places(by_split[split])}" for split, data in parts.items()
    ]
    return Rows(parts, notes + ([f"{source}: not read: {listed(unread)}"] if unread else []), opened)


def _stated(config: Config, source: Path) -> tuple[Path, dict[str, set[Path]] | None]:
    """The folder of the configuration and the files of its splits, as the card of the set (README.md) states them. The files are
    None if the names of files and folders determine the splits.

    Raises:
        InputError: the card is malformed, has no such configuration, or states files that do not exist.
    """
    from datasets.data_files import sanitize_patterns
    from huggingface_hub import DatasetCard

    entries: Any = []
    if _has_card(source):
        with _loading(f"the card of {source}, README.md"):
            entries = DatasetCard.load(source / "README.md").data.to_dict().get("configs") or []
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("config_name"), str) for e in entries
    ):
        raise InputError(
            f"the card of {source}, README.md: configs must be a list of entries that have a config_name, got {entries!r}. "
            "Mend it, or remove its configs"
        )
    known = {entry["config_name"]: entry for entry in entries} or {"default": {}}
    default = [name for name, entry in known.items() if entry.get("default") or name == "default" or len(known) == 1]
    name = config.configuration or next(iter(default), "")
    if name not in known:
        what = f"configuration {name!r} not found" if name else "it has several configurations, set one"
        raise InputError(f"cannot load {source}: {what}. Available: {list(known)}")
    with _loading(f"the card of {source}, README.md"):
        base = source / (known[name].get("data_dir") or "")
        if "data_files" not in known[name]:
            return base, None
        patterns = sanitize_patterns(known[name]["data_files"])
        return base, {split: _matches(base, own) for split, own in patterns.items()}


def _has_card(source: Path) -> bool:
    """Whether README.md is a card: text with a YAML header."""
    card = source / "README.md"
    return card.is_file() and card.read_text(encoding="utf-8", errors="replace").lstrip().startswith("---")


def _matches(base: Path, patterns: Iterable[str]) -> set[Path]:
    """Files below `base` that match the patterns. Brackets in the path of `base` itself are not patterns."""
    found = set()
    for pattern in patterns:
        names = [pattern] if (base / pattern).is_file() else glob.glob(pattern, root_dir=base, recursive=True)
        files = {base / name for name in names if (base / name).is_file()}
        if not files:
            raise InputError(f"README.md of {base} states the files {pattern!r}, which are not there. Mend it")
        found |= files
    return found


def _kinds(files: Iterable[File]) -> tuple[dict[str, list[File]], list[File]]:
    """Files by kind, and the metadata files that describe images."""
    kinds: dict[str, list[File]] = {}
    metadata: list[File] = []
    for file in files:
        own = metadata if file.path.name in METADATA else kinds.setdefault(imagefolder.kind(file), [])
        own.append(file)
    if IMAGE in kinds:
        return kinds, metadata
    for file in metadata:
        kinds.setdefault(imagefolder.kind(file), []).append(file)
    return kinds, []


def _only_kind(kinds: dict[str, list[File]], source: Path, others: list[str]) -> str:
    """The one kind of files that is read.

    Raises:
        InputError: there are files of several kinds, or of none; or files that may hold rows or images and cannot be read.
    """
    if unread := kinds.get(UNREAD):
        names = listed(file.path for file in unread)
        what = f"{source} holds what may be images or rows, and cannot be read: {names}"
        raise InputError(f"{what}. Unpack it, save it as parquet, or remove it")
    if not kinds:
        there = f"; there is {listed(others)}" if others else ""
        raise InputError(f"cannot load {source}: it holds neither images nor tables{there}")
    if len(kinds) > 1:
        shown = "; ".join(f"{kind}: {listed((file.path for file in own), 5)}" for kind, own in kinds.items())
        also = ", or call a table of the images metadata.csv, with a column file_name" if IMAGE in kinds else ""
        raise InputError(
            f"{source} holds several kinds of files, of which one can be read ({shown}). Move the others out of it{also}"
        )
    return next(iter(kinds))


def _by_split(
    files: list[File], stated: dict[str, set[Path]] | None, single: bool, images: bool
) -> dict[str, list[File]]:
    if stated is not None:
        splits = {split: [file for file in files if file.stands in own] for split, own in stated.items()}
        return {split: own for split, own in splits.items() if own}
    # if one file is the whole set, its name does not determine a split
    told = imagefolder.splits([PurePosixPath(*file.path.parts[single:]) for file in files], images)
    splits = {split: [file for file, at in zip(files, told, strict=True) if at == split] for split in OWN_SPLITS}
    return {split: own for split, own in splits.items() if own}


def _places(files: list[File]) -> str:
    """The names of the files, or their folders if there are more than five."""
    names = [str(file.path) for file in files] if len(files) <= 5 else [f"{file.path.parent}/" for file in files]
    return listed(dict.fromkeys(names), 10)


def _images(by_split: dict[str, list[File]], metadata: list[File], column: str) -> dict[str, Dataset]:
    """Rows with the path of each image and its class folder as `label`, or with the columns of the metadata instead. If a row has
    several images, that of `column` determines the split."""
    import datasets
    import pyarrow as pa

    found = [(split, file.path) for split, own in by_split.items() for file in own]
    if metadata:
        labels = None  # labels are a column of the metadata, if there are any
        table, images = imagefolder.described(metadata, [file for own in by_split.values() for file in own])
        at = {str(path): split for split, path in found}
        first = sorted(images, key=lambda name: name != column)
        splits = [next(at[row[name]] for name in first if row[name]) for row in table.select(images).to_pylist()]
    else:
        splits, images = [split for split, _ in found], ["image"]
        table = pa.table({"image": [str(path) for _, path in found]})
        labels = imagefolder.classes([path for _, path in found])
        if labels:
            table = table.append_column("label", pa.array(labels))
    features = datasets.Features.from_arrow_schema(table.schema)
    if labels:
        features["label"] = datasets.ClassLabel(names=sorted(set(labels)))
    for name in images:
        features[name] = datasets.Image(decode=False)
    parts = {}
    for split in by_split:
        columns = table.filter(pa.array([own == split for own in splits])).to_pydict()
        for name in images:
            columns[name] = [{"bytes": None, "path": path} for path in columns[name]]
        parts[split] = datasets.Dataset.from_dict(columns, features)
    return parts


# tables


def _features(config: Config, source: Path) -> Any:
    """The types of columns that the card of a set states, or None."""
    from datasets.info import DatasetInfosDict

    if not _has_card(source):
        return None
    with _loading(f"the card of {source}, README.md"):
        infos = DatasetInfosDict.from_directory(str(source))
    name = config.configuration or ("default" if "default" in infos else next(iter(infos), ""))
    return infos[name].features if name in infos else None


def _tables(kind: str, by_split: dict[str, list[File]], features: Any) -> dict[str, Dataset]:
    import datasets
    from datasets.data_files import DataFilesDict, DataFilesList

    module, options = ("csv", {"sep": "\t"}) if kind == "tsv" else (kind, {})
    where = {split: [str(file.stands.resolve()) for file in own] for split, own in by_split.items()}
    files = DataFilesDict({split: DataFilesList(own, [()] * len(own)) for split, own in where.items()})  # no patterns
    with _loading(listed(str(file.stands) for own in by_split.values() for file in own)):
        # as a stream with an in-memory cache: nothing is written to this machine, and no old cache is read
        streams = datasets.load_dataset(module, data_files=files, features=features, streaming=True, cache_dir="memory://",
                                        **options)  # fmt: skip
        return {split: _on_disk(stream) for split, stream in streams.items()}


def _whole(files: list[File]) -> list[File]:
    """The parquet files that hold rows. Empty ones are left out, because `datasets` fails on them.

    Raises:
        InputError: files are damaged (the message names all), none holds rows, or their columns differ.
    """
    from pyarrow import ArrowException, parquet

    broken, filled, columns = [], [], {}
    for file in files:
        try:
            with file.open() as stream:
                described = parquet.read_metadata(stream)
        except (OSError, ArrowException) as error:
            broken.append(f"{file.title} ({reason(file.stands, error)})")
            continue
        if described.num_rows:
            filled.append(file)
            columns[file.path] = described.schema.to_arrow_schema().names
    if broken:
        raise InputError(f"not whole parquet files: {listed(broken)}. Replace or remove them")
    if not filled:
        raise InputError(f"no row is in {listed(file.title for file in files)}. Take another dataset.source")
    for path, names in columns.items():
        first = next(iter(columns))
        if set(names) != set(columns[first]):
            what = f"{path} has the columns {', '.join(names)}, and {first} has {', '.join(columns[first])}"
            raise InputError(f"{what}: they are not one set. Remove one, or take it as dataset.source alone")
    return filled


def _require_whole(kind: str, files: list[File]) -> None:
    """
    Raises:
        InputError: files are not of the kind that their names say, or tars are damaged. The message names all.
    """
    damage = _damage_of_tar if kind == "webdataset" else partial(_damage, kind)
    damages = {file.title: damage(file.stands) for file in files}
    if broken := [f"{title} ({what})" for title, what in damages.items() if what]:
        raise InputError(f"cannot be read as {kind} files: {listed(broken)}. Replace or remove them")


def _damage(kind: str, path: Path) -> str:
    """The damage of a table file, as far as its first and last bytes show it; '' if they show none. A stream of Arrow that is cut
    between two batches would be read without the rest."""
    with path.open("rb") as stream:
        if other := taken_for(stream.read(1024)):
            return f"it is {other[0]}. {other[1]}"
        stream.seek(-min(8, path.stat().st_size), os.SEEK_END)
        if kind == "arrow" and not stream.read().endswith(ARROW_ENDS):
            return "it is cut short or damaged: its end is missing"
    return ""


def _damage_of_tar(path: Path) -> str:
    """The damage of a tar, compressed or not; '' if there is none. `tarfile` takes a broken header, or a cut between two files,
    for the end of the archive. So after the last file there must be the block of zeros that ends a tar, and then at most the
    padding of the last record."""
    most = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
    try:
        with tarfile.open(path) as archive:
            filled = False
            while member := archive.next():
                filled |= member.isfile()
                archive.members.clear()  # type: ignore[attr-defined]  # missing in tarfile's stubs; saves memory
            if not filled:
                return "there is no file in it"
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            rest = archive.fileobj.read(most + 1)
    except (EOFError, tarfile.TarError, zlib.error, lzma.LZMAError):
        return reason(path, OSError("it is cut short or damaged"), itself="compressed by gzip")
    except OSError as error:
        return reason(path, error, itself="compressed by gzip")
    if tarfile.BLOCKSIZE <= len(rest) <= most and not any(rest):
        return ""
    return f"it is cut short or damaged: no end of a tar follows byte {archive.offset}"


def _on_disk(stream: IterableDataset) -> Dataset:
    """The rows in an unnamed file: it needs no memory, and is deleted when the process ends, even if it is killed."""
    import datasets
    import pyarrow as pa

    batches = stream.decode(False).iter(batch_size=BATCH)
    first = next(batches, None)
    if first is None:
        raise InputError("there is no row in a split")
    schema = stream.features.arrow_schema if stream.features else pa.Table.from_pydict(first).schema
    ARTIFACTS.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=ARTIFACTS) as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for batch in chain([first], batches):
                writer.write_table(pa.Table.from_pydict(batch, schema))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rows = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    info = datasets.DatasetInfo(features=stream.features or datasets.Features.from_arrow_schema(rows.schema))
    return datasets.Dataset(datasets.table.InMemoryTable(rows), info=info)


# columns


def _require_columns(config: Config, data: Dataset, title: str) -> None:
    for key in ("image_column", "label_column", "name_column", "family_column"):
        wanted = getattr(config, key)
        if wanted and wanted not in data.column_names:
            there = ", ".join(data.column_names)
            raise InputError(f"dataset.huggingface.{key}: {title} has no column {wanted!r}; there is {there}")


def _encoded(data: Dataset, column: str, title: str) -> Dataset:
    """The image column as encoded bytes, undecoded: if it is decoded here, errors can name the corrupt image."""
    from datasets import Image

    try:
        if "string" in str(getattr(data.features[column], "dtype", "")):  # `datasets` would take it for paths of images
            raise TypeError("text")
        return data.select_columns([column]).cast_column(column, Image(decode=False))
    except (TypeError, ValueError) as error:
        kind = data.features[column]
        raise InputError(f"dataset.huggingface.image_column: {column!r} of {title} holds {kind}, no images") from error


def _require_inside(data: Dataset, column: str, source: Path, title: str) -> None:
    """
    Raises:
        InputError: rows name images by paths outside the folder `source`. DVC watches only the source, so a change of these
            images would go unnoticed.
    """
    import pyarrow.compute as pc

    values = data.data.column(column)
    named = pc.if_else(pc.is_null(pc.struct_field(values, "bytes")), pc.struct_field(values, "path"), None).to_pylist()
    folder = source.resolve()
    outside = [
        f"row {row}: {path}"
        for row, path in enumerate(named)
        if path and not (source.is_dir() and (folder / path).parent.resolve().is_relative_to(folder))
    ]
    if outside:
        raise InputError(
            f"{title} names images that do not lie in the folder dataset.source, so a change of them would go unseen: "
            f"{listed(outside, 5)}. Store their bytes in the rows, or put them into that folder with a metadata.csv"
        )


def _bytes(value: dict[str, Any], files: dict[str, File], source: Path) -> bytes:
    if value.get("bytes") is not None:
        return value["bytes"]
    if path := value.get("path"):
        return files[path].read() if path in files else (source / path).read_bytes()
    raise OSError("the row has no image")


def _families(values: list[Any], ids: list[str]) -> list[str]:
    """The family of each row: its value, or if it has none, a unique name that is not among the values."""
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
    """Class indices and names: those of a ClassLabel, otherwise the sorted values of the column."""
    values = _column(parts, column)
    names = [getattr(data.features[column], "names", None) for data in parts.values()]
    known: dict[Any, str]
    if names and names[0] and names.count(names[0]) == len(names):
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
    return isinstance(value, str), value  # numbers by size, then words
