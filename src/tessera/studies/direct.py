"""A study's runs without DVC: each in a process and a folder of its own, by the stages' own `main`.

For machines where DVC is not at hand and minutes count, such as a lent GPU: the stages of a run share one process, so
torch is imported once and not two dozen times, and runs share what stages made of the same values. What a run
leaves in `.scratch/studies/STUDY/RUN/` (params.yaml, metrics/, plots/) is collected as an experiment's revision is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.runtime.inputs import declared
from tessera.studies import sweep

DONE, LOG = "run.json", "log.txt"
SKIPPED = ("extensions", "report")


def folder(study: str, run: str) -> Path:
    return Path(".scratch/studies") / study / run


def start(name: str, runs: list[str], jobs: int, overrides: list[str]) -> None:
    """Make these runs, `jobs` at a time; one that fails leaves its traceback in its folder and stops no other."""
    waiting, running = list(runs), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            command = [sys.executable, "-m", "tessera.studies", name, "--one", run, *overrides]
            folder(name, run).mkdir(parents=True, exist_ok=True)
            (folder(name, run) / DONE).unlink(missing_ok=True)  # of an earlier run, which is not this one's result
            with open(folder(name, run) / LOG, "wb") as log:
                running[run] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            print(f"{run}: started", flush=True)
        time.sleep(0.2)
        for run, process in list(running.items()):
            if process.poll() is not None:
                del running[run]
                if process.returncode and state(name, run) == "done":  # it broke down after all
                    (folder(name, run) / DONE).unlink()
                print(f"{run}: {state(name, run)}", flush=True)


def state(study: str, run: str) -> str:
    """`done`, `failed` (or killed), or `missing`."""
    where = folder(study, run)
    if not where.exists():
        return "missing"
    return files.read_json(where / DONE)["state"] if (where / DONE).exists() else "failed"


def one(name: str, run: str, overrides: dict[str, Any]) -> int:
    """Make one run in this process; 0 if it went well."""
    _, study = sweep.pool_of(name, sweep.load(name))
    raw = sweep.params(study, run)
    raw["runtime"] |= overrides
    where, root = folder(name, run).resolve(), Path.cwd()
    for old in ("artifacts", "metrics", "plots", DONE):
        shutil.rmtree(where / old) if (where / old).is_dir() else (where / old).unlink(missing_ok=True)
    where.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(root))
    begun = time.monotonic()
    _make_absolute(raw)
    with contextlib.chdir(where):
        files.write_json(Path("params.json"), raw)
        try:
            cache = Cache(raw, root)
            for stage, key in cache.plan():
                began = time.monotonic()
                cache.run(stage, key)
                print(f"{stage}{'@' + key if key else ''}: {time.monotonic() - began:.1f} s", flush=True)
        except Exception as error:
            traceback.print_exc()
            files.write_json(Path(DONE), {"state": "failed", "error": f"{type(error).__name__}: {error}"})
            return 1
        files.write_json(Path(DONE), {"state": "done", "seconds": round(time.monotonic() - begun, 1)})
    return 0


def _make_absolute(raw: dict[str, Any]) -> None:
    """The paths in params.yaml, which are relative to the repository."""
    raw["dataset"]["source"] = os.path.abspath(raw["dataset"]["source"])
    for section in (raw["extractor"].get("inception", {}), raw["losses"].get("perceptual", {})):
        if section.get("weights"):
            section["weights"] = os.path.abspath(section["weights"])


def _work(stage: str, key: str | None, raw: dict[str, Any]) -> None:
    from tessera.core.run import Run
    from tessera.runtime.devices import Runtime

    main = importlib.import_module(f"stages.{stage}").main  # tells the process how to run, before torch is loaded
    params = Params(raw)
    main(Run(params, key, Runtime(params.runtime)))


class Cache:
    """What a stage made of the same values and the same upstream, in whichever run: `.scratch/studies/cache/`.

    A stage is known by the values that dvc.yaml declares for it and by the stages that its inputs are from, so that runs
    that differ in `samples.temperature` share all that comes before. One process makes it, others wait and take it. Code is
    not part of it, unlike in DVC: after an edit, delete the folder.
    """

    def __init__(self, raw: dict[str, Any], root: Path) -> None:
        self.raw, self.root, self.known = raw, root, {}
        self.stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

    def plan(self) -> Iterator[tuple[str, str | None]]:
        """Stages in the order of dvc.yaml, which is that of the arrows, one instance per key."""
        for stage, entry in self.stages.items():
            if stage not in SKIPPED:
                yield from ((stage, key) for key in (self.raw[stage] if "foreach" in entry else [None]))

    def run(self, stage: str, key: str | None) -> None:
        kept = self.root / ".scratch/studies/cache" / stage / self._fingerprint(stage, key)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                _work(stage, key, self.raw)
                half = kept.with_suffix(".half")
                shutil.rmtree(half, ignore_errors=True)
                for path in self._outputs(stage, key):
                    (half / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(path, half / path)
                os.replace(half, kept)
        for path in self._outputs(stage, key):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).symlink_to(kept / path)

    def _entry(self, stage: str) -> dict[str, Any]:
        return self.stages[stage].get("do", self.stages[stage])

    def _outputs(self, stage: str, key: str | None) -> list[str]:
        outputs = [out for kind in ("outs", "metrics", "plots") for out in self._entry(stage).get(kind, ())]
        names = [next(iter(out)) if isinstance(out, dict) else out for out in outputs]
        return [name.replace("${key}", str(key)) for name in names]

    def _fingerprint(self, stage: str, key: str | None) -> str:
        what = declared(stage, key, self.raw, self.root / "dvc.yaml")
        values = {name: sweep.value(self.raw, name) for name in what.params}
        made = {name: hashed for name, hashed in self.known.items() if any(_within(name, dep) for dep in what.deps)}
        text = json.dumps([what.name, values, made, list(what.deps)], sort_keys=True)
        found = hashlib.sha256(text.encode()).hexdigest()[:20]
        self.known |= dict.fromkeys(self._outputs(stage, key), found)
        return found


def _within(output: str, dep: str) -> bool:
    """One of two paths holds the other."""
    return output == dep or output.startswith(f"{dep}/") or dep.startswith(f"{output}/")


def options(given: list[str]) -> dict[str, Any]:
    """`threads=1` and the like, of section runtime: how the machine is used changes no result.

    Raises:
        InputError: it is not of that form, or not of that section.
    """
    from tessera.core.params import Runtime

    found = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in Runtime.model_fields or not value:
            raise InputError(
                f"--runtime takes NAME=VALUE of section runtime ({', '.join(Runtime.model_fields)}), got {text!r}"
            )
        found[name] = value if name == "device" else float(value) if "." in value else int(value)
    return found
