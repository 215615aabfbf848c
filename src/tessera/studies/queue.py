"""A study's runs as DVC experiments: `dvc exp run --queue`, `dvc queue start`, `dvc queue status`, `dvc exp show --json`.

The queue tells which runs still go on, and the commit at which a run was queued has its experiment. So the wait ends and each
run gets its state, even if workers die, tasks are removed or HEAD moves. See docs/notes/dvc.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tessera import presets
from tessera.core.errors import InputError
from tessera.studies import plan, sweep

SECONDS, LOOKS = 5, 3  # between polls of the queue; polls without a worker after which none is expected
GOING = ("Queued", "Running")
WORKERS = Path(".dvc/tmp/exps/celery")
ENDS = {  # final state of a run -> what happened, or what to do about it
    "done": "",
    "failed": "dvc queue logs {task}",
    "removed": "its task was removed from the queue",
    "lost": "the worker that ran it died, or was stopped",
    "stranded": f"no worker is left to take it: {WORKERS}/*.out say why; dvc queue start",
    "unrecorded": "it ended as Success, but DVC recorded no experiment: another task of the same name recorded one, or the commit "
    "at which it was queued is gone",
}


class Task(NamedTuple):
    id: str
    experiment: str
    state: str  # Queued, Running, Failed, Success


def experiment(study: str, run: str) -> str:
    return f"{study}-{run}"


def dvc(*arguments: str) -> str:
    """Output of a DVC command.

    Raises:
        InputError: DVC failed. The message quotes its error.
    """
    return _output(str(Path(sys.executable).parent / "dvc"), *arguments)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise InputError(f"{Path(command[0]).name} {' '.join(command[1:])} failed:\n{said}")
    return done.stdout


def head() -> str:
    return _output("git", "rev-parse", "HEAD").strip()


def start(name: str, study: sweep.Study, runs: list[str], jobs: int) -> tuple[dict[str, str], list[str]]:
    """Queue these runs and wait until each has ended, successfully or not.

    Returns:
        The final state of each run (a key of `ENDS`), and the commits that hold the experiments (one, unless HEAD moved).

    Raises:
        InputError: DVC cannot record experiments here, or a queued run would not find its files. Nothing is queued then.
    """
    if not runs:
        return {}, [head()]
    require_history()
    require_tracked({run: sweep.params(study, run) for run in runs})
    commits: dict[str, None] = {}
    for run in runs:
        commits[head()] = None
        if _make_way(experiment(name, run)):
            arguments = presets.arguments(sweep.changes(study, run))
            dvc("exp", "run", "--queue", "-n", experiment(name, run), *arguments, *study.targets)
            commits[head()] = None
            print(f"{run}: queued", flush=True)
        else:
            print(f"{run}: runs already", flush=True)
    dvc("queue", "start", "-j", str(jobs))
    return _wait({experiment(name, run): run for run in runs}, list(commits)), list(commits)


def _make_way(experiment: str) -> bool:
    """Remove tasks and experiments of this name from an earlier start: DVC records only one of a name. False: it is running now."""
    tasks, workers = status()
    for task in [task for task in tasks if task.experiment == experiment]:
        if task.state == "Running" and workers:
            return False
        if task.state == "Running":
            _bury(task)
        dvc("queue", "remove", task.id)
    if experiment in recorded(head()):  # otherwise dvc would remove the experiment of another commit
        dvc("exp", "remove", experiment)
    return True


def _wait(waiting: dict[str, str], commits: list[str]) -> dict[str, str]:
    """The final state of each run in `waiting` (experiment -> run), printed as soon as it is known."""
    ended: dict[str, str] = {}
    looks = 0
    while len(ended) < len(waiting):
        time.sleep(SECONDS)
        tasks, workers = status()
        looks = 0 if workers else looks + 1
        left = looks >= LOOKS  # no worker serves the queue any more
        for experiment, run in waiting.items():
            own = [task for task in tasks if task.experiment == experiment]
            if run not in ended and (left or not any(task.state in GOING for task in own)):
                ended[run] = _end(experiment, own, commits)
                said = ENDS[ended[run]].format(task=own[0].id if own else "")
                print(f"{run}: {ended[run]}{said and f' ({said})'}", flush=True)
    return ended


def _end(experiment: str, tasks: list[Task], commits: list[str]) -> str:
    """Final state of an experiment whose tasks have ended or have no worker any more."""
    states = {task.state for task in tasks}
    for task in tasks:
        if task.state == "Running":
            _bury(task)
    if any(experiment in recorded(commit) for commit in commits):
        return "done"
    for state, end in {"Running": "lost", "Queued": "stranded", "Failed": "failed", "Success": "unrecorded"}.items():
        if state in states:
            return end
    return "removed"


def _bury(task: Task) -> None:
    """Tell DVC that the worker of a running task is dead. If its process still lives, it is stopped and its result is not
    recorded. Until then the task counts as running, which can make `dvc exp show` fail."""
    for _ in range(10):
        if Task(*task) not in status()[0]:
            return
        try:
            dvc("queue", "kill", task.id)
        except InputError:  # the task has ended in the meantime
            return
        time.sleep(SECONDS / 10)


def status() -> tuple[list[Task], bool]:
    """The tasks of the queue, and whether any worker lives."""
    said = dvc("queue", "status")
    rows = [line.split() for line in said.splitlines()]
    tasks = [Task(row[0], row[1], row[-1]) for row in rows if len(row) > 2 and re.fullmatch("[0-9a-f]{7}", row[0])]
    answering = re.search(r"Worker status: (\d+) active, (\d+) idle", said)
    return tasks, bool(answering and int(answering[1]) + int(answering[2])) or any(map(_lives, _workers()))


def _workers() -> Iterator[int]:
    """Process ids of workers that have not recorded an exit. A busy worker may not answer within DVC's timeout of one second."""
    for path in WORKERS.glob("dvc-exp-worker-*.json"):
        process = json.loads(path.read_text())
        if process["returncode"] is None:
            yield process["pid"]


