"""Imports of the repository's files, read without running them: the code that a stage and a model need."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tessera.core import seams

ROOT = seams.PACKAGE.parent.parent  # folder of the repository
OURS = {"tessera": "src", "stages": "."}  # package -> its parent folder
CARRIED_BY_NONE = ("core", "runtime")  # left out of code.json: every stage declares the first, none the second


def closure(files: Iterable[Path], root: Path = ROOT) -> set[Path]:
    """The files, and all files of the repository that they import, directly or indirectly."""
    todo, done = set(files), set()
    while todo:
        file = todo.pop()
        done.add(file)
        todo |= _ours(file, root) - done
    return done


def packages(files: Iterable[Path]) -> set[str]:
    """The top-level names of other packages that the files import."""
    names = {name.partition(".")[0] for file in files for name in _names(file)}
    return names - set(OURS)


def model_code(plugins: Iterable[tuple[str, str]], root: Path = ROOT) -> set[Path]:
    """The code of a model: its plug-ins (seam, name) and everything that they import, except `CARRIED_BY_NONE` and empty files."""
    starts = (root / seams.code(seam, name).relative_to(seams.PACKAGE.parent.parent) for seam, name in plugins)
    found = closure((start / "__init__.py" if start.is_dir() else start for start in starts), root)
    free = [root / "src/tessera" / room for room in CARRIED_BY_NONE]
    return {file for file in found if not set(free) & set(file.parents) and file.read_bytes()}


def _ours(file: Path, root: Path) -> set[Path]:
    found = set()
    for name in _names(file):
        package, _, _ = name.partition(".")
        if package in OURS:
            path = root / OURS[package] / Path(*name.split("."))
            found |= {place for place in (path.with_suffix(".py"), path / "__init__.py") if place.exists()}
    return found


@cache
def _parsed(file: Path, changed: int) -> tuple[str, ...]:
    return tuple(_imported(ast.parse(file.read_bytes())))


def _names(file: Path) -> tuple[str, ...]:
    return _parsed(file, file.stat().st_mtime_ns)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Full names of imported modules, at the top and inside functions; imported names count too, since they may be modules.
    Imports under TYPE_CHECKING do not count."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
