"""What a stage declares in dvc.yaml: read as DVC reads it, compared at the end, and no less than what it uses."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import forked
import pytest

from tessera.core import files, seams
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.runtime import stage
from tessera.runtime.inputs import Declared, Inputs, declared
from tessera.runtime.stage import _require_declared_imports

PIPELINE = """\
stages:
  tokenizer:
    cmd: python -m stages.tokenizer
    deps:
    - stages/tokenizer.py
    - src/tokenizers/${tokenizer.name}.py
    - ${dataset.source}
    params:
    - seed
    - tokenizer.name
    - tokenizer.${tokenizer.name}
    - quantizer.beta
  diagnostics:
    foreach: ${diagnostics}
    do:
      cmd: python -m stages.diagnostics ${key}
      deps:
      - src/diagnostics/${ key }.py
      params:
      - diagnostics.${key}
  bare:
    cmd: echo
"""
RAW = {
    "seed": 0,
    "dataset": {"source": "data/a.parquet"},
    "tokenizer": {"name": "vqvae", "vqvae": {"channels": 8}, "other": {"channels": 1}},
    "quantizer": {"beta": 0.25},
    "diagnostics": {"usage": {}},
}
YAML = """\
seed: 0
dataset:
  source: data/a.parquet
tokenizer:
  name: vqvae
  vqvae:
    channels: 8
  other:
    channels: 1
quantizer:
  beta: 0.25