def _lives(process: int) -> bool:
    try:
        return "queue-worker" in psutil.Process(process).cmdline()
    except psutil.Error:
        return False


def recorded(commit: str) -> list[str]:
    """Names of the experiments that DVC has recorded for a commit; queued and failed ones are not among them."""
    return dvc("exp", "list", "--name-only", "--rev", commit).split()


def experiments(commits: Iterable[str] = ("HEAD",)) -> Iterator[dict[str, Any]]:
    """The experiments of these commits: name, revision, state (success, failed, queued, running), metrics by file, params.yaml.

    Raises:
        InputError: DVC failed. It does so while a task whose worker died early counts as running.
    """
    revisions = [part for commit in commits for part in ("--rev", commit)]
    try:
        shown = json.loads(dvc("exp", "show", "--json", *revisions))
    except InputError as error:
        remedy = "if `dvc queue status` names a task as running and no worker, end it by dvc queue kill TASK"
        raise InputError(f"{error}\n{remedy}") from None
    for commit in shown:
        for entry in commit["experiments"] or ():
            newest = entry["revs"][0]
            executor = entry["executor"] or {"state": "success"}  # None: it was run in the workspace
            data = newest["data"] or {}
            metrics = {file: found.get("data") for file, found in (data.get("metrics") or {}).items()}
            params = (data.get("params") or {}).get("params.yaml", {}).get("data") or {}
            yield {"name": entry["name"], "revision": newest["rev"], "state": executor["state"], "metrics": metrics,
                   "params": params}  # fmt: skip


def read(revision: str, path: str) -> str | None:
    """The content of a file at a git revision; None if git does not have it."""
    done = subprocess.run(["git", "show", f"{revision}:{path}"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


# checks before anything is queued


def require_history() -> None:
    """
    Raises:
        InputError: the clone is shallow.
    """
    if _output("git", "rev-parse", "--is-shallow-repository").strip() == "true":
        raise InputError(
            "this is a shallow clone (git clone --depth), in which DVC runs queued experiments and records none of them. "
            "Get its history by git fetch --unshallow; or run the study without DVC by --direct"
        )


def require_tracked(params: dict[str, dict[str, Any]]) -> None:
    """Check the paths in params.yaml. A queued run works in a folder of its own, which holds only files that git or DVC tracks.

    Args:
        params: params.yaml of each run.

    Raises:
        InputError: paths do not exist, or would not exist in that folder. The message lists all.
    """
    found = []
    for name, path in dict.fromkeys(place for raw in params.values() for place in plan.paths(raw).items()):
        runs = [run for run, raw in params.items() if plan.paths(raw).get(name) == path]
        made = [output for stage in plan.instances(params[runs[0]]) for output in stage.outputs]
        if not any(path == output or path.startswith(f"{output}/") for output in made) and (
            problem := _untracked(path)
        ):
            found.append(f"  {name}: {problem} (run {', '.join(runs)})")
    if found:
        raise InputError("a queued run would not find its files:\n" + "\n".join(found))


def _untracked(path: str) -> str:
    """Why a queued run would not find a path; an empty text if it would."""
    where = Path(path)
    if not where.exists():
        return f"there is no {path}"
    if where.is_absolute():
        return ""
    if not Path(os.path.abspath(path)).is_relative_to(Path.cwd()):
        return f"{path} lies outside the repository, where a queued run does not find it; give its absolute path"
    added = [f"{place}.dvc" for place in (where, *where.parents) if place != Path()]
    if _output("git", "ls-files", "--", *added):
        return ""
    files = _output("git", "ls-files", "-z", "--others", "--", path).split("\0")
    unknown = [file for file in files if file and not Path(file).name.startswith(".")]
    if not unknown:
        return ""
    few = f"{len(unknown)} files of it, {unknown[0]} for one, are" if where.is_dir() else "it is"
    return (
        f"{path}: {few} neither in git nor in DVC, and a queued run sees nothing else; dvc add {path} (large), "
        f"git add {path} (small), or give its absolute path"
    )
