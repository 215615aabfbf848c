"""The pipeline itself: dvc on a temporary copy of the repository, at tiny size, on the CPU.

The tests share one copy and run in order: each leaves it as it found it, or on a branch of its own.
"""

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

import pytest
from ruamel.yaml import YAML

from tessera.core.models import load_weights

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.pipeline

TINY = {
    "dataset.image_size": 8,
    "dataset.target_size": 16,
    "dataset.source": "data/tiny.parquet",
    "extractor.training.epochs": 1,
    "extractor.training.batch_size": 16,
    "extractor.training.warmup_steps": 1,
    "extractor.classifier.channels": 4,
    "extractor.classifier.features": 4,
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
    "prior.pixelcnn.channels": 8,
    "prior.pixelcnn.layers": 2,
    "samples.count": 24,
    "samples.batch_size": 16,
    "evaluation.frechet.count": 16,
    "evaluation.frechet.kid_subsets": 3,
    "evaluation.frechet.kid_subset_size": 8,
    "evaluation.coverage.count": 16,
    "evaluation.memorisation.pairs": 4,
    "extensions.interpolation.pairs": 2,
    "extensions.interpolation.frames": 3,
    "runtime.threads": 1,
    "runtime.device": "cpu",
    "runtime.checkpoint_seconds": 0.0,
}


def environment() -> dict[str, str]:
    """As a user's shell has it with the environment active; bytecode is written, since it once marked stages as changed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "DVC", "COV")) and k != "PYTHONPATH"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "OMP_NUM_THREADS": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}  # fmt: skip


def run(*command: str, cwd: Path, ok: bool = True) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280, check=False)
    assert not ok or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert ok or done.returncode != 0, f"{' '.join(command)} should have failed\n{done.stdout[-2000:]}"
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """Stages that dvc ran, in order."""
    return re.findall(r"Running stage '([^']+)'", output)


def edit(repo: Path, values: dict[str, object]) -> None:
    yaml = YAML()
    yaml.preserve_quotes = True
    params = yaml.load((repo / "params.yaml").read_text())
    for name, value in values.items():
        *place, last = name.split(".")
        section = params
        for part in place:
            section = section[part]
        assert last in section, f"params.yaml has no {name}"
        section[last] = value
    with open(repo / "params.yaml", "w") as stream:
        yaml.dump(params, stream)


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A copy of what git would commit, with a tenth of the emoji, run once."""
    copy = tmp_path_factory.mktemp("copy") / "tessera"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("metrics/", "plots/", "tests/", "data/noto-emoji.parquet")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / "dvc.lock").unlink(missing_ok=True)
    _tiny_parquet(copy / "data" / "tiny.parquet")
    edit(copy, TINY)
    run("git", "init", "-q", "-b", "main", cwd=copy)
    run("git", "add", "-A", cwd=copy)
    run("git", "commit", "-qm", "start", cwd=copy)
    run("dvc", "repro", cwd=copy)
    run("git", "add", "-A", cwd=copy)
    run("git", "commit", "-qm", "run", cwd=copy)
    return copy


def _tiny_parquet(path: Path) -> None:
    """Every 18th family of the embedded set: about 200 rows of all groups."""
    import pyarrow.parquet as pq

    table = pq.read_table(ROOT / "data" / "noto-emoji.parquet")
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table.take(list(range(0, table.num_rows, 18))), path)


def restore(repo: Path) -> None:
    """The committed run again: params, metrics, plots and artefacts."""
    run("git", "reset", "-q", "--hard", "main", cwd=repo)
    run("git", "clean", "-fdq", "metrics", "plots", cwd=repo)
    run("dvc", "checkout", "-q", "--force", cwd=repo)


def metrics(repo: Path) -> dict[str, dict]:
    return {f.relative_to(repo).as_posix(): json.loads(f.read_text()) for f in (repo / "metrics").rglob("*.json")}


def test_every_stage_writes_finite_metrics(repo):
    def numbers(value):
        return [n for inner in value.values() for n in numbers(inner)] if isinstance(value, dict) else [value]

    found = metrics(repo)
    assert {"metrics/dataset.json", "metrics/tokenizer.json", "metrics/evaluation/frechet.json"} <= set(found)
    assert all(isinstance(n, int | float) and abs(n) < float("inf") for n in numbers(found))


