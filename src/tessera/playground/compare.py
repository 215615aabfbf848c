"""Tab Compare runs: two revisions or experiments side by side. DVC and git read them; the working folder is not touched."""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from tessera.core import files, models, trees
from tessera.core.errors import InputError
from tessera.images import arrays
from tessera.playground.workspace import BATCH, Workspace

if TYPE_CHECKING:
    from tessera.core.contracts import Tokenizer

HERE = "workspace"
CURVES = ("tokenizer", "prior")  # stages whose training is plotted
IMAGES = 8  # that both reconstruct


def why_not() -> str | None:
    """One sentence if the folder is no repository of git and DVC."""
    if _git("rev-parse", "HEAD", otherwise=None) is None:
        return "There is no commit of git here, so there are no runs to compare: `git init` and `git commit` make one."
    if not Path(".dvc").is_dir():
        return "This folder has no .dvc, so runs have left no artefacts to compare: `dvc init` makes it a repository of DVC."
    return None


def revisions() -> list[tuple[str, str]]:
    """Title and name: the workspace, branches, tags, and the experiments that `dvc exp show` names, newest first."""
    found = [("workspace, as it is now", HERE), ("HEAD, the last commit", "HEAD")]
    refs = _git("for-each-ref", "--sort=-creatordate", "--format=%(refname)", otherwise="") or ""
    for ref in refs.splitlines():
        kind, _, name = ref.removeprefix("refs/").partition("/")
        if kind in ("heads", "tags"):
            found.append((f"{'branch' if kind == 'heads' else 'tag'} {name}", ref))
        elif kind == "exps" and not name.startswith(("exec/", "stash", "celery")):
            found.append((f"experiment {name.rpartition('/')[2]}", ref))
    return found


class Revision:
    """What a revision recorded: metrics and plots from git, models from DVC's cache."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name != HERE and name not in {ref for _, ref in revisions()}:
            raise InputError(f"there is no revision {name!r} any more; choose another one")

    @cached_property
    def commit(self) -> str:
        """Of a name that may move on, such as a branch."""
        return str(_git("rev-parse", f"{self.name}^{{commit}}"))

    def metrics(self) -> dict[str, float]:
        """By `file:name`."""
        found: dict[str, float] = {}
        for path in self._paths("metrics", ".json"):
            values = json.loads(self._text(path))
            place = Path(path).relative_to("metrics").with_suffix("").as_posix()
            found |= {f"{place}:{name}": value for name, value in trees.numbers(values)}
        return found

    def curve(self, stage: str) -> pd.DataFrame | None:
        """The rows of a training, one per evaluation; None if the run has none."""
        path = f"plots/{stage}.csv"
        return pd.read_csv(StringIO(self._text(path))) if path in self._paths("plots", ".csv") else None

    def tokenizer(self, space: Workspace) -> Tokenizer:
        """
        Raises:
            InputError: DVC's cache does not hold it, or today's code cannot load it.
        """
        if self.name == HERE:
            return space.tokenizer()
        return space.kept.get(("tokenizer", self.commit), [], self._loaded)

    def _loaded(self) -> Tokenizer:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from dvc_data.index import DataIndexError

        with tempfile.TemporaryDirectory() as folder:
            try:
                system = DVCFileSystem(".", rev=self.commit)
                for name in (models.WEIGHTS, models.RECIPE):
                    system.get_file((files.ARTIFACTS / "tokenizer" / name).as_posix(), str(Path(folder) / name))
            except (DvcException, DataIndexError, OSError) as error:
                raise InputError(
                    f"DVC's cache does not hold the tokenizer of {self.name} ({error}). `dvc pull` or `dvc exp apply` brings it"
                ) from None
            return models.load(folder)

    def _paths(self, folder: str, ending: str) -> list[str]:
        if self.name == HERE:
            return sorted(path.as_posix() for path in Path(folder).rglob(f"*{ending}"))
        listed = _git("ls-tree", "-r", "--name-only", self.commit, "--", folder) or ""
        return [path for path in listed.splitlines() if path.endswith(ending)]

    def _text(self, path: str) -> str:
        return (
            Path(path).read_text(encoding="utf-8") if self.name == HERE else str(_git("show", f"{self.commit}:{path}"))
        )


def differing(left: dict[str, float], right: dict[str, float]) -> pd.DataFrame:
    """Metrics whose values are not equal, the largest relative difference first; a run that lacks one has NaN there."""
    rows = []
    for name in sorted(set(left) | set(right)):
        a, b = left.get(name, np.nan), right.get(name, np.nan)
        if a != b:
            rows.append({"metric": name, "left": a, "right": b, "difference": b - a})
    table = pd.DataFrame(rows, columns=["metric", "left", "right", "difference"])
    scale = table[["left", "right"]].abs().max(axis=1)
    order = (table["difference"].abs() / scale).fillna(np.inf).sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def curves(left: Revision, right: Revision, stage: str) -> pd.DataFrame:
    """Columns epoch, measure, value, run: what both trainings evaluated on the validation split."""
    parts = []
    for side, revision in (("left", left), ("right", right)):
        table = revision.curve(stage)
        if table is not None and "epoch" in table:
            own = [name for name in table if name.startswith("val_")]
            parts.append(table.melt(["epoch"], own, var_name="measure", value_name="value").assign(run=side))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["epoch", "measure", "value", "run"])


def reconstructed(space: Workspace, left: Revision, right: Revision) -> UInt8[np.ndarray, "3 n h w c"]:
    """Test images, and their reconstructions by both tokenizers.

    Raises:
        InputError: a tokenizer is for images of another shape.
    """
    pixels = space.images("test")
    pixels = np.asarray(pixels[arrays.evenly(len(pixels), IMAGES)])
    found = [pixels]
    for revision in (left, right):
        tokenizer = revision.tokenizer(space)
        channels, height, width = tokenizer.image_shape
        if pixels.shape[1:] != (height, width, channels):
            raise InputError(
                f"the tokenizer of {revision.name} is for {height}x{width} pixels, and the images here are not"
            )
        codes = arrays.mapped(tokenizer.encode, pixels, BATCH)
        found.append(arrays.decoded(tokenizer, codes, BATCH))
    return np.stack(found)


def _git(*arguments: str, otherwise: Any = ...) -> str | None:
    """The output of a git command; `otherwise`, if it is given, where the command fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, encoding="utf-8")
    if done.returncode == 0:
        return done.stdout.strip()
    if otherwise is ...:
        raise InputError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return otherwise