"""


@pytest.fixture
def repository(workspace: Path) -> Path:
    """Two files and a folder to depend on, and a params.yaml."""
    (workspace / "dvc.yaml").write_text(PIPELINE)
    (workspace / "params.yaml").write_text(YAML)
    (workspace / "code.py").write_text("a = 1")
    (workspace / "data" / "deep").mkdir(parents=True)
    (workspace / "data" / "a.npy").write_bytes(b"12345")
    (workspace / "data" / "deep" / "b.npy").write_bytes(b"67")
    return workspace


WHAT = Declared("tokenizer", ("code.py", "data", "absent.txt"), ("seed", "tokenizer.vqvae", "quantizer.beta"))


def edit_params(old: str, new: str) -> None:
    path = Path("params.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


# what dvc.yaml declares


def test_templates_are_resolved(repository):
    what = declared("tokenizer", None, RAW)
    assert what.name == "tokenizer"
    assert what.deps == ("stages/tokenizer.py", "src/tokenizers/vqvae.py", "data/a.parquet")
    assert what.params == ("seed", "tokenizer.name", "tokenizer.vqvae", "quantizer.beta")
    assert what.sections == {"seed", "tokenizer", "quantizer"}


def test_instances_of_a_foreach_have_their_key(repository):
    what = declared("diagnostics", "usage", RAW)
    assert what == Declared("diagnostics@usage", ("src/diagnostics/usage.py",), ("diagnostics.usage",))


def test_stage_without_deps_and_no_stage_at_all(repository):
    assert declared("bare", None, RAW) == Declared("bare", (), ())
    assert declared("nothing", None, RAW) is None
    assert declared("tokenizer", None, RAW, Path("no.yaml")) is None


# the fingerprint


def test_fingerprint_is_the_same_twice_and_belongs_to_the_stage(repository):
    assert Inputs(WHAT).fingerprint() == Inputs(WHAT).fingerprint()
    assert Inputs(WHAT._replace(name="other")).fingerprint() != Inputs(WHAT).fingerprint()


CHANGES = {
    "param": lambda: edit_params("beta: 0.25", "beta: 0.5"),
    "param inside a declared sub-section": lambda: edit_params("vqvae:\n    channels: 8", "vqvae:\n    channels: 9"),
    "file": lambda: Path("code.py").write_text("a = 2"),
    "file in a folder": lambda: Path("data/deep/b.npy").write_bytes(b"68"),
    "new file": lambda: Path("data/c.npy").write_bytes(b""),
    "file gone": lambda: Path("data/a.npy").unlink(),
    "file renamed": lambda: Path("data/a.npy").rename("data/b.npy"),
    "bytes moved from one file to the next": lambda: (
        Path("data/a.npy").write_bytes(b"123456"),
        Path("data/deep/b.npy").write_bytes(b"7"),
    ),
    "file that was absent": lambda: Path("absent.txt").write_text("now"),
}
NO_CHANGES = {
    "undeclared param": lambda: edit_params("other:\n    channels: 1", "other:\n    channels: 2"),
    "comment": lambda: edit_params("seed: 0", "seed: 0  # everything derives from it"),
    "bytecode": lambda: (Path("data/__pycache__").mkdir(), Path("data/__pycache__/a.pyc").write_bytes(b"x")),
    "touch": lambda: os.utime("code.py", (1, 1)),
    "the same again": lambda: Path("code.py").write_text("a = 1"),
    "undeclared file": lambda: Path("dvc.lock").write_text(""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_changes_with(repository, change):
    before = Inputs(WHAT).fingerprint()
    CHANGES[change]()
    assert Inputs(WHAT).fingerprint() != before


@pytest.mark.parametrize("change", NO_CHANGES)
def test_fingerprint_does_not_change_with(repository, change):
    before = Inputs(WHAT).fingerprint()
    NO_CHANGES[change]()
    assert Inputs(WHAT).fingerprint() == before


def test_fingerprint_without_a_section_leaves_out_its_values_and_its_plug_in(repository):
    """What a codebook that is fitted afterwards depends on is not what training depends on."""
    plug_in = Path("src/tessera/quantizers/ema.py")
    plug_in.parent.mkdir(parents=True)
    plug_in.write_text("a = 1")
    what = WHAT._replace(deps=(*WHAT.deps, plug_in.as_posix()), params=("seed", "quantizer.beta"))
    whole, training = Inputs(what).fingerprint(), Inputs(what).fingerprint(without=["quantizer"])
    edit_params("beta: 0.25", "beta: 0.5")
    plug_in.write_text("a = 2")
    assert Inputs(what).fingerprint(without=["quantizer"]) == training
    assert Inputs(what).fingerprint() != whole
    edit_params("seed: 0", "seed: 1")
    assert Inputs(what).fingerprint(without=["quantizer"]) != training


# the comparison at the end


@pytest.mark.parametrize("change", NO_CHANGES)
def test_unchanged_inputs_pass(repository, change):
    inputs = Inputs(WHAT)
    NO_CHANGES[change]()
    inputs.require_unchanged()


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(repository, change):
    inputs = Inputs(WHAT)
    CHANGES[change]()
    with pytest.raises(InputError, match="changed while tokenizer ran"):
        inputs.require_unchanged()


def test_all_edits_are_named(repository):
    inputs = Inputs(WHAT)
    for change in ("param", "file", "file in a folder"):
        CHANGES[change]()
    with pytest.raises(InputError, match=r"^quantizer\.beta, code\.py, data changed while tokenizer ran"):
        inputs.require_unchanged()


def test_an_edit_that_keeps_the_size_is_noticed(repository):
    inputs = Inputs(WHAT)
    Path("code.py").write_text("a = 3")
    with pytest.raises(InputError, match=r"^code\.py changed"):
        inputs.require_unchanged()


# what the stage imports


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """`only("core.seams")`: as if just that of tessera had been imported."""

    def forget(*names: str) -> None:
        for name in names:
            importlib.import_module(f"tessera.{name}")
        for name in [name for name in sys.modules if name.startswith("tessera.")]:
            if name.removeprefix("tessera.") not in names:
                monkeypatch.delitem(sys.modules, name)

    return forget


def relative(*parts: str) -> tuple[str, ...]:
    return tuple(str(seams.PACKAGE / part) for part in parts)


def test_undeclared_import_is_refused(only):
    only("core.seams", "scores")
    what = Declared("codes", relative("core"), ())
    with pytest.raises(AssertionError, match=r"codes uses tessera\.scores, but dvc\.yaml does not list its file"):
        _require_declared_imports(what)


def test_declared_imports_pass(only):
    only("core.seams", "scores", "runtime.inputs", "quantizers.ema")
    _require_declared_imports(Declared("codes", relative("core", "scores.py", "quantizers/ema.py"), ()))


def test_a_neighbour_of_the_declared_plug_in_is_refused(only, monkeypatch):
    only()
    neighbour = ModuleType("tessera.quantizers.fsq")
    neighbour.__file__ = str(seams.PACKAGE / "quantizers" / "fsq.py")
    monkeypatch.setitem(sys.modules, neighbour.__name__, neighbour)
    with pytest.raises(AssertionError, match=r"uses tessera\.quantizers\.fsq"):
        _require_declared_imports(Declared("codes", relative("core", "quantizers/ema.py"), ()))


# the entry point


@pytest.fixture
def stage_of_the_test(repository, monkeypatch, raw):
    """`enter` as the command `python stages/tokenizer.py` would call it, on params that count as valid."""
    monkeypatch.setattr(sys, "argv", ["stages/tokenizer.py"])
    monkeypatch.setattr(stage, "_validated", lambda: raw)
    monkeypatch.setattr(stage, "_require_declared_imports", lambda what: None)
    (repository / "src").mkdir()
    return repository


def test_stage_reads_what_it_declares(stage_of_the_test):
    seen = []
    stage.enter(lambda run: seen.append((list(run.params.chosen()), run.key)))
    assert seen == [(["seed", "tokenizer", "quantizer"], None)]
    with pytest.raises(AssertionError, match="params section 'prior'"):
        stage.enter(lambda run: run.params.value("prior.name"))


def test_stage_fails_by_name_when_an_input_changes(stage_of_the_test):
    with pytest.raises(SystemExit, match=r"^error in tokenizer: quantizer\.beta changed while tokenizer ran"):
        stage.enter(lambda run: CHANGES["param"]())


@pytest.mark.parametrize(
    "place",
    ["scorer", "perceptual", "tokenizer", "probe", "prior", "infiller", "upsampler"],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_precision_that_this_machine_lacks_stops_the_first_stage(stage_of_the_test, raw, monkeypatch, place, there):
    """Not the prior, hours later."""
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    section = raw
    for part in place.split("."):
        section = section[part]
    section["training"]["precision"] = "fp16"
    began = []
    if there:
        stage.enter(began.append)
    else:
        with pytest.raises(
            SystemExit, match=rf"no accelerator:\n  {place}\.training\.precision: must be float32 or bf16 on a CPU"
        ):
            stage.enter(began.append)
    assert bool(began) == there


def test_bad_input_ends_in_one_line(stage_of_the_test):
    def main(run: Run) -> None:
        raise InputError("dataset.source is empty")

    with pytest.raises(SystemExit, match=r"^error in tokenizer: dataset\.source is empty$"):
        stage.enter(main)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["tokenizer", "nonsense"],
            r"error in tokenizer@nonsense: python -m stages\.tokenizer takes no argument, got nonsense",
        ),
        (["diagnostics"], r"takes one key of section diagnostics of params\.yaml \(.*usage.*\), got none"),
        (["diagnostics", "usages"], r"error in diagnostics@usages: .*got usages$"),
        (["diagnostics", "usage", "probe"], r"got usage probe$"),
    ],
)
def test_keys_are_those_of_params(stage_of_the_test, monkeypatch, arguments, said):
    monkeypatch.setattr(sys, "argv", [f"stages/{arguments[0]}.py", *arguments[1:]])
    with pytest.raises(SystemExit, match=said):
        stage.enter(lambda run: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_training_stops_at_once(stage_of_the_test, capsys, number):
    after = []

    def main(run: Run) -> None:
        os.kill(os.getpid(), number)
        after.append("went on")

    with pytest.raises(SystemExit) as stopped:
        stage.enter(main, trains=True)
    assert (stopped.value.code, after) == (128 + number, [])
    assert f"tokenizer stopped at once by {number.name}" in capsys.readouterr().err
    assert not list((stage_of_the_test / ".scratch/tokenizer").glob("*/finished.json"))


def test_an_undeclared_import_leaves_the_stage_unfinished(stage_of_the_test, monkeypatch):
    monkeypatch.setattr(stage, "_require_declared_imports", lambda what: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.enter(lambda run: None, trains=True)
    assert not list((stage_of_the_test / ".scratch/tokenizer").glob("*/finished.json"))


def test_a_file_name_that_is_not_utf_8_is_hashed(repository):
    try:
        Path(os.fsdecode(b"caf\xe9")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert Inputs(Declared("dataset", (".",), ())).fingerprint()


def test_our_own_mistakes_keep_their_traceback(stage_of_the_test):
    def main(run: Run) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        stage.enter(main)


def test_training_stage_holds_its_scratch_and_marks_it_finished(stage_of_the_test, raw):
    held = []
    stage.enter(lambda run: held.append(run.runtime._scratch.folder), trains=True)
    what = declared("tokenizer", None, raw)
    assert held[0].name == Inputs(what).fingerprint()
    assert (held[0] / "finished.json").exists()


def test_failed_training_stage_is_not_finished(stage_of_the_test):
    with pytest.raises(SystemExit):
        stage.enter(lambda run: CHANGES["param"](), trains=True)
    assert not list((stage_of_the_test / ".scratch/tokenizer").glob("*/finished.json"))


def test_code_of_another_checkout_is_refused(workspace):
    """`dvc exp run --temp` copies the repository: a stage there must not run the code of the original."""
    (workspace / "src" / "tessera").mkdir(parents=True)
    with pytest.raises(InputError, match="not that in src/tessera"):
        stage._require_own_code()


def test_a_file_found_good_is_not_validated_again(repository, monkeypatch):
    monkeypatch.setattr(stage.seams, "PACKAGE", repository)
    calls = []

    def check(good: Path) -> int:
        calls.append(1)
        found = int("beta: -1" in Path("params.yaml").read_text())
        if not found:
            files.write_json(good, {"unread": {}})
        return found

    monkeypatch.setattr(stage, "_check", check)
    assert stage._validated() == stage._validated()
    assert len(calls) == 1
    (repository / "code.py").write_text("a = 2")  # new code, new rules
    stage._validated()
    stage._validated()
    assert len(calls) == 2
    edit_params("beta: 0.25", "beta: -1")
    for again in (3, 4):  # a file found bad is not remembered as good
        with pytest.raises(SystemExit) as caught:
            stage._validated()
        assert (caught.value.code, len(calls)) == (1, again)


def test_a_validation_that_is_killed_is_named_and_finds_nothing_good(repository, monkeypatch):
    monkeypatch.setattr(stage.seams, "PACKAGE", repository)
    monkeypatch.setattr(stage, "_record", lambda good: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(stage.sys, "platform", "linux")
    for _ in range(2):
        with pytest.raises(InputError, match=r"params\.yaml was killed by signal 9"):
            stage._validated()


@pytest.mark.parametrize("platform", [sys.platform, "any other"])
def test_validation_names_all_problems_and_imports_nothing_here(workspace, raw, monkeypatch, capfd, platform):
    monkeypatch.setattr(stage.sys, "platform", platform)
    monkeypatch.setattr(stage.subprocess, "run", forked.run)  # a process that need not load torch
    before = set(sys.modules)
    Path("params.yaml").write_text(json.dumps(raw))
    assert stage._check(workspace / "good.json") == 0
    assert "quantizer" in files.read_json(workspace / "good.json")["unread"]
    raw["codes"]["batch_size"], raw["features"]["batch_size"] = 0, 0
    Path("params.yaml").write_text(json.dumps(raw))
    assert stage._check(workspace / "bad.json") == 1
    assert not (workspace / "bad.json").exists()
    printed = capfd.readouterr()
    assert printed.err.startswith("error: params.yaml has 2 problems")
    assert "Traceback" not in printed.err
    assert not printed.out
    assert not {name for name in set(sys.modules) - before if name.startswith("tessera")}


def test_report_of_a_plug_in_that_does_not_apply(raw, monkeypatch, capsys):
    module = seams.plugin("diagnostics", "usage")
    monkeypatch.setattr(module, "requires", lambda params: "there are no codes", raising=False)
    report = Run(Params(raw), "usage").measure("diagnostics")
    assert report.metrics == {"applies": 0}
    assert capsys.readouterr().out == "diagnostics@usage does not apply: there are no codes\n"
