"""Scratch checkpoints: `$DVC_ROOT/.scratch/<stage>/<fingerprint>/`, ignored by git and DVC.

The fingerprint is a hash of the stage's declared params, inputs and code, so a run never continues a checkpoint of another
experiment. `dvc exp run --temp` and queue workers also have DVC_ROOT set to the repository, so they share the scratch. A lock
per fingerprint lets one of them train while the others wait and use its result. See docs/notes/dvc.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tessera.core import files

if TYPE_CHECKING:
    from torch import Tensor

FINISHED, LOCK = "finished.json", "lock"


def root() -> Path:
    return Path(os.environ.get("DVC_ROOT") or ".").resolve() / ".scratch"


class Scratch:
    """The scratch folder of one stage and one fingerprint, locked while the stage runs.

    `fingerprint` covers everything that training depends on, `whole` everything that the stage depends on. They differ if a
    codebook is fitted to a finished autoencoder: a new codebook size does not train the autoencoder again. A finished scratch
    is not used again for the same `whole` in the same workspace. There DVC runs a finished stage again only if the user forces
    it, and then it must train. Another workspace does use it: queue workers share earlier stages in this way.
    """

    def __init__(self, stage: str, fingerprint: str, keep: int, whole: str | None = None) -> None:
        self._state = {"workspace": os.getcwd(), "whole": whole or fingerprint}
        self.folder = root() / stage / fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._lock = FileLock(self.folder / LOCK)

    def __enter__(self) -> Scratch:
        self._acquire()
        finished = self.folder / FINISHED
        if finished.exists() and files.read_json(finished) == self._state:
            for checkpoint in self.folder.glob("*.safetensors"):
                checkpoint.unlink()
        finished.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:  # marked as finished last: after a failure here the next run would train again
                self._prune()
                files.write_json(self.folder / FINISHED, self._state)
        finally:
            self._lock.release()

    def _acquire(self) -> None:
        """Lock the folder. Try again if another process has pruned the folder in the meantime."""
        for left in reversed(range(100)):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
            except Timeout:
                print("waiting for another process that trains the same thing ...", file=sys.stderr, flush=True)
                self._lock.acquire()
            except (FileExistsError, FileNotFoundError):  # raised by mkdir if the folder is deleted at that moment
                if not left:
                    raise
                continue
            if (self.folder / LOCK).exists():
                return
            self._lock.release()

    def _prune(self) -> None:
        """Delete the oldest folders of this stage, but none that a process holds. Other processes may prune at the same time."""
        changed = {}
        with contextlib.suppress(OSError):
            for folder in self.folder.parent.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    changed[folder] = folder.stat().st_mtime
        for folder in sorted(changed, key=changed.__getitem__, reverse=True)[self._keep :]:
            if folder != self.folder and folder.exists():
                _remove(folder)

    def _checkpoint(self, task: str) -> Path:
        """The checkpoint file of one training."""
        return self.folder / f"{task}.safetensors"

    def save(self, task: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        from tessera.core.models import save_weights

        save_weights(self._checkpoint(task), tensors, {"values": json.dumps(values)})
        os.utime(self.folder)

    def load(self, task: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and values of the last `save`. None if there is none, or if it is unreadable; the latter prints a message."""
        path = self._checkpoint(task)
        if not path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
                values = json.loads(stored.metadata()["values"])
            step = values["step"]
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            print(f"{path} is no whole checkpoint ({error}); {task} starts anew", file=sys.stderr, flush=True)
            return None
        age = time.strftime("%H:%M:%S", time.localtime(path.stat().st_mtime))
        print(f"resuming {task} at step {step} (checkpoint of {age})", file=sys.stderr, flush=True)
        return tensors, values


def held(folder: Path) -> bool:
    """Whether a process trains in this folder of the scratch now."""
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _remove(folder: Path) -> None:
    """Delete a folder unless a process holds it or the system forbids it. The lock keeps others from starting in it meanwhile."""
    with contextlib.suppress(OSError), FileLock(folder / LOCK).acquire(timeout=0):  # Timeout is an OSError
        shutil.rmtree(folder, ignore_errors=True)
