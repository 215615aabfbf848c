"""The two errors that a user can meet. All other errors are bugs and keep their traceback."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: params, files, images. The message gives name, rule, value and remedy; no traceback is shown."""


class NonFiniteError(FloatingPointError):
    """A loss, latent or gradient is NaN or infinite. Raised before it updates anything; the message names the term."""


def listed(items: Iterable[object], most: int = 20) -> str:
    """Format a list for a message: `a, b, c and 4 more`. Characters that are not UTF-8 are escaped."""
    shown = [str(item).encode(errors="backslashreplace").decode() for item in items]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
