"""The project as it is committed: no test judges what a user's own runs have made of the workspace.

`dvc repro` and `dvc exp run` write params.yaml, dvc.lock, metrics/ and plots/, studies write docs/, and README.md tells of the
committed ones. Tests read all of these here, and code, presets, studies and data where they lie.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = ("params.yaml", "dvc.lock", "metrics", "plots", "docs", "README.md")  # by runs, or of the committed one
LEFT_OUT = (".git", ".dvc", ".scratch", ".venv", "artifacts", "report.html")
OWN_NAMES = ("thresholds", "structured")  # keys below are the user's own, not names that code knows


@cache
def project() -> Path:
    """A folder that holds what is in `WRITTEN` as the last commit has it, and links to the rest of the workspace. Without git
    or a commit (an archive of a release), the workspace itself."""
    return snapshot(ROOT, Path(_kept().name)) if has_commit(ROOT) else ROOT


def has_commit(root: Path) -> bool:
    command = ["git", "rev-parse", "--verify", "-q", "HEAD"]
    return (root / ".git").exists() and subprocess.run(
        command, cwd=root, capture_output=True, check=False
    ).returncode == 0


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="tessera-committed-")


def snapshot(root: Path, folder: Path) -> Path:
    """`folder`, filled with what `project` promises of the repository `root`."""
    there = set(_git(root, "ls-tree", "--name-only", "HEAD").decode().splitlines())
    archive = _git(root, "archive", "--format=tar", "HEAD", "--", *(name for name in WRITTEN if name in there))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has none before 3.11.4
        tar.extractall(folder)
    for path in root.iterdir():
        if path.name not in (*WRITTEN, *LEFT_OUT):
            (folder / path.name).symlink_to(path)
    _add_new_names(folder / "params.yaml", root / "params.yaml")
    return folder


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout


def _add_new_names(committed: Path, workspace: Path) -> None:
    """Values are the committed ones. Names that only the workspace has belong to code that is being written, such as the
    section of a new plug-in."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    mine, theirs = yaml.load(committed.read_text()), yaml.load(workspace.read_text())
    if _add(mine, theirs):
        with open(committed, "w") as stream:
            yaml.dump(mine, stream)


def _add(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    added = False
    for key, value in theirs.items():
        if key not in mine:
            mine[key], added = value, True
        elif isinstance(value, dict) and isinstance(mine[key], dict) and key not in OWN_NAMES:
            added |= _add(mine[key], value)
    return added
