"""Studies on a Dask cluster: two workers of this machine, and runs that succeed, fail, and kill their worker; messages that are
lost, workers and schedulers that hang or die. No test can hang: each is stopped after `BOUND` seconds."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import copies
import pytest
from committed import project

from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.runtime import inputs
from tessera.studies import __main__ as command
from tessera.studies import cluster, direct, sweep

distributed = pytest.importorskip("distributed", reason=f"studies on a cluster: {cluster.INSTALL}")
from tessera.studies import worker  # noqa: E402  it imports distributed

BOUND = 240.0  # seconds of a test, or of the start of a cluster; each takes a few on an idle machine
POOL = """title: Pool
text: x
targets: [tokenizer]
runs: {good: {}, another: {seed: 1}, bad: {seed: 2}, deadly: {seed: 3}, once: {seed: 4}}
"""
# What a worker starts in the place of tessera: no need to load torch to see who runs what, and where.
RUNS = """
import os, pathlib, signal, sys, time
study, run = sys.argv[1], sys.argv[3]
assert sys.argv[4:] == ["--tied", "--runtime=threads=1"], sys.argv
folder = pathlib.Path(".scratch/studies", study, run)
assert [path.name for path in folder.iterdir()] == ["log.txt"], "a folder of its own"
assert not pathlib.Path("left").exists(), "a clone of its own"
pathlib.Path("left").touch()
assert "OMP_NUM_THREADS" not in os.environ, "Dask's"
print("this is", run, flush=True)
if run == "bad":
    sys.exit("it has failed")
if run == "deadly" or run == "once" and not os.path.exists(MARK):
    open(MARK, "w").close()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1)
    sys.exit("nobody waits for it")
