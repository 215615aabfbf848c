"""Encoded images as one file, `.npz`: codes, the names of the images, and which tokenizer made them.

Codes are stored in the smallest unsigned integers that hold them. With 256 code vectors an image of 8x8 codes takes 64 bytes,
which are its 512 bits.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tessera.core import files
from tessera.core.errors import InputError, listed
from tessera.core.space import CodeSpace

if TYPE_CHECKING:
    from jaxtyping import Int

NAMES = {"codes", "names", "grids", "codebook_sizes", "tokenizer"}
MOST_BYTES = 1 << 32  # of a file when it is unpacked: a few kB can claim to be more than the memory
REMEDY = "Make it by `python -m tessera.encode` or `python -m tessera.sample --codes`"


class Encoded(NamedTuple):
    """Codes of images.

    Attributes:
        codes: [N,T] integers.
        names: of the images, [N], relative paths with `/`.
        space: how the codes fold.
        tokenizer: SHA-256 of the weights of the tokenizer that decodes them.
    """

    codes: Int[np.ndarray, "n t"]
    names: Sequence[str]
    space: CodeSpace
    tokenizer: str


def write(path: Path, encoded: Encoded) -> None:
    """Write the file, the same bytes for the same content."""
    arrays = {
        "codes": encoded.codes.astype(np.min_scalar_type(max(encoded.space.sizes) - 1)),
        "names": np.array(encoded.names, dtype=str),
        "grids": np.array(encoded.space.grids, np.int64),
        "codebook_sizes": np.array(encoded.space.sizes, np.int64),
        "tokenizer": np.array(encoded.tokenizer),
    }
    if encoded.space.global_grids:
        arrays["global_grids"] = np.array(encoded.space.global_grids, np.int64)
    with files.writing(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def read(path: Path) -> Encoded:
    """
    Raises:
        InputError: there is no such file, it is no file of codes, or codes are outside their codebook.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. {REMEDY}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise InputError(
                f"{path} is refused: unpacked it has {size} bytes, the limit is {MOST_BYTES}. Encode fewer images"
            )
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is no whole .npz file ({error}). {REMEDY}") from None
    if lacking := NAMES - found.keys():
        raise InputError(f"{path} is no file of codes: it has no {listed(sorted(lacking))}. {REMEDY}")
    if wrong := "; ".join(_wrong(found)):
        raise InputError(f"{path} is no file of codes: {wrong}. {REMEDY}")
    space = CodeSpace.of_facts({name: found[name].tolist() for name in CodeSpace.FACTS if name in found})
    return Encoded(found["codes"], found["names"].tolist(), space, str(found["tokenizer"]))


def _wrong(found: dict[str, np.ndarray]) -> list[str]:
    """What contradicts `Encoded`."""
    codes, names, grids, sizes = (found[name] for name in ("codes", "names", "grids", "codebook_sizes"))
    numbers = {"codes": codes, "grids": grids, "codebook_sizes": sizes}
    if kinds := [name for name, array in numbers.items() if array.dtype.kind not in "iu"]:
        return [f"{name} must be integers, got {numbers[name].dtype}" for name in kinds]
    if grids.ndim != 2 or grids.shape[1] != 2 or sizes.shape != (len(grids),) or codes.ndim != 2:
        return ["grids must be [G,2], codebook_sizes [G] and codes [N,T]"]
    if names.dtype.kind != "U" or names.shape != (len(codes),):
        return [f"names must be one text for each of {len(codes)} images"]
    first = found.get("global_grids", np.array(0))
    if first.dtype.kind not in "iu" or first.ndim or not 0 <= first < max(1, len(grids)):
        return [f"global_grids must be one integer below {max(1, len(grids))}, the number of grids"]
    lengths = grids.prod(1)
    if codes.shape[1] != lengths.sum():
        return [f"an image must have {lengths.sum()} codes for grids {grids.tolist()}, got {codes.shape[1]}"]
    most = np.repeat(sizes, lengths)
    if len(codes) and ((codes < 0) | (codes.max(0) >= most)).any():
        return [f"codes must be below {sizes.tolist()}, the sizes of the codebooks"]
    return []


def pictures(names: Sequence[str]) -> list[str]:
    """The PNG of each image: its name, with the ending .png behind it unless it has this already.

    Raises:
        InputError: a name is empty, absolute, leads upwards, or holds characters that no file name has, for a file of codes may
            come from anyone; or two images would have the same file.
    """
    if bad := [name for name in names if not _inside(name)]:
        raise InputError(f"names of images must be paths below the folder, got {listed(map(repr, bad))}. {REMEDY}")
    found = [name if name.lower().endswith(".png") else f"{name}.png" for name in names]
    if twice := len(found) - len(set(found)):
        raise InputError(f"names of images must differ, also with .png behind them, got {twice} that do not. {REMEDY}")
    return found


def _inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not any(part in ("/", "//", "..") or set(part) & set("\\:\0\n\r") for part in parts)
