"""Values nested in dictionaries, as params.yaml and files of metrics hold them, by dotted names such as `val.psnr_db`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NONE: Any = object()  # no default is given


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is not a dictionary, or an empty one, in the order of the tree; `prefix` stands
    before each name."""
    for key, inner in tree.items():
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The leaves of metrics: an empty dictionary, of what was not measured, holds no number."""
    return ((name, number) for name, number in leaves(tree, prefix) if not isinstance(number, dict))


def value(tree: Any, dotted: str, default: Any = NONE) -> Any:
    """The value, or the section, of a dotted name; `default` where there is none.

    Raises:
        KeyError: there is none, and no default is given.
    """
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            if default is NONE:
                raise KeyError(dotted)
            return default
        tree = tree[part]
    return tree
