"""Seams are folders: params.yaml chooses a plug-in by the name of its file or folder. No registry, no decorator.

Most plug-ins are one file, `quantizers/ema.py`. Data sets and extensions consist of several files, and are folders,
`extensions/inpainting/`. dvc.yaml builds the path of a plug-in from its name, so one seam cannot mix files and folders.
"""

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
    "upsamplers",
    "diagnostics",
    "evaluation",
    "extensions",
)


FOLDERS = ("datasets", "evaluation", "extensions")  # seams whose plug-ins are folders


def names(seam: str) -> tuple[str, ...]:
    """The plug-ins of a seam: its files or folders, except those whose names start with an underscore."""
    found = (PACKAGE / seam).glob("*/__init__.py" if seam in FOLDERS else "*.py")
    stems = (path.parent.name if seam in FOLDERS else path.stem for path in found)
    return tuple(sorted(stem for stem in stems if not stem.startswith("_")))


def code(seam: str, name: str) -> Path:
    """The file, or the folder, of a plug-in."""
    return PACKAGE / seam / (name if seam in FOLDERS else f"{name}.py")


def plugin(seam: str, name: str) -> ModuleType:
    """The module of one plug-in. The name is looked up in the folder first, so an ImportError *inside* a plug-in is not mistaken
    for a wrong name.

    Raises:
        ValueError: there is no such plug-in.
    """
    if name not in names(seam):
        raise ValueError(unknown(seam, name))
    return importlib.import_module(f"tessera.{seam}.{name}")


def unknown(seam: str, name: object) -> str:
    """The error message for a wrong plug-in name: the plug-ins that exist, and the nearest spelling."""
    if misplaced := _misplaced(seam, str(name)):
        return misplaced
    near = difflib.get_close_matches(str(name), names(seam), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no {name!r} in src/tessera/{seam}/; there is {', '.join(names(seam)) or 'nothing'}{hint}"


def _misplaced(seam: str, name: str) -> str | None:
    """The message for a plug-in that is a file where the seam takes folders, or the other way round; None if it is neither."""
    file, folder = f"src/tessera/{seam}/{name}.py", f"src/tessera/{seam}/{name}/__init__.py"
    there, wanted = (file, folder) if seam in FOLDERS else (folder, file)
    if (PACKAGE.parent.parent / there).exists():
        return f"{there}: a plug-in of {seam}/ is {'a folder' if seam in FOLDERS else 'one file'}; move it to {wanted}"
    return None
