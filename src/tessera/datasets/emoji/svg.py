"""SVG drawings as pixels, by resvg (the extra `svg`). CairoSVG leaves filters out without a word, and most of a package's drawings
then lack their shading."""

from __future__ import annotations

import importlib
from typing import Any

from tessera.core.errors import InputError


def renderer() -> Any:
    """The package resvg-py.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("resvg_py")  # by name: it stands in no lock, and only SVG needs it
    except ModuleNotFoundError:
        raise InputError(
            "dataset.source holds SVG drawings, and the package that draws them is not installed. Run "
            "`python -m pip install -e '.[svg]'`, or name only other vendors in dataset.emoji.vendors"
        ) from None


def rendered(data: bytes, size: int, title: str) -> bytes:
    """An SVG as a PNG with transparency, whose longer side has `size` pixels.

    Fonts of the machine are not looked for, so that it decides no pixel: text that is not drawn as paths is left out.

    Raises:
        InputError: resvg cannot draw it, or is not installed.
    """
    resvg = renderer()
    try:
        return bytes(resvg.svg_to_bytes(svg_string=data.decode(), width=size, height=size, skip_system_fonts=True))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise InputError(f"{title} is no SVG that resvg draws ({error}). Replace or remove it") from None
