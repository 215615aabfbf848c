"""Temporary copies of the repository at tiny size, and dvc commands in them: what the tests of the pipeline share."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
from committed import ROOT, project
from ruamel.yaml import YAML

TINY = {
    "dataset.image_size": 8,
    "dataset.target_size": 16,
    "dataset.source": "data/tiny.parquet",
    "scorer.name": "classifier",
    "scorer.training.epochs": 1,
    "scorer.training.batch_size": 16,
    "scorer.training.warmup_steps": 1,
    "scorer.classifier.channels": 4,
    "scorer.classifier.features": 4,
    "tokenizer.training.epochs": 4,
    "tokenizer.training.batch_size": 16,
    "tokenizer.training.evaluate_every": 2,
    "tokenizer.training.warmup_steps": 2,
    "tokenizer.snapshot_epochs": [0, 4],
    "tokenizer.vqvae.channels": 8,
    "tokenizer.vqvae.outer_channels": 4,
    "tokenizer.vqvae.block_channels": 4,
    "tokenizer.vqvae.blocks": 1,
    "tokenizer.vqvae.dropout": 0.1,
    "quantizer.codebook_size": 8,
    "quantizer.code_dim": 4,
    "prior.training.epochs": 2,
    "prior.training.batch_size": 16,
    "prior.training.warmup_steps": 1,
    "prior.pixelsnail.channels": 8,
    "prior.pixelsnail.blocks": 1,
    "prior.pixelsnail.layers": 1,
    "prior.pixelsnail.heads": 2,
    "codes.copies": 2,
    "samples.count": 24,
    "samples.batch_size": 16,
    "upsampler.enabled": False,  # their extensions are left out
    "infiller.enabled": False,
    "extensions.interpolation.pairs": 2,
    "extensions.interpolation.frames": 3,
    "extensions.interpolation.points": 32,
    "extensions.interpolation.neighbours": 2,
    "runtime.threads": 1,
    "runtime.device": "cpu",
    "runtime.checkpoint_seconds": 0.0,
}
KEPT = {  # each is a process, and all are tested elsewhere
    "diagnostics": ("usage", "robustness"),
    "evaluation": ("likelihood",),
    "extensions": ("interpolation",),
}


def environment() -> dict[str, str]:
    """As a user's shell has it with the environment active; bytecode is written, since it once marked stages as changed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "DVC", "COV")) and k != "PYTHONPATH"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "OMP_NUM_THREADS": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}  # fmt: skip


def run(*command: str, cwd: Path, ok: bool = True) -> str:
    running = forked.run if command[0] == "dvc" else subprocess.run
    done = running(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280, check=False)
    assert not ok or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert ok or done.returncode != 0, f"{' '.join(command)} should have failed\n{done.stdout[-2000:]}"
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """Stages that dvc ran, in order."""
    return re.findall(r"Running stage '([^']+)'", output)


def edit(repo: Path, values: dict[str, object], kept: dict[str, tuple[str, ...]] | None = None) -> None:
    """Set dotted names; of the plural sections in `kept`, keep the keys that it names."""
    yaml = YAML()
    yaml.preserve_quotes = True
    params = yaml.load((repo / "params.yaml").read_text())
    for section, names in (kept or {}).items():
        for name in set(params[section]) - set(names):
            del params[section][name]
    for name, value in values.items():
        *place, last = name.split(".")
        section = params
        for part in place:
            section = section[part]
        assert last in section, f"params.yaml has no {name}"
        section[last] = value
    with open(repo / "params.yaml", "w") as stream:
        yaml.dump(params, stream)


CODE = ("src", "stages", "studies", "presets", "benchmarks")  # folders whose new files belong to the project


def copied(folder: Path) -> Path:
    """The project with its committed params made tiny, and an eighteenth of the emoji, as the first commit of a new repository.
    Nothing that a user's runs have written, and none of their data, comes along."""
    copy = folder / "tessera"
    tracked = run("git", "ls-files", "-z", "--cached", cwd=ROOT)
    new = run("git", "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE, cwd=ROOT)
    left_out = ("metrics/", "plots/", "tests/", "data/noto-emoji.parquet", "dvc.lock")
    for name in filter(None, f"{tracked}\0{new}".split("\0")):
        if (ROOT / name).exists() and not name.startswith(left_out):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    shutil.copy(project() / "params.yaml", copy)
    _tiny_parquet(copy / "data" / "tiny.parquet")
    edit(copy, TINY, KEPT)
    run("git", "init", "-q", "-b", "main", cwd=copy)
    commit(copy, "start")
    return copy


def commit(repo: Path, message: str) -> None:
    run("git", "add", "-A", cwd=repo)
    run("git", "commit", "-qm", message, cwd=repo)


def _tiny_parquet(path: Path) -> None:
    """Every 18th family of the embedded set: about 200 rows of all groups."""
    import pyarrow.parquet as pq

    table = pq.read_table(ROOT / "data" / "noto-emoji.parquet")
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.take(list(range(0, table.num_rows, 18))), path)


def restore(repo: Path, *stages: str) -> None:
    """The committed run again: params, metrics, plots, and the artefacts of `stages` (all of them, if none is named)."""
    run("git", "reset", "-q", "--hard", "main", cwd=repo)
    run("git", "clean", "-fdq", "metrics", "plots", cwd=repo)
    run("dvc", "checkout", "-q", "--force", *stages, cwd=repo)


def metrics(repo: Path) -> dict[str, dict]:
    return {f.relative_to(repo).as_posix(): json.loads(f.read_text()) for f in (repo / "metrics").rglob("*.json")}


def start(repo: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=repo, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip


def wait_for_step(repo: Path, process: subprocess.Popen[str], step: int) -> None:
    """Until the tokenizer's newest checkpoint holds at least `step` steps."""
    from safetensors import SafetensorError, safe_open

    since = time.time()
    while time.time() - since < 120:
        for path in (repo / ".scratch/tokenizer").glob("*/tokenizer.safetensors"):
            if path.stat().st_mtime > process.began:
                try:
                    with safe_open(path, "pt") as stored:
                        if json.loads(stored.metadata()["values"])["step"] >= step:
                            return
                except (SafetensorError, RuntimeError, OSError):
                    continue  # replaced between its header and its data: look again
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("no checkpoint in 120 s")


def begin_and_stop(repo: Path, number: signal.Signals, *command: str) -> str:
    began = time.time()
    process = start(repo, *command)
    process.began = began
    wait_for_step(repo, process, 4)
    os.killpg(process.pid, number)
    return process.communicate(timeout=60)[0]
