"""The two errors a user can meet. Everything else is our own mistake and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: params, files, images. The message gives name, rule, value and remedy, and is shown without traceback."""


class NonFiniteError(FloatingPointError):
    """A loss, latent or gradient is NaN or infinite; raised before anything is updated with it, naming the term."""


def listed(items: Iterable[object], most: int = 20) -> str:
    """`a, b, c and 4 more`: what a message shows of a list of any length, and of names that are not UTF-8."""
    shown = [str(item).encode(errors="backslashreplace").decode() for item in items]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
