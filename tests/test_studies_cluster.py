"""Studies on a Dask cluster: two workers of this machine, and runs that succeed, fail, and kill their worker."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
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
    time.sleep(60)
for file in ("metrics/codes.json", "artifacts/codes/val.npy", "artifacts/codes/facts.json"):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("{}")
(folder / "run.json").write_text('{"state": "done"}')
"""


def git(*arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two workers, of two threads each so that it is seen that they do one run at a time; a run may kill one worker."""
    with _cluster(2, tmp_path_factory.mktemp("workers")) as found:
        yield found


@contextlib.contextmanager
def _cluster(n: int, folder: Path) -> Iterator[Any]:
    import dask

    # on a busy machine a worker may take long to start anew, and `LocalCluster` would give it up after 15 s
    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "300s"}
    ):
        cluster = distributed.LocalCluster(
            n_workers=n, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", local_directory=folder,
            silence_logs=50,
        )  # fmt: skip
        try:
            yield cluster
        finally:
            with contextlib.suppress(TimeoutError):  # of Dask, for processes that it kills
                cluster.close(timeout=60)


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


def test_a_run_whose_only_worker_died_is_done_by_the_next_one(start, tmp_path_factory, capsys):
    with _cluster(1, tmp_path_factory.mktemp("worker")) as alone:
        assert start("once", address=alone.scheduler_address) == {"once": "done"}
    assert capsys.readouterr().out.count("once: started") == 2


def test_a_worker_with_other_packages_gets_no_run_and_is_named(start, workers, tmp_path, monkeypatch, capsys):
    (tmp_path / "fitting-2.0.dist-info").mkdir()
    (tmp_path / "fitting-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: fitting\nVersion: 2.0+cpu\n")
    monkeypatch.syspath_prepend(tmp_path)
    Path("versions.yaml").write_text("fitting: 2.0\nnumpy: 1\n")
    git("commit", "-qam", "a package more")
    with distributed.Client(workers) as client:
        client.wait_for_workers(2)  # one may be starting anew
        with pytest.raises(InputError, match=r"(?s)requirements.lock: (tcp.*fitting is missing \(here 2.0\)(; |$)){2}"):
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


def test_a_scheduler_that_does_not_answer_once_is_not_lost(repository, monkeypatch):
    class Busy:
        def nthreads(self) -> None:
            raise TimeoutError("after 8 s")

    work = cluster.Work(Busy(), "label", "pool", repository, None)
    assert work._workers() == 0
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    with pytest.raises(InputError, match=r"the scheduler was lost \(after 8 s\)"):
        work._workers()


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
    """A real one, of tiny size: the stages up to the tokenizer; the run loses its worker after the first."""
    repo = copies.copied(tmp_path_factory.mktemp("study"))
    (repo / "studies/tiny.yaml").write_text(
        "title: x\ntext: x\ntargets: [tokenizer]\nruns: {one: {seed: 1}}\ncolumns: {seed: seed}\n"
        "base: {tokenizer.training.epochs: 1, tokenizer.training.evaluate_every: 1, tokenizer.snapshot_epochs: [0, 1]}\n"
    )
    copies.commit(repo, "study")
    monkeypatch.chdir(repo)
    monkeypatch.setattr(cluster, "TIMEOUT", 60.0)
    killer = threading.Thread(target=_kill_a_worker_at_work, args=(Path(workers.workers[0].local_directory).parent,))
    killer.start()
    assert command.main(["tiny", "--on", workers.scheduler_address]) == 0
    killer.join()
    said = capsys.readouterr().out
    assert said.count("one: started on ") == 2
    shutil.move(".scratch/studies/tiny", "there")
    assert "| one | 1 |" in Path("docs/studies/tiny.md").read_text()
    assert "Without result" not in Path("docs/studies/tiny.md").read_text()
    assert command.main(["tiny", "--direct", "--again", "one"]) == 0
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


def _kill_a_worker_at_work(folder: Path) -> None:
    """Kill a worker as soon as a run has ended its first stage there."""
    since = time.monotonic()
    while time.monotonic() - since < 280:
        for log in folder.rglob("clone/.scratch/studies/tiny/*/log.txt"):
            if "dataset: " in log.read_text():
                os.kill(_owner(log), signal.SIGKILL)
                return
        time.sleep(0.05)


def _owner(log: Path) -> int:
    """The worker whose run writes a log."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.cwd() and Path(process.cwd()) in log.parents and "--one" in process.cmdline():
                return process.ppid()
        except psutil.Error:
            continue
    raise AssertionError(f"no process writes {log}")
