"""Seams are folders: choosing a plug-in is naming its file. No registry, no decorator."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent.parent
SEAMS = (
    "datasets",
    "quantizers",
    "tokenizers",
    "losses",
    "priors",
    "extractors",
    "diagnostics",
    "evaluation",
    "extensions",
)


def names(seam: str) -> tuple[str, ...]:
    """The plug-ins of a seam: its files, without those that start with an underscore."""
    return tuple(sorted(path.stem for path in (PACKAGE / seam).glob("*.py") if not path.stem.startswith("_")))


def plugin(seam: str, name: str) -> ModuleType:
    """The module of one plug-in. The name is looked up in the folder first, so that an ImportError *inside* a plug-in
    stays visible as what it is.

    Raises:
        ValueError: there is no such file.
    """
    if name not in names(seam):
        raise ValueError(unknown(seam, name))
    return importlib.import_module(f"tessera.{seam}.{name}")


def unknown(seam: str, name: object) -> str:
    """The message for a name that is no file of the seam: what there is, and the nearest spelling."""
    near = difflib.get_close_matches(str(name), names(seam), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no {name!r} in src/tessera/{seam}/; there is {', '.join(names(seam)) or 'nothing'}{hint}"
