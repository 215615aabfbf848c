"""Several processes give what one process gives; data larger than memory is streamed; the examples are whole.

Two gloo processes on the CPU stand for two devices, and for two machines: the same calls, another transport.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

from stages import codes as step
from tessera import augmentation
from tessera.core import files, models
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import SPLITS
from tessera.core.seeding import generator
from tessera.images import arrays
from tessera.runtime import ranks
from tessera.runtime.settings import Settings
from tessera.training.loop import _part

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SETTINGS = {"device": "cpu", "devices": 1, "nodes": 1, "threads": 1, "checkpoint_seconds": 0.0, "keep_scratch": 2}


def environment_of(**own: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID")}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return kept | path | own


def places() -> list[dict[str, str]]:
    """What two ranks find in their environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{"RANK": str(n), "LOCAL_RANK": str(n), **meeting} for n in range(2)]


# training

TRAINING = """
import json, sys
import numpy as np, torch
from pathlib import Path
from tessera.core import files, models
from tessera.core.errors import NonFiniteError
from tessera.images.arrays import to_model
from tessera.runtime.settings import Settings
from tessera.training.settings import Training
from tessera.training.loop import Task, fit
from tessera.losses import mse
from tessera.codebooks.codebook import Codebook
from tessera.runtime.devices import Runtime
from stages.tokenizer import Objective

given = json.loads(Path("given.json").read_text())
pixels, found = files.load_array(Path("images.npy")), {}
runtime = Runtime(Settings(**given["settings"]))
runtime.join("tokenizer")
place, moved = Codebook.place, []

def counting(self, where, codes, count):
    moved.append(int(where.sum()))
    place(self, where, codes, count)

Codebook.place = counting
for name, recipe in given["recipes"].items():
    torch.manual_seed(0)
    tokenizer = models.build(models.Recipe(**recipe))
    objective = Objective(tokenizer, {"mse": (1.0, mse.MSE())}).double()
    moved.clear()

    def batch(indices, draws, done):
        return (to_model(pixels[np.sort(indices)]).double(),)

    def evaluate(objective):
        return {"val": objective(to_model(pixels[:8]).double())["mse"].item()}

    task = Task("tokenizer", objective, len(pixels), batch, evaluate, lambda row: row["epoch"])
    fitted = fit(task, Training(**given["training"] | {"optimizer": given["optimizers"][name]}), 0, runtime)
    rows = {f"history/{key}": torch.tensor([row[key] for row in fitted.history]) for key in fitted.history[0]}
    found |= {f"{name}/{key}": value for key, value in {**objective.state_dict(), **rows}.items()}
    found[f"{name}/moved"] = torch.tensor(moved)

for wrong in (0, 3):  # the step in which the last rank alone gets an image that is not a number
    objective = Objective(models.build(models.Recipe(**given["recipes"]["ema"])), {"mse": (1.0, mse.MSE())})
    seen = []

    def batch(indices, draws, done):
        seen.append(1)
        broken = len(seen) == wrong + 1 and runtime.rank == runtime.ranks - 1
        return (to_model(pixels[np.sort(indices)]) * (float("nan") if broken else 1),)

    task = Task("tokenizer", objective, len(pixels), batch, lambda objective: {"val": 0.0}, lambda row: 0.0)
    try:
        fit(task, Training(**given["training"]), 0, runtime)
    except NonFiniteError:
        found[f"stopped/{wrong}"] = torch.tensor(len(seen) - 1)
models.save_weights(Path(f"{sys.argv[1]}.safetensors"), found)
runtime.leave()
"""

CASES = {  # quantizer, first codes, optimizer
    "ema": ("ema", "latents", "adam"),
    "ema, few latents": ("ema", "latents", "adam"),
    "ema by kmeans": ("ema", "kmeans", "adam"),
    "ema by Muon": ("ema", "latents", "muon"),
    "gradient": ("gradient", "latents", "adam"),
    "residual": ("residual", "kmeans", "adam"),
}


