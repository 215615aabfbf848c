"""What a Dask worker does for a study.

`Runs` travels to the workers by value, together with the code of the one who asks. So this file imports nothing but the standard
library and Dask, and whatever tessera the machine of a worker may hold is never loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin
from distributed.core import Status

SECONDS = 1.0  # between looks whether the result of a run is still wanted
PATIENCE = 10.0  # seconds in which the scheduler may take note that a run begins; it begins then all the same
ARRAYS = ".npy"  # images, codes, features: they stay where they are, since the models and the values determine them


def environment(packages: Iterable[str]) -> dict[str, str]:
    """Version of each package that is installed here, without the part that names a build (2.15.0, not 2.15.0+cpu); "" for one
    that is not."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """In words, what one environment has and another lacks or has in another version; "" if they are equal."""
    words = [f"{name} {theirs[name] or 'is missing'} (here {ours[name] or 'none'})" for name in ours
             if theirs[name] != ours[name]]  # fmt: skip
    return ", ".join(words)


class Runs(WorkerPlugin):
    """Executes runs of one study on each worker, present or future, whose packages have the versions of the one who asks.

    Such a worker offers one piece of the resource `label`, and each run asks for one. So Dask gives the runs to these workers
    only, and to each of them one at a time, whatever its number of threads. What a worker is and does the scheduler keeps as events
    under `label`, each with the address `worker`: its `state` `starting`, then `ready`, or `unfit` and `why`; a `run` that begins.

    Args:
        label: name of the plugin, the resource and the topic of the events, of this start of the study alone.
        study: its name.
        code: tar archive of the files of a commit, with all that the runs read.
        versions: package -> version that it must have; as `environment` says it.
        options: arguments of `python -m tessera.studies` beside the study and the run.
        folder: folder of the results in the repository, with `{run}` in it.
    """

    def __init__(
        self, label: str, study: str, code: bytes, versions: dict[str, str], options: list[str], folder: str
    ) -> None:
        self.label, self.study, self.code = label, study, code
        self.versions, self.options, self.folder = versions, options, folder

    async def setup(self, worker: Worker) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._own = Path(worker.local_directory) / self.label
        await self._say(state="starting")
        try:
            why = differences(environment(self.versions), self.versions)
            if not why:
                await self._offer()
        except Exception as error:  # said where it is read: not in the log of a worker
            why = f"{type(error).__name__}: {error}"
        await self._say(state="unfit" if why else "ready", why=why)

    async def _say(self, **what: str) -> None:
        """Let the scheduler keep an event. It answers that it does: what `Worker.log_event` sends may be dropped. A client that
        subscribed to events would miss those before its subscription has arrived."""
        event = {"worker": self._worker.contact_address, **what}
        await self._worker.scheduler.log_event(topic=self.label, msg=event)

    async def _offer(self) -> None:
        await self._worker.set_resources(**{self.label: 1})
        # A scheduler that learns of a resource does not look again at tasks that wait for it (distributed#6677), and it does
        # look when a worker goes on after a pause. A run waits when the last worker that could do it has died.
        self._worker.status = Status.paused
        self._worker.status = Status.running

    def teardown(self, worker: Worker) -> None:
        self._stop()
        shutil.rmtree(self._own, ignore_errors=True)

    def perform(self, run: str, log: str) -> tuple[int, bytes]:
        """Execute a run in a clone of its own.

        Args:
            run: its name.
            log: name of the file in the folder of the run that takes what it prints.

        Returns:
            Exit status of the run, negative for a signal, and a tar archive of its folder without arrays. If nobody waits for the
            run any more, it is stopped.
        """
        key, clone = self._worker.get_current_task(), self._clone()
        folder = clone / self.folder.format(run=run)
        folder.mkdir(parents=True)
        said = asyncio.run_coroutine_threadsafe(self._say(run=run), self._loop)
        with contextlib.suppress(OSError):
            said.result(PATIENCE)
        command = [sys.executable, "-m", "tessera.studies", self.study, "--one", run, "--tied", *self.options]
        with open(folder / log, "wb") as stream:
            process = self._process = subprocess.Popen(
                command, cwd=clone, env=self._environment(clone), stdin=subprocess.PIPE, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            status = self._wait(process, key)
        finally:
            self._stop()
        if status < 0:
            with open(folder / log, "a", encoding="utf-8") as stream:
                stream.write(f"ended by {signal.Signals(-status).name}\n")
        return status, packed(folder)

    def _clone(self) -> Path:
        """The files of the commit in a fresh folder. It has the same path for each run, since paths of data are among the values by
        which a run finds what an earlier run on this worker has made of the same inputs."""
        clone, cache = self._own / "clone", self._own / "cache"
        shutil.rmtree(clone, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(self.code)) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has none before 3.11.4
            tar.extractall(clone)
        cache.mkdir(exist_ok=True)
        (clone / ".scratch/studies").mkdir(parents=True)
        (clone / ".scratch/studies/cache").symlink_to(cache)
        return clone

    def _environment(self, clone: Path) -> dict[str, str]:
        """As a shell on this machine has it: without what Dask's nanny sets for its worker (one thread for each library, and memory
        given back at once)."""
        import dask

        added = dask.config.get("distributed.nanny.pre-spawn-environ")
        kept = {name: value for name, value in os.environ.items() if str(added.get(name)) != value}
        paths = os.pathsep.join([str(clone / "src"), *filter(None, [kept.get("PYTHONPATH")])])
        # all workers of a machine lock its GPUs in one place
        return {**kept, "PYTHONPATH": paths, "DVC_ROOT": str(Path(self._worker.local_directory).parent)}

    def _wait(self, process: subprocess.Popen[bytes], key: Any) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(SECONDS)
            task = self._worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":  # the one who asked is gone
                self._stop()

    def _stop(self) -> None:
        """End the run and all processes that it has started, if it still goes on."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.poll() is not None:  # its number may soon be that of another process
                self._process = None


def packed(folder: Path) -> bytes:
    """A tar archive of the files in a folder, links followed, without arrays."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
        tar.add(folder, ".", filter=lambda member: None if member.name.endswith(ARRAYS) else member)
    return packed.getvalue()
