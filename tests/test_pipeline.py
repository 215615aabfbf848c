"""The pipeline itself: dvc on a temporary copy of the repository, at tiny size, on the CPU.

The tests share one copy and run in order: each leaves it as it found it, or on a branch of its own.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from copies import ROOT, begin_and_stop, commit, copied, edit, metrics, ran, restore, run
from ruamel.yaml import YAML

import tessera
from tessera.conditions import conditions_of
from tessera.core import seams
from tessera.core.params import CHOOSES
from tessera.runtime.inputs import declared

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A copy, run once, as `make repro` does."""
    copy = copied(tmp_path_factory.mktemp("copy"))
    run("python", "-m", "tessera.runtime.command", "repro", cwd=copy)
    commit(copy, "run")
    return copy


def test_every_stage_writes_finite_metrics(repo):
    def numbers(value):
        return [n for inner in value.values() for n in numbers(inner)] if isinstance(value, dict) else [value]

    found = metrics(repo)
    assert {"metrics/dataset.json", "metrics/tokenizer.json", "metrics/evaluation/likelihood.json"} <= set(found)
    assert all(isinstance(n, int | float) and abs(n) < float("inf") for n in numbers(found))


def test_stages_load_nearly_all_the_code_that_they_depend_on(repo):
    """Modules that were loaded when each stage ended, against dvc.yaml. `losses/` are aside, of which DVC cannot know which are
    on, and so is the report, which reads plug-ins and imports none."""
    raw, found = YAML(typ="safe").load((repo / "params.yaml").read_text()), {}
    for record in sorted((repo / ".scratch" / "loaded").glob("*.json")):
        stage, _, key = record.stem.partition("@")
        if stage == "report":
            continue
        of = json.loads(record.read_text())
        deps = [repo / dep for dep in declared(stage, key or None, raw, ROOT / "dvc.yaml").deps]
        deps = [
            dep for dep in deps if {"src", "stages"} & set(dep.relative_to(repo).parts[:1]) and dep.name != "losses"
        ]
        own = {file for dep in deps for file in ([dep] if dep.is_file() else dep.rglob("*.py")) if file.read_bytes()}
        used = {(repo / file).resolve() for file in of["loaded"]} | {repo / "stages" / f"{stage}.py"}
        used |= {file for file in own if file.name == "__init__.py" and file.parent.parent.name in seams.FOLDERS}
        whole = {file.resolve() for file in own} | {(repo / file).resolve() for file in of["carried"]}
        lines = {file: len(file.read_text().splitlines()) for file in whole}
        spurious = {file.resolve() for file in own} - {file.resolve() for file in used}
        found[record.stem] = sum(lines[file] for file in spurious) / sum(lines.values())
    print(found)
    assert len(found) >= 15
    assert sum(found.values()) / len(found) <= 0.10
    assert max(found.values()) <= 0.25


def test_a_second_run_does_nothing(repo):
    before = (repo / "dvc.lock").read_bytes()
    assert not ran(run("dvc", "repro", cwd=repo))
    assert (repo / "dvc.lock").read_bytes() == before


FORCED = ("scorer", "tokenizer", "prior", "samples")


def test_a_forced_run_that_is_killed_and_goes_on_gives_the_same_bytes(repo):
    """Of what trains, and of what is drawn from it; the rest has a test of that in-process. Interpreters of their own give what
    the forks of `repo` gave. A finished scratch checkpoint is not used again in the workspace that made it, an unfinished one
    is."""
    before = (repo / "dvc.lock").read_bytes()
    assert "resuming" not in begin_and_stop(repo, signal.SIGKILL, "dvc", "repro", "-f", "-s", "tokenizer")
    output = run("dvc", "repro", "-f", "-s", *FORCED, cwd=repo)
    assert set(ran(output)) >= set(FORCED)
    assert re.findall(r"resuming (\S+) at step \d+", output) == ["tokenizer"]
    assert (repo / "dvc.lock").read_bytes() == before
    assert not run("git", "status", "--porcelain", cwd=repo).strip()


def test_models_load_from_python_with_their_cards(repo):
    tokenizer, prior = (tessera.load(repo / "artifacts" / name) for name in ("tokenizer", "prior"))
    told = conditions_of(prior, {}, 2)
    codes = prior.sample(2, torch.Generator().manual_seed(0), conditions=told)
    assert tokenizer.decode(codes).shape == (2, 3, 8, 8)
    assert tokenizer.space == prior.space
    card = (repo / "artifacts/tokenizer/README.md").read_text()
    assert "codebook_size: 8" in card
    assert "val.perplexity" in card


