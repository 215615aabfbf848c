"""A study's runs on a Dask cluster: each in a clone of the committed code on the machine of a worker, by `direct`.

Dask decides which worker does which run, and gives the run of a worker that died to another. Code goes there and results come back
as bytes of files, in tar archives; they are then where `direct` would have written them. What may run is checked first: the code is
that of HEAD, the data are those of this machine, and a worker with other versions of packages gets no run. See `worker`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from tessera.core import files
from tessera.core.errors import InputError, listed
from tessera.core.params import read
from tessera.runtime import inputs
from tessera.studies import direct, plan, queue, sweep

if TYPE_CHECKING:
    from distributed import Client, Future

CODE = ("src", "stages", "studies", "presets", "params.yaml", "dvc.yaml", "versions.yaml")
TIMEOUT, PATIENCE = 8.0, 120.0  # seconds to reach a scheduler; seconds in which one that was reached may not answer
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
            is lost; no worker has this machine's versions of packages. Runs that have ended by then are kept.
    """
    if not runs:
        return {}
    require_dask()
    code = committed({run: sweep.params(study, run) for run in runs})
    with _connected(address) as client:
        _require_python(client)
        label = f"tessera-{uuid.uuid4().hex[:12]}"
        with _working(client, label, name, code, overrides) as news:
            print(f"{address}: code of commit {code.commit[:12]}", flush=True)
            return Work(client, label, name, study, news).follow(runs)


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


def _connected(address: str) -> Client:
    from distributed import Client

    try:
        return Client(address, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--on {address}: no Dask scheduler answers there ({error}). Start one by `dask scheduler`, which prints its address"
        ) from None


@contextlib.contextmanager
def _not_lost() -> Iterator[None]:
    try:
        yield
    except (OSError, CancelledError) as error:
        raise InputError(
            f"the scheduler was lost ({error or type(error).__name__}). Results that had come are kept; the same command starts "
            "the other runs again"
        ) from None


def _require_python(client: Client) -> None:
    """Check what Dask itself needs: functions travel as byte code, which other versions of Python cannot read."""
    with _not_lost():
        versions: Any = client.get_versions()
    own = _python(versions["client"])
    other = [f"{address} has {_python(of)}" for address, of in versions["workers"].items() if _python(of) != own]
    if other:
        raise InputError(f"Dask needs one version of Python everywhere, here {own}: {', '.join(other)}")


def _python(versions: Any) -> str:
    return ".".join(versions["host"]["python"].split(".")[:2])


# while the runs go on


@contextlib.contextmanager
def _working(
    client: Client, label: str, name: str, code: Code, overrides: list[str]
) -> Iterator[SimpleQueue[dict[str, str]]]:
    """Let the workers execute runs of a study; the events that they log. At the end they stop and forget all."""
    import cloudpickle

    from tessera.studies import worker

    cloudpickle.register_pickle_by_value(worker)
    news: SimpleQueue[dict[str, str]] = SimpleQueue()
    client.subscribe_topic(label, lambda event: news.put(event[1]))
    options = [*overrides, *(f"--data={path}={digest}" for path, digest in code.data.items())]
    versions = worker.environment(read(inputs.VERSIONS))
    plugin = worker.Runs(label, name, code.archive, versions, options, direct.folder(name, "{run}").as_posix())
    try:
        with _not_lost():
            client.register_plugin(plugin, name=label)
        yield news
    finally:
        with contextlib.suppress(OSError):  # the scheduler is gone
            client.unregister_worker_plugin(label)


def _task(label: str) -> Callable[[str, str], tuple[int, bytes]]:
    def perform(run: str, log: str) -> tuple[int, bytes]:  # a function in a function travels by value
        from distributed import get_worker

        runs: Any = get_worker().plugins[label]
        return runs.perform(run, log)

    return perform


class Work:
    """The runs of one start: those that wait, those that Dask has, and the state of each that has ended.

    Dask has no more runs at a time than there are workers for them. It blames the death of a worker on all tasks that the worker
    was given, begun or not (distributed#5234), so of a long list one run that kills its workers would take all others along.
    """

    def __init__(
        self, client: Client, label: str, name: str, study: sweep.Study, news: SimpleQueue[dict[str, str]]
    ) -> None:
        self._client, self._label, self._name, self._study, self._news = client, label, name, study, news
        self._fitting: set[str] = set()  # addresses of workers
        self._differing: dict[str, str] = {}  # address -> how its packages differ
        self._waits = False  # whether it has been said that there is no worker
        self._answered = time.monotonic()  # when the scheduler last did

    def follow(self, runs: Iterable[str]) -> dict[str, str]:
        """The final state of each run, printed as soon as it is known.

        Raises:
            InputError: there are workers, and none has this machine's versions of packages.
        """
        waiting, ended = list(runs), {}
        going: dict[str, Future[tuple[int, bytes]]] = {}
        while waiting or going:
            self._listen()
            free = self._workers() - len(going)
            for run in waiting[: max(free, 0)]:
                waiting.remove(run)
                going[run] = self._submit(run)
            time.sleep(SECONDS)
            over = [run for run, future in going.items() if future.done()]
            self._listen()  # what was logged before they ended is said before it
            for run in over:
                ended[run] = self._end(run, going.pop(run))
        return ended

    def _submit(self, run: str) -> Future[tuple[int, bytes]]:
        key = f"{self._name}-{run}-{self._label}"
        return self._client.submit(_task(self._label), run, direct.LOG, key=key, resources={self._label: 1}, pure=False)

    def _listen(self) -> None:
        """Read the events of the workers, and print what they say."""
        with contextlib.suppress(Empty):
            while True:
                event = self._news.get_nowait()
                worker = event["worker"]
                if "run" in event:
                    print(f"{event['run']}: started on {worker}", flush=True)
                elif event["differs"]:
                    self._differing[worker] = event["differs"]
                    print(f"{worker} gets no run: {event['differs']}", flush=True)
                else:
                    self._fitting.add(worker)
                    self._differing.pop(worker, None)

    def _workers(self) -> int:
        """Number of workers that may have a run."""
        try:
            there = set(self._client.nthreads())
        except OSError:  # a busy scheduler may not answer in time; the futures of one that has ended are cancelled
            if time.monotonic() - self._answered < PATIENCE:
                return 0
            with _not_lost():
                raise
        self._answered = time.monotonic()
        if there and there <= self._differing.keys():
            raise InputError(
                f"no worker has the packages of this machine, and results depend on them. Bring both to requirements.lock: "
                f"{'; '.join(f'{worker}: {self._differing[worker]}' for worker in sorted(there))}"
            )
        if not there and not self._waits:
            print("waiting for a worker", flush=True)
        self._waits = not there
        return len(there & self._fitting)

    def _end(self, run: str, future: Future[tuple[int, bytes]]) -> str:
        """Keep what a run has left, and print how it ended."""
        from distributed import KilledWorker

        folder = direct.folder(self._name, run)
        try:
            status, made = future.result()
        except KilledWorker as error:
            allowed = error.allowed_failures
            said = f"{allowed + 1} workers died while they ran it, more than Dask's allowed-failures ({allowed})"
            self._leave(run, "lost", said)
        except CancelledError:
            with _not_lost():
                raise
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
        tar.extractall(half, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(half, folder)


def last_lines(log: Path) -> str:
    """The last lines of a log, indented, and its path."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
    return "\n".join(f"    {line}" for line in [*lines, f"({log})"])
