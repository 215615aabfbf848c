"""Studies: what their files may say, what runs share, what is collected, and which diagnostic is said to predict."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from committed import project
from ruamel.yaml import YAML
from test_mirror import closure

from tessera import presets
from tessera.core import files, trees
from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.studies import __main__ as command
from tessera.studies import correlation, direct, pages, plan, queue, results, sweep
from tessera.studies.results import Result

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def written(workspace, monkeypatch):
    """`written(name, text)`: a study in an empty repository that has our params, presets and pipeline."""
    for name in ("params.yaml", "dvc.yaml", "presets"):
        (workspace / name).symlink_to(project() / name)
    (workspace / "studies").mkdir()

    def write(name: str, text: str) -> sweep.Study:
        (workspace / "studies" / f"{name}.yaml").write_text(text)
        return sweep.load(name)

    return write


POOL = """title: Pool
text: two
base: {seed: 3}
runs:
  a: {}
  b: {quantizer.beta: 0.5}
  c: {preset: vqvae-small, seed: 4}
"""


# the file


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "studies").glob("*.yaml")))
def test_every_study_names_runs_and_values_that_there_are(name, monkeypatch):
    monkeypatch.chdir(project())
    study = sweep.load(name)
    _, owner = sweep.pool_of(name, study)
    assert study.title
    assert study.text
    raw = read()
    for run in sweep.shown(name, study):
        for changed in sweep.changes(owner, run):
            trees.value(raw, changed.removeprefix("~"))
    for source in [*study.columns.values(), *(f.x for f in study.figures if f.kind == "lines")]:
        assert ":" in source or trees.value(raw, source) is not None, source


def test_every_run_has_valid_params_and_stages(monkeypatch):
    """So that a study that was not run yet starts."""
    monkeypatch.chdir(project())
    raw = read()
    for study in map(sweep.load, sweep.names()):
        for run in study.runs:
            values = presets.applied(raw, sweep.changes(study, run))
        if study.runs:
            assert [stage.name for stage in plan.of(study.targets, values)][:4] == [
                "dataset",
                "scorer",
                "perceptual",
                "tokenizer",
            ]


def test_a_run_is_its_preset_then_the_base_then_its_own_values(written):
    study = written("pool", POOL)
    assert sweep.changes(study, "b") == {"seed": 3, "quantizer.beta": 0.5}
    assert sweep.changes(study, "c") == {
        "tokenizer.name": "vqvae",
        "tokenizer.vqvae.channels": 64,
        "tokenizer.vqvae.outer_channels": 16,
        "tokenizer.vqvae.blocks": 1,
        "tokenizer.vqvae.block_channels": 32,
        "codes.clusters.count": 0,
        "prior.conditions.cluster": "none",
        "prior.training.weight_decay": 0.05,
        "samples.top_p": 1.0,
        "samples.guidance.cluster": 1.0,
        "seed": 4,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: x\ntext: x\nrun: {}\n", "run: Extra inputs"),
        ("title: x\ntext: x\nruns: {'a b': {}}\n", "letters, digits"),
        ("title: x\ntext: x\nruns: {a: {}}\nshown: [z]\n", r"no runs z; there are a"),
        ("text: x\nruns: {a: {}}\n", "title: Field required"),
        (
            "title: x\ntext: x\nruns: {a: {quantizer.betta: 1}, b: {~seed.x: null}}\n",
            r"does not have:\n  runs\.a: quantizer\.betta\n  runs\.b: ~seed\.x",
        ),
        (
            "title: x\ntext: x\nruns: {a: {}}\ncolumns: {beta: quantizer.betta, usage: 'diagnostics/usage:x'}\n",
            r"columns: quantizer\.betta",
        ),
        (
            "title: x\ntext: x\nruns: {a: {}}\nfigures: [{kind: lines, x: seeed, y: 'a:b', title: x}]\n",
            "figures: seeed",
        ),
        ("title: x\ntext: x\npool: wrong\n", "pool wrong has no runs of its own; it names the pool wrong"),
        ("title: x\ntext: x\npool: other\nruns: {a: {}}\n", "runs of its own and those of the pool other"),
        (
            "title: x\ntext: x\nruns: {a: {}}\ntargets: [criterion]\n",
            r"wrong\.yaml: targets: dvc\.yaml has no stage criterion",
        ),
        (
            "title: x\ntext: x\nruns: {a: {}}\ncolumns: {p: 'criteria:passed'}\n",
            "verdicts, which are not kept: criteria:passed",
        ),
    ],
)
def test_mistakes_are_named(written, text, said):
    with pytest.raises(InputError, match=said):
        written("wrong", text)


def test_unknown_study_is_named(written):
    written("pool", POOL)
    with pytest.raises(InputError, match=r"studies/pol\.yaml: there is no such study; there are pool"):
        sweep.load("pol")


# without DVC

QUANTIZER, SOURCE = (
    read(ROOT / "params.yaml")[section][name] for section, name in [("quantizer", "name"), ("dataset", "source")]
)
CHOSEN = f"src/tessera/quantizers/{QUANTIZER}.py"
CODE = ("src/tessera/core/models.py", "stages/samples.py", CHOSEN, SOURCE, "versions.yaml",
        "src/tessera/quantizers/other.py", "src/tessera/extensions/atlas/__init__.py")  # fmt: skip


@pytest.fixture
def made(written, workspace, monkeypatch):
    """`made(run)`: the stages that a direct run had to do itself; the work of a stage is to write its outputs."""
    did = []
    for name in CODE:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("torch: 1\nseaborn: 1\n")

    def work(stage, key, raw):
        did.append(stage)
        (own,) = [each for each in plan.instances(raw, workspace) if (each.stage, each.key) == (stage, key)]
        for path in own.outputs:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"seed": raw["seed"]}) if path.endswith(".json") else "epoch,val_usage\n1,0.5\n"
            Path(path).write_text(text)

    monkeypatch.setattr(direct, "_work", work)
    written("pool", POOL + "  hot: {samples.temperature: 1.5}\n")

    def make(run: str) -> list[str]:
        did.clear()
        assert direct.one("pool", run, {"threads": 1}) == 0
        return list(dict.fromkeys(did))

    return make


def test_runs_share_what_stages_make_of_the_same_values(made):
    first = made("a")
    assert first[:2] == ["dataset", "scorer"]
    assert "report" not in first
    assert made("a") == []
    assert made("hot") == ["samples", "features", "evaluation", "criteria"]
    assert made("b")[0] == "tokenizer"
    assert made("c")[0] == "dataset"  # another seed


@pytest.mark.parametrize(
    ("edited", "first"),
    [
        ("src/tessera/core/models.py", "dataset"),
        ("src/tessera/core/new.py", "dataset"),
        (SOURCE, "dataset"),
        ("versions.yaml", "scorer"),  # another torch
        (CHOSEN, "tokenizer"),
        ("stages/samples.py", "samples"),
        ("src/tessera/quantizers/other.py", None),  # not chosen
        ("src/tessera/extensions/atlas/__init__.py", None),  # not run
    ],
)
def test_what_was_made_before_an_edit_is_not_taken_after_it(made, workspace, edited, first):
    made("a")
    (workspace / edited).write_text("torch: 2\nseaborn: 1\n")
    assert (made("a") or [None])[0] == first


@pytest.mark.parametrize("name", ["tokenizer", "samples"])
def test_a_stage_is_known_by_every_file_that_it_imports(name, tmp_path):
    """An edit of a file that the stage uses changes its key; one of a plug-in that is not chosen does not."""
    for folder in ("src", "stages"):
        shutil.copytree(
            project() / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for file in ("dvc.yaml", "versions.yaml"):
        shutil.copy(project() / file, tmp_path)
    raw = read(project() / "params.yaml")
    *before, stage = plan.of([name], raw, tmp_path)
    assert stage.name == name

    def key() -> str:
        cache = direct.Cache(raw, tmp_path)
        cache._made = {output: "made" for each in before for output in each.outputs}
        return cache._fingerprint(stage)

    def differs(file: str) -> bool:
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(f"{text}\n")
        other = key()
        (tmp_path / file).write_text(text)
        return other != kept

    kept = key()
    chosen = {ROOT / dep for dep in stage.deps if dep.endswith(".py")}
    used = [file.relative_to(ROOT).as_posix() for file in closure({ROOT / f"stages/{name}.py", *chosen})]
    used = [
        file for file in used if not file.startswith(("src/tessera/runtime", "src/tessera/__init__"))
    ]  # of no result
    assert len(used) > 10
    assert [file for file in used if not differs(file)] == []
    others = [path.relative_to(tmp_path).as_posix() for seam in ("quantizers", "priors", "extensions")
              for path in (tmp_path / "src/tessera" / seam).rglob("*.py")]  # fmt: skip
    others = [file for file in others if file not in used and not file.endswith("__init__.py")]
    assert len(others) > 10
    assert [file for file in others if file not in stage.deps and differs(file)] == []


def test_values_of_the_stage_extractor_are_read_as_those_of_its_successors():
    kept = {"extractor.name": "classifier", "extractor.training.precision": "no"}
    scorer = {"scorer.name": "classifier", "scorer.training.precision": "float32"}
    perceptual = {"perceptual.name": "classifier", "perceptual.training.precision": "float32"}
    assert plan.today(kept) == scorer
    on = {"losses.perceptual.weight": 0.1}
    assert plan.today(kept | on) == scorer | perceptual | on


def test_values_of_networks_that_extensions_trained_are_read_as_those_of_the_stages():
    kept = {
        "extensions.super_resolution.channels": 8, "extensions.super_resolution.training.lr": 0.1,
        "extensions.inpainting.network.heads": 2, "extensions.inpainting.training.precision": "no",
        "extensions.inpainting.steps": 3, "extensions.inpainting.shown": 2,
    }  # fmt: skip
    assert plan.today(kept) == {
        "upsampler.bicubic_residual.channels": 8, "upsampler.training.lr": 0.1, "infiller.heads": 2,
        "infiller.training.precision": "float32", "infiller.steps": 3, "extensions.inpainting.shown": 2,
    }  # fmt: skip


def test_a_network_that_the_loss_does_not_ask_for_counts_for_no_result():
    raw = read(project() / "params.yaml")
    assert not [name for name in plan.counted(["tokenizer"], raw, ROOT) if "perceptual" in name]
    raw["losses"]["perceptual"]["weight"] = 0.1
    counted = plan.counted(["tokenizer"], raw, ROOT)
    assert {"losses.perceptual.weight", "perceptual.name", "perceptual.classifier.features"} <= set(counted)


def test_what_was_made_with_other_weights_is_not_taken(made, workspace, monkeypatch):
    params = sweep.params
    perceptual = {"perceptual": {"weight": 1.0, "weights": "vgg.pth", "weights_sha256": ""}}
    monkeypatch.setattr(sweep, "params", lambda *of: (raw := params(*of)) | {"losses": raw["losses"] | perceptual})
    (workspace / "vgg.pth").write_text("weights")
    made("a")
    (workspace / "vgg.pth").write_text("others")
    assert made("a")[:2] == ["perceptual", "tokenizer"]


def test_what_is_edited_while_a_stage_runs_belongs_to_no_version(made, workspace, monkeypatch):
    work = direct._work
    monkeypatch.setattr(direct, "_work", lambda *of: (work(*of), (workspace / CODE[0]).write_text("edited")))
    assert direct.one("pool", "a", {}) == 1
    assert "src/tessera/core changed while dataset ran" in (direct.folder("pool", "a") / direct.DONE).read_text()
    assert not [path for path in (workspace / ".scratch/studies/cache/dataset").iterdir() if path.suffix != ".lock"]


def test_a_direct_run_is_collected_and_a_failed_one_said(made, monkeypatch, workspace):
    made("a")
    monkeypatch.setattr(direct, "_work", lambda *_: 1 / 0)
    assert direct.one("pool", "c", {}) == 1
    assert "ZeroDivisionError" in (direct.folder("pool", "c") / direct.DONE).read_text()
    study = sweep.load("pool")
    found = {result.run: result for result in results.collect("pool", study, None)}
    states = {name: result.state for name, result in found.items()}
    assert states == {"a": "done", "b": "missing", "c": "failed", "hot": "missing"}
    assert found["a"].metrics["evaluation/frechet:seed"] == 3
    assert not any(name.startswith(("gate:", "criteria:")) for name in found["a"].metrics)
    assert list(found["a"].curves["tokenizer"]["val_usage"]) == [0.5]
    assert [r.run for r in results.missing(found.values(), sweep.counted(study))] == ["b", "c", "hot"]


@pytest.mark.parametrize(("code", "left", "said"), [(0, "done", "done"), (1, "done", "failed"), (1, "", "failed")])
def test_a_run_that_fails_is_not_what_an_earlier_one_was(workspace, monkeypatch, capsys, code, left, said):
    done = direct.folder("pool", "a") / direct.DONE
    done.parent.mkdir(parents=True)
    done.write_text('{"state": "done"}')
    process = f"import sys, pathlib; assert not (p := pathlib.Path({str(done)!r})).exists()\n"
    process += f'{left!r} and p.write_text(\'{{"state": "{left}"}}\'); sys.exit({code})'
    started = direct.subprocess.Popen
    monkeypatch.setattr(direct.subprocess, "Popen", lambda _, **how: started([sys.executable, "-c", process], **how))
    direct.start("pool", ["a"], 1, [])
    assert f"a: {said}" in capsys.readouterr().out
    assert direct.state("pool", "a") == said


@pytest.mark.parametrize("source", ["../set", "data/set", "/set"])
def test_a_source_is_found_from_the_folder_of_a_run(made, workspace, monkeypatch, source):
    params, given = sweep.params, []
    monkeypatch.setattr(
        sweep, "params", lambda *of: (raw := params(*of)) | {"dataset": raw["dataset"] | {"source": source}}
    )
    monkeypatch.setattr(direct, "_work", lambda stage, key, raw: given.append(raw["dataset"]["source"]) or 1 / 0)
    assert direct.one("pool", "a", {}) == 1
    assert given == [str((workspace / source).resolve())]


def test_runtime_options_are_of_that_section():
    assert direct.options(["threads=2", "device=cpu", "checkpoint_seconds=1.5"]) == {
        "threads": 2, "device": "cpu", "checkpoint_seconds": 1.5,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"--runtime takes NAME=VALUE"):
        direct.options(["thread=2"])


# with DVC


def test_experiments_are_read_as_dvc_shows_them(written, monkeypatch):
    shown = [
        {"rev": "workspace", "name": None, "experiments": None},
        {"rev": "e4", "name": "main", "experiments": [
            {"name": "pool-a", "executor": {"state": "success"}, "revs": [{"rev": "cf", "data": {"metrics": {
                "metrics/diagnostics/usage.json": {"data": {"grid_0": {"usage": 0.5}}},
                "metrics/extensions/atlas.json": {"data": {"of": "the committed run"}}}}}]},
            {"name": "pool-b", "executor": {"state": "failed"}, "revs": [{"rev": "e0", "data": {"metrics": {
                "metrics/prior.json": {"error": {"type": "FileNotFoundError"}}}}}]},
            {"name": "mine", "executor": None, "revs": [{"rev": "aa", "data": {}}]},
        ]},
    ]  # fmt: skip
    monkeypatch.setattr(queue, "dvc", lambda *_: json.dumps(shown))
    monkeypatch.setattr(queue, "read", lambda revision, path: "epoch,val_usage\n1,0.25\n" if revision == "cf" else None)
    study = written("pool", POOL)
    ours = {run: {"params.yaml": {"data": sweep.params(study, run)}} for run in study.runs}
    for entry in shown[1]["experiments"][:2]:
        entry["revs"][0]["data"]["params"] = ours[entry["name"].removeprefix("pool-")]
    a, b, c = results.collect("pool", study)
    assert (a.state, b.state, c.state) == ("done", "failed", "missing")
    assert a.metrics == {"diagnostics/usage:grid_0.usage": 0.5}  # not those of stages that the targets do not run
    assert a.curves["tokenizer"]["val_usage"].iloc[0] == 0.25


# runs in the queue


class Dvc:
    """Answers of dvc, as its queue stands at each look: tasks as (name, state), experiments by commit, workers."""

    def __init__(self, looks: list[dict], monkeypatch) -> None:
        self.looks, self.asked, self.name = looks, [], "pool-a"
        monkeypatch.setattr(queue, "dvc", self)
        monkeypatch.setattr(queue.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        assert len(self.asked) < 200, "it waits for ever"
        if self.started and len(self.looks) > 1:
            self.looks.pop(0)
        if self.started and (then := self.look.get("then")):
            then()

    @property
    def started(self) -> bool:
        return ("queue", "start", "-j", "1") in self.asked

    @property
    def look(self) -> dict:
        return self.looks[0] if self.started else {}

    def __call__(self, *arguments: str) -> str:
        self.asked.append(arguments)
        recorded = self.look.get("recorded", ())
        match arguments[:2]:
            case "queue", "status":
                rows = [f"{index:07x}  {name}  08:{index:02} AM  {state}" for index, (name, state) in
                        enumerate(self.look.get("tasks", ()))]  # fmt: skip
                return "\n".join(
                    [
                        "Task  Name  Created  Status",
                        *rows,
                        "",
                        f"Worker status: {self.look.get('workers', 0)} active, 0 idle",
                    ]
                )
            case "exp", "list":
                return "\n".join(name for name, commit in recorded if commit == arguments[-1])
            case "exp", "show":
                at = arguments[arguments.index("--rev") + 1] if "--rev" in arguments else queue.head()
                names = [name for name, commit in recorded if commit == at]
                entries = [{"name": n, "executor": None, "revs": [{"rev": "cf", "data": {}}]} for n in names]
                return json.dumps([{"rev": at, "name": None, "experiments": entries}])
        return ""


@pytest.fixture
def cloned(written, workspace):
    """A git repository, and its first commit."""
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "start")
    (workspace / SOURCE).parent.mkdir(parents=True, exist_ok=True)
    (workspace / SOURCE).touch()
    git("add", SOURCE)
    return queue.head()


def git(*arguments: str, **how: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always")
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True, **how).stdout


MINE = "pool-a"
ENDS = {
    "success": ([("Running", 1), ("Success", 1)], True, "done"),
    "failed": ([("Running", 1), ("Failed", 1)], False, "failed"),
    "worker killed while it ran": ([("Running", 1), ("Running", 0)], False, "lost"),
    "worker dead before it began": ([("Queued", 0)], False, "stranded"),
    "busy worker that does not always answer": (
        [("Running", 1), ("Running", 0), ("Running", 1), ("Success", 1)],
        True,
        "done",
    ),
    "task removed": ([("Queued", 1), ("", 1)], False, "removed"),
    "success without record": ([("Running", 1), ("Success", 1)], False, "unrecorded"),
    "two of one name": ([("Running", 1), ("Success Queued", 1), ("Success Success", 1)], True, "done"),
    "two of one name, both lost": ([("Success Success", 0)], False, "unrecorded"),
}


@pytest.mark.parametrize(
    ("case", "head_moves"),
    [
        *((case, False) for case in ENDS),
        *((case, True) for case in ("success", "failed", "task removed", "worker killed while it ran")),
    ],
)
def test_a_study_ends_whatever_becomes_of_a_run(cloned, written, monkeypatch, capsys, case, head_moves):
    study, (looks, recorded, end) = written("pool", POOL), ENDS[case]
    looks = [{"tasks": [(MINE, state) for state in states.split()], "workers": workers} for states, workers in looks]
    looks = [{}, *looks]
    looks[-1]["recorded"] = [(MINE, cloned)] if recorded else []
    if head_moves:
        looks[1]["then"] = lambda: git("commit", "--allow-empty", "-q", "-m", "moved")
    dvc = Dvc(looks, monkeypatch)
    assert queue.start("pool", study, ["a"], 1) == ({"a": end}, [cloned])
    said = capsys.readouterr().out
    assert re.search(rf"^a: {end}\b", said, re.M)
    assert (end == "done") == (f"a: {end}\n" in said)  # else what to do is said
    assert (("queue", "kill", "0000000") in dvc.asked) == (end == "lost")


def test_what_is_left_in_the_queue_under_a_name_makes_way(cloned, written, monkeypatch):
    study = written("pool", POOL)
    old = {"tasks": [(MINE, "Failed"), ("pool-b", "Queued"), (MINE, "Running")], "recorded": [(MINE, cloned)]}
    dvc = Dvc([{}, {"tasks": [(MINE, "Success")], "recorded": [(MINE, cloned)]}], monkeypatch)
    monkeypatch.setattr(Dvc, "look", property(lambda self: self.looks[0] if self.started else old))
    assert queue.start("pool", study, ["a"], 1)[0] == {"a": "done"}
    asked = [
        arguments for arguments in dvc.asked if arguments[0] + arguments[1] in ("queueremove", "queuekill", "expremove")
    ]
    assert asked[0] == ("queue", "remove", "0000000")
    assert {("queue", "kill", "0000002"), ("queue", "remove", "0000002"), ("exp", "remove", MINE)} <= set(asked)
    assert ("queue", "remove", "0000001") not in asked  # another run's


def test_a_shallow_clone_is_refused_before_anything_is_queued(cloned, written, monkeypatch, tmp_path_factory):
    written("pool", POOL)
    git("add", "-A")
    git("commit", "-q", "-m", "more")
    there = tmp_path_factory.mktemp("clone") / "shallow"
    git("clone", "-q", "--depth", "1", f"file://{Path.cwd()}", str(there))
    monkeypatch.chdir(there)
    dvc = Dvc([{}], monkeypatch)
    with pytest.raises(InputError, match="git fetch --unshallow"):
        queue.start("pool", sweep.load("pool"), ["a"], 1)
    assert dvc.asked == []


@pytest.mark.parametrize(
    ("source", "known", "said"),
    [
        ("photos", (), r"photos: 2 files of it, photos/0\.png for one, are neither in git nor in DVC"),
        ("photos", ("photos/0.png",), r"photos: 1 files of it, photos/1\.png"),
        ("photos/0.png", (), r"photos/0\.png: it is neither"),
        ("nowhere", (), "there is no nowhere"),
        ("../outside", (), "lies outside the repository"),
        ("photos", ("photos",), ""),
        ("photos", ("photos.dvc",), ""),
        ("photos/0.png", ("photos.dvc",), ""),
        ("/absolute", (), ""),
    ],
)
def test_a_source_that_a_queued_run_would_not_see_is_refused(
    cloned, written, workspace, source, known, said, monkeypatch
):
    for name in ("photos", "../outside"):
        (workspace / name).mkdir(exist_ok=True)
        for index in range(2):
            (workspace / name / f"{index}.png").touch()
    (workspace / "photos" / ".DS_Store").touch()
    (workspace / "photos.dvc").touch()
    for name in known:
        git("add", name)
    source = str(workspace / "photos") if source == "/absolute" else source
    study = written("pool", f"title: x\ntext: x\nruns: {{a: {{dataset.source: {source}}}}}\n")
    dvc = Dvc([{}, {}], monkeypatch)
    if said:
        with pytest.raises(InputError, match=rf"dataset\.source: .*{said}.*\(run a\)"):
            queue.start("pool", study, ["a"], 1)
        assert dvc.asked == []
    else:
        assert queue.start("pool", study, ["a"], 1)[0] == {"a": "removed"}


# what is kept


def row(name: str, state: str = "done", study: sweep.Study | None = None, **metrics: float) -> Result:
    curve = pd.DataFrame({"epoch": [1, 2], "val_usage": [0.5, 0.75]})
    values = sweep.counted(study)[name] if study else {}
    return Result(name, state, metrics, {"tokenizer": curve} if state == "done" else {}, results.digest(values), values)


def test_what_is_kept_is_what_was_collected(workspace):
    rows = [row("a", x=1.0), row("b", "failed"), row("c", x=2.0, y=3.0)]
    results.save("pool", rows)
    again = results.load("pool")
    assert [(r.run, r.state, r.metrics) for r in again] == [(r.run, r.state, r.metrics) for r in rows]
    pd.testing.assert_frame_equal(again[2].curves["tokenizer"].reset_index(drop=True), rows[2].curves["tokenizer"])


def test_a_metric_that_was_kept_under_an_older_name_is_found_by_the_one_of_today(workspace):
    results.save("pool", [row("a", **{"diagnostics/probe:fraction_saved": 0.3, "diagnostics/probes:x": 1.0})])
    assert "diagnostics/probe:fraction_saved" in (results.PAGES / "pool.csv").read_text()
    (again,) = results.load("pool")
    assert again.metrics == {"probe:fraction_saved": 0.3, "diagnostics/probes:x": 1.0}
    assert (
        results.metric(again, "probe:fraction_saved")
        == results.metric(again, "diagnostics/probe:fraction_saved")
        == 0.3
    )


@pytest.mark.parametrize("name", ["mse", "psnr_db_per_image", "ssim", "by_family.ssim"])
def test_a_metric_of_the_test_split_says_so_and_is_found_where_it_did_not(workspace, name):
    results.save("pool", [row("a", **{f"reconstruction:{name}": 0.3, "reconstruction:val.mse": 0.5})])
    (again,) = results.load("pool")
    assert again.metrics == {f"reconstruction:test.{name}": 0.3, "reconstruction:val.mse": 0.5}
    assert results.metric(again, f"reconstruction:{name}") == 0.3


def test_metric_is_the_mean_over_grids():
    both = row("a", **{"diagnostics/usage:grid_0.usage": 0.5, "diagnostics/usage:grid_1.usage": 1.0})
    assert results.metric(both, "diagnostics/usage:grid_*.usage") == 0.75
    assert np.isnan(results.metric(both, "diagnostics/usage:grid_*.perplexity"))


def test_page_has_table_figures_published_figures_and_what_failed(written):
    text = POOL + (
        "columns: {beta: quantizer.beta, usage: 'diagnostics/usage:grid_*.usage'}\nfindings: Up.\nfigures:\n"
        "- {kind: lines, x: quantizer.beta, y: 'diagnostics/usage:grid_*.usage', title: Use}\n"
        "- {kind: curves, x: epoch, y: val_usage, title: Over epochs}\n"
        "published:\n- {source: Theirs, columns: [beta, usage], rows: [[0.1, 0.6]]}\n"
    )
    study = written("pool", text)
    usage = {"diagnostics/usage:grid_0.usage": 0.625}
    results.save("pool", [row("a", study=study, **usage), row("b", "failed", study), row("c", study=study, **usage)])
    page = pages.write("pool", study).read_text()
    assert f"| a | {pages.short(read()['quantizer']['beta'])} | 0.625 |" in page
    assert "| b | 0.5 | - |" in page
    assert "Without result: `b` (failed)" in page
    assert "| 0.1 | 0.6 |" in page
    pictures = sorted(path.name for path in pages.FIGURES.glob("*.png"))
    assert len(pictures) == 2
    assert all(f"figures/{name}" in page for name in pictures)


@pytest.mark.parametrize("count", [2, 13])
def test_neighbouring_curves_of_many_runs_differ_in_style_and_epochs_are_whole(written, count):
    names = [f"run-{i}" for i in range(count)]
    runs = "".join(f"  {name}: {{quantizer.beta: {i + 1}.5}}\n" for i, name in enumerate(names))
    study = written(
        "many",
        f"title: Many\ntext: x\nruns:\n{runs}"
        "columns: {beta: quantizer.beta}\nfindings: x\nfigures:\n- {kind: curves, x: epoch, y: val_usage, title: x}\n",
    )
    rows = [row(name, study=study) for name in names]
    (axis,) = pages.plot(study.figures[0], study, rows, study).axes
    styles = [line.get_linestyle() for line in axis.lines]
    assert len(styles) == count
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == count
    assert all((a == b) == (count == 2) for a, b in itertools.pairwise(styles))
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def test_a_study_that_was_not_run_yet_says_so_and_has_no_page(written, monkeypatch, capsys):
    written("pool", POOL)
    written("part", "title: Part\ntext: x\npool: pool\nshown: [a]\n")
    monkeypatch.setattr(queue, "dvc", lambda *_: "[]")
    for options in (["pool", "--page"], ["part", "--page"], ["part", "--page", "--direct"]):
        assert command.main(options) == 1
        assert "pool: no run has a result yet" in capsys.readouterr().err
    assert not results.PAGES.exists()
    assert command.main([]) == command.main(["--missing"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"(?m)^(\w+) .*\(not run yet\)$", said) == ["part", "pool"]
    assert re.findall(r"(?m)^(\S+): not run yet$", said) == ["pool/a", "pool/b", "pool/c"]


def test_a_study_of_which_one_run_failed_has_a_page(written, monkeypatch, capsys):
    written("pool", POOL)
    monkeypatch.setattr(queue, "dvc", lambda *_: "[]")
    files.write_json(direct.folder("pool", "a") / direct.PARAMS, sweep.params(sweep.load("pool"), "a"))
    files.write_json(direct.folder("pool", "a") / direct.DONE, {"state": "failed"})
    assert command.main(["pool", "--page"]) == 0
    assert "`a` (failed), `b` (not run yet)" in (results.PAGES / "pool.md").read_text()
    assert command.main([]) == 0
    assert "not run yet" not in capsys.readouterr().out


CHANGES = {  # file, dotted name ("/" in a run), other value; whether results are of other values then
    "run": ("studies/pool.yaml", "runs/b/quantizer.beta", 0.7, True),
    "run, a value more": ("studies/pool.yaml", "runs/b/samples.top_k", 3, True),
    "base of the pool": ("studies/pool.yaml", "base/seed", 5, True),
    "preset": ("presets/small.yaml", "tokenizer.vqvae.channels", 32, True),
    "params.yaml": ("params.yaml", "quantizer/decay", 0.5, True),
    "data set": ("params.yaml", "dataset/source", "photos", True),
    "chosen plug-in": ("params.yaml", "quantizer/name", "simvq", True),
    "chosen loss": ("params.yaml", "losses/l1/weight", 0.5, True),
    "new name": ("params.yaml", "diagnostics/usage/new", 1, True),
    "nothing": ("params.yaml", "seed", 0, False),  # of the base are other seeds
    "another alternative": ("params.yaml", "prior/masked/bound_draws", 9, False),
    "loss of weight 0": ("params.yaml", "losses/code_entropy/diversity", 2.0, False),
    "the machine": ("params.yaml", "runtime/threads", 7, False),
    "threshold": ("params.yaml", "criteria/thresholds/rung/at_most", 4.5, False),
    "extension": ("params.yaml", "extensions/interpolation/frames", 11, False),
    "the same, otherwise written": ("studies/pool.yaml", "base/tokenizer.training.lr", 1, False),  # not 1.0
}
PINNED = {
    "quantizer/name": "ema",
    "prior/name": "pixelsnail",
    "losses/l1/weight": 0.0,
    "losses/code_entropy/weight": 0.0,
}


def put(file: Path, values: dict[str, object]) -> None:
    raw = read(file)
    for name, value in values.items():
        *place, last = name.split("/")
        section = raw
        for part in place:
            section = section[part]
        section[last] = value
    with open(file, "w") as stream:
        YAML(typ="safe").dump(raw, stream)


@pytest.fixture
def kept(workspace):
    """A study with files of its own, whose runs `a` (no more than the base), `b` (a value) and `c` (a preset) have results."""
    for name in ("studies", "presets"):
        (workspace / name).mkdir()
    (workspace / "presets/small.yaml").write_text("tokenizer.vqvae.channels: 64\n")
    for name in ("params.yaml", "dvc.yaml"):
        (workspace / name).write_text((project() / name).read_text())
    put(workspace / "params.yaml", PINNED)
    text = POOL.replace("vqvae-small", "small").replace("{seed: 3}", "{seed: 3, tokenizer.training.lr: 1.0}")
    (workspace / "studies/pool.yaml").write_text(
        text + "columns:\n  beta: quantizer.beta\n  mse: reconstruction:test.mse\n"
    )
    study = sweep.load("pool")
    results.save("pool", [row(run, study=study, **{"reconstruction:test.mse": 0.25}) for run in study.runs])
    return study


def change_of(workspace: Path, change: str) -> tuple[str, str, bool]:
    """Make the change; a run that it concerns, the name that is said to differ, whether any is."""
    file, name, value, differs = CHANGES[change]
    put(workspace / file, {name: value})
    return (
        "c" if change == "preset" else "b",
        name.removeprefix("runs/b/").removeprefix("base/").replace("/", "."),
        differs,
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_page_shows_no_result_of_other_values(kept, workspace, change, capsys):
    before = results.load("pool")
    run, name, differs = change_of(workspace, change)
    page = pages.write("pool", sweep.load("pool")).read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {run} |")]
    assert line.endswith("| - |" if differs else "| 0.25 |")
    assert (f"`{run}` (made with other values: " in page) == (f"{name} " in page) == differs
    assert [r.metrics for r in results.load("pool")] == [r.metrics for r in before]  # nothing is lost
    assert command.say_missing(["pool"], without_dvc=True) == 0
    assert (
        bool(re.search(rf"^pool/{run}: made with other values: .*{re.escape(name)} ", capsys.readouterr().out, re.M))
        == differs
    )


@pytest.mark.parametrize("change", ["run", "base of the pool", "preset", "chosen plug-in", "new name"])
def test_only_new_and_missing_names_can_be_declared_harmless(kept, workspace, change):
    run = change_of(workspace, change)[0]
    values = sweep.counted(sweep.load("pool"))
    if change == "new name":
        assert len(list(results.declare("pool", values))) == 3
        assert not list(results.missing(results.load("pool"), values))
    else:
        with pytest.raises(InputError, match="no kept result differs"):
            list(results.declare("pool", {run: values[run]}))


@pytest.mark.parametrize("at", ["experiment", "folder"])
@pytest.mark.parametrize("change", ["nothing", "run", "params.yaml", "another alternative"])
def test_an_experiment_or_a_folder_of_that_name_and_other_values_is_no_result(kept, workspace, monkeypatch, at, change):
    (results.PAGES / "pool.csv").unlink()
    raw = sweep.params(kept, "b")
    entry = {
        "name": "pool-b",
        "revision": "cf",
        "state": "success",
        "metrics": {"metrics/reconstruction.json": {"mse": 0.5}},
    }
    monkeypatch.setattr(queue, "experiments", lambda commits: [entry | {"params": raw}] if at == "experiment" else [])
    monkeypatch.setattr(queue, "read", lambda revision, path: None)
    if at == "folder":
        files.write_json(direct.folder("pool", "b") / direct.PARAMS, raw)
        files.write_json(direct.folder("pool", "b") / direct.DONE, {"state": "done"})
        files.write_json(direct.folder("pool", "b") / "metrics/reconstruction.json", {"mse": 0.5})
    differs = change_of(workspace, change)[-1]
    study = sweep.load("pool")
    found = results.collect("pool", study)
    assert ("b" in [r.run for r in results.missing(found, sweep.counted(study))]) == differs
    results.save("pool", found)
    assert ("| 0.5 | 0.5 |" in pages.write("pool", study).read_text()) == (not differs)


def test_a_result_of_unknown_values_is_none(kept):
    table = pd.read_csv(results.PAGES / "pool.csv").drop(columns="values")  # as it was kept before values were
    table.to_csv(results.PAGES / "pool.csv", index=False)
    lost = list(results.missing(results.load("pool"), sweep.counted(kept)))
    assert [r.why for r in lost] == ["made with other values: nothing is known of its values"] * 3


@pytest.mark.parametrize(
    "name", sorted(path.stem.removesuffix("-values") for path in (project() / "docs" / "studies").glob("*.json"))
)
def test_committed_results_are_of_the_values_beside_them(name, monkeypatch):
    monkeypatch.chdir(project())
    kept = results.load(name)
    assert kept
    assert all(result.values and result.digest == results.digest(result.values) for result in kept)


def pages_of_studies() -> list[str]:
    """Pages that a study wrote; that of the judges is of a benchmark."""
    names = [path.stem for path in (project() / "docs" / "studies").glob("*.md")]
    return sorted(name for name in names if (project() / "studies" / f"{name}.yaml").exists())


@pytest.mark.parametrize("name", pages_of_studies())
def test_committed_page_is_that_of_the_committed_runs(name, monkeypatch):
    monkeypatch.chdir(project())
    study = sweep.load(name)
    pool, owner = sweep.pool_of(name, study)
    found = {result.run: result for result in results.load(pool)}
    rows = [
        found[run] for run in sweep.shown(name, study) if run in found
    ]  # the page names runs that have not been run
    values = sweep.counted(owner)
    own = [row for row in rows if results.fitting(row, values[row.run]) is row]  # others are of an edited params.yaml
    page = (results.PAGES / f"{name}.md").read_text()
    if study.columns and own:
        for line in pages.markdown(pages.table(study, own, owner).map(pages.short)).splitlines():
            assert line in page
    if study.correlations and own == rows:
        done = [row for row in rows if row.state == "done"]
        assert pages.markdown(correlation.outcomes(done).map(pages.short)) in page
    if study.findings:
        assert study.findings.strip() in page


# which diagnostic predicts


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_scipys(seed):
    draws = np.random.default_rng(seed)
    x, y = draws.integers(0, 6, 20).astype(float), draws.standard_normal(20)  # x has ties
    assert correlation.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_of_a_constant_is_none():
    assert np.isnan(correlation.spearman(np.ones(5), np.arange(5.0)))


def test_excess_is_what_the_rate_does_not_explain():
    rate = np.array([128.0, 256, 512, 1024, 2048])
    assert correlation.excess(rate, 0.8 * rate**0.9) == pytest.approx(np.zeros(5), abs=1e-12)
    worse = 0.8 * rate**0.9 * np.array([1, 1, 2.0, 1, 1])
    assert correlation.excess(rate, worse).argmax() == 2
    assert correlation.excess(np.full(3, 64.0), np.array([2.0, 4, 8])) == pytest.approx([-1, 0, 1])


def test_interval_holds_the_correlation_and_narrows_with_runs():
    draws = np.random.default_rng(0)
    x = draws.standard_normal(80)
    y = x + draws.standard_normal(80)
    few, many = correlation.interval(x[:16], y[:16]), correlation.interval(x, y)
    assert many[0] < correlation.spearman(x, y) < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def made_up(n: int = 12) -> list[Result]:
    """Runs whose `good` diagnostic orders the excess bits, whose `noise` does not, on two numbers of codes."""
    draws, rows = np.random.default_rng(1), []
    for index in range(n):
        codes = 64 if index % 3 else 16
        metrics = {
            correlation.CODES: codes, correlation.RATE: 8.0 * codes, correlation.BITS: 4 + 0.1 * index,
            "evaluation/frechet:all.fd_classifier.samples_test": 2.0 + index,
            "evaluation/frechet:all.fd_classifier.reconstruction_test": 1.0,
            "evaluation/frechet:all.kid_classifier.samples_test": 0.1 * index,
            "evaluation/frechet:all.kid_classifier.reconstruction_test": 0.0,
            "diagnostics/good:grid_0.value": float(index), "diagnostics/noise:value": draws.standard_normal(),
            "diagnostics/same:value": 1.0, "probe:fraction_saved": -float(index),
        }  # fmt: skip
        rows.append(Result(f"run-{index}", "done", metrics, {}))
    return rows


def test_the_rung_is_an_outcome_where_all_runs_have_one():
    rows = made_up()
    assert "rung" not in correlation.correlations(rows)
    for index, row in enumerate(rows):
        row.metrics.update({correlation.RUNG: 5 - 0.1 * index, correlation.ACCURACY: 0.6 + 0.01 * index})
    table = correlation.correlations(rows).set_index("diagnostic")
    assert table.loc["diagnostics/good:grid_*.value", "rung"] == pytest.approx(-1)
    assert table.loc["diagnostics/good:grid_*.value", "accuracy"] == pytest.approx(1)
    del rows[0].metrics[correlation.RUNG]
    assert not {"rung"} & set(correlation.correlations(rows))


def test_the_diagnostic_that_predicts_comes_first_and_probe_apart():
    table = correlation.correlations(made_up())
    assert list(table["diagnostic"]) == [
        "diagnostics/good:grid_*.value",
        "diagnostics/noise:value",
        "probe:fraction_saved",
    ]
    good, noise, probe = table.itertuples()
    assert good.fd == pytest.approx(1)
    assert probe.fd == pytest.approx(-1)
    assert good.excess > 0.9
    assert noise.fd_low < 0 < noise.fd_high


def test_the_study_is_drawn_over_all_and_within_one_grid(workspace):
    parts = correlation.write("learnability", [*made_up(), Result("lost", "failed", {}, {})])
    assert any(part.startswith("## All runs: 12") for part in parts)
    assert any(part.startswith("## One grid: 8") for part in parts)
    assert sorted(path.name for path in pages.FIGURES.glob("*")) == [
        "learnability-all-runs.png",
        "learnability-one-grid.png",
    ]
