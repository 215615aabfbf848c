"""Decodes image files to arrays, one at a time and on demand. Shared by dataset plug-ins. No torch.

Every kind of file becomes one of the three forms of `Source.images`. A file that is corrupt, or too large for memory, is an
error that names it.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from tessera.core.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt8

MAX_PIXELS = 8192 * 8192  # per image: a file of some kB can claim billions of pixels and exhaust the memory
PNG_DEPTH = 24  # offset of the bits per channel in a PNG's header

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> operation that turns the image upright
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

INTEGERS = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT and LONG -> codes of `struct`

IMPOSTORS = (  # first bytes in lower case, what the file is, remedy
    (b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` in its repository"),
    (b"outs:\n", "a DVC pointer", "Run `dvc pull` in its repository"),
    (b"<!doctype html", "a web page", "Download the file itself"),
    (b"<html", "a web page", "Download the file itself"),
    (b"%pdf", "a PDF", "Render it to a PNG first"),
    (b"pk\x03\x04", "a zip archive", "Unpack it"),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it"),
)


class Encoded(Sequence["UInt8[np.ndarray, '...']"]):
    """Images that are decoded when they are indexed, as `Source.images` requires.

    Args:
        count: number of images.
        read: returns the bytes of image `i`.
        title: returns the name of image `i` in errors: file, or source, split and row.
    """

    def __init__(self, count: int, read: Callable[[int], bytes], title: Callable[[int], str]) -> None:
        self._count, self._read, self._title = count, read, title

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> UInt8[np.ndarray, ...]:  # type: ignore[override]  # slices are not needed
        if not 0 <= i < self._count:
            raise IndexError(i)
        try:
            data = self._read(i)
        except OSError as error:
            raise InputError(f"{self._title(i)} cannot be read ({error.strerror or error})") from None
        return decode(data, self._title(i))


def decode(data: bytes, title: str) -> UInt8[np.ndarray, ...]:
    """One encoded image as uint8 [H,W] (grey), [H,W,3], or [H,W,4] if it has transparency.

    An animation gives its first frame. 16-bit grey is rounded to 8 bits; palettes, CMYK and the like become RGB. A photograph
    is turned upright by its EXIF orientation. No other metadata are read, so broken tags do not matter.

    Raises:
        InputError: the image is corrupt, truncated, not an image (the message says what it is), has more than `MAX_PIXELS`
            pixels, or has 32-bit or signed pixels, whose white is unknown.
    """
    try:
        # Pillow warns of odd metadata, which are not read
        with warnings.catch_warnings(action="ignore", category=UserWarning), Image.open(io.BytesIO(data)) as image:
            require_pixels(*image.size, title)  # from the header, before anything is decoded
            image.load()
            return UPRIGHT.get(_orientation(image), np.asarray)(_array(image, data, title))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{title} is refused: {error}. Remove it, or shrink it") from None
    except UnidentifiedImageError:
        what, remedy = taken_for(data) or ("in no known format", "Replace or remove it")
        raise InputError(f"{title} is corrupt, cut short or no image (it is {what}). {remedy}") from None
    except Exception as error:  # on malformed bytes Pillow's decoders raise errors of any type
        raise InputError(f"{title} is corrupt, cut short or no image ({error}). Replace or remove it") from error


def taken_for(data: bytes) -> tuple[str, str] | None:
    """What a file that is named like an image or a table really is, by its first bytes, and the remedy; None if unknown."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what, remedy in IMPOSTORS:
        if head.startswith(start):
            return what, remedy
    if head.startswith(b"<") and b"<svg" in head:
        return "an SVG drawing", "Render it to a PNG first"
    if b"/annex/objects/" in head.partition(b"\n")[0]:
        return "a git-annex pointer", "Run `git annex get` in its repository"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1"):
        return "a HEIF photograph", "Save it as PNG or JPEG"
    return None if head else ("empty", "Replace or remove it")


def reason(path: Path, error: Exception, itself: str = "") -> str:
    """Why the file at `path` cannot be read: because it is another kind of file, or the text of `error`.

    Args:
        itself: what the file should be, in the words of `taken_for`. If it is that, it is damaged.
    """
    try:
        with open(path, "rb") as stream:
            other = taken_for(stream.read(1024))
    except OSError:
        other = None
    if other and other[0] == itself:
        return "it is cut short or damaged"
    return f"it is {other[0]}. {other[1]}" if other else next(iter(str(error).splitlines()), type(error).__name__)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it is unreadable."""
    found = None
    with contextlib.suppress(Exception):  # on malformed tags the parser raises errors of any type
        found = image.getexif().get(ExifTags.Base.Orientation)
    if found not in range(1, 9) and image.format != "TIFF":  # Pillow itself turns a TIFF and drops the tag
        with contextlib.suppress(ValueError, IndexError, struct.error):
            found = _raw_orientation(_raw_exif(image.info))
    return found if found in UPRIGHT else 1


def _raw_exif(info: dict[Any, Any]) -> bytes:
    """The raw EXIF data of a JPEG, WebP or PNG, some of which store it as hex digits in a text chunk."""
    if "exif" in info:
        return info["exif"]
    return bytes.fromhex("".join(info.get("Raw profile type exif", "").split("\n")[3:]))


def _raw_orientation(exif: bytes) -> int | None:
    """The orientation from raw EXIF data. Pillow reads no tags after a broken one. This reads the 12-byte entries (tag, type,
    count, value) of the first directory, and nothing that is stored elsewhere. TIFF 6.0, section 2."""
    start = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some programs write it twice
    order = ">" if start.startswith(b"MM") else "<"
    (directory,) = struct.unpack_from(f"{order}I", start, 4)
    (count,) = struct.unpack_from(f"{order}H", start, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", start, at)
        if tag == ExifTags.Base.Orientation and kind in INTEGERS:
            return struct.unpack_from(order + INTEGERS[kind], start, at + 8)[0]
    return None


def require_pixels(width: int, height: int, title: str, remedy: str = "Remove it, or shrink it") -> None:
    """
    Raises:
        InputError: an image of this size would have more than `MAX_PIXELS` pixels.
    """
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} = {width * height} pixels"
        raise InputError(f"{title} is refused: {size} exceed the limit of {MAX_PIXELS}. {remedy}")


def _array(image: Image.Image, data: bytes, title: str) -> UInt8[np.ndarray, ...]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        what = "32-bit pixels or signed ones, whose white is unknown"
        raise InputError(f"{title} has {what}. Save it with 8 or 16 bits a channel")
    if image.format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = _in_8_bits(image.info["transparency"], image.mode, depth=data[PNG_DEPTH])
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _from_16_bits(image: Image.Image) -> UInt8[np.ndarray, ...]:
    """Grey, or RGBA if one grey value is transparent. Pillow's own conversion would clip, and ignores that a TIFF may have 12 bits
    or 0 as white."""
    grey, white, clear = np.asarray(image), 65535, image.info.get("transparency")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0] - 1
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            grey = white - grey
    pixels = np.rint(grey / (white / 255)).astype(np.uint8)
    if clear is None:
        return pixels
    return np.dstack([pixels, pixels, pixels, np.where(grey == clear, 0, 255).astype(np.uint8)])


def _in_8_bits(clear: Any, mode: str, depth: int) -> Any:
    """A PNG's transparent colour in the 8 bits of Pillow's pixels: 2 and 4 bits are scaled, of 16 bits the upper 8 are kept."""
    if mode == "L":
        return clear * 255 // (2**depth - 1)
    return tuple(value >> 8 for value in clear) if mode == "RGB" and depth == 16 else clear