@pytest.fixture(scope="module")
def trained(_raw: dict[str, Any], make_images: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0, rank 1 and one process alone end with, after 16 steps."""
    folder = tmp_path_factory.mktemp("ranks")
    recipes = {}
    for name, (quantizer, initialisation, _) in CASES.items():
        raw = json.loads(json.dumps(_raw))
        raw["tokenizer"]["name"], raw["quantizer"]["name"] = "vqvae", quantizer
        raw["tokenizer"]["vqvae"] |= {"normalisation": "group", "dropout": 0.0}
        size = 50 if name == "ema, few latents" else 8  # codes; the first batch has 8 * 4 latents
        # of more codes than latents some would be restarted on the same latent, and rounding would decide between them
        restart = "none" if size > 32 else "dead"
        raw["quantizer"] |= {"initialisation": initialisation, "restart": restart, "restart_below": 0.6}
        raw["quantizer"] |= {"codebook_size": size, "decay": 0.7}
        recipes[name] = models.tokenizer_recipe(Params(raw), (3, 8, 8))._asdict()
    training = _raw["tokenizer"]["training"] | {"epochs": 2, "batch_size": 8, "lr": 0.01, "clip_norm": 1.0}
    files.save_array(folder / "images.npy", make_images(64))
    given = {"recipes": recipes, "training": training, "settings": SETTINGS}
    given["optimizers"] = {name: optimizer for name, (_, _, optimizer) in CASES.items()}
    files.write_json(folder / "given.json", given)
    before = os.getcwd()
    os.chdir(folder)
    try:
        both = [forked.start("-c", TRAINING, at["RANK"], **environment_of(**at)) for at in places()]
        forked.ended(*both, forked.start("-c", TRAINING, "alone", **environment_of()))
    finally:
        os.chdir(before)
    return [models.load_weights(folder / f"{name}.safetensors") for name in ("0", "1", "alone")]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(trained, case):
    """Group normalisation, float64, 16 steps: weights, codebooks, their statistics and curves."""
    first, second, alone = ({k: v for k, v in state.items() if k.startswith(f"{case}/")} for state in trained)
    assert first.keys() == second.keys() == alone.keys()
    assert len(first[f"{case}/history/epoch"]) == 2
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if value.is_floating_point() and "/history/" not in name:
            assert value.dtype == torch.float64, name
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-6 if "/history/" in name else 1e-9)
    moved = first[f"{case}/moved"]
    assert len(moved) == 1 if case == "ema, few latents" else moved.count_nonzero() > 2, (
        "dead codes are to be restarted"
    )


def test_what_is_not_finite_on_one_process_stops_all_at_that_step(trained):
    """One that stopped alone would leave the others waiting for it."""
    for state in trained:
        assert [int(state[f"stopped/{step}"]) for step in (0, 3)] == [0, 3]


def test_parts_of_the_ranks_one_after_another_are_the_sorted_batch():
    indices = np.random.default_rng(0).permutation(40)[:12]
    parts = [_part(indices, rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert np.concatenate(parts).tolist() == sorted(indices)
    assert _part(indices, 0, 1).tolist() == indices.tolist()


# stages

SRUN = """#!/bin/bash
# stands for Slurm's: the same command once for each machine, all of them this one
nodes=${1#--nodes=}
shift 3
for ((node = 0; node < nodes; node++)); do "$@" & jobs+=($!); done
code=0
for job in "${jobs[@]}"; do wait "$job" || code=$?; done
exit $code
"""


@pytest.fixture
def repository(tiny_run: Any, raw: dict[str, Any], workspace: Path) -> Path:
    """Code, pipeline and artefacts at tiny size. `bin/srun` stands for Slurm's."""
    tiny_run()
    raw["codes"] |= {
        "copies": 2,
        "batch_size": 4,
    }  # 12, 6 and 5 images: full and short batches, and odd numbers of them
    raw["codes"]["augmentation"] |= {"flip": 0.5, "shift": 1, "scale": 0.2, "recolour": 0.5}
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, workspace / name, ignore=ignored)
    for name in ("dvc.yaml", "versions.yaml"):
        shutil.copy(ROOT / name, workspace / name)
    (workspace / "bin").mkdir()
    (workspace / "bin" / "srun").write_text(SRUN)
    (workspace / "bin" / "srun").chmod(0o755)
    return workspace


def write_params(raw: dict[str, Any]) -> None:
    """And have them found good: a stage that finds no note of that imports every plug-in, for seconds."""
    from tessera.runtime import stage

    with open("params.yaml", "w") as stream:
        YAML().dump(raw, stream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_check", lambda good: files.write_json(good, {"unread": {}}) or 0)
        stage._validated()


def test_machines_of_a_slurm_job_encode_what_one_process_encodes(repository, raw, tiny_run, runtime):
    """DVC starts one process; that one starts one launcher for each machine, which starts its ranks."""
    raw["runtime"] |= {"devices": 1, "nodes": 2}
    write_params(raw)
    shutil.rmtree("artifacts/codes")
    bin_first = f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "7", "MASTER_ADDR": "localhost"}
    forked.ended(forked.start("-m", "stages.codes", **environment_of(PYTHONPATH="src", PATH=bin_first, **job)))
    found = {path.name: path.read_bytes() for path in Path("artifacts/codes").iterdir()}
    assert found.keys() == {"train.npy", "val.npy", "test.npy", "augmented.npy", "facts.json", "made_from.json"}
    run = tiny_run_with(raw, runtime)
    tokenizer = run.tokenizer()
    step.encode(tokenizer, run, Path("alone"))
    assert all(path.read_bytes() == found[path.name] for path in Path("alone").iterdir())
    assert len(list(Path("alone").iterdir())) == 4
    for split in SPLITS:
        assert np.array_equal(run.codes(split), encoded(tokenizer, run.images(split), 4))
    draws = generator(raw["seed"], "codes", "augmentation", 1)
    how = run.params.section("codes", step.Settings).augmentation
    changed = encoded(tokenizer, run.images("train"), 4, lambda x: augmentation.augmented(x, how, draws, 1.0))
    assert np.array_equal(run.augmented_codes()[1], changed)
    assert run.augmented_codes().dtype == np.uint8  # the smallest type that holds them
    assert not np.array_equal(changed, run.codes("train"))


def tiny_run_with(raw: dict[str, Any], runtime: Any) -> Any:
    from tessera.core.run import Run

    return Run(Params(raw), None, runtime)


def encoded(tokenizer: nn.Module, pixels: np.ndarray, size: int, change: Any = lambda x: x) -> np.ndarray:
    with torch.no_grad():
        parts = [
            tokenizer.encode(change(arrays.to_model(part))) for part in np.split(pixels, range(size, len(pixels), size))
        ]
    return torch.cat(parts).numpy()


def test_ranks_that_a_launcher_started_join_and_rank_0_locks_and_writes(repository, raw):
    """In the environment that torchrun, `accelerate launch` and the line for srun make. No rank starts ranks of its own,
    though `runtime.devices` asks for four."""
    raw["runtime"]["devices"] = 4
    raw["tokenizer"]["training"] |= {"batch_size": 6}
    write_params(raw)
    before = Path("artifacts/tokenizer/model.safetensors").read_bytes()
    both = [forked.start("-m", "stages.tokenizer", **environment_of(PYTHONPATH="src", **at)) for at in places()]
    forked.ended(*both)
    assert Path("artifacts/tokenizer/model.safetensors").read_bytes() != before
    (scratch,) = Path(".scratch/tokenizer").iterdir()
    assert {path.name for path in scratch.iterdir()} == {
        "finished.json",
        "lock",
        "progress.json",
        "tokenizer.safetensors",
    }
    epochs = raw["tokenizer"]["training"]["epochs"]
    assert len(Path("plots/tokenizer.csv").read_text().splitlines()) == epochs + 1


@pytest.mark.parametrize(
    ("environment", "follows", "leads"),
    [
        ({}, False, True),
        ({"WORLD_SIZE": "8"}, False, True),  # set by hand for something else: a rank has both
        ({"RANK": "0", "WORLD_SIZE": "2"}, False, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True, False),
        ({"RANK": "0", "WORLD_SIZE": "2", ranks.GUARDED: ""}, True, False),
        ({"NODE_RANK": "0"}, False, True),
        ({"NODE_RANK": "1"}, False, False),
    ],
)
def test_one_process_of_all_leads(monkeypatch, environment, follows, leads):
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK", ranks.GUARDED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.follows() is follows
    assert ranks.leads(Settings(**{**SETTINGS, "nodes": 2})) is leads
    if environment == {"NODE_RANK": "1"}:  # left over in the environment of one machine
        assert ranks.leads(Settings(**SETTINGS)) is True


def test_launchers():
    one = Settings(**{**SETTINGS, "devices": 8})
    assert ranks.launcher(one, {})[1:] == ["-m", "torch.distributed.run", "--nproc-per-node=8", "--standalone"]
    two = Settings(**{**SETTINGS, "devices": 8, "nodes": 2})
    with pytest.raises(InputError, match=r"runtime\.nodes is 2, but MASTER_PORT, NODE_RANK is not set"):
        ranks.launcher(two, {"MASTER_ADDR": "a"})
    place = {"MASTER_ADDR": "a", "MASTER_PORT": "29500", "NODE_RANK": "1"}
    assert ranks.launcher(two, place)[4:] == ["--nnodes=2", "--master-addr=a", "--master-port=29500", "--node-rank=1"]
    slurm = ranks.launcher(two, {"SLURM_JOB_ID": "7", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
    assert slurm[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert slurm[7:] == [
        "--nproc-per-node=8",
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=a:1",
        "--rdzv-id=7",
    ]


def test_work_of_one_process_is_refused_to_several(monkeypatch, workspace):
    from tessera.runtime.stage import enter

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["stages/samples.py"])
    with pytest.raises(
        SystemExit, match=r"error in samples: this stage is the work of one process: start it by python"
    ):
        enter(lambda run: None)


# data larger than memory

STREAMING = """
import ctypes, json, resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core import files
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.runtime.devices import Runtime
from tessera.core.space import CodeSpace
from tessera.runtime.settings import Settings
from stages import codes, prior

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10

class Corner(torch.nn.Module):
    space = CodeSpace(((1, 2),), (2,))

    def encode(self, x):
        return (x[:, 0, 0, :2] > 0).int()

params = Params(json.loads(Path("raw.json").read_text()))
run = Run(params, None, Runtime(params.section("runtime", Settings)))
torch.ones(8, 8) @ torch.ones(8, 8)
# glibc learns to keep freed blocks of some MiB in its heap, between others by chance: here each is given back at once
ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
before, anonymous = status("VmData"), status("RssAnon")
resource.setrlimit(resource.RLIMIT_DATA, (before + (64 << 20),) * 2)
try:
    np.array(run.images("train"))
    raise SystemExit("the limit does not hold")
except MemoryError:
    pass
codes.encode(Corner(), run, Path("encoded"))
stored = {split: files.load_array(Path("huge.npy")) for split in ("train", "val")}
nothing = np.zeros((0, 0, 0), np.int32)
data = prior.Data(stored, nothing, dict.fromkeys(stored), UNCONDITIONAL, params.section("prior", prior.Settings), "cpu")
order = np.random.default_rng(0).permutation(len(stored["train"]))  # as `fit` does
sums = [int(data.batch(rows, torch.Generator(), 0.0)[0].sum()) for rows in np.split(order[: 50 * 64], 50)]
last = data.rows("train", np.array([len(order) - 1]))[0]
print(json.dumps({"anonymous": status("RssAnon") - anonymous, "sums": sum(sums), "last": last[0, :3].tolist()}))
"""


def sparse(path: Path, shape: tuple[int, ...], dtype: str, rows: dict[int, int]) -> None:
    """Zeros that take no room on the disk, but for the given rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    for row, value in rows.items():
        array[row] = value
    array.flush()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, and RLIMIT_DATA as Linux has it")
def test_half_a_gigabyte_is_encoded_and_sampled_in_an_eighth_of_it(workspace, raw):
    """The kernel is told to refuse more than 64 MiB of memory beyond what the process had with its libraries loaded; loading
    the array is tried, and refused. RLIMIT_DATA, since that counts what only this process holds: pages of a mapped file
    count as resident too (VmHWM is above 512 MiB here), but are the kernel's, which drops them when memory is short."""
    n, numbers = 1 << 13, 1 << 27
    sparse(workspace / "artifacts/dataset/train.npy", (n, 256, 256, 1), "uint8", {5: 255, n - 1: 200})
    for split in ("val", "test"):
        sparse(workspace / f"artifacts/dataset/{split}.npy", (3, 256, 256, 1), "uint8", {})
    sparse(workspace / "huge.npy", (numbers // 64, 64), "int32", {numbers // 64 - 1: 3})
    raw["codes"] |= {"copies": 0, "batch_size": 16}
    raw["prior"]["augmented"] = 0.0
    raw["runtime"] |= SETTINGS
    Path("raw.json").write_text(json.dumps(raw))
    found = json.loads(forked.ended(forked.start("-c", STREAMING, **environment_of()))[0])
    assert found["anonymous"] < 64 << 20
    assert (found["sums"], found["last"]) == (0, [3, 3, 3])
    codes = np.load("encoded/train.npy")
    assert codes.shape == (n, 2)
    assert np.flatnonzero(codes.any(1)).tolist() == [5, n - 1]


# examples


def test_examples_are_named_in_their_readme():
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in listed for path in EXAMPLES.iterdir() if path.name != "README.md")


@pytest.mark.parametrize(
    "path", sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")]), ids=lambda path: path.name
)
def test_example_is_a_shell_script_whose_overrides_exist(path, raw):
    subprocess.run(["bash", "-n", path], check=True)
    words = path.read_text().replace("\\\n", " ").split()
    overrides = [words[i + 1].strip("'\"") for i, word in enumerate(words) if word in ("-S", "--set-param")]
    for name in [override.partition("=")[0] for override in overrides]:
        value: Any = raw
        for part in name.split("."):
            assert part in value, f"params.yaml has no {name}"
            value = value[part]


def test_the_workflow_posts_the_difference_of_metrics_on_pull_requests():
    text = (EXAMPLES / "metrics-on-pull-request.yml").read_text()
    workflow = YAML(typ="safe", pure=True).load(text)
    assert "pull_request" in workflow["on"]
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
    (job,) = workflow["jobs"].values()
    used = [entry["uses"] for entry in job["steps"] if "uses" in entry]
    assert used
    assert all(len(name.partition("@")[2]) == 40 for name in used), "an action is pinned by its commit"
    script = "\n".join(entry.get("run", "") for entry in job["steps"])
    assert "dvc metrics diff --md" in script
    assert "gh pr comment" in script
    assert "${{" not in script, "what comes from a pull request is data, never a part of the script"
