"""The stages of dvc.yaml under the present params.yaml: what each reads and writes, and which earlier stages it depends on.

Metrics and plots lie in git and do not record their inputs. Stages that read them ask dvc.lock instead, which holds what each
stage read when it last ran. So a gate does not judge new reconstructions together with diagnostics of an older tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tessera.core import files, trees
from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.runtime import inputs

LOCK = Path("dvc.lock")


class Stage(NamedTuple):
    """One instance of a stage, with its templates resolved."""

    stage: str
    key: str | None
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outputs: tuple[str, ...]
    versions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.key}" if self.key else self.stage


def of(targets: Iterable[str], raw: dict[str, Any], root: Path = Path()) -> list[Stage]:
    """The targets (`criteria`, `diagnostics`, `diagnostics@usage`) and all stages that they depend on, in the order of dvc.yaml,
    in which each stage comes after its inputs.

    Raises:
        InputError: dvc.yaml has no such target.
    """
    found = list(instances(raw, root))
    known = {name for stage in found for name in (stage.stage, stage.name)}
    if unknown := [target for target in targets if target not in known]:
        raise InputError(f"targets: dvc.yaml has no stage {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    wanted: dict[str, Stage] = {stage.name: stage for stage in found if {stage.stage, stage.name} & set(targets)}
    for stage in reversed(found):  # from the targets back to their inputs
        needed = [dep for later in wanted.values() for dep in later.deps]
        if any(within(output, dep) for output in stage.outputs for dep in needed):
            wanted[stage.name] = stage
    return [stage for stage in found if stage.name in wanted]


def instances(raw: dict[str, Any], root: Path = Path()) -> Iterable[Stage]:
    """All stages of dvc.yaml; a stage with `foreach` once per key."""
    for stage, entry in inputs.stages(root / "dvc.yaml").items():
        for key in raw.get(stage) or () if "foreach" in entry else [None]:
            what = inputs.resolved(stage, key, raw, entry)
            yield Stage(stage, key, what.deps, what.params, tuple(_outputs(entry.get("do", entry), key)), what.versions)


def _outputs(entry: dict[str, Any], key: str | None) -> Iterable[str]:
    for kind in ("outs", "metrics", "plots"):
        for output in entry.get(kind, ()):
            name = next(iter(output)) if isinstance(output, dict) else output
            yield name.replace("${key}", str(key))


def within(output: str, dep: str) -> bool:
    """Whether the paths are equal, or one holds the other."""
    return output == dep or output.startswith(f"{dep}/") or dep.startswith(f"{output}/")


def require_up_to_date(name: str, deps: Iterable[str], raw: dict[str, Any]) -> None:
    """Check that metrics and plots that a stage reads come from the present params and artefacts, as far as dvc.lock knows.
    `dvc repro` ensures it, `dvc repro -s` does not.

    Args:
        name: name of the stage, such as `gate`.
        deps: the files that it reads.
        raw: params.yaml.

    Raises:
        InputError: an earlier stage is out of date.
    """
    reports = (files.METRICS.name, files.PLOTS.name)
    if not LOCK.exists() or not any(Path(dep).parts[0] in reports for dep in deps):
        return
    locked = read(LOCK).get("stages") or {}
    before = [stage for stage in of([name], raw) if stage.name != name and stage.name in locked]
    made = {out["path"]: (stage.name, out.get("md5")) for stage in before for out in locked[stage.name].get("outs", ())}
    for stage in before:
        for reason in _out_of_date(locked[stage.name], made, raw):
            raise InputError(
                f"what {stage.name} wrote is out of date: {reason}. Run `dvc repro {name}`, without -s, which makes it anew"
            )


def _out_of_date(entry: dict[str, Any], made: dict[str, tuple[str, str]], raw: dict[str, Any]) -> Iterator[str]:
    for dep in entry.get("deps", ()):
        maker, digest = made.get(dep["path"], ("", dep.get("md5")))
        if digest != dep.get("md5"):
            yield f"{maker} has made another {dep['path']} since"
    for name, value in entry.get("params", {}).get("params.yaml", {}).items():
        if value != trees.value(raw, name, None):
            yield f"{name} has changed since"
    versions = entry.get("params", {}).get(inputs.VERSIONS, {})
    now = inputs.versions(versions)  # read once, not once for each package
    for name, value in versions.items():
        if value != now[f"{inputs.VERSIONS}: {name}"]:
            yield f"the version of {name} has changed since"
