"""A training under way, in files: `plots/<name>.csv` after each evaluation, and how far it is.

The rows stand where the finished stage writes them, so `dvc plots show`, the extension for VS Code and the playground read a
training under way as they read one that is over. `progress.json` in the scratch says how far it is, which depends on the clock and
must not be in an output of DVC; experiments of a queue and of `--temp` have the scratch of the repository. See docs/notes/dvc.md.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tessera.core import files
from tessera.core.errors import InputError
from tessera.runtime.scratch import held, root

FILE = "progress.json"
NEWS = 2.0  # seconds from one file to the next, at least


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        folder: the folder of the run: the repository, or that of a queued or temporary experiment.
        experiment: its name in `dvc exp show`; "" if DVC gave none.
        curve: its rows stand in `folder`, in `plots/<curve>.csv`.
        done: the fraction of all steps that are taken.
        images_per_second: mean since this process began, evaluations included; 0 before the first steps.
        seconds_left: at this pace; -1 before the first steps.
    """

    folder: str
    experiment: str
    curve: str
    done: float
    images_per_second: float
    seconds_left: float


class Live:
    """What `fit` tells while it trains. It writes nothing where there is no scratch: then no stage runs, but a test or a benchmark,
    which must leave the plots of the last run alone.

    Args:
        scratch: the folder of the training's checkpoints, or None.
        curve: the name of its rows below `plots/`.
        images: the number of images of the whole training, each as often as it is read.
        done: the fraction of all steps that earlier processes have taken.
    """

    def __init__(self, scratch: Path | None, curve: str, images: int, done: float) -> None:
        self._scratch, self._curve, self._images, self._begun = scratch, curve, images, done
        self._started = time.monotonic()
        self._told, self._rows = -NEWS, 0
        if scratch is not None:  # a stage that is started by hand finds the rows of the training before
            (files.PLOTS / f"{curve}.csv").unlink(missing_ok=True)
            self.update(done)

    def rows(self, history: list[dict[str, float]]) -> None:
        """Write all rows anew where there is a new one: so a training that was resumed repeats none, and the file is whole at any
        moment."""
        if self._scratch is not None and len(history) > self._rows:
            files.write_history(self._curve, history)
            self._rows = len(history)

    def update(self, done: float) -> None:
        """Say how far the training is, unless that was said a moment ago."""
        now = time.monotonic()
        if self._scratch is None or now - self._told < NEWS:
            return
        self._told = now
        taken = done - self._begun
        pace = taken / (now - self._started) if taken else 0.0  # fraction of the training per second
        left = (1 - done) / pace if pace else -1.0
        name = os.environ.get("DVC_EXP_NAME", "")
        found = Progress(os.getcwd(), name, self._curve, done, pace * self._images, left)
        files.write_json(self._scratch / FILE, found._asdict())


def trainings() -> Iterator[Progress]:
    """Those under way now: in the repository, in queued and in temporary experiments."""
    for path in sorted(root().glob(f"*/*/{FILE}")):
        with contextlib.suppress(InputError, OSError, TypeError):  # the folder is gone, or the file of another version
            if held(path.parent):
                yield Progress(**files.read_json(path))