def test_a_second_run_does_nothing(repo):
    before = (repo / "dvc.lock").read_bytes()
    assert not ran(run("dvc", "repro", cwd=repo))
    assert (repo / "dvc.lock").read_bytes() == before


def test_a_forced_run_gives_the_same_bytes(repo):
    """Training included: a finished scratch checkpoint is not used again in the workspace that made it."""
    before = (repo / "dvc.lock").read_bytes()
    output = run("dvc", "repro", "-f", cwd=repo)
    assert {"dataset", "extractor", "tokenizer", "prior", "samples"} <= set(ran(output))
    assert "resuming" not in output
    assert (repo / "dvc.lock").read_bytes() == before
    assert not run("git", "status", "--porcelain", cwd=repo).strip()


def test_models_load_from_python_with_their_cards(repo):
    code = (
        "import tessera, torch; t = tessera.load('artifacts/tokenizer'); p = tessera.load('artifacts/prior');"
        "c = p.sample(2, torch.Generator().manual_seed(0)); print(tuple(t.decode(c).shape), t.grids == p.grids)"
    )
    assert "(2, 3, 8, 8) True" in run(sys.executable, "-c", code, cwd=repo)
    card = (repo / "artifacts/tokenizer/README.md").read_text()
    assert "codebook_size: 8" in card
    assert "val.perplexity" in card


# What runs again when a value changes, by the longest matching prefix; downstream stages follow from the arrows.
ALL_SEEDED = {"dataset", "extractor", "tokenizer", "prior", "samples", "evaluation", "extensions"}
TABLE = {
    "seed": ALL_SEEDED,
    "dataset": {"dataset"},
    "dataset.huggingface": set(),
    "dataset.folder": set(),
    "extractor": {"extractor"},
    "extractor.inception": set(),
    "tokenizer": {"tokenizer"},
    "quantizer": {"tokenizer"},
    "losses": {"tokenizer"},
    "codes": {"codes"},
    "reconstruction": {"reconstruction"},
    "diagnostics": {"diagnostics"},
    "prior": {"prior"},
    "prior.histogram": {"samples"},
    "samples": {"samples"},
    "features": {"features"},
    "evaluation": {"evaluation"},
    "extensions": {"extensions"},
    "runtime": set(),
}


def leaves(tree: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, value[-1]]
    return f"{value}x" if isinstance(value, str) else value + 1


def test_each_leaf_of_params_runs_exactly_its_stages(repo):
    """Every leaf changed in turn, judged by dvc's own status. A `name` changes deps too; it has a test of its own."""
    from dvc.repo import Repo

    kept = (repo / "params.yaml").read_text()
    values = leaves(YAML(typ="safe").load(kept))
    skipped = {"dataset.source", "samples.baseline", *(name for name in values if name.endswith(".name"))}
    wrong = {}
    try:
        for name in values.keys() - skipped:
            edit(repo, {name: other(values[name])})
            with Repo(str(repo)) as dvc:
                changed = {
                    stage.partition("@")[0].partition(":")[2] or stage.partition("@")[0] for stage in dvc.status()
                }
            prefix = max((p for p in TABLE if name == p or name.startswith(f"{p}.")), key=len)
            if changed != TABLE[prefix]:
                wrong[name] = changed
            (repo / "params.yaml").write_text(kept)
    finally:
        (repo / "params.yaml").write_text(kept)
    assert not wrong


def test_experiment_changes_only_its_stages_and_metrics_diff_shows_it(repo):
    output = run("dvc", "exp", "run", "-S", "quantizer.beta=0.1", "reconstruction", cwd=repo)
    assert ran(output) == ["tokenizer", "reconstruction"]
    assert "beta: 0.1" in (repo / "params.yaml").read_text()
    name = re.search(r"Ran experiment\(s\): (\S+)", output).group(1)
    run("dvc", "exp", "branch", name, "variant", cwd=repo)
    restore(repo)
    diff = json.loads(run("dvc", "metrics", "diff", "main", "variant", "--json", cwd=repo))
    assert "metrics/reconstruction.json" in diff
    assert "metrics/dataset.json" not in diff


def test_mistyped_override_is_refused(repo):
    assert "betta" in run("dvc", "exp", "run", "-S", "quantizer.betta=1", cwd=repo, ok=False)
    assert not run("git", "status", "--porcelain", cwd=repo).strip()


