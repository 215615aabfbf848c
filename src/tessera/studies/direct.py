"""A study's runs without DVC: each in its own process and folder, by calling the `main` of the stages.

For machines without DVC on which minutes count, such as a GPU that is borrowed for a short time. The stages of a run share one
process, so torch is imported once instead of two dozen times, and runs share the results of stages with equal inputs. Each run
leaves params.json, metrics/ and plots/ in `.scratch/studies/STUDY/RUN/`, which are collected like the revision of an experiment.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from tessera.core import files, trees
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.runtime import inputs
from tessera.runtime.process import use_threads
from tessera.studies import plan, sweep
from tessera.studies.plan import Stage

DONE, LOG, PARAMS = "run.json", "log.txt", "params.json"


def folder(study: str, run: str) -> Path:
    return Path(".scratch/studies") / study / run


def start(name: str, runs: list[str], jobs: int, overrides: list[str]) -> None:
    """Execute these runs, `jobs` at a time. A run that fails leaves its traceback in its folder and does not stop the others."""
    waiting = list(runs)
    running: dict[str, subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            command = [sys.executable, "-m", "tessera.studies", name, "--one", run, *overrides]
            folder(name, run).mkdir(parents=True, exist_ok=True)
            for old in (DONE, PARAMS):  # from an earlier run
                (folder(name, run) / old).unlink(missing_ok=True)
            with open(folder(name, run) / LOG, "wb") as log:
                running[run] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            print(f"{run}: started", flush=True)
        time.sleep(0.2)
        for run, process in list(running.items()):
            if process.poll() is not None:
                del running[run]
                settle(name, run, process.returncode)
                print(f"{run}: {state(name, run)}", flush=True)


def settle(study: str, run: str, status: int) -> None:
    """Take the result away from a run whose process failed after it had written it."""
    if status and state(study, run) == "done":
        (folder(study, run) / DONE).unlink()


def state(study: str, run: str) -> str:
    """`done`, `failed` (or killed), `missing`, or `lost` with the workers that ran it."""
    where = folder(study, run)
    if not where.exists():
        return "missing"
    return files.read_json(where / DONE)["state"] if (where / DONE).exists() else "failed"


def params(study: str, run: str) -> dict[str, Any]:
    """params.yaml as the run had it; empty if the run ended before it was written."""
    path = folder(study, run) / PARAMS
    return files.read_json(path) if path.exists() else {}


def one(name: str, run: str, overrides: dict[str, Any], data: Mapping[str, str] | None = None) -> int:
    """Execute one run in this process; returns 0 on success, else 1. `data`: digests that data outside the repository must have, by
    path."""
    _, study = sweep.pool_of(name, sweep.load(name))
    where, root = folder(name, run).resolve(), Path.cwd()
    for old in ("artifacts", "metrics", "plots", DONE, PARAMS):
        shutil.rmtree(where / old) if (where / old).is_dir() else (where / old).unlink(missing_ok=True)
    raw = sweep.params(study, run)
    where.mkdir(parents=True, exist_ok=True)
    files.write_json(where / PARAMS, raw)
    raw["runtime"] |= overrides
    _make_absolute(raw)
    sys.path.insert(0, str(root))
    begun = time.monotonic()
    with contextlib.chdir(where):
        try:
            _require_data(data or {})
            cache = Cache(raw, root)
            for stage in plan.of(study.targets, raw, root):
                began = time.monotonic()
                cache.run(stage)
                print(f"{stage.name}: {time.monotonic() - began:.1f} s", flush=True)
        except Exception as error:
            traceback.print_exc()
            files.write_json(Path(DONE), {"state": "failed", "error": f"{type(error).__name__}: {error}"})
            return 1
        files.write_json(Path(DONE), {"state": "done", "seconds": round(time.monotonic() - begun, 1)})
    return 0


def _require_data(data: Mapping[str, str]) -> None:
    other = [path for path, digest in data.items() if inputs.content(path) != digest]
    if other:
        raise InputError(
            f"{', '.join(other)}: missing on this machine, or other than on the one that started the run. Give a path that "
            "both reach"
        )


def end_with_input() -> None:
    """Let this process, and all of its group, end when its standard input does. The worker that started a run holds the other end,
    so that no run outlives its worker and goes on beside its second try."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a fork would inherit
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _make_absolute(raw: dict[str, Any]) -> None:
    """Make the paths in `raw` absolute, which are relative to the repository."""
    for name, path in plan.paths(raw).items():
        *place, last = name.split(".")
        trees.value(raw, ".".join(place))[last] = os.path.abspath(path)


