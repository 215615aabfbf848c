"""A study's runs on a Dask cluster: each in a clone of the committed code on the machine of a worker, by `direct`.

Dask decides which worker does which run, and gives the run of a worker that died to another. Code goes there and results come back
as bytes of files, in tar archives; they are then where `direct` would have written them. What may run is checked first: the code is
that of HEAD, the data are those of this machine, and a worker with other versions of packages gets no run. See `worker`.

No message is waited for without a bound: the scheduler is asked again and again, and who does not answer for `PATIENCE` seconds is
named.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import math
import os
import platform
import shutil
import subprocess
import tarfile
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tessera.core import files
from tessera.core.errors import InputError, listed
from tessera.core.params import read
from tessera.runtime import inputs
from tessera.studies import direct, plan, queue, sweep

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

CODE = ("src", "stages", "studies", "presets", "params.yaml", "dvc.yaml", "versions.yaml")
TIMEOUT, ANSWER = 8.0, 10.0  # seconds in which a scheduler is reached and answers once; in which a worker answers once
PATIENCE = 120.0  # seconds in which a scheduler that was reached, or a worker that is there, may not answer at all
DEATHS = 3  # of workers that start, one after the other, before none is waited for
SECONDS, LINES = 0.5, 12  # between looks at the runs; shown of the log of a failed run
INSTALL = "pip install -c requirements.lock -e '.[cluster]'"


class Code(NamedTuple):
    """What the runs read: the commit, a tar archive of its files, and the digests of data outside the repository, by path."""

    commit: str
    archive: bytes
    data: dict[str, str]


def start(name: str, study: sweep.Study, runs: list[str], address: str, overrides: list[str]) -> dict[str, str]:
    """Execute these runs on the workers of the cluster, and bring their folders here. Returns the final state of each: `done`,
    `failed`, or `lost` if as many workers died of it as the scheduler allows.

    Args:
        name: of the study.
        study: the study.
        runs: names of its runs.
        address: of Dask's scheduler, such as `tcp://HOST:8786`.
        overrides: options `--runtime=NAME=VALUE`.

    Raises:
        InputError: the package is not installed; a file that the runs read is not committed; the scheduler cannot be reached or
            is lost; no worker of those that are there can do a run. Runs that have ended by then are kept.
    """
    if not runs:
        return {}
    require_dask()
    code = committed({run: sweep.params(study, run) for run in runs})
    with _connected(address) as client:
        _require_python(client)
        label = f"tessera-{uuid.uuid4().hex[:12]}"
        with _working(client, label, name, code, overrides):
            print(f"{address}: code of commit {code.commit[:12]}", flush=True)
            return Work(client, label, name, study).follow(runs)


# before anything is handed over


def require_dask() -> None:
    """
    Raises:
        InputError: dask.distributed is not installed.
    """
    if importlib.util.find_spec("distributed") is None:
        raise InputError(f"--on needs the package distributed, which is not installed: {INSTALL}")


def committed(params: dict[str, dict[str, Any]]) -> Code:
    """What runs with these params read.

    Args:
        params: params.yaml of each run.

    Raises:
        InputError: files that the runs read are not committed, or data does not exist. The message names them.
    """
    sources = dict.fromkeys(place for raw in params.values() for place in plan.paths(raw).items())
    within = [path for _, path in sources if not os.path.isabs(path)]
    problems = [f"  {problem}" for name, path in sources if (problem := _unreachable(name, path))]
    if problems:
        raise InputError("a run on another machine would not find its files:\n" + "\n".join(problems))
    edited = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE, *within).decode().splitlines()
    if edited:
        raise InputError(
            "a run on another machine has the code and values of the last commit, and these differ from it: "
            f"{listed(line[3:] for line in edited)}. Commit them, or `git stash --include-untracked`"
        )
    archive = _git("archive", "--format=tar", "HEAD", "--", *CODE, *within)
    data = {path: inputs.content(path) for _, path in sources if os.path.isabs(path)}
    return Code(queue.head(), archive, data)


def _unreachable(name: str, path: str) -> str:
    """Why a run on another machine would not find a path of params.yaml; "" if it would."""
    if os.path.isabs(path):
        return "" if os.path.exists(path) else f"{name}: there is no {path}"
    if Path(os.path.abspath(path)).is_relative_to(Path.cwd()) and _git("ls-tree", "--name-only", "HEAD", "--", path):
        return ""
    return (
        f"{name}: {path} is not in the last commit. Commit it (small), or give the absolute path of a place that all machines "
        "reach (large)"
    )


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"git {' '.join(arguments)} failed:\n{done.stderr.decode(errors='replace').strip()}")
    return done.stdout


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(address, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--on {address}: no Dask scheduler answers there ({error}). Start one by `dask scheduler`, which prints its address"
        ) from None
    try:
        yield client
    finally:
        with contextlib.suppress(OSError):  # the scheduler does not answer
            client.close(timeout=TIMEOUT)


def _lost(why: Exception | str) -> InputError:
    return InputError(
        f"the scheduler was lost ({str(why) or type(why).__name__}). Results that had come are kept; the same command starts "
        "the other runs again"
    )


def _require_python(client: Client) -> None:
    """Check what Dask itself needs: functions travel as byte code, which other versions of Python cannot read. A worker that
    does not answer is named later, by `Workers`."""
    try:
        versions = client.sync(_pythons, client, callback_timeout=TIMEOUT + ANSWER)
    except OSError as error:
        raise _lost(error) from None
    own = _minor(platform.python_version())
    other = [f"{worker} has {_minor(version)}" for worker, version in versions.items() if _minor(version) != own]
    if other:
        raise InputError(f"Dask needs one version of Python everywhere, here {own}: {', '.join(other)}")


async def _pythons(client: Client) -> dict[str, str]:
    """Version of Python of each worker that answers, by address."""

    async def of(worker: str) -> dict[str, str]:
        with contextlib.suppress(OSError):  # it does not answer, or has died
            return await asyncio.wait_for(client.run(platform.python_version, workers=[worker]), ANSWER)
        return {}

    scheduler: Any = client.scheduler
    answers = await asyncio.gather(*map(of, (await scheduler.identity(n_workers=-1))["workers"]))
    return {worker: version for answer in answers for worker, version in answer.items()}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


# while the runs go on


@contextlib.contextmanager
def _working(client: Client, label: str, name: str, code: Code, overrides: list[str]) -> Iterator[None]:
    """Let the workers execute runs of a study. At the end they stop and forget all.

    The scheduler gives the code to all workers, present or future, and answers when all have it. One that hangs never has, so the
    answer is not waited for: `Workers` asks which are ready.
    """
    import cloudpickle

    from tessera.studies import worker

    cloudpickle.register_pickle_by_value(worker)
    options = [*overrides, *(f"--data={path}={digest}" for path, digest in code.data.items())]
    versions = worker.environment(read(inputs.VERSIONS))
    plugin = worker.Runs(label, name, code.archive, versions, options, direct.folder(name, "{run}").as_posix())
    given = _begin(client, lambda: client.register_plugin(plugin, name=label))
    given.add_done_callback(_say_failure)
    try:
        yield
    finally:
        given.cancel()
        with contextlib.suppress(Exception):  # the scheduler is gone, or a worker hangs: there is nothing more to do
            client.sync(client.unregister_worker_plugin, label, callback_timeout=ANSWER)


def _begin(client: Client, what: Callable[[], Awaitable[T]]) -> Future[T]:
    """Let a client, whose methods are awaited in its own thread, do something there, without waiting for it."""

    async def do() -> T:
        return await what()

    loop: Any = client.loop  # of tornado, around one of asyncio
    return asyncio.run_coroutine_threadsafe(do(), loop.asyncio_loop)


def _say_failure(given: Future[Any]) -> None:
    if not given.cancelled() and (error := given.exception()):
        print(f"not every worker took the code: {type(error).__name__}: {error}", flush=True)


def _task(label: str) -> Callable[[str, str], tuple[int, bytes]]:
    def perform(run: str, log: str) -> tuple[int, bytes]:  # a function in a function travels by value
        from distributed import get_worker

        runs: Any = get_worker().plugins[label]
        return runs.perform(run, log)

    return perform


class Workers:
    """The workers of a cluster, as the scheduler knows them: how many may have a run, and why the others may not.

    The scheduler is asked for its state, again and again, and for the events that it has kept (`worker.Runs`). So nothing depends
    on a message that comes once. A worker that offers the resource `label` may have a run, whatever it has said. One that has said
    nothing for `PATIENCE` seconds is named, and counts as one that may not until it does.
    """

    def __init__(self, client: Client, label: str) -> None:
        self._client, self._label = client, label
        self._scheduler = ""  # which process it is
        self._heard = 0  # number of events
        self._starting: set[str] = set()  # addresses
        self._unfit: dict[str, str] = {}  # address -> why it gets no run
        self._since: dict[
            str, float
        ] = {}  # address -> when it was first seen, of those that have not said what they are
        self._deaths = 0  # of workers that started, since one was last ready
        self._answered = time.monotonic()  # when the scheduler last did
        self._had_ready = -math.inf  # when a worker was last ready
        self._waits = False  # whether it has been said that there is no worker

    def ready(self) -> int:
        """Number of workers that may have a run; 0 also if the scheduler does not answer now. What is new is printed.

        Raises:
            InputError: the scheduler is lost. There are workers, and none may have a run; where one has been ready, this is so for
                `PATIENCE` seconds, since it may be starting anew.
        """
        answer = self._ask()
        if answer is None:
            return 0
        scheduler, events = answer
        if self._scheduler not in ("", scheduler["id"]):
            raise _lost("another has taken its place")
        self._scheduler, there = scheduler["id"], set(scheduler["workers"])
        ready = {worker for worker, state in scheduler["workers"].items() if self._label in state["resources"]}
        for _, event in events[self._heard :]:
            self._hear(event)
        self._heard = len(events)
        self._watch(there, ready)
        if ready:
            self._had_ready = time.monotonic()
        elif time.monotonic() - self._had_ready > PATIENCE:
            self._require_hope(there)
        if not there and not self._waits:
            print("waiting for a worker", flush=True)
        self._waits = not there
        return len(ready)

    def _ask(self) -> tuple[dict[str, Any], list[tuple[float, dict[str, str]]]] | None:
        """What the scheduler says of itself and its workers, and all events so far; None if it does not answer now."""
        try:
            answer = self._client.sync(self._question, callback_timeout=TIMEOUT)
        except OSError as error:  # a busy scheduler may not answer in time
            if self._client.status == "closed":
                raise _lost(error) from None
            if time.monotonic() - self._answered > PATIENCE:
                raise _lost(f"no answer for {PATIENCE:.0f} s") from None
            return None
        self._answered = time.monotonic()
        return answer

    async def _question(self) -> tuple[dict[str, Any], list[tuple[float, dict[str, str]]]]:
        scheduler = self._client.scheduler
        if scheduler is None:
            raise ConnectionError("the connection is closed")
        events = await scheduler.events(topic=self._label)  # first: a worker of which they speak was there
        return await scheduler.identity(n_workers=-1), events

    def _hear(self, event: dict[str, str]) -> None:
        worker = event["worker"]
        if "run" in event:
            print(f"{event['run']}: started on {worker}", flush=True)
        elif event["state"] == "starting":
            self._starting.add(worker)
            self._unfit.pop(worker, None)  # of an earlier process at this address
        else:
            self._starting.discard(worker)
            if event["state"] == "unfit":
                self._refuse(worker, event["why"])
            else:
                self._deaths = 0

    def _refuse(self, worker: str, why: str) -> None:
        self._unfit[worker] = why
        print(f"{worker} gets no run: {why}", flush=True)

    def _watch(self, there: set[str], ready: set[str]) -> None:
        """Notice workers that died while they started, and those that have not said for long what they are."""
        for worker in sorted(self._starting - there):
            self._deaths += 1
            print(f"{worker} died while it started", flush=True)
        self._starting &= there
        self._unfit = {worker: why for worker, why in self._unfit.items() if worker in there - ready}
        now, quiet = time.monotonic(), sorted(there - ready - self._unfit.keys())
        self._since = {worker: self._since.get(worker, now) for worker in quiet}
        for worker in quiet:
            if now - self._since[worker] > PATIENCE:
                self._refuse(worker, f"for {PATIENCE:.0f} s it has not said which packages it has")

    def _require_hope(self, there: set[str]) -> None:
        if there and there <= self._unfit.keys():
            raise InputError(
                "no worker may have a run. Results depend on the packages: bring those of all machines to requirements.lock, and "
                f"start anew what does not answer. {'; '.join(f'{worker}: {self._unfit[worker]}' for worker in sorted(there))}"
            )
        if self._deaths >= DEATHS:
            raise InputError(f"{self._deaths} workers died while they started, and none is ready. Their logs tell why")


class Work:
    """The runs of one start: those that wait, those that Dask has, and the state of each that has ended.

    Dask has no more runs at a time than there are workers for them. It blames the death of a worker on all tasks that the worker
    was given, begun or not (distributed#5234), so of a long list one run that kills its workers would take all others along.
    """

    def __init__(self, client: Client, label: str, name: str, study: sweep.Study) -> None:
        self._client, self._label, self._name, self._study = client, label, name, study
        self._workers = Workers(client, label)

    def follow(self, runs: Iterable[str]) -> dict[str, str]:
        """The final state of each run, printed as soon as it is known.

        Raises:
            InputError: as `Workers.ready`.
        """
        waiting = list(runs)
        ended: dict[str, str] = {}
        going: dict[str, Future[tuple[int, bytes]]] = {}
        try:
            while waiting or going:
                over = [run for run, result in going.items() if result.done()]
                try:
                    ready = self._workers.ready()  # first: what was said before they ended is printed before it
                finally:
                    ended |= {run: self._end(run, going.pop(run)) for run in over}
                for run in waiting[: max(ready - len(going), 0)]:
                    waiting.remove(run)
                    going[run] = self._submit(run)
                time.sleep(SECONDS)
        finally:
            for result in going.values():
                result.cancel()
        return ended

    def _submit(self, run: str) -> Future[tuple[int, bytes]]:
        """Hand a run to Dask, and fetch its result as soon as there is one. A worker that dies or hangs before it has given the
        result delays this run alone."""
        key = f"{self._name}-{run}-{self._label}"

        async def result() -> tuple[int, bytes]:
            return await self._client.submit(
                _task(self._label), run, direct.LOG, key=key, resources={self._label: 1}, pure=False
            )

        return _begin(self._client, result)

    def _end(self, run: str, result: Future[tuple[int, bytes]]) -> str:
        """Keep what a run has left, and print how it ended."""
        from distributed import KilledWorker
        from distributed.client import ClosedClientError

        folder = direct.folder(self._name, run)
        try:
            status, made = result.result()
        except KilledWorker as error:
            allowed = error.allowed_failures
            said = f"{allowed + 1} workers died while they ran it, more than Dask's allowed-failures ({allowed})"
            self._leave(run, "lost", said)
        except (CancelledError, ClosedClientError) as error:
            raise _lost(error) from None
        except Exception as error:  # on the side of the worker, such as a full disk
            self._leave(run, "failed", "".join(traceback.format_exception(error)))
        else:
            unpack(made, folder)
            direct.settle(self._name, run, status)
        state = direct.state(self._name, run)
        print(f"{run}: {state}", flush=True)
        if state != "done":
            print(last_lines(folder / direct.LOG), flush=True)
        return state

    def _leave(self, run: str, state: str, said: str) -> None:
        """Write the folder of a run of which nothing came back."""
        folder = direct.folder(self._name, run)
        shutil.rmtree(folder, ignore_errors=True)
        files.write_json(folder / direct.PARAMS, sweep.params(self._study, run))
        with files.writing(folder / direct.LOG) as stream:
            stream.write(f"{said.rstrip()}\n")
        files.write_json(folder / direct.DONE, {"state": state, "error": said})


def unpack(made: bytes, folder: Path) -> None:
    """Put the files of a tar archive in the place of a folder, all of them or none."""
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has none before 3.11.4
        tar.extractall(half)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(half, folder)


def last_lines(log: Path) -> str:
    """The last lines of a log, indented, and its path."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
    return "\n".join(f"    {line}" for line in [*lines, f"({log})"])