# What runs again when a value changes, by the longest matching prefix; downstream stages follow from the arrows. The report
# shows every value that is in use. Values of
# an alternative that is not chosen run nothing, unless it stands here.
ALL_SEEDED = {
    "dataset",
    "scorer",
    "perceptual",
    "tokenizer",
    "codes",
    "diagnostics",
    "probe",
    "prior",
    "upsampler",
    "infiller",
    "samples",
    "evaluation",
    "extensions",
    "report",
}
TABLE = {
    "seed": ALL_SEEDED,
    "dataset": {"dataset", "report"},
    "dataset.image_size": {"dataset", "upsampler", "report"},
    "dataset.target_size": {"dataset", "upsampler", "report"},
    "scorer": {"scorer", "report"},
    "perceptual": {"perceptual", "report"},
    "tokenizer": {"tokenizer", "report"},
    "tokenizer.vqvae": {"tokenizer", "upsampler", "report"},
    "quantizer": {"tokenizer", "report"},
    "losses": {"tokenizer", "report"},
    "losses.perceptual.weight": {"perceptual", "tokenizer", "report"},
    "losses.perceptual.weights": {"perceptual", "tokenizer", "report"},
    "codes": {"codes", "report"},
    "reconstruction": {"reconstruction", "report"},
    "diagnostics": {"diagnostics", "gate", "report"},
    "probe": {"probe", "report"},
    "gate": {"gate", "report"},
    "prior": {"prior", "report"},
    "prior.conditions": {"prior", "infiller", "report"},
    "prior.words": {"prior", "infiller", "report"},
    "upsampler": {"upsampler", "report"},
    "infiller": {"infiller", "report"},
    "prior.histogram": {"samples"},
    "samples": {"samples", "report"},
    "features": {"features", "report"},
    "evaluation": {"evaluation", "criteria", "report"},
    "criteria": {"criteria", "report"},
    "extensions": {"extensions", "report"},
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
        return [*value, value[-1] if value else 7]
    return f"{value}x" if isinstance(value, str) else value + 1


def expected(name: str, params: dict) -> set[str]:
    section, _, rest = name.partition(".")
    alternative = rest.partition(".")[0]
    prefix = max((p for p in TABLE if name == p or name.startswith(f"{p}.")), key=len)
    others = set(seams.names(CHOOSES[section])) - {params[section]["name"]} if section in CHOOSES else set()
    return set() if alternative in others and prefix == section else TABLE[prefix]


def modified(repo: Path) -> dict[str, set[str]]:
    """Stage -> values and sections that it declares in params.yaml and that DVC's status calls changed; of nothing else it does."""
    from dvc.repo import Repo

    found: dict[str, set[str]] = {}
    with Repo(str(repo)) as dvc:
        for stage, kinds in dvc.status().items():
            for path, params in [change for kind in kinds for change in kind["changed deps"].items()]:
                assert path == "params.yaml"
                found.setdefault(stage.partition("@")[0], set()).update(params)
    return found


def test_each_leaf_of_params_runs_exactly_its_stages(repo, monkeypatch):
    """Judged by DVC's own status. All leaves that must run something are edited at once: a leaf runs the stages of which DVC says
    that the leaf, or a section that holds it and is compared as a whole, has changed. (That each is declared where it is read,
    test_mirror.py says.) A `name` changes deps too; it has a test of its own."""
    kept = (repo / "params.yaml").read_text()
    raw = YAML(typ="safe").load(kept)
    values = leaves(raw)
    skipped = {"dataset.source", "samples.baseline", *(name for name in values if name.endswith(".name"))}
    names = sorted(values.keys() - skipped)
    nothing = [name for name in names if not expected(name, raw)]
    assert {"tokenizer.vae.latent_dim", "quantizer.residual.depth", "runtime.threads"} <= set(nothing)
    monkeypatch.chdir(repo)
    try:
        edit(repo, {name: other(values[name]) for name in nothing})
        assert modified(repo) == {}
        edit(repo, {name: other(values[name]) for name in names})
        changed = modified(repo)
    finally:
        (repo / "params.yaml").write_text(kept)
    found = {
        name: {
            stage for stage, params in changed.items() if any(f"{name}.".startswith(f"{param}.") for param in params)
        }
        for name in names
        if name not in nothing
    }
    assert {name: stages for name, stages in found.items() if stages != expected(name, raw)} == {}


@pytest.fixture(scope="module")
def experiment(repo) -> tuple[str, str]:
    """Name and output of an experiment in another folder that was stopped while it trained, and started again."""
    command = ("dvc", "exp", "run", "--temp", "-S", "quantizer.beta=0.1", "reconstruction")
    begin_and_stop(repo, signal.SIGTERM, *command)
    output = run(*command, cwd=repo)
    return re.search(r"Ran experiment\(s\): (\S+)", output).group(1), output


def test_a_stopped_experiment_goes_on_and_runs_its_own_code(repo, experiment):
    """`--temp` works in another folder: it must import the code there, not that of the repository it was started from; and use
    the checkpoints that its own stopped run has left."""
    assert ran(experiment[1]) == ["tokenizer", "reconstruction"]
    assert re.search(r"resuming tokenizer at step \d+", experiment[1])
    code = "import sys; sys.argv = ['stages/codes.py']; import stages, tessera; print(tessera.__file__)"
    assert str(repo / "src") in run(sys.executable, "-c", code, cwd=repo)


def test_metrics_diff_shows_what_an_experiment_changed(repo, experiment):
    run("dvc", "exp", "branch", experiment[0], "variant", cwd=repo)
    assert "beta: 0.1" in run("git", "show", "variant:params.yaml", cwd=repo)
    diff = json.loads(run("dvc", "metrics", "diff", "main", "variant", "--json", cwd=repo))
    assert "metrics/reconstruction.json" in diff
    assert "metrics/dataset.json" not in diff


def test_a_single_stage_refuses_codes_of_another_tokenizer(repo, experiment):
    """Those that stand beside the tokenizer of an experiment which has not encoded."""
    try:
        run("dvc", "exp", "apply", experiment[0], cwd=repo)
        output = run(
            "dvc", "repro", "-s", "report", cwd=repo, ok=False
        )  # metrics do not say where they are from, dvc.lock does
        assert "tokenizer has made another artifacts/tokenizer since" in output
        output = run("dvc", "repro", "-s", "extensions@interpolation", cwd=repo, ok=False)
        assert "artifacts/codes was made from artifacts/tokenizer " in output
        assert "Run `dvc repro extensions@interpolation`, without -s" in output
    finally:
        restore(repo)


def test_codes_that_fail_the_gate_train_no_prior_and_a_new_threshold_alone_trains_none_again(repo):
    try:
        edit(repo, {"gate.on_failure": "stop", "gate.thresholds.usage.at_least": 1.5})
        output = run("dvc", "repro", "prior", cwd=repo, ok=False)
        assert "usage" in output.partition(": not met, see metrics/gate.json")[0].rpartition("error in gate")[2]
        assert "prior" not in ran(output)
        assert not (repo / "artifacts/gate.txt").exists()
        edit(repo, {"gate.on_failure": "warn", "gate.thresholds.usage.at_least": 0.01})
        assert ran(run("dvc", "repro", "prior", cwd=repo)) == ["gate"]
    finally:
        restore(repo)


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


def test_dvc_finds_the_environment_that_nobody_activated(repo):
    """`make` leaves a line in its .venv for that (set-up); an environment of one's own is activated by hand."""
    own = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "tessera_path.pth"
    if not own.exists():
        pytest.skip("this environment was not made by make")
    dvc = str(Path(sys.executable).parent / "dvc")
    output = run("env", "PATH=/usr/bin:/bin", dvc, "repro", "-f", "-s", "diagnostics@usage", cwd=repo)
    assert ran(output) == ["diagnostics@usage"]


def test_push_and_pull_into_a_fresh_clone(repo, tmp_path):
    clone = tmp_path / "clone"
    run("git", "clone", "-q", str(repo), str(clone), cwd=tmp_path)
    run("dvc", "remote", "add", "-d", "--local", "store", str(tmp_path / "store"), cwd=repo)
    (clone / ".dvc/config.local").write_text((repo / ".dvc/config.local").read_text())
    run("dvc", "push", "-q", cwd=repo)
    run("dvc", "pull", "-q", cwd=clone)
    assert not ran(run("dvc", "repro", cwd=clone))
    assert (clone / "artifacts/tokenizer/model.safetensors").exists()
