"""Named sets of overrides of params.yaml: `presets/NAME.yaml`, with one dotted name and its value per line.

python -m tessera.presets               lists them
python -m tessera.presets NAME          prints one as arguments: dvc exp run $(python -m tessera.presets NAME)

If a value contains blanks, the output is quoted for the shell; use it as: eval "dvc exp run $(...)".

A name with ~ in front has no value and removes the key: with `~diagnostics.geometry` that diagnostic is not run.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.runtime.validation import gone, problems

FOLDER = Path("presets")
REMOVED = "~"
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_/][A-Za-z0-9_./-]*", re.IGNORECASE)  # needs no quotes
REFUSED = "--no-such-preset"  # not an option of DVC: `dvc exp run $(...)` stops instead of running the default params


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def overrides(name: str) -> dict[str, Any]:
    """
    Raises:
        InputError: there is no such preset.
    """
    if name not in names():
        raise InputError(f"presets/{name}.yaml: there is no such preset; there are {', '.join(names())}")
    return read(FOLDER / f"{name}.yaml")


def applied(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the overrides of `values` applied as by `changed`, and validated.

    Raises:
        InputError: a name is not in `raw`, or the result is not valid. The message lists all problems.
    """
    raw = changed(raw, values)
    found = problems(raw)
    if found:
        raise InputError("\n".join(found))
    return raw


def changed(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`raw` with other values at the dotted names, and without the names that have ~ in front.

    Raises:
        InputError: a name is not in `raw`.
    """
    raw = copy.deepcopy(raw)
    for name, value in values.items():
        section, last = _place(raw, name)
        if last not in section:
            raise InputError(gone(name.removeprefix(REMOVED)) or f"{name}: params.yaml has no such value")
        if name.startswith(REMOVED):
            del section[last]
        else:
            section[last] = value
    return raw


def remaining(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` without removals of keys that `raw` does not have any more: `dvc exp run` leaves params.yaml changed after a run,
    and refuses to remove a key twice."""
    found = {}
    for name, value in values.items():
        section, last = _place(raw, name)
        if last in section or not name.startswith(REMOVED):
            found[name] = value
    return found


def _place(raw: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section that holds a dotted name (empty if there is none), and the name's key in it."""
    *place, last = name.removeprefix(REMOVED).split(".")
    for part in place:
        raw = raw.get(part, {})
        if not isinstance(raw, dict):
            return {}, last
    return raw, last


def arguments(values: dict[str, Any]) -> list[str]:
    """Arguments of `dvc exp run` for these values, in Hydra's grammar: https://hydra.cc/docs/advanced/override_grammar/basic."""
    return [part for name, value in values.items() for part in ("-S", _argument(name, value))]


def _argument(name: str, value: Any) -> str:
    if name.startswith(REMOVED):
        return name
    plain = isinstance(value, str) and (not value or PLAIN.fullmatch(value))
    return f"{name}={value if plain else _hydra(value)}"


def _hydra(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, str):  # backslashes are escapes only before a quote and at the end
        return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value) + '"'
    return json.dumps(value)


def shell(arguments: list[str]) -> str:
    """One line for $(...), which splits at blanks and keeps quotes literally; quoted for `eval` if an argument has blanks."""
    return shlex.join(arguments) if any(re.search(r"\s", part) for part in arguments) else " ".join(arguments)


def main() -> int:
    if len(sys.argv) < 2:
        print("\n".join(names()))
        return 0
    try:
        raw = read()
        values = remaining(raw, overrides(sys.argv[1]))
        applied(raw, values)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        print(REFUSED)
        return 1
    print(shell(arguments(values)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
