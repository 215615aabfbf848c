"""Named sets of overrides of params.yaml: `presets/NAME.yaml`, one dotted name and one value a line.

python -m tessera.presets               lists them
python -m tessera.presets NAME          prints one as arguments: dvc exp run $(python -m tessera.presets NAME)
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from tessera.core.errors import InputError
from tessera.core.params import problems, read

FOLDER = Path("presets")


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
    """`raw` with other values at the dotted names.

    Raises:
        InputError: a name is not in `raw`, or the result is not valid: all problems at once.
    """
    raw = copy.deepcopy(raw)
    for name, value in values.items():
        *place, last = name.split(".")
        section = raw
        for part in place:
            section = section.get(part, {})
        if last not in section:
            raise InputError(f"{name}: params.yaml has no such value")
        section[last] = value
    found = problems(raw)
    if found:
        raise InputError("\n".join(found))
    return raw


def arguments(values: dict[str, Any]) -> str:
    """As `dvc exp run` takes them: lists as in YAML's flow style, no spaces."""
    return " ".join(
        f"-S {name}={json.dumps(value, separators=(',', ':')).strip(chr(34))}" for name, value in values.items()
    )


def main() -> int:
    if len(sys.argv) < 2:
        print("\n".join(names()))
        return 0
    try:
        values = overrides(sys.argv[1])
        applied(read(), values)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(arguments(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
