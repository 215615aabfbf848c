"""The file formats that stages write and read, and their folders. A file is written completely or not at all, and an error
names the file that cannot be written.

Arrays are `.npy`, memory-mapped when read; tables CSV; metrics and facts JSON; pictures PNG; models safetensors
(`core.models`). Nothing here imports torch. No file holds a time, host name or absolute path, so two runs write the same
bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tessera.core.errors import InputError, listed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import DTypeLike

    from tessera.core.contracts import Report

ARTIFACTS, METRICS, PLOTS = Path("artifacts"), Path("metrics"), Path("plots")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. It replaces `path` if the block succeeds, and is deleted if the block fails.

    Raises:
        InputError: the folder is not writable, or the disk is full. An older file at `path` stays intact.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # otherwise a crash of the machine could leave a truncated file at `path`
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the file there is intact" if os.path.exists(path) else ""
        raise InputError(
            f"cannot write {path}: {error.strerror or error}{kept}. Free space, or make {path.parent} writable"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def writing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open file that replaces `path` if the block succeeds. Text is UTF-8 with Unix line ends."""
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    with replacing(path) as temporary, open(temporary, mode, encoding=encoding, newline=newline) as stream:
        yield stream


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array. `np.save` will not do: if the disk fills up with its last bytes, it truncates the file without an error."""
    with streamed_array(path, array.shape, array.dtype) as stored:
        stored[...] = array


@contextmanager
def streamed_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[np.ndarray]:
    """A writable array on disk, of any size, to be filled piece by piece."""
    with replacing(path) as temporary:
        if math.prod(shape):
            mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            _reserve(temporary)
            yield mapped
            mapped.flush()
        else:
            array = np.empty(shape, dtype)
            yield array
            np.save(temporary, array)


def _reserve(path: Path) -> None:
    """Allocate the file's blocks. A full disk is then an error here, and not a bus error at a later write to the map."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as stream:
            os.posix_fallocate(stream.fileno(), 0, os.path.getsize(path))


def sha256(path: Path) -> str:
    """SHA-256 of the file's content, 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(digests: Mapping[str, str]) -> str:
    """One digest of many files, given name -> digest of each: 32 hexadecimal digits."""
    joined = hashlib.blake2b(digest_size=16)
    for name, digest in digests.items():
        joined.update(os.fsencode(name) + b"\0" + digest.encode() + b"\0")
    return joined.hexdigest()


def load_array(path: Path) -> np.ndarray:
    """The array at `path`, memory-mapped read-only."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run `dvc repro` or `dvc pull`") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a whole .npy file ({error}); delete it and run `dvc repro`") from None


def visible(source: Path) -> tuple[list[Path], list[Path]]:
    """All visible files below the folder `source`, and the hidden files and folders, whose content is not read. Both lists are
    relative to `source` and sorted.

    Raises:
        InputError: the folder does not exist, a folder in it cannot be listed, or it holds links to folders, broken links or
            special files. The message names them.
    """
    if not source.is_dir():
        raise InputError(f"dataset.source {str(source)!r}: there is no such folder")
    found: list[Path] = []
    hidden: list[Path] = []
    linked: list[Path] = []
    broken: list[Path] = []
    for folder, names, own in os.walk(source, onerror=_refuse):
        for name in [*names, *own]:
            path = Path(folder, name)
            if name.startswith("."):
                hidden.append(path)
            elif path.is_symlink() and path.is_dir():
                linked.append(path)
            elif name in own:
                (found if path.is_file() else broken).append(path)
        names[:] = [name for name in names if not name.startswith(".")]
    if linked:  # DVC would not notice a change in the linked folder
        many = "is a link to a folder, which" if len(linked) == 1 else "are links to folders, which"
        raise InputError(f"{listed(sorted(linked))} {many} DVC does not look into. Copy the folder")
    if broken:
        raise InputError(f"{listed(sorted(broken))}: a link that leads nowhere, or no file. Mend or remove it")
    below, out_of_sight = (sorted(path.relative_to(source) for path in paths) for paths in (found, hidden))
    return below, out_of_sight


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be listed ({error.strerror}). Make it readable") from error


