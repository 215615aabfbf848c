"""Nested dictionaries, such as params.yaml and metrics, read by dotted names such as `val.psnr_db`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NONE: Any = object()  # the caller gave no default


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each leaf, in the order of the tree. An empty dictionary counts as a leaf. `prefix` is put before
    each name."""
    for key, inner in tree.items():
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The leaves of metrics that are numbers. An empty dictionary, which stands for a missing measurement, is left out."""
    return ((name, number) for name, number in leaves(tree, prefix) if not isinstance(number, dict))


def value(tree: Any, dotted: str, default: Any = NONE) -> Any:
    """The value or section at a dotted name, or `default` if there is none.

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
