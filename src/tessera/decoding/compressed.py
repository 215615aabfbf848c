"""Encoded image files to arrays, one at a time and only when asked for: what dataset plug-ins share. No torch.

Every kind of file becomes one of the three forms of `Source.images`; a file that is broken, or that would not fit into
memory, is refused by name.
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

MAX_PIXELS = 8192 * 8192  # of one image: a file of some kB can claim billions, and take the machine's memory
PNG_DEPTH = 24  # where a PNG's header holds its bits a channel

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by EXIF's orientation
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

INTEGERS = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT and LONG, as `struct` calls them

IMPOSTORS = (  # first bytes in lower case, what it is, what helps
    (b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` in its repository"),
    (b"outs:\n", "a DVC pointer", "Run `dvc pull` in its repository"),
    (b"<!doctype html", "a web page", "Download the file itself"),
    (b"<html", "a web page", "Download the file itself"),
    (b"%pdf", "a PDF", "Draw it to a PNG first"),
    (b"pk\x03\x04", "a zip archive", "Unpack it"),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it"),
)


class Encoded(Sequence["UInt8[np.ndarray, '...']"]):
    """Images decoded when asked for, as `Source.images` promises.

    Args:
        count: how many there are.
        read: the bytes of image `i`.
        title: what image `i` is called in an error: file, or source, split and row.
    """

    def __init__(self, count: int, read: Callable[[int], bytes], title: Callable[[int], str]) -> None:
        self._count, self._read, self._title = count, read, title

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> UInt8[np.ndarray, ...]:  # type: ignore[override]  # nobody asks for a slice
        if not 0 <= i < self._count:
            raise IndexError(i)
        try:
            data = self._read(i)
        except OSError as error:
            raise InputError(f"{self._title(i)} cannot be read ({error.strerror or error})") from None
        return decode(data, self._title(i))


def decode(data: bytes, title: str) -> UInt8[np.ndarray, ...]:
    """One encoded image as uint8 [H,W] (grey), [H,W,3] or, where it has transparency, [H,W,4].

    Of an animation the first frame; 16-bit grey is rounded to 8 bits; palettes, CMYK and the like become RGB; a
    photograph is turned upright as its EXIF orientation says. Of all metadata the orientation alone is read: the pixels
    of a picture whose other tags are broken are sound.

    Raises:
        InputError: corrupt, cut short, no image (what it is instead is said), of more than `MAX_PIXELS` pixels, or with
            pixels of 32 bits or with a sign, whose white is unknown.
    """
    try:
        # of odd metadata, which is not read, Pillow warns
        with warnings.catch_warnings(action="ignore", category=UserWarning), Image.open(io.BytesIO(data)) as image:
            require_pixels(*image.size, title)  # from the header: nothing is decoded yet
            image.load()
            return UPRIGHT.get(_orientation(image), np.asarray)(_array(image, data, title))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{title} is refused: {error}. Remove it, or shrink it") from None
    except UnidentifiedImageError:
        what, remedy = taken_for(data) or ("in no known format", "Replace or remove it")
        raise InputError(f"{title} is corrupt, cut short or no image (it is {what}). {remedy}") from None
    except Exception as error:  # Pillow's decoders raise whatever malformed bytes lead them to
        raise InputError(f"{title} is corrupt, cut short or no image ({error}). Replace or remove it") from error


def taken_for(data: bytes) -> tuple[str, str] | None:
    """What a file is that bears an image's or a table's name and is none, by its first bytes, and the remedy."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what, remedy in IMPOSTORS:
        if head.startswith(start):
            return what, remedy
    if head.startswith(b"<") and b"<svg" in head:
        return "an SVG drawing", "Draw it to a PNG first"
    if b"/annex/objects/" in head.partition(b"\n")[0]:
        return "a git-annex pointer", "Run `git annex get` in its repository"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1"):
        return "a HEIF photograph", "Save it as PNG or JPEG"
    return None if head else ("empty", "Replace or remove it")


def reason(path: Path, error: Exception, itself: str = "") -> str:
    """Why the file at `path` cannot be read: what it is instead, or what `error` says.

    Args:
        itself: what the file should be, in the words of `taken_for`: then it is damaged.
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
    """EXIF's, 1 to 8; 1 where there is none, or none that can be read."""
    found = None
    with contextlib.suppress(Exception):  # the parser raises whatever malformed tags lead it to
        found = image.getexif().get(ExifTags.Base.Orientation)
    if found not in range(1, 9) and image.format != "TIFF":  # Pillow turns a TIFF itself, and drops the tag
        with contextlib.suppress(ValueError, IndexError, struct.error):
            found = _raw_orientation(_raw_exif(image.info))
    return found if found in UPRIGHT else 1


def _raw_exif(info: dict[Any, Any]) -> bytes:
    """As JPEG, WebP and PNG have it, or as hex digits in the text of a PNG."""
    if "exif" in info:
        return info["exif"]
    return bytes.fromhex("".join(info.get("Raw profile type exif", "").split("\n")[3:]))


def _raw_orientation(exif: bytes) -> int | None:
    """Pillow reads no tag behind a broken one; this goes through the 12-byte entries (tag, type, count, value) of the
    first directory, and reads none of what lies elsewhere. TIFF 6.0, section 2."""
    start = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some write it twice
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
    """Grey, or RGBA where one grey is transparent. Pillow's own conversion would clip, and knows neither of a TIFF's 12
    bits nor of one whose 0 is white."""
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
    """A PNG's transparent colour as Pillow has its pixels: of 2 and 4 bits stretched, of 48 the upper halves."""
    if mode == "L":
        return clear * 255 // (2**depth - 1)
    return tuple(value >> 8 for value in clear) if mode == "RGB" and depth == 16 else clear
