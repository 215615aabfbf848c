"""What the tests read as the project's own is the last commit's, whatever a user's runs have written since."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from committed import has_commit, snapshot

FILES = {
    "params.yaml": "seed: 0  # every stream\nquantizer:\n  beta: 0.15\ndiagnostics:\n  usage: {}\ngate:\n  thresholds: {}\n",
    "metrics/reconstruction.json": '{"psnr_db": 22.5}',
    "plots/samples/samples.png": "picture",
    "docs/studies/beta.csv": "run,state\n",
    "README.md": "22.5 dB",
    "dvc.lock": "schema: '2.0'\n",
    "src/code.py": "x = 1\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    for command in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "all")):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("src")])
@pytest.mark.parametrize("staged", [False, True])  # dvc stages what it writes
def test_what_a_run_wrote_is_not_read(name, staged, repository, tmp_path):
    changed = {"params.yaml": FILES["params.yaml"].replace("0.15", "0.5")}.get(name, "cut")
    (repository / name).write_text(changed)
    if staged:
        subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    assert (snapshot(repository, tmp_path / "seen") / name).read_text() == FILES[name]


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("src", "params"))])
def test_what_a_run_removed_is_there(name, repository, tmp_path):
    (repository / name).unlink()
    assert (snapshot(repository, tmp_path / "seen") / name).read_text() == FILES[name]


def test_a_repository_without_a_commit_is_read_as_it_lies(tmp_path):
    assert not has_commit(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert not has_commit(tmp_path)


def test_keys_that_an_experiment_removed_are_there_and_its_own_thresholds_are_not(repository, tmp_path):
    text = FILES["params.yaml"].replace("  usage: {}\n", "").replace("thresholds: {}", "thresholds:\n    mine: 1")
    (repository / "params.yaml").write_text(text)
    assert (snapshot(repository, tmp_path / "seen") / "params.yaml").read_text() == FILES["params.yaml"]


def test_code_and_the_section_of_a_plug_in_that_is_being_written_are_seen(repository, tmp_path):
    (repository / "src/code.py").write_text("x = 2\n")
    text = FILES["params.yaml"].replace("0.15", "0.5") + "losses:\n  mine:\n    weight: 0.0\n"
    (repository / "params.yaml").write_text(text)
    seen = snapshot(repository, tmp_path / "seen")
    assert (seen / "src/code.py").read_text() == "x = 2\n"
    assert (seen / "params.yaml").read_text() == FILES["params.yaml"] + "losses:\n  mine:\n    weight: 0.0\n"
