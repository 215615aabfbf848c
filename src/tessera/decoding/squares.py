"""Decoded images as models read them: opaque, grey or in colour, square, of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from tessera.decoding.compressed import require_pixels

if TYPE_CHECKING:
    from jaxtyping import UInt8

Aspect = Literal["pad", "crop", "stretch"]


def square(pixels: UInt8[np.ndarray, ...], colour: str, aspect: str, title: str, remedy: str) -> Image.Image:
    """One image of the forms of `Source.images`, opaque, in `colour` (`grey` or `rgb`), made square by `aspect`.

    Raises:
        InputError: padded to a square, the image would have too many pixels. The message ends in `remedy`.
    """
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 2 or pixels.shape[2:] in ((3,), (4,)), pixels.shape
    image = Image.fromarray(on_white(pixels)).convert("L" if colour == "grey" else "RGB")
    (width, height), largest = image.size, max(image.size)
    if width == height or aspect == "stretch":
        return image
    if aspect == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    require_pixels(largest, largest, f"{title}, padded to a square,", remedy)
    canvas = Image.new(image.mode, (largest, largest), "white")
    canvas.paste(image, ((largest - width) // 2, (largest - height) // 2))
    return canvas


def resized(image: Image.Image, size: int) -> UInt8[np.ndarray, "s s c"]:
    """Area averages (`Image.BOX`) of the image, so that sizes show exactly the same part of it."""
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)).reshape(size, size, -1)


def on_white(pixels: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """RGBA over white, alpha * colour + (1 - alpha) * 255, exactly rounded. An opaque image is returned unchanged.

    This must precede any resizing: an average over transparent pixels would include their invisible colour.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)  # sum at most 65152: fits
