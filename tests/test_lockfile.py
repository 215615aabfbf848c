"""A dvc.lock that a kill has cut short is found wherever it ends, and the committed one takes its place."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
from committed import project
from dvc.utils.serialize import modify_yaml
from ruamel.yaml.representer import RepresenterError

from tessera.core.errors import InputError
from tessera.runtime import command, lockfile

TEXT = """\
schema: '2.0'
stages:
  dataset:
    cmd: python -m stages.dataset
    deps:
    - path: src/tessera/core
      hash: md5
      md5: 23bfe481ba3db413f15c411c89250ff3.dir
      size: 88916
      nfiles: 13
    params:
      params.yaml:
        dataset.name: noto
    outs:
    - path: artifacts/dataset
      hash: md5
      md5: 99914b932bd37a50b983c5e7c90ae93b.dir
      size: 2
      nfiles: 1
  codes:
    cmd: python -m stages.codes
"""


@pytest.fixture
def repository(workspace: Path) -> Path:
    """One commit, whose dvc.lock is sound."""
    Path("dvc.lock").write_text(TEXT)
    _commit("add", "-A")
    return workspace


def _commit(*first: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    for arguments in (("init", "-q"), first, (*who, "commit", "-q", "--allow-empty", "-m", "all")):
        subprocess.run(["git", *arguments], check=True, capture_output=True)


def test_a_sound_file_is_left_alone(repository):
    assert lockfile.mend(patience=0) is None
    Path("dvc.lock").unlink()
    assert lockfile.mend(patience=0) is None
    assert not Path("dvc.lock").exists()


CUTS = {
    "nothing": "",
    "in a key": TEXT[: TEXT.index("deps:") + 2],
    "before a value": TEXT[: TEXT.index("23bfe")],
    "in the first line": "schema: '2",
    "after a list began": TEXT[: TEXT.index("path: artifacts/dataset")],
    "before the stages": "schema: '2.0'\n",
    "zeros, as after a crash of the machine": "\0" * 512,
    "in the name of a hash": TEXT[: TEXT.rindex("hash: md5") + len("hash: md")],
    "after the name of a hash": TEXT[: TEXT.index("hash: md5") + len("hash: md5")],
}
READ = {"before a value", "before the stages"}  # DVC takes these for stages that changed, or never ran


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_file_is_the_committed_one_again(cut, repository, capsys):
    Path("dvc.lock").write_text(CUTS[cut])
    said = lockfile.mend(patience=0)
    if cut in READ:
        assert said is None
        return
    assert "dvc.lock was cut short" in said
    assert "run cache" in said
    assert Path("dvc.lock").read_text() == TEXT
    assert (repository / ".scratch/dvc.lock.cut").read_text() == CUTS[cut]


def test_the_committed_lock_of_the_project_is_sound_and_no_cut_of_it_is_missed(workspace):
    """By DVC's own reading of the file. The first stages have lines of every kind, and take a twelfth of the time to read."""
    text = (project() / "dvc.lock").read_text()
    Path("dvc.lock").write_text(text)
    assert lockfile.problem() is None
    assert _dvc_reads(Path("dvc.lock"))
    first = len(text) // 12
    for place in range(first // 40, first, first // 40):
        Path("dvc.lock").write_text(text[:place])
        assert lockfile.problem() is not None or _dvc_reads(Path("dvc.lock")), place


def _dvc_reads(path: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from dvc.utils.strictyaml import YAMLValidationError, validate

    try:
        validate(parse_yaml(path.read_text(), str(path)), COMPILED_LOCKFILE_SCHEMA)
    except (YAMLFileCorruptedError, YAMLValidationError):
        return False
    return True


MERGES = {
    "conflict": TEXT.replace("    cmd", "<<<<<<< HEAD\n    cmd", 1).replace(
        "    deps", "=======\n>>>>>>> other\n    deps", 1
    ),
    "a stage twice": TEXT + "  dataset:\n    cmd: python -m stages.dataset\n",
    "a key twice": TEXT.replace("    cmd", "    cmd: other\n    cmd", 1),
}


@pytest.mark.parametrize("merge", MERGES)
def test_what_a_merge_leaves_is_left_to_the_user(merge, repository):
    Path("dvc.lock").write_text(MERGES[merge])
    with pytest.raises(InputError, match=r"(merge conflict|a key twice).* `git checkout HEAD -- dvc\.lock`"):
        lockfile.mend(patience=0)
    assert Path("dvc.lock").read_text() == MERGES[merge]


def test_every_cut_file_is_kept(repository):
    for cut in ("in a key", "in the first line"):
        Path("dvc.lock").write_text(CUTS[cut])
        lockfile.mend(patience=0)
    kept = {path.read_text() for path in (repository / ".scratch").glob("dvc.lock.cut*")}
    assert kept == {CUTS["in a key"], CUTS["in the first line"]}


def test_without_a_committed_one_it_is_removed(repository):
    _commit("rm", "-q", "--cached", "dvc.lock")
    Path("dvc.lock").write_text(CUTS["in a key"])
    assert "removed, since none is committed" in lockfile.mend(patience=0)
    assert not Path("dvc.lock").exists()


def test_without_git_the_remedy_is_said(workspace, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workspace.parent))
    Path("dvc.lock").write_text(CUTS["in a key"])
    with pytest.raises(InputError, match=r"Delete dvc\.lock: DVC's run cache"):
        lockfile.mend(patience=0)


def test_a_file_that_is_being_written_is_left_to_its_writer(repository):
    Path("dvc.lock").write_text(CUTS["in a key"])
    new = TEXT.replace("noto", "folder")
    writer = threading.Thread(target=lambda: (time.sleep(0.1), Path("dvc.lock").write_text(new)))
    writer.start()
    assert lockfile.mend(patience=0.6) is None
    writer.join()
    assert Path("dvc.lock").read_text() == new


# the faster way to write it

ENTRY = {
    "cmd": "python -m stages.codes " + "é and more " * 20,
    "deps": [OrderedDict(path="a folder #1/ü: x", hash="md5", size=3), OrderedDict(path="2024", nfiles=1)],
    "params": {
        "params.yaml": OrderedDict(
            small=1e-05,
            large=1e16,
            tenth=0.1,
            count=7,
            on=True,
            word="no",
            number="1",
            empty="",
            lines="a\nb",
            tilde="~",
            date="2024-01-01",
            none=[],
            nothing={},
            nested=[1, [2, "3"]],
            infinite=float("inf"),
        )
    },
}


@pytest.mark.parametrize(
    "before", [None, TEXT, (project() / "dvc.lock").read_text()], ids=["none", "short", "committed"]
)
def test_libyaml_writes_the_bytes_that_dvc_writes(before, workspace):
    written = []
    for modify in (modify_yaml, command.modifying(modify_yaml)):
        Path("dvc.lock").unlink(missing_ok=True)
        if before is not None:
            Path("dvc.lock").write_text(before)
        with modify("dvc.lock") as content:
            content.setdefault("stages", {}).update(OrderedDict({"codes": OrderedDict(ENTRY), "another": {"cmd": "x"}}))
        written.append(Path("dvc.lock").read_text())
    assert written[0] == written[1]
    assert "another" in written[0]


def test_dvc_writes_its_lock_by_libyaml_and_nothing_else(workspace, monkeypatch):
    """A lock that cannot be written stays as it was, and the comments of dvc.yaml stay."""
    from dvc import dvcfile

    monkeypatch.setattr(dvcfile, "modify_yaml", modify_yaml)  # put back at the end
    Path("dvc.lock").write_text(TEXT)
    with pytest.raises(SystemExit):
        command.main(["--version"])
    with pytest.raises(RepresenterError), dvcfile.modify_yaml("dvc.lock") as content:
        content["stages"]["codes"] = object()
    assert Path("dvc.lock").read_text() == TEXT
    Path("dvc.yaml").write_text("stages: {}  # none\n")
    with dvcfile.modify_yaml("dvc.yaml") as content:
        content["vars"] = []
    assert Path("dvc.yaml").read_text() == "stages: {}  # none\nvars: []\n"
