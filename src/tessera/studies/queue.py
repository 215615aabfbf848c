"""A study's runs as DVC experiments: `dvc exp run --queue`, `dvc queue start`, `dvc exp show --json`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera import presets
from tessera.core.errors import InputError
from tessera.studies import sweep

SETTLED = ("success", "failed", "missing")


def experiment(study: str, run: str) -> str:
    return f"{study}-{run}"


def dvc(*arguments: str) -> str:
    """
    Raises:
        InputError: dvc failed; its own words.
    """
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"dvc {' '.join(arguments)} failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def start(name: str, study: sweep.Study, runs: list[str], jobs: int) -> None:
    """Queue these runs and wait until each has ended, well or not."""
    there = {found["name"]: found["state"] for found in experiments()}
    for run in runs:
        if there.get(experiment(name, run)) == "failed":
            dvc("queue", "remove", experiment(name, run))
        elif experiment(name, run) in there:
            dvc("exp", "remove", experiment(name, run))
        arguments = presets.arguments(sweep.changes(study, run))
        dvc("exp", "run", "--queue", "-n", experiment(name, run), *arguments, *study.targets)
        print(f"{run}: queued", flush=True)
    if runs:
        dvc("queue", "start", "-j", str(jobs))
    waiting = {experiment(name, run): run for run in runs}
    while waiting:
        time.sleep(5)
        for found in experiments():
            if found["name"] in waiting and found["state"] in SETTLED:
                print(f"{waiting.pop(found['name'])}: {found['state']}", flush=True)


def experiments() -> Iterator[dict[str, Any]]:
    """Of the current commit: name, revision, state (success, failed, queued, running), metrics by file, params."""
    for commit in json.loads(dvc("exp", "show", "--json")):
        for entry in commit["experiments"] or ():
            newest = entry["revs"][0]
            executor = entry["executor"] or {"state": "success"}  # made in the workspace
            data = newest["data"] or {}
            metrics = {file: found.get("data") for file, found in (data.get("metrics") or {}).items()}
            yield {"name": entry["name"], "revision": newest["rev"], "state": executor["state"], "metrics": metrics}


def read(revision: str, path: str) -> str | None:
    """A file that git holds at a revision; None where it does not."""
    done = subprocess.run(["git", "show", f"{revision}:{path}"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
