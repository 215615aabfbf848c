"""One word per thing: dvc.yaml, params.yaml, the stage scripts and what they import say the same."""

from __future__ import annotations

import copy
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from committed import project
from ruamel.yaml import YAML

from tessera.core import seams
from tessera.core.params import CHOOSES, PLURAL, closed_form, read
from tessera.runtime import imports, versions
from tessera.runtime.imports import closure
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


def script(stage: str) -> Path:
    """A stage is one file, or a folder with its parts."""
    file = ROOT / "stages" / f"{stage}.py"
    return file if file.exists() else ROOT / "stages" / stage / "__main__.py"


def start(seam: str, name: str) -> Path:
    """The file that Python loads for a plug-in."""
    code = seams.code(seam, name)
    return code / "__init__.py" if code.is_dir() else code


def plugins(stage: str, key: str | None) -> set[Path]:
    """What an instance of a stage loads by name: plug-ins that its deps name, and all losses."""
    found = set()
    for dep in map(Path, what(stage, key).deps):
        seam = dep.parent.name
        if dep.name in seams.SEAMS:
            found |= {start(dep.name, name) for name in seams.names(dep.name)} if dep.name == "losses" else set()
        elif seam in seams.SEAMS:
            found.add(start(seam, dep.stem))
    return found


def loaded(stage: str, key: str | None) -> set[Path]:
    """Files that an instance needs: its script, its plug-ins, the models that it reads, and all that these import."""
    of_models = set()
    deps = " ".join(what(stage, key).deps)
    for section, seams_of_it in {
        "tokenizer": ("tokenizer", "quantizer"),
        "prior": ("prior",),
        "scorer": ("scorer",),
        "perceptual": ("perceptual",),
        "upsampler": ("upsampler",),
    }.items():
        if f"artifacts/{section}" in deps:
            of_models |= imports.model_code((CHOOSES[name], PARAMS[name]["name"]) for name in seams_of_it)
    if "artifacts/infiller" in deps:
        of_models |= imports.model_code([("priors", "masked")])
    return {file for file in closure({script(stage), *plugins(stage, key)} | of_models) if counts(file)}


def counts(file: Path) -> bool:
    """`runtime` is no dependency of any stage, and an empty `__init__.py` is no code."""
    return (
        ROOT / "src/tessera/runtime" not in file.parents
        and file != ROOT / "src/tessera/__init__.py"
        and bool(file.read_bytes())
    )


def declares(stage: str, key: str | None) -> set[Path]:
    """Source files that the deps of an instance cover, `losses/` aside, of which DVC cannot know which are on."""
    found: set[Path] = set()
    for dep in what(stage, key).deps:
        path = ROOT / dep
        if dep.startswith(("src/", "stages/")) and dep != "src/tessera/losses":
            found |= {path} if path.suffix == ".py" else set(path.rglob("*.py"))
    return {file for file in found if file.read_bytes()}


