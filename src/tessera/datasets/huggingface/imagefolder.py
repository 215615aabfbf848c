"""Folders of images and tables as on the Hugging Face hub: splits from names, class folders, zip archives, `metadata.csv`.
https://huggingface.co/docs/datasets/image_dataset

`datasets` itself loads only files whose names match the first of several patterns, and ignores all others without a message.
Here every file is either read or reported. No torch.
"""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from tessera.core import files
from tessera.core.errors import InputError, listed
from tessera.decoding.compressed import reason

if TYPE_CHECKING:
    import pyarrow as pa

SPLIT_WORDS = {  # the words that `datasets` knows
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
BETWEEN_WORDS = re.compile(r"[-._ \d]+")
ADDED = re.compile(r"(?i:set)$|(?<=[a-z])[A-Z]$")  # suffixes that are ignored: testset, trainA
SHARD = re.compile(r"(.+)-(\d{3,6})-of-(\d{3,6})(-\w+)?\.\w+")  # -hash: in older sets of the hub
NO_WORDS = ("", "of", "zip")  # in train-00000-of-00002 and train.zip

IMAGE, UNREAD, OTHER = "image", "unread", "other"
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".csv": "csv", ".tsv": "tsv", ".json": "json",
          ".jsonl": "json", ".ndjson": "json"}  # fmt: skip
DESCRIBE = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # no rows
NEVER_READ = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npy", ".npz", ".mat", ".pkl", ".tfrecord",
              ".h5", ".hdf5", ".lmdb", ".mdb")  # fmt: skip
NEVER_DECODED = (".svg", ".heic", ".heif", ".jxl")  # they count as images: the error on decoding gives the remedy
KNOWN_BY_CONTENT = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")  # recognised with any ending
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class File(NamedTuple):
    """A file below the source, or in an archive below it; an archive counts as a folder. `stands` is the file on disk, `title`
    its name in errors."""

    path: PurePosixPath
    stands: Path
    title: str
    open: Callable[[], IO[bytes]]

    def read(self) -> bytes:
        """
        Raises:
            OSError: the file or its archive cannot be read, for any reason.
        """
        try:
            with self.open() as stream:
                return stream.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: needs a password
            raise OSError(str(error)) from error


def found(source: Path) -> tuple[list[File], list[str]]:
    """All files of the folder `source`, or that single file, sorted; and the names of hidden files, which are left out.

    Raises:
        InputError: as in `files.visible`; a name is not UTF-8; archives are damaged (the message names all).
    """
    paths, left_out = files.visible(source) if source.is_dir() else ([Path(source.name)], [])
    folder = source if source.is_dir() else source.parent
    files.require_utf8(folder, paths)
    seen, hidden, broken = [], [str(path) for path in left_out], []
    for path in paths:
        where = folder / path
        if path.suffix.lower() != ".zip":
            seen.append(File(PurePosixPath(path.as_posix()), where, str(where), partial(_opened, where)))
            continue
        try:
            members = _members(path, where)
        except (OSError, zipfile.BadZipFile) as error:
            broken.append(f"{where} ({reason(where, error, 'a zip archive')})")
            continue
        seen += [file for file in members if not _is_hidden(file.path)]
        hidden += [str(file.path) for file in members if _is_hidden(file.path)]
    if broken:
        raise InputError(f"cannot be read as zip archives: {listed(broken)}. Replace or remove them")
    return seen, hidden


def _opened(path: Path) -> IO[bytes]:
    return open(path, "rb")


class _OwnPosition(io.RawIOBase):
    """A file that is read from a position of this process's own. Forks share the position of a file that they inherit open, so
    each would read from where another one stands."""

    def __init__(self, path: Path) -> None:
        self._file, self._at = io.FileIO(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._file.fileno()).st_size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._file.fileno(), len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _members(path: Path, where: Path) -> list[File]:
    """The files in a zip archive. It is kept open while images are read, so that its directory is read only once."""
    archive = zipfile.ZipFile(io.BufferedReader(_OwnPosition(where)) if hasattr(os, "pread") else where)
    inside = {member.filename: member for member in archive.infolist() if not member.is_dir()}
    return [
        File(PurePosixPath(path.as_posix(), name), where, f"{where}/{name}", partial(archive.open, inside[name]))
        for name in sorted(inside)
    ]


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def kind(file: File) -> str:
    """`IMAGE`, the module of `datasets` that reads the file, `UNREAD` (images or rows in a format that is not supported), or
    `OTHER`: LICENSE, notes.txt."""
    ending = file.path.suffix.lower()
    if file.path.name in DESCRIBE:
        return OTHER
    if ending in TABLES:
        return TABLES[ending] if file.path.name == file.stands.name else UNREAD  # tables in archives are not supported
    if ending in NEVER_READ:
        return UNREAD
    if ending in NEVER_DECODED or Image.registered_extensions().get(ending) in Image.OPEN:
        return IMAGE
    try:
        with file.open() as stream, Image.open(io.BytesIO(stream.read(4096)), formats=KNOWN_BY_CONTENT):
            return IMAGE
    except Exception:  # on malformed bytes Pillow's readers raise errors of any type
        return OTHER


def said(names: Iterable[str]) -> str | None:
    """The split that names state, outermost first: `train`, `validation`, `test`, or None. A name made only of such words (Test,
    val2017, testset, trainA) takes precedence over a name that contains one (test_tube)."""
    within = None
    for name in names:
        words = [ADDED.sub("", word).lower() for word in BETWEEN_WORDS.split(name)]
        words = [word for word in words if word not in NO_WORDS]
        splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        if splits and len(splits) == len(words):
            return splits[0]
        within = within or next(iter(splits), None)
    return within