def _work(stage: str, key: str | None, raw: dict[str, Any]) -> None:
    from tessera.core.run import Run
    from tessera.runtime.devices import Runtime
    from tessera.runtime.settings import Settings

    params = Params(raw)
    settings = params.section("runtime", Settings)
    use_threads(settings.threads)
    main = importlib.import_module(f"stages.{stage}").main  # sets up the process before torch is loaded
    main(Run(params, key, Runtime(settings)))


class Cache:
    """Results of stages, shared by all runs with the same inputs: `.scratch/studies/cache/`.

    The key of a result is a hash of the values that dvc.yaml declares for the stage, the content of the files that it declares
    (code, data) or that these values name (weights), and the keys of the stages that made its other inputs. So runs that differ
    in `samples.temperature` share all earlier stages, and after an edit no older result is used. One process makes a result;
    others wait and take it.
    """

    def __init__(self, raw: dict[str, Any], root: Path) -> None:
        self.raw, self.root = raw, root
        self._made: dict[str, str] = {}  # output -> fingerprint of its stage
        self._content: dict[str, str] = {}  # file or folder -> hash of its content when it was first needed

    def run(self, stage: Stage) -> None:
        """
        Raises:
            InputError: a file that the stage depends on was edited while it ran. Nothing is kept then.
        """
        fingerprint = self._fingerprint(stage)
        kept = self.root / ".scratch/studies/cache" / stage.stage / fingerprint
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                _work(stage.stage, stage.key, self.raw)
                self._require_unchanged(stage)
                half = kept.with_suffix(".half")
                shutil.rmtree(half, ignore_errors=True)
                for path in stage.outputs:
                    (half / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(path, half / path)
                os.replace(half, kept)
        for path in stage.outputs:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).symlink_to(kept / path)
        self._made |= dict.fromkeys(stage.outputs, fingerprint)

    def _fingerprint(self, stage: Stage) -> str:
        values = {name: trees.value(self.raw, name, None) for name in stage.params}
        values |= inputs.versions(stage.versions, self.root / inputs.VERSIONS)
        made = {name: of for name, of in self._made.items() if any(plan.within(name, dep) for dep in stage.deps)}
        files = self._files(stage)
        self._content |= {name: inputs.content(path) for name, path in files.items() if name not in self._content}
        text = json.dumps([stage.name, values, made, {name: self._content[name] for name in files}], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def _files(self, stage: Stage) -> dict[str, str]:
        """Paths that the stage depends on and no stage makes, as dvc.yaml or params.yaml names them."""
        found = [dep for dep in stage.deps if not any(plan.within(name, dep) for name in self._made)]
        for name, path in plan.paths(self.raw).items():
            if any(plan.within(name.replace(".", "/"), param.replace(".", "/")) for param in stage.params):
                found.append(path)
        return {path: os.path.join(self.root, path) for path in found}

    def _require_unchanged(self, stage: Stage) -> None:
        edited = [name for name, path in self._files(stage).items() if inputs.content(path) != self._content[name]]
        if edited:
            raise InputError(
                f"{', '.join(edited)} changed while {stage.name} ran, so its result belongs to no version of it"
            )


def options(given: list[str]) -> dict[str, Any]:
    """Values of section runtime, such as `threads=1`. They say how to use the machine, and change no result.

    Raises:
        InputError: a text is not NAME=VALUE, or section runtime has no such name.
    """
    from tessera.runtime.settings import Settings

    found = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in Settings.model_fields or not value:
            raise InputError(
                f"--runtime takes NAME=VALUE of section runtime ({', '.join(Settings.model_fields)}), got {text!r}"
            )
        found[name] = value if name == "device" else float(value) if "." in value else int(value)
    return found
