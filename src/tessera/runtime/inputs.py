"""The params and dependencies that a stage declares in dvc.yaml: resolved, hashed, and compared when the stage ends.

DVC hashes dependencies *after* the command (treeverse/dvc#11058), so it would record an edit made during training as the
version that was trained. Therefore the entry point of every stage hashes them first, and the stage fails if any has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tessera.core import trees
from tessera.core.errors import InputError
from tessera.core.files import digest_of
from tessera.core.params import CHOOSES, read

IGNORED = ("__pycache__",)
VERSIONS = "versions.yaml"  # versions of other packages, written by `runtime.versions`


class Declared(NamedTuple):
    """One stage instance of dvc.yaml, with its templates resolved."""

    name: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...] = ()  # without metrics and plots
    versions: tuple[str, ...] = ()  # packages, which are keys of versions.yaml

    @property
    def sections(self) -> frozenset[str]:
        return frozenset(name.partition(".")[0] for name in self.params)


def declared(stage: str, key: str | None, raw: dict[str, Any], pipeline: Path = Path("dvc.yaml")) -> Declared | None:
    """A stage as dvc.yaml declares it; None if there is no dvc.yaml or it has no such stage."""
    entries = stages(pipeline)
    return resolved(stage, key, raw, entries[stage]) if stage in entries else None


def stages(pipeline: Path = Path("dvc.yaml")) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml as written, by name; empty if there is no such file."""
    import yaml

    if not pipeline.exists():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast, and as safe
    whole = yaml.load(pipeline.read_text(encoding="utf-8"), Loader=loader)
    constants = {name: value for part in whole.get("vars", ()) for name, value in part.items()}
    return _with_constants(whole["stages"], constants)


def _with_constants(entry: Any, constants: dict[str, Any]) -> Any:
    """`entry` with the `vars` of dvc.yaml filled in; other templates stay."""
    if isinstance(entry, dict):
        return {name: _with_constants(inner, constants) for name, inner in entry.items()}
    if isinstance(entry, list):
        return [_with_constants(inner, constants) for inner in entry]
    for name, constant in constants.items() if isinstance(entry, str) else ():
        entry = entry.replace(f"${{{name}}}", str(constant))
    return entry


def resolved(stage: str, key: str | None, raw: dict[str, Any], entry: dict[str, Any]) -> Declared:
    """A stage of dvc.yaml (`entry`) with its templates filled in from `raw` and `key`."""
    entry, names = entry.get("do", entry), {**raw, "key": key}
    deps = tuple(_resolve(dep, names) for dep in entry.get("deps", ()))
    params = tuple(_resolve(param, names) for param in entry.get("params", ()) if isinstance(param, str))
    of_files = [param for param in entry.get("params", ()) if isinstance(param, dict)]
    versions = tuple(name for file in of_files for name in file[VERSIONS])
    outs = tuple(next(iter(out)) if isinstance(out, dict) else out for out in entry.get("outs", ()))
    return Declared(f"{stage}@{key}" if key else stage, deps, params, outs, versions)


def _resolve(text: str, names: dict[str, Any]) -> str:
    return re.sub(r"\$\{([^}]+)\}", lambda match: str(trees.value(names, match[1].strip(), None)), text)


def versions(names: Iterable[str], file: str | Path = VERSIONS) -> dict[str, Any]:
    """The version of each package, as `versions.yaml: NAME` -> version."""
    names = tuple(names)
    known = read(file) if names else {}
    return {f"{VERSIONS}: {name}": known.get(name) for name in names}


class Inputs:
    """The declared inputs as they were when the stage began."""

    def __init__(self, what: Declared) -> None:
        self.what = what
        self._stats = {dep: _stats(dep) for dep in what.deps}
        self._digests = {dep: digests(dep) for dep in what.deps}
        self._values = self._params()

    @property
    def files(self) -> dict[str, str]:
        """Digest of every file of every dependency; '' if the file does not exist."""
        return {file: digest for of_dep in self._digests.values() for file, digest in of_dep.items()}

    def _params(self) -> dict[str, Any]:
        raw = read()
        found = {name: trees.value(raw, name, None) for name in self.what.params}
        return found | versions(self.what.versions)

    def fingerprint(self, without: Iterable[str] = ()) -> str:
        """A hash of declared params, inputs and code, which identifies a scratch checkpoint. `without`: singular sections to leave
        out, with their plug-ins, because training does not depend on them."""
        prefixes = tuple(f"{section}." for section in without)
        folders = tuple(f"src/tessera/{CHOOSES[section]}/" for section in without)
        values = {name: value for name, value in self._values.items() if not name.startswith(prefixes)}
        hashes = {dep: digest_of(found) for dep, found in self._digests.items() if not dep.startswith(folders)}
        text = json.dumps([self.what.name, values, hashes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def require_unchanged(self) -> None:
        """
        Raises:
            InputError: an input was edited while the stage ran. The message names it, and nothing is recorded.
        """
        values = self._params()
        changed = [name for name, value in self._values.items() if values[name] != value]
        changed += [
            dep
            for dep, stats in self._stats.items()
            if _stats(dep) != stats and digests(dep) != self._digests[dep]  # the time stamp and the content differ
        ]
        if changed:
            raise InputError(
                f"{', '.join(changed)} changed while {self.what.name} ran, so its result belongs to no version of it. "
                "Give the command again: finished training steps of the new version are kept"
            )


def _files(dep: str) -> list[Path]:
    path = Path(dep)
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not set(IGNORED) & set(file.parts))


def _stats(dep: str) -> list[tuple[str, int, int]]:
    found = []
    for file in _files(dep):
        if file.exists():
            stat = file.stat()
            found.append((file.as_posix(), stat.st_size, stat.st_mtime_ns))
    return found


def digests(dep: str) -> dict[str, str]:
    """Digest of each file of a dependency; '' if the file does not exist."""
    return {file.as_posix(): _digest(file) if file.exists() else "" for file in _files(dep)}


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content(dep: str) -> str:
    """A hash of a file, or of all files of a folder and their names. A missing file has a hash too."""
    return digest_of(digests(dep))
