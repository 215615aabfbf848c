"""One word per thing: dvc.yaml, params.yaml, the stage scripts and what they import say the same."""

from __future__ import annotations

import ast
import copy
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from committed import project
from ruamel.yaml import YAML

from tessera.core import seams
from tessera.core.params import CHOOSES, PLURAL, read
from tessera.runtime.inputs import declared
from tessera.runtime.validation import sections

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
PARAMS = read(project() / "params.yaml")
EACH = {name: list(PARAMS[name]) if "foreach" in STAGES[name] else [None] for name in STAGES}
INSTANCES = [(name, key) for name in STAGES for key in EACH[name]]


def entry(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


def what(stage: str, key: str | None):
    return declared(stage, key, PARAMS, ROOT / "dvc.yaml")


def imported(file: Path) -> set[Path]:
    """Files of tessera that a file imports, at its top or inside a function; what only type checkers see is left out."""
    found: set[Path] = set()
    tree = ast.parse(file.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = ROOT / ("src" if name.startswith("tessera") else ".") / Path(*name.split("."))
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if name.startswith(("tessera", "stages.")) and file.exists():
                    found.add(file)
    return found


def closure(files: set[Path]) -> set[Path]:
    todo, done = set(files), set()
    while todo:
        file = todo.pop()
        done.add(file)
        todo |= imported(file) - done
    return done


def test_stage_is_script_is_command():
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    scripts |= {path.parent.name for path in (ROOT / "stages").glob("*/__main__.py")}
    assert scripts == set(STAGES)
    for stage in STAGES:
        key = " ${key}" if "foreach" in STAGES[stage] else ""
        assert entry(stage)["cmd"] == f"python -m stages.{stage}{key}"


def test_every_stage_says_what_it_is_for():
    assert all(len(entry(stage)["desc"].split()) >= 4 for stage in STAGES)


def test_plural_sections_run_every_key():
    for stage in STAGES:
        if "foreach" in STAGES[stage]:
            assert STAGES[stage]["foreach"] == f"${{{stage}}}"
            assert set(PARAMS[stage]) <= set(seams.names(stage))


@pytest.mark.parametrize(("stage", "key"), INSTANCES)
def test_dependencies_cover_imports(stage, key):
    """DVC does not look into imports (treeverse/dvc#9195): an edit of an undeclared module would leave stale results."""
    deps = [ROOT / dep for dep in what(stage, key).deps]
    plugins = {dep for dep in deps if dep.suffix == ".py"}
    used = closure({ROOT / "stages" / f"{stage}.py", *plugins})
    free = {ROOT / "src/tessera/__init__.py"}
    missing = [
        file.relative_to(ROOT).as_posix()
        for file in used - free
        if ROOT / "src/tessera/runtime" not in file.parents
        and not any(dep == file or dep in file.parents for dep in deps)
    ]
    assert not missing


@pytest.mark.parametrize(("stage", "key"), INSTANCES)
def test_dependencies_exist(stage, key):
    outs = {out for name in STAGES for out in entry(name).get("outs", ())}
    for dep in what(stage, key).deps:
        made = any(dep == out or dep.startswith(f"{out}/") for out in outs)
        written = dep in ("metrics", "plots") or dep.startswith(("metrics/", "plots/"))  # in git after a first run
        assert made or written or (ROOT / dep).exists(), f"{stage} depends on {dep}, which is neither made nor there"


@pytest.mark.parametrize("stage", STAGES)
def test_sections_read_are_declared(stage):
    """Every `params.<section>` in the script and in the modules of `nn` that it imports stands in the stage's params."""
    files = {
        f for f in closure({ROOT / "stages" / f"{stage}.py"}) if "core" not in f.parts and "runtime" not in f.parts
    }
    read_here = {section for file in files for section in re.findall(r"run\.params\.([a-z]+)", file.read_text())}
    assert read_here & {*sections(), *PLURAL, "seed"} <= {*what(stage, EACH[stage][0]).sections, "runtime"}


def test_declared_params_exist():
    for stage, key in INSTANCES:
        for name in what(stage, key).params:
            value = PARAMS
            for part in name.split("."):
                assert part in value, f"{stage} declares {name}, which params.yaml does not have"
                value = value[part]


def test_every_value_of_a_chosen_section_is_declared_where_the_section_is_read():
    """`quantizer.beta` forgotten in dvc.yaml would make `-S quantizer.beta=0.1` do nothing."""
    for section, seam in CHOOSES.items():
        stage = "tokenizer" if section == "quantizer" else section
        own = {key for key in PARAMS[section] if key not in seams.names(seam)} | {PARAMS[section]["name"]}
        assert {f"{section}.{key}" for key in own} <= set(what(stage, None).params)


def test_every_section_is_read_by_a_stage():
    declared_sections = {section for stage, key in INSTANCES for section in what(stage, key).sections}
    assert {*sections(), *PLURAL, "seed"} - {"runtime"} == declared_sections


def test_outputs_are_named_after_their_stage():
    for stage in STAGES:
        own = entry(stage)
        names = [
            next(iter(o)) if isinstance(o, dict) else o
            for kind in ("outs", "metrics", "plots")
            for o in own.get(kind, ())
        ]
        for name in names:
            own_name = re.fullmatch(rf"(artifacts|metrics|plots)/({stage}|targets)(/.*|\..*)?", name)
            assert own_name or name == f"{stage}.html", f"{stage}: {name}"


def test_metrics_and_plots_are_kept_in_git():
    for stage in STAGES:
        for kind in ("metrics", "plots"):
            assert all(next(iter(out.values()))["cache"] is False for out in entry(stage).get(kind, ()))


def test_no_orphan_in_metrics_or_plots():
    """Removing a diagnostic leaves its old file behind, which would be read as a result."""
    outputs = []
    for stage, key in INSTANCES:
        for kind in ("metrics", "plots"):
            outputs += [next(iter(out)).replace("${key}", str(key)) for out in entry(stage).get(kind, ())]
    kept = [path for folder in ("metrics", "plots") for path in (project() / folder).rglob("*") if path.is_file()]
    listed = [path.relative_to(project()).as_posix() for path in kept]
    assert listed
    assert not [file for file in listed if not any(file == out or file.startswith(f"{out}/") for out in outputs)]


def test_training_stages_depend_on_the_locked_versions():
    for stage in ("extractor", "tokenizer", "probe", "prior"):
        assert "requirements.lock" in entry(stage)["deps"]


def test_the_machine_is_no_part_of_a_stage():
    assert not any(name.startswith("runtime") for stage in STAGES for name in entry(stage).get("params", ()))
    assert not any("runtime" in dep for stage in STAGES for dep in entry(stage)["deps"])


def test_params_survive_being_written_by_dvc():
    """`dvc exp run -S` writes the file back: anything but DVC's own style would reformat it at the first experiment."""
    import io

    text = (project() / "params.yaml").read_text()
    dumper = YAML()
    dumper.preserve_quotes = True
    dumper.width = 4096
    again = io.StringIO()
    dumper.dump(dumper.load(text), again)
    assert again.getvalue() == text


@pytest.mark.parametrize("source", [2024, 7, 1.5, True, "2024", "data/noto-emoji.parquet", "/absolute/[1] path"])
def test_a_source_is_a_path_to_dvc_whatever_it_looks_like(source, tmp_path):
    """A number in its place made DVC stop with "'int' object has no attribute 'decode'"; now validation says what is wrong."""
    from dvc.repo import Repo

    params = copy.deepcopy(PARAMS)
    params["dataset"]["source"] = source
    with open(tmp_path / "params.yaml", "w") as stream:
        YAML().dump(params, stream)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        (stage,) = (stage for stage in repo.index.stages if stage.name == "dataset")
        paths = [dep.fs_path for dep in stage.deps]
    shown = str(source).lower() if isinstance(source, bool) else str(source)
    assert os.path.join(tmp_path, shown) in paths
    assert shown in declared("dataset", None, params, ROOT / "dvc.yaml").deps or isinstance(source, bool)