for file in ("metrics/codes.json", "artifacts/codes/val.npy", "artifacts/codes/facts.json"):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("{}")
(folder / "run.json").write_text('{"state": "done"}')
"""


def git(*arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What hangs fails, wherever it is."""

    def stop(*_: object) -> None:
        pytest.fail(f"not ended within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _no_test_hangs() -> Iterator[None]:
    with within(BOUND):
        yield


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two workers, of two threads each so that it is seen that they do one run at a time; a run may kill one worker."""
    stack = contextlib.ExitStack()
    with within(BOUND):
        found = stack.enter_context(_cluster(tmp_path_factory.mktemp("workers")))
    yield found
    with within(BOUND):
        stack.close()


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[Any]:
    import dask

    # on a busy machine a worker may take long to start anew, and `LocalCluster` would give it up after 15 s
    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "300s"}
    ):
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", local_directory=folder,
            silence_logs=50,
        )  # fmt: skip
        try:
            yield cluster
        finally:
            with contextlib.suppress(TimeoutError):  # of Dask, for processes that it kills
                cluster.close(timeout=60)


def _wait_for_two(workers: Any) -> None:
    """Until a worker that a run has killed is there anew."""
    with distributed.Client(workers) as client:
        client.wait_for_workers(2)


@contextlib.contextmanager
def _stopped(process: int) -> Iterator[None]:
    """A process that hangs."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextlib.contextmanager
def _scheduler(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process of a scheduler without workers, and its address."""
    said = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", said)
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *options], stderr=subprocess.DEVNULL
    )
    try:
        while not said.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield process, files.read_json(said)["address"]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def repository(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> sweep.Study:
    """A commit with our params and pipeline, the study `pool`, and the runs above."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project() / name, name)
    source = read()["dataset"]["source"]
    written = {
        "studies/pool.yaml": POOL, "src/tessera/__init__.py": "", "src/tessera/studies/__init__.py": "",
        "src/tessera/studies/__main__.py": RUNS.replace("MARK", repr(str(workspace / ".git/mark"))),
        "versions.yaml": "numpy: 1\n", "stages/dataset.py": "", "presets/some.yaml": "", source: "",
    }  # fmt: skip
    for name, text in written.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path(".gitignore").write_text(".scratch\n")
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-qm", "start")
    return sweep.load("pool")


@pytest.fixture
def start(repository: sweep.Study, workers: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    monkeypatch.setattr(cluster, "TIMEOUT", 60.0)
    monkeypatch.setattr(cluster, "SECONDS", 0.1)

    def run(*runs: str, address: str = workers.scheduler_address) -> dict[str, str]:
        return cluster.start("pool", repository, list(runs), address, ["--runtime=threads=1"])

    return run


# who runs what


def test_runs_end_here_as_done_failed_or_lost_with_their_workers(start, capsys):
    assert start("good", "bad", "deadly", "another") == {
        "good": "done",
        "another": "done",
        "bad": "failed",
        "deadly": "lost",
    }
    said = capsys.readouterr().out
    assert "bad: failed\n    this is bad\n    it has failed\n" in said
    assert "deadly: lost\n    2 workers died while they ran it" in said
    assert said.count("deadly: started on tcp://127.0.0.1") == 2
    assert (direct.folder("pool", "good") / direct.LOG).read_text() == "this is good\n"
    left = {path.relative_to(direct.folder("pool", "good")).as_posix()
            for path in direct.folder("pool", "good").rglob("*") if path.is_file()}  # fmt: skip
    assert left == {"log.txt", "run.json", "metrics/codes.json", "artifacts/codes/facts.json"}  # no array
    assert {run: direct.state("pool", run) for run in ("good", "bad", "deadly")} == {
        "good": "done", "bad": "failed", "deadly": "lost",
    }  # fmt: skip
    assert [path.name for path in direct.folder("pool", "good").parent.iterdir() if path.name.startswith(".")] == []


def test_a_run_whose_only_worker_died_is_done_by_the_next_one(start, workers, monkeypatch, capsys):
    _wait_for_two(workers)
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    with _stopped(workers.workers[0].pid):
        assert start("once") == {"once": "done"}
    assert capsys.readouterr().out.count("once: started") == 2


def test_a_worker_with_other_packages_gets_no_run_and_is_named(start, workers, tmp_path, monkeypatch, capsys):
    _wait_for_two(workers)  # before the path is set, which a worker that starts anew would inherit
    (tmp_path / "fitting-2.0.dist-info").mkdir()
    (tmp_path / "fitting-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: fitting\nVersion: 2.0+cpu\n")
    monkeypatch.syspath_prepend(tmp_path)
    Path("versions.yaml").write_text("fitting: 2.0\nnumpy: 1\n")
    git("commit", "-qam", "a package more")
    with distributed.Client(workers) as client:
        with pytest.raises(
            InputError, match=r"no worker may have a run\..*(tcp.*: fitting is missing \(here 2.0\)(; |$)){2}"
        ):
            start("good")
        (has, lacks) = client.scheduler_info()["workers"]
        client.run(lambda path: sys.path.insert(0, path), str(tmp_path), workers=[has])
        capsys.readouterr()
        assert start("good", "another") == {"good": "done", "another": "done"}
    said = capsys.readouterr().out
    assert f"{lacks} gets no run: fitting is missing (here 2.0)\n" in said
    assert f"good: started on {has}\n" in said
    assert said.index("good: done") < said.index(f"another: started on {has}\n"), "one at a time"


def test_the_class_that_goes_to_a_worker_needs_no_tessera_there():
    import cloudpickle
    from distributed.protocol.pickle import dumps

    from tessera.studies import worker

    cloudpickle.register_pickle_by_value(worker)
    try:
        there = dumps(worker.Runs("label", "pool", b"", {"numpy": "0"}, [], "{run}")), dumps(cluster._task("label"))
    finally:
        cloudpickle.unregister_pickle_by_value(worker)
    code = "import pickle, sys; sys.modules['tessera'] = None; print(*map(pickle.loads, pickle.load(sys.stdin.buffer)))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(there), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Runs object" in done.stdout
    assert b"perform" in done.stdout


# what is lost, dies or hangs


def test_runs_are_done_though_all_that_workers_say_is_lost(start, workers, monkeypatch, capsys):
    monkeypatch.setitem(workers.scheduler.handlers, "log_event", lambda **_: None)
    assert start("good", "bad") == {"good": "done", "bad": "failed"}
    assert "started on" not in capsys.readouterr().out


def test_workers_of_which_nothing_is_heard_are_named_in_time(start, workers, monkeypatch):
    _wait_for_two(workers)
    monkeypatch.setitem(workers.scheduler.handlers, "log_event", lambda **_: None)
    monkeypatch.setattr(
        worker, "environment", lambda names: dict.fromkeys(names, str(os.getpid()))
    )  # differs everywhere
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    with pytest.raises(InputError, match=r"(tcp.*: for 1 s it has not said which packages it has(; |$)){2}"):
        start("good")


def test_a_worker_that_hangs_holds_up_no_run_and_is_named_if_no_other_is_there(start, workers, monkeypatch):
    _wait_for_two(workers)
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    first, second = [nanny.pid for nanny in workers.workers.values()]
    with _stopped(first):
        assert start("good", "another") == {"good": "done", "another": "done"}
        monkeypatch.setattr(cluster, "PATIENCE", 1.0)
        with _stopped(second), pytest.raises(InputError, match=r"(tcp.*: for 1 s it has not said .*){2}"):
            start("good")


def test_a_scheduler_that_hangs_or_ends_is_lost_in_time(start, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with _scheduler(tmp_path) as (process, address):
        for number in signal.SIGSTOP, signal.SIGKILL:

            def sleep(seconds: float, number: signal.Signals = number) -> None:
                process.send_signal(number)
                monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
                time.sleep(seconds)

            monkeypatch.setattr(cluster, "TIMEOUT", 60.0)
            monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
            with pytest.raises(InputError, match="the scheduler was lost"):
                start("good", address=address)
            assert "waiting for a worker" in capsys.readouterr().out
            process.send_signal(signal.SIGCONT)


def test_what_goes_wrong_in_the_start_of_a_worker_is_said(start, monkeypatch):
    monkeypatch.setattr(worker, "differences", lambda *_: 1 / 0)
    with pytest.raises(InputError, match=r"tcp.*: ZeroDivisionError: division by zero(; |$)"):
        start("good")


def test_a_worker_that_dies_while_it_starts_is_named(start, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "DEATHS", 2)
    monkeypatch.setattr(worker, "differences", lambda *_: os._exit(1))
    with pytest.raises(InputError, match=r"\d workers died while they started, and none is ready"):
        start("good")
    assert re.search(r"^tcp://127\.0\.0\.1:\d+ died while it started$", capsys.readouterr().out, re.MULTILINE)


class Scripted:
    """A client whose scheduler says, one after the other, which workers there are (True: with the resource `label`) and what they
    said, or does not answer."""

    status = "running"

    def __init__(self, *answers: Any) -> None:
        self.answers, self.events = deque(answers), []

    def sync(self, question: Any, callback_timeout: float) -> Any:
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        there, said, *scheduler = answer
        self.events += [(0.0, event) for event in said]
        states = {name: {"resources": {"label": 1.0} if has else {}} for name, has in there.items()}
        return {"id": scheduler[0] if scheduler else "S", "workers": states}, self.events


def said(worker: str, *states: str) -> list[dict[str, str]]:
    return [{"worker": worker, "state": state, "why": "other" if state == "unfit" else ""} for state in states]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], int]]:
    """`watched(*answers)()`: `Workers.ready` at the next of these answers, each ten seconds after the one before."""
    now = [1000.0]
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(cluster, "PATIENCE", 25.0)

    def ask(*answers: Any) -> Callable[[], int]:
        workers = cluster.Workers(Scripted(*answers), "label")

        def ready() -> int:
            now[0] += 10
            return workers.ready()

        return ready

    return ask


def test_a_scheduler_that_does_not_answer_once_is_not_lost(watched):
    silent = TimeoutError()
    ready = watched(silent, silent, ({"a": True}, []), silent, silent, silent)
    assert [ready() for _ in range(5)] == [0, 0, 1, 0, 0]
    with pytest.raises(InputError, match=r"the scheduler was lost \(no answer for 25 s\)"):
        ready()


def test_a_scheduler_that_cannot_be_reached_again_is_lost_at_once(watched, monkeypatch):
    monkeypatch.setattr(Scripted, "status", "closed")
    with pytest.raises(InputError, match=r"the scheduler was lost \(ConnectionError\)"):
        watched(ConnectionError())()


def test_a_scheduler_in_the_place_of_another_knows_nothing_of_the_runs(watched):
    ready = watched(({"a": True}, []), ({"a": False}, [], "T"))
    assert ready() == 1
    with pytest.raises(InputError, match=r"the scheduler was lost \(another has taken its place\)"):
        ready()


def test_a_worker_that_fits_may_start_anew_while_no_other_fits(watched):
    ready = watched(({"a": True, "b": False}, said("b", "starting", "unfit")), *[({"b": False}, [])] * 3)
    assert [ready() for _ in range(3)] == [1, 0, 0]
    with pytest.raises(InputError, match=r"no worker may have a run\..* b: other"):
        ready()


def test_a_worker_that_answers_late_has_runs(watched, capsys):
    ready = watched(*[({"a": False, "b": True}, [])] * 4, ({"a": True, "b": True}, said("a", "starting", "ready")))
    assert [ready() for _ in range(5)] == [1, 1, 1, 1, 2]
    assert capsys.readouterr().out == "a gets no run: for 25 s it has not said which packages it has\n"


def test_a_worker_may_come_back_to_its_address_with_other_packages(watched, capsys):
    ready = watched(
        ({"a": False, "b": True}, said("a", "starting", "unfit")), ({"b": True}, []),
        ({"a": True, "b": True}, said("a", "starting", "ready")), ({"b": True}, []),
    )  # fmt: skip
    assert [ready() for _ in range(4)] == [1, 1, 2, 1]
    assert capsys.readouterr().out == "a gets no run: other\n"


def test_workers_that_die_one_after_the_other_while_they_start_end_the_wait(watched, capsys):
    a, b, c, d = [({name: False}, said(name, "starting")) for name in "abcd"]
    ready = watched(a, ({}, []), ({"x": True}, said("x", "starting", "ready")), b, c, d, ({}, []))
    assert [ready() for _ in range(6)] == [0, 0, 1, 0, 0, 0]
    with pytest.raises(InputError, match="3 workers died while they started"):
        ready()
    died = [f"{name} died while it started" for name in "abcd"]
    assert capsys.readouterr().out.splitlines() == [died[0], "waiting for a worker", *died[1:]]


# what is refused before any run


def test_a_scheduler_that_does_not_answer_is_an_error_in_seconds(start, monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    for address in ("tcp://127.0.0.1:1", "tcp//wrong"):
        with pytest.raises(InputError, match=f"--on {address}: no Dask scheduler answers there"):
            start("good", address=address)


def test_a_missing_package_is_named_with_the_line_that_installs_it(start, monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"distributed, which is not installed: pip install .*\[cluster\]"):
        start("good")


@pytest.mark.parametrize("name", ["params.yaml", "stages/new.py", "studies/pool.yaml", "src/tessera/__init__.py"])
def test_what_is_not_committed_is_refused(repository, name):
    raw = {"good": sweep.params(repository, "good")}
    assert len(cluster.committed(raw).commit) == 40
    with open(name, "a") as stream:
        stream.write("\n")
    with pytest.raises(InputError, match=rf"these differ from it: {name}\. Commit them"):
        cluster.committed(raw)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("photos", r"dataset\.source: photos is not in the last commit"),
        ("../photos", r"dataset\.source: \.\./photos is not in the last commit"),
        ("/nowhere/photos", r"dataset\.source: there is no /nowhere/photos"),
    ],
)
def test_data_that_another_machine_would_not_find_is_refused(repository, source, said):
    Path("photos").mkdir()
    raw = sweep.params(repository, "good")
    raw["dataset"]["source"] = source
    with pytest.raises(InputError, match=said):
        cluster.committed({"good": raw})


