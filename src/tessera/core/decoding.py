"""Encoded image files to arrays, one at a time and only when asked for: what dataset plug-ins share. No torch.

Every kind of file becomes one of the three forms of `Source.images`; a file that is broken, or that would not fit into
memory, is refused by name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from tessera.core.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt8

MAX_PIXELS = 8192 * 8192  # of one image: a file of some kB can claim billions, and take the machine's memory


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

    def __getitem__(self, i: int) -> UInt8[np.ndarray, ...]:
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
    photograph is turned upright as its EXIF orientation says.

    Raises:
        InputError: corrupt, cut short, of more than `MAX_PIXELS` pixels, or with 32-bit pixels, whose white is unknown.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            require_pixels(*image.size, title)  # from the header: nothing is decoded yet
            ImageOps.exif_transpose(image, in_place=True)
            return _array(image, title)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{title} is refused: {error}. Remove it, or shrink it") from None
    except Exception as error:  # Pillow's decoders raise whatever malformed bytes lead them to
        raise InputError(f"{title} is corrupt, cut short or no image ({error}). Replace or remove it") from error


def require_pixels(width: int, height: int, title: str, remedy: str = "Remove it, or shrink it") -> None:
    """
    Raises:
        InputError: an image of this size would have more than `MAX_PIXELS` pixels.
    """
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} = {width * height} pixels"
        raise InputError(f"{title} is refused: {size} exceed the limit of {MAX_PIXELS}. {remedy}")


def _array(image: Image.Image, title: str) -> UInt8[np.ndarray, ...]:
    if image.mode.startswith("I;16"):
        return np.rint(np.asarray(image) / 257).astype(np.uint8)  # 65535 / 255; Pillow's own conversion would clip
    if image.mode in ("I", "F"):
        raise InputError(f"{title} has 32-bit pixels, whose white is unknown. Save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