def test_invalid_params_fail_before_any_work_with_all_problems(repo):
    try:
        edit(repo, {"quantizer.beta": -1.0, "prior.training.epochs": "many"})
        output = run("dvc", "repro", "tokenizer", cwd=repo, ok=False)
        assert "quantizer.beta" in output
        assert "prior.training.epochs" in output
    finally:
        restore(repo)


def start(repo: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=repo, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip


def wait_for_step(repo: Path, process: subprocess.Popen[str], step: int) -> None:
    """Until the tokenizer's newest checkpoint holds at least `step` steps."""
    from safetensors import safe_open

    since = time.time()
    while time.time() - since < 90:
        for path in (repo / ".scratch/tokenizer").glob("*/tokenizer.safetensors"):
            if path.stat().st_mtime > process.began:
                with safe_open(path, "pt") as stored:
                    if json.loads(stored.metadata()["values"])["step"] >= step:
                        return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("no checkpoint in 90 s")


def begin_and_stop(repo: Path, number: signal.Signals, *command: str) -> str:
    began = time.time()
    process = start(repo, *command)
    process.began = began
    wait_for_step(repo, process, 4)
    os.killpg(process.pid, number)
    return process.communicate(timeout=60)[0]


LONGER = {"tokenizer.training.epochs": 30}


def test_killed_training_resumes_with_the_same_bits(repo):
    """KILL under repro; TERM and KILL under `exp run --temp`: the same command goes on, and ends as if never stopped."""
    try:
        edit(repo, LONGER)
        begin_and_stop(repo, signal.SIGKILL, "dvc", "repro", "tokenizer")
        assert re.search(r"resuming tokenizer at step \d+", run("dvc", "repro", "tokenizer", cwd=repo))
        resumed = load_weights(repo / "artifacts/tokenizer/model.safetensors")
        assert "resuming" not in run("dvc", "repro", "-f", "-s", "tokenizer", cwd=repo)
        whole = load_weights(repo / "artifacts/tokenizer/model.safetensors")
        assert all(resumed[name].equal(whole[name]) for name in whole)

        experiment = ("dvc", "exp", "run", "--temp", "-S", "tokenizer.training.lr=0.003", "tokenizer")
        restore(repo)
        edit(repo, LONGER)
        begin_and_stop(repo, signal.SIGKILL, *experiment)
        assert re.search(r"resuming tokenizer at step \d+", run(*experiment, cwd=repo))
    finally:
        restore(repo)


def test_an_input_edited_during_the_run_fails_the_stage_by_name(repo):
    try:
        edit(repo, {"tokenizer.training.epochs": 20})
        process = start(repo, "dvc", "repro", "tokenizer")
        process.began = time.time()
        wait_for_step(repo, process, 4)
        edit(repo, {"quantizer.beta": 0.9})
        output = process.communicate(timeout=90)[0]
        assert process.returncode != 0
        assert "quantizer.beta changed while tokenizer ran" in output
    finally:
        restore(repo)


def test_temporary_experiment_runs_its_own_code(repo):
    """`--temp` works in another folder: it must import the code there, not that of the repository it was started from."""
    script = repo / "stages" / "codes.py"
    output = run("dvc", "exp", "run", "--temp", "-S", "codes.batch_size=7", "codes", cwd=repo)
    assert ran(output) == ["codes"]
    code = "import sys; sys.argv = ['stages/codes.py']; import stages, tessera; print(tessera.__file__)"
    assert str(repo / "src") in run(sys.executable, "-c", code, cwd=repo)
    assert script.exists()


def test_push_and_pull_into_a_fresh_clone(repo, tmp_path):
    run("dvc", "remote", "add", "-d", "--local", "store", str(tmp_path / "store"), cwd=repo)
    run("dvc", "push", "-q", cwd=repo)
    run("git", "clone", "-q", str(repo), str(tmp_path / "clone"), cwd=tmp_path)
    clone = tmp_path / "clone"
    run("dvc", "remote", "add", "-d", "--local", "store", str(tmp_path / "store"), cwd=clone)
    run("dvc", "pull", "-q", cwd=clone)
    assert not ran(run("dvc", "repro", cwd=clone))
    assert (clone / "artifacts/tokenizer/model.safetensors").exists()