def test_data_outside_the_repository_must_be_the_same_there(repository, tmp_path_factory, monkeypatch):
    data = tmp_path_factory.mktemp("data") / "set=1.npy"
    data.write_text("one")
    raw = sweep.params(repository, "good")
    raw["dataset"]["source"] = str(data)
    code = cluster.committed({"good": raw})
    assert code.data == {str(data): inputs.content(str(data))}
    given: list[Any] = []
    monkeypatch.setattr(direct, "one", lambda *of: given.append(of[-1]) or 0)
    assert command.main(["pool", "--one", "good", f"--data={data}={code.data[str(data)]}"]) == 0
    assert given == [code.data]
    direct._require_data(code.data)
    data.write_text("other")
    with pytest.raises(InputError, match=r"set=1\.npy: missing on this machine, or other than"):
        direct._require_data(code.data)


def test_jobs_are_no_option_of_a_cluster(capsys):
    with pytest.raises(SystemExit):
        command.options_of(["pool", "--on", "tcp://host:8786", "-j", "2"])
    assert "each worker does one run at a time" in capsys.readouterr().err


# the processes


def test_a_run_and_what_it_started_end_with_the_process_that_holds_its_input(tmp_path):
    code = (
        "import os, time; from tessera.studies import direct; direct.end_with_input()\n"
        "child = os.fork(); os.write(1, f'{os.getpid()}\\n'.encode()); time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    ids = [int(run.stdout.readline()) for _ in range(2)]
    assert run.poll() is None
    run.stdin.close()
    assert run.wait(10) == -signal.SIGKILL
    assert run.stdout.read() == "", "the other end is closed, so the child has ended"
    assert len(set(ids)) == 2


@pytest.mark.pipeline
def test_a_study_has_the_results_of_a_direct_one_although_a_worker_was_killed(
    workers, tmp_path_factory, monkeypatch, capsys
):
    """A real one, of tiny size: the stages up to the tokenizer; the run loses its first worker."""
    repo = copies.copied(tmp_path_factory.mktemp("study"))
    (repo / "studies/tiny.yaml").write_text(
        "title: x\ntext: x\ntargets: [tokenizer]\nruns: {one: {seed: 1}}\ncolumns: {seed: seed}\n"
        "base: {tokenizer.training.epochs: 1, tokenizer.training.evaluate_every: 1, tokenizer.snapshot_epochs: [0, 1]}\n"
    )
    copies.commit(repo, "study")
    monkeypatch.chdir(repo)
    monkeypatch.setattr(cluster, "TIMEOUT", 60.0)
    monkeypatch.setattr(cluster, "SECONDS", 0.1)
    killer = threading.Thread(target=_kill_a_worker_at_work, args=(workers,))
    killer.start()
    assert command.main(["tiny", "--on", workers.scheduler_address]) == 0
    killer.join()
    assert capsys.readouterr().out.count("one: started on ") == 2
    shutil.move(".scratch/studies/tiny", "there")
    assert "| one | 1 |" in Path("docs/studies/tiny.md").read_text()
    assert "Without result" not in Path("docs/studies/tiny.md").read_text()
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert command.main(["tiny", "--one", "one"]) == 0  # what --direct starts
    here, there = direct.folder("tiny", "one"), Path("there/one")
    of_itself = (direct.DONE, direct.LOG)
    found = {name: content for name, content in _content(there).items() if name not in of_itself}
    assert {"artifacts/tokenizer/model.safetensors", "metrics/tokenizer.json", "plots/tokenizer.csv"} <= found.keys()
    assert {name: content for name, content in _content(here).items() if name not in of_itself} == found
    assert files.read_json(there / direct.DONE)["state"] == "done"


def _content(folder: Path) -> dict[str, bytes]:
    """The files of a folder but arrays, and of cards not where the data were; stages' outputs are links there."""
    found = [Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names]
    return {
        path.relative_to(folder).as_posix(): re.sub(rb"(?m)^  source: .*$", b"", path.read_bytes())
        if path.name == "README.md" else path.read_bytes()
        for path in found if path.suffix != ".npy"
    }  # fmt: skip


def _kill_a_worker_at_work(workers: Any) -> None:
    """Kill a worker as soon as it has started the process of a run."""
    import psutil

    since = time.monotonic()
    while time.monotonic() - since < BOUND:
        for pid in filter(None, [nanny.pid for nanny in workers.workers.values()]):
            with contextlib.suppress(psutil.Error):
                if any("--one" in child.cmdline() for child in psutil.Process(pid).children()):
                    os.kill(pid, signal.SIGKILL)
                    return
        time.sleep(0.02)
