"""SHA-256 sums of the files of an exported folder, in the format of `sha256sum`: `sha256sum -c SHA256SUMS` checks them too."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tessera.core import files
from tessera.core.errors import InputError, listed

FILE = "SHA256SUMS"
DIGITS = 64


def of(folder: Path) -> dict[str, str]:
    """Path below `folder` -> SHA-256, of all files but the list itself, sorted."""
    below = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: files.sha256(folder / name) for name in below if name != FILE}


def write(folder: Path) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in of(folder).items())
    with files.writing(folder / FILE) as stream:
        stream.write(text)


def read(folder: Path) -> dict[str, str]:
    """
    Raises:
        InputError: a line is not a sum and a path within the folder.
    """
    found = {}
    for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = PurePosixPath(name)
        if len(digest) != DIGITS or not name or path.is_absolute() or ".." in path.parts:
            raise InputError(f"{folder / FILE}: {line!r} is no line of `sha256sum`. Export or copy the folder again")
        found[name] = digest
    return found


def require(folder: Path, below: str = "") -> None:
    """Check the files of `folder` that lie in its folder `below`. A folder without sums is left alone: that of a run.

    Raises:
        InputError: a file is missing, or is not what it was when it was exported. The message names all of them.
    """
    if not (folder / FILE).exists():
        return
    wrong = []
    for name, digest in read(folder).items():
        if name.startswith(below):
            path = folder / name
            if not path.is_file():
                wrong.append(f"{path} is missing")
            elif files.sha256(path) != digest:
                wrong.append(f"{path} is another file")
    if wrong:
        raise InputError(f"{folder / FILE}: {listed(wrong)}. Copy or export the folder again")