def splits(paths: Sequence[PurePosixPath], images: bool) -> list[str]:
    """The split of each path below the source; `train` if its names state none.

    Folders state a split, and so do the names of tables. In the name of a single image such a word usually says what the image
    shows (train.png, test_tube.png). So it counts only if the name of every image states a split.
    """
    whole = [said([*path.parts[:-1], path.stem]) for path in paths]
    if images and not all(whole):
        whole = [said(path.parts[:-1]) for path in paths]
    return [split or "train" for split in whole]


def require_shards(there: Iterable[File]) -> None:
    """
    Raises:
        InputError: shards are missing from a series `train-00000-of-00003.parquet` and so on. The message names all.
    """
    sets: dict[tuple[Path, str, str], set[int]] = {}
    for stands in dict.fromkeys(file.stands for file in there):
        shard = SHARD.fullmatch(stands.name)
        if shard and stands.suffix.lower() in (*TABLES, ".zip"):
            start, number, count, _ = shard.groups()
            sets.setdefault((stands.parent / start, count, stands.suffix), set()).add(int(number))
    missing = []
    for (start, count, ending), numbers in sets.items():
        first = int(int(count) in numbers)  # some series count from 1
        absent = [i for i in range(first, first + int(count)) if i not in numbers]
        missing += [f"{start}-{i:0{len(count)}}-of-{count}{ending}" for i in absent]
    if missing:
        raise InputError(
            f"{len(missing)} shards of the set are not there: {listed(missing)}. Fetch them, or take a single file as "
            "dataset.source"
        )


def classes(paths: Sequence[PurePosixPath]) -> list[str] | None:
    """The innermost folder of each image if all images are equally deep and in several folders; else None, as in `datasets`."""
    if len({len(path.parts) for path in paths}) != 1 or len({path.parent.name for path in paths}) < 2:
        return None
    return [path.parent.name.removesuffix(".zip") for path in paths]


def described(tables: Sequence[File], images: Sequence[File]) -> tuple[pa.Table, list[str]]:
    """The rows of the metadata files, and which of their columns are images. The column `file_name` becomes `image`, and
    `x_file_name` becomes `x`; their values become paths below the source.

    Raises:
        InputError: a file is damaged or has no such column; it names images that do not exist, or no file names some images.
            The message names all.
    """
    import pyarrow as pa

    known, used, missing = {str(file.path) for file in images}, set(), []
    rows = []
    columns: dict[str, str] = {}
    for file in tables:
        table = _metadata(file)
        own = [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]
        if not own:
            there = ", ".join(table.column_names)
            raise InputError(f"{file.path} has no column file_name that says which image a row is of; there is {there}")
        columns |= {name: name.removesuffix("file_name").rstrip("_") or "image" for name in own}
        for name in own:
            paths = [_below(file, value) for value in table[name].to_pylist()]
            missing += [f"{path or 'an empty name'} (of {file.path})" for path in paths if path not in known]
            used.update(paths)
            table = table.set_column(table.column_names.index(name), name, pa.array(paths, pa.string()))
        rows.append(table)
    if missing:
        raise InputError(
            f"{len(missing)} images that metadata names are not there: {listed(missing)}. Mend the metadata"
        )
    if unnamed := sorted(known - used):
        many = "image is named in no metadata file" if len(unnamed) == 1 else "images are named in no metadata file"
        raise InputError(f"{len(unnamed)} {many}, so would not be read: {listed(unnamed)}. Add rows, or remove them")
    return _one_table(tables, rows, columns), list(columns.values())


def _one_table(files: Sequence[File], rows: Sequence[pa.Table], columns: dict[str, str]) -> pa.Table:
    """The rows of all metadata files, with the image columns renamed by `columns`.

    Raises:
        InputError: two columns would have the same name, or a column holds values of several types.
    """
    import pyarrow as pa

    try:
        table = pa.concat_tables(rows, promote_options="permissive")
    except pa.ArrowException as error:
        names, what = listed(file.path for file in files), str(error).splitlines()[0]
        raise InputError(
            f"{names} do not fit together ({what}). Write each column in one type in all of them"
        ) from error
    renamed = [columns.get(name, name) for name in table.column_names]
    if doubled := {name for name in renamed if renamed.count(name) > 1}:
        names, source = listed(file.path for file in files), [old for old, new in columns.items() if new in doubled]
        raise InputError(
            f"{names}: {listed(source)} becomes the column {listed(doubled)}, which is there, too. Rename one"
        )
    return table.rename_columns(renamed)


def _metadata(file: File) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    try:
        data = file.read()
        if file.path.suffix == ".csv":
            table = csv.read_csv(
                io.BytesIO(data), convert_options=csv.ConvertOptions(column_types={"file_name": pa.string()})
            )
        elif file.path.suffix == ".jsonl":
            table = json.read_json(io.BytesIO(data), json.ReadOptions(block_size=len(data) + 1))
        else:
            table = parquet.read_table(io.BytesIO(data))
        if doubled := {name for name in table.column_names if table.column_names.count(name) > 1}:
            raise OSError(f"several columns are called {listed(doubled)}")
        return table
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file.path} is no whole table of metadata ({str(error).splitlines()[0]})") from error


def _below(metadata: File, name: Any) -> str | None:
    """The path below the source of the image that `metadata` names; `./a.png` becomes `a.png`.

    Raises:
        InputError: the name is not text.
    """
    if not isinstance(name, str | None):
        raise InputError(f"{metadata.path} calls an image {name!r}, which is no text. Write the whole name of its file")
    return str(metadata.path.parent / name) if name else None