def lines(files: set[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


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


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_cover_imports_whatever_is_chosen(stage):
    """DVC does not look into imports (treeverse/dvc#9195): an edit of an undeclared module would leave stale results. Every
    plug-in of a seam may stand where dvc.yaml has a name of params.yaml."""
    deps = [ROOT / dep for dep in entry(stage)["deps"] if "$" not in dep]
    starts, folders = {script(stage)}, []
    for dep in [dep for dep in entry(stage)["deps"] if "$" in dep or dep == "src/tessera/losses"]:
        seam = next((seam for seam in seams.SEAMS if f"/{seam}" in dep), None)
        if seam is not None:
            names = [name for name in seams.names(seam) if "baseline" not in dep or closed_form(name)]
            starts |= {start(seam, name) for name in names}
            folders.append(ROOT / "src/tessera" / seam)
    missing = [
        file.relative_to(ROOT).as_posix()
        for file in closure(starts)
        if counts(file) and not any(dep == file or dep in file.parents for dep in [*deps, *folders])
    ]
    assert not missing


def spurious(stage: str, key: str | None) -> float:
    """Of the lines that an instance depends on, itself or by its models, the fraction that it does not load."""
    used, declared_files = loaded(stage, key), declares(stage, key)
    if stage == "report":  # reads the docstrings of plug-ins, and imports none
        used |= {start(seam, name) for seam in ("diagnostics", "evaluation", "extensions") for name in PARAMS[seam]}
    return lines(declared_files - used) / lines(declared_files | used)


def test_an_edit_makes_stale_what_uses_it_and_little_else():
    """48 % in the mean, 68 % at worst, when all stages depended on the folders `core` and `nn`."""
    found = {f"{stage}@{key}" if key else stage: spurious(stage, key) for stage, key in INSTANCES}
    print("\n".join(f"{name:28}{100 * value:5.1f} %" for name, value in found.items()))
    assert sum(found.values()) / len(found) <= 0.10
    assert max(found.values()) <= 0.25


def test_no_room_is_declared_by_a_stage_of_which_no_instance_enters_it():
    for stage in STAGES:
        entered = set().union(*(loaded(stage, key) for key in EACH[stage]))
        chosen_anywhere = closure(
            {
                start(seam, name)
                for dep in entry(stage)["deps"]
                for seam in seams.SEAMS
                if f"/{seam}/${{" in dep
                for name in seams.names(seam)
            }
        )
        for dep in [dep for dep in entry(stage)["deps"] if dep.startswith("src/tessera/") and "$" not in dep]:
            if stage == "report":
                continue
            room = ROOT / dep
            inside = {file for file in entered | chosen_anywhere if room == file or room in file.parents}
            assert inside, f"{stage} declares {dep} and uses nothing of it"


@pytest.mark.parametrize(("stage", "key"), INSTANCES)
def test_dependencies_exist(stage, key):
    outs = {out for name in STAGES for out in entry(name).get("outs", ())}
    for dep in what(stage, key).deps:
        made = any(dep == out or dep.startswith(f"{out}/") for out in outs)
        written = dep in ("metrics", "plots") or dep.startswith(("metrics/", "plots/"))  # in git after a first run
        assert made or written or (ROOT / dep).exists(), f"{stage} depends on {dep}, which is neither made nor there"


@pytest.mark.parametrize("stage", STAGES)
def test_sections_read_are_declared(stage):
    """Every section that the script and what it imports ask the run for stands in the stage's params."""
    files = {file for file in closure({script(stage), *plugins(stage, EACH[stage][0])}) if "runtime" not in file.parts}
    asked = re.compile(r"run\.params\.(?:(seed)\b|(?:value|section|config|keys)\(\"([a-z]+))")
    found = {name for file in files for names in asked.findall(file.read_text()) for name in names if name}
    assert found & {*sections(), *PLURAL, "seed"} <= {*what(stage, EACH[stage][0]).sections, "runtime"}


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


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_versions_of_the_packages_that_it_imports(stage):
    """Whatever is chosen; `core` aside, which writes files. Images are arrays to `dataset`, which loads no torch."""
    starts = {script(stage)}
    for dep in entry(stage)["deps"]:
        for seam in [
            seam for seam in seams.SEAMS if f"/{seam}/${{" in dep or (seam == "losses" and dep.endswith("/losses"))
        ]:
            starts |= {start(seam, name) for name in seams.names(seam)}
    files = {file for file in closure(starts) if not {"core", "runtime"} & set(file.relative_to(ROOT).parts)}
    found = imports.packages(files) - sys.stdlib_module_names - set(versions.FREE)
    wanted = {versions.DISTRIBUTIONS.get(name, name) for name in found} - ({"torch"} if stage == "dataset" else set())
    assert set(what(stage, EACH[stage][0]).versions) == wanted


def test_versions_are_those_of_the_lock_and_all_are_used():
    text = (ROOT / versions.FILE).read_text()
    used = {name for stage in STAGES for name in what(stage, EACH[stage][0]).versions}
    assert yaml.safe_load(text).keys() == used
    locked = versions.locked((ROOT / versions.LOCK).read_text())
    assert read(ROOT / versions.FILE) == {name: locked[name] for name in used}


def test_the_machine_is_no_part_of_a_stage():
    assert not any(name.startswith("runtime") for stage, key in INSTANCES for name in what(stage, key).params)
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