def pictures(source: Path, extensions: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Files below the folder `source` whose names end in one of `extensions`, in upper or lower case, and all other files,
    hidden ones included. Both lists are relative to `source` and sorted.

    Raises:
        InputError: as in `visible`; or the name of a picture is not UTF-8.
    """
    (found, others), wanted = visible(source), endings(extensions)
    shown = [path for path in found if path.suffix.lower() in wanted]
    require_utf8(source, shown)
    return shown, sorted([*others, *(path for path in found if path.suffix.lower() not in wanted)])


def require_utf8(source: Path, paths: Iterable[Path]) -> None:
    """
    Raises:
        InputError: a name is not UTF-8, the encoding of tables.
    """
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"the name {str(source / path)!r} is not UTF-8, as tables are. Rename it") from None


def require_filled(source: Path, extensions: Iterable[str], shown: Iterable[Path]) -> None:
    """Check that every folder directly in `source` holds a picture. `shown` are the pictures that `pictures` found.

    Raises:
        InputError: some folders hold none. The message names them.
    """
    filled = {path.parts[0] for path in shown}
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    if empty := [path for path in folders if path.name not in filled]:
        raise InputError(
            f"{listed(empty)} {'holds' if len(empty) == 1 else 'hold'} no file that ends in "
            f"{', '.join(endings(extensions))}, at any depth. "
            "Remove it, or add the ending of its files to extensions"
        )


def endings(extensions: Iterable[str]) -> tuple[str, ...]:
    """Extensions in lower case, with a dot: `PNG` and `.png` become `.png`."""
    return tuple("." + extension.lower().lstrip(".") for extension in extensions)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with writing(path) as stream:
        stream.write(text)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run `dvc repro` or `dvc pull`") from None
    except ValueError as error:
        raise InputError(f"{path} is not a whole JSON file ({error}); delete it and run `dvc repro`") from None


def write_metrics(name: str, metrics: dict[str, Any]) -> None:
    """Write `metrics/<name>.json`: nested finite numbers, rounded to six significant digits.

    Raises:
        InputError: a value is not finite. DVC would print NaN, which is not valid JSON in `dvc metrics diff --json`.
    """
    write_json(METRICS / f"{name}.json", _rounded(metrics, name))


def _rounded(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"metric {place} must be finite, got {number}")
    return float(f"{number:.6g}")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV. Text is quoted where necessary, or everywhere if any text holds a carriage return: that would end a line when
    the table is read, but the csv module quotes it only if it is part of the line terminator."""
    text = [*table.columns, *table.select_dtypes(exclude="number").to_numpy().ravel()]
    quoting = csv.QUOTE_NONNUMERIC if any("\r" in str(value) for value in text) else csv.QUOTE_MINIMAL
    with writing(path) as stream:
        table.to_csv(stream, index=False, lineterminator="\n", float_format="%.6g", quoting=quoting)


def read_table(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """The table at `path`. The columns in `text` are read as text, even if every value looks like a number (the digits of MNIST)
    or like a missing value (the label "NA")."""
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(text, str))


def write_picture(path: Path, picture: np.ndarray | Figure) -> None:
    """Write a PNG of an image array [H,W,C] or [H,W], or of a figure, without date and software in its metadata."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
        with writing(path, "wb") as stream:
            image.save(stream, format="PNG", optimize=True)
    else:
        with writing(path, "wb") as stream:
            picture.savefig(stream, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def write_history(name: str, history: list[dict[str, float]]) -> None:
    """Write `plots/<name>.csv`: one row per evaluation during training."""
    import pandas as pd

    write_table(PLOTS / f"{name}.csv", pd.DataFrame(history))


def write_report(name: str, report: Report) -> None:
    """Write metrics to `metrics/<name>.json`, and tables and pictures into `plots/<name>/`. `name` is a stage, or
    `<seam>/<plug-in>`."""
    folder = PLOTS / name
    folder.mkdir(parents=True, exist_ok=True)  # dvc.yaml declares it as an output, so it must exist even if it is empty
    for title, table in report.tables.items():
        write_table(folder / f"{title}.csv", table)
    for title, picture in report.pictures.items():
        write_picture(folder / f"{title}.png", picture)
    write_metrics(name, report.metrics)
