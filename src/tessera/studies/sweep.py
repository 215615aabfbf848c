"""`studies/NAME.yaml`: the runs, how they differ from params.yaml, and what the page shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tessera import presets
from tessera.core import trees
from tessera.core.errors import InputError
from tessera.core.params import Strict, read
from tessera.studies import plan

FOLDER = Path("studies")
PAGES = Path("docs/studies")  # folder of the results
Changes = dict[str, Any]  # dotted name of params.yaml -> value; `preset` names a preset, whose values come first


class Figure(Strict):
    """`lines`: one point per run, x against y. `curves`: a column of plots/<file>.csv over epochs, one line per run."""

    kind: Literal["lines", "curves"]
    x: str = Field(description="a name of params.yaml, or a metric as file:name")
    y: str = Field(description="a metric as file:name, or a column of the curves")
    title: str
    file: str = Field(default="tokenizer", description="file of plots/ with the curves")
    log: bool = Field(default=False, description="x has a logarithmic scale")


class Published(Strict):
    """Published numbers of another system, and their source."""

    source: str
    columns: list[str]
    rows: list[list[str | float]]


class Study(Strict):
    """One file. A study has runs of its own, or shows runs of another study (`pool`)."""

    title: str
    text: str = Field(description="the question, and what the runs have in common")
    budget: str = Field(default="", description="time per run, and the machine")
    pool: str = Field(default="", description="the study whose runs are shown; empty: its own")
    targets: list[str] = Field(default_factory=lambda: ["criteria"], description="stages of dvc.yaml that are run")
    base: Changes = Field(default_factory=dict, description="changes common to all runs")
    runs: dict[str, Changes] = Field(default_factory=dict)
    shown: list[str] = Field(default_factory=list, description="names of runs of the pool, in the order of the page")
    groups: dict[str, list[str]] = Field(default_factory=dict, description="series of the figures -> names of runs")
    columns: dict[str, str] = Field(default_factory=dict, description="column of the table -> params name or metric")
    figures: list[Figure] = Field(default_factory=list)
    published: list[Published] = Field(default_factory=list)
    correlations: bool = Field(default=False, description="show which diagnostic predicts the prior, over the pool")
    findings: str = Field(default="", description="the conclusions, written after the runs")


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Study:
    """
    Raises:
        InputError: there is no such study, or its file breaks rules. The message lists all problems.
    """
    if name not in names():
        raise InputError(f"studies/{name}.yaml: there is no such study; there are {', '.join(names())}")
    try:
        study = Study.model_validate(read(FOLDER / f"{name}.yaml"))
    except ValidationError as errors:
        found = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors.errors()]
        raise InputError(f"studies/{name}.yaml has problems:\n" + "\n".join(found)) from None
    wrong = [run for run in study.runs if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run)]
    if wrong:
        raise InputError(f"studies/{name}.yaml: runs become names of experiments: letters, digits, '.', '_' and '-' only, "
                         f"got {wrong}")  # fmt: skip
    _require_pool(name, study)
    _require_runs(name, study)
    _require_values(name, study)
    return study


def _require_pool(name: str, study: Study) -> None:
    if study.pool and study.runs:
        raise InputError(f"studies/{name}.yaml: has runs of its own and those of the pool {study.pool}; leave one out")
    # read as text: two pools that name each other would load each other without end
    if study.pool in names() and (beyond := read(FOLDER / f"{study.pool}.yaml").get("pool")):
        raise InputError(
            f"studies/{name}.yaml: the pool {study.pool} has no runs of its own; it names the pool {beyond}"
        )


def _require_values(name: str, study: Study) -> None:
    """Check before any run that params.yaml has every value that the runs change or the page shows."""
    raw = read()
    used = {f"runs.{run}": list(changes(study, run)) for run in study.runs}
    used["columns"] = [source for source in study.columns.values() if ":" not in source]
    lines = [source for figure in study.figures if figure.kind == "lines" for source in (figure.x, figure.y)]
    used["figures"] = [source for source in lines if ":" not in source]
    unknown = [
        f"  {place}: {source}" for place, sources in used.items() for source in sources if not _known(raw, source)
    ]
    verdicts = [source for source in (*study.columns.values(), *lines) if source.startswith(("gate:", "criteria:"))]
    if verdicts:
        raise InputError(
            f"studies/{name}.yaml shows verdicts, which are not kept: {', '.join(verdicts)}; show what is judged"
        )
    try:
        plan.of(study.targets, raw)
    except InputError as error:
        raise InputError(f"studies/{name}.yaml: {error}") from None
    if unknown:
        raise InputError(f"studies/{name}.yaml names values that params.yaml does not have:\n" + "\n".join(unknown))


def _known(raw: dict[str, Any], name: str) -> bool:
    absent = object()
    return trees.value(raw, name.removeprefix(presets.REMOVED), absent) is not absent


def _require_runs(name: str, study: Study) -> None:
    there = pool_of(name, study)[1].runs
    unknown = [
        run for run in [*study.shown, *(run for group in study.groups.values() for run in group)] if run not in there
    ]
    if unknown:
        raise InputError(f"studies/{name}.yaml: no runs {', '.join(unknown)}; there are {', '.join(there)}")


def pool_of(name: str, study: Study) -> tuple[str, Study]:
    """The study that has the runs: this study, or its pool."""
    return (study.pool, load(study.pool)) if study.pool else (name, study)


def shown(name: str, study: Study) -> list[str]:
    """Names of the runs that a study shows."""
    return study.shown or list(pool_of(name, study)[1].runs)


def changes(study: Study, run: str) -> Changes:
    """All values that a run changes in params.yaml: those of its preset, then the study's base, then its own."""
    own = {**study.base, **study.runs[run]}
    preset = own.pop("preset", None)
    return {**(presets.overrides(preset) if preset else {}), **own}


def params(study: Study, run: str) -> dict[str, Any]:
    """params.yaml of this run, validated."""
    return presets.applied(read(), changes(study, run))


def counted(study: Study) -> dict[str, dict[str, Any]]:
    """For each run, the values that its result depends on; see `plan.counted`."""
    raw = read()
    return {run: plan.counted(study.targets, presets.changed(raw, changes(study, run))) for run in study.runs}
