"""The stages of dvc.yaml that a study's targets run, the values of params.yaml that they read, and the files that they write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tessera.core import trees
from tessera.core.params import Params
from tessera.runtime.pipeline import Stage, instances, of, within
from tessera.runtime.validation import MOVED

__all__ = ["Stage", "instances", "of", "within"]
VERDICTS = ("gate", "criteria")  # they judge metrics, which are kept; so thresholds may change without a new run
UNCOUNTED = ("runtime", *VERDICTS)


def counted(targets: Iterable[str], raw: dict[str, Any], root: Path = Path()) -> dict[str, Any]:
    """The values that the results of the targets depend on, one per leaf, by dotted name: those that dvc.yaml declares for the
    stages that are run. Not counted: the machine, alternatives that are not chosen, losses of weight 0 (they are not built) and
    their network (it is not made), a tuning of 0 epochs, and thresholds (they only judge results)."""
    names = {name for stage in of(targets, raw, root) for name in stage.params}
    names = {name for name in names if name.partition(".")[0] not in UNCOUNTED}
    if "losses.perceptual.weight" in names and not Params(raw).perceptual_network:
        names = {name for name in names if not name.startswith("perceptual.")}
    built = {loss: values for loss, values in (raw.get("losses") or {}).items() if trees.value(values, "weight", None)}
    read = {name: trees.value({**raw, "losses": built}, name, None) for name in sorted(names)}
    return today({name: _plain(value) for name, value in trees.leaves(read) if value is not None})


CONDITIONS = "prior.conditions."  # what the prior is told
LABELLED = ("prior.conditional", "prior.label_dropout", "samples.guidance")  # once in its place
TUNING = "tokenizer.tuning."  # of the decoder, after the tokenizer is trained
RENAMED = {
    "diagnostics.positions.share": "diagnostics.positions.fraction",
    "extensions.variations.shares": "extensions.variations.fractions",
    **MOVED,
}  # former name of a value or a section -> its name today


def today(values: dict[str, Any]) -> dict[str, Any]:
    """Values of an older params.yaml, by dotted name, written as today. The section `extractor` was both of its successors."""
    values = _without_tuning(_without_untold(_of_labels(values)))
    sections = ("scorer", "perceptual") if "losses.perceptual.weight" in values else ("scorer",)
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, _, place = name.partition(".")
        names = [f"{successor}.{place}" for successor in sections] if section == "extractor" else [_renamed(name)]
        found |= dict.fromkeys(names, "float32" if place.endswith("training.precision") and value == "no" else value)
    return found


def _without_untold(values: dict[str, Any]) -> dict[str, Any]:
    """Values without those of conditions that the prior is not told: as of an alternative that is not chosen."""
    told = {
        name.removeprefix(CONDITIONS)
        for name, value in values.items()
        if name.startswith(CONDITIONS) and value != "none"
    }

    def counts(name: str) -> bool:
        section, _, place = name.partition(".")
        kind, _, condition = place.partition(".")
        if section == "samples" and kind in ("conditions", "guidance") and condition:
            return condition in told
        if section == "prior" and kind == "conditions":
            return condition in told
        return "words" in told if name.startswith("prior.words.") else True

    return {name: value for name, value in values.items() if counts(name)}


def _without_tuning(values: dict[str, Any]) -> dict[str, Any]:
    """Values without those of a tuning that does not take place: as of an alternative that is not chosen."""
    tuned = values.get(f"{TUNING}training.epochs", 0)
    return {name: value for name, value in values.items() if tuned or not name.startswith(TUNING)}


def _of_labels(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a time when a prior was told labels or nothing, written as today."""
    if "prior.conditional" not in values:
        return values
    found = {name: value for name, value in values.items() if name not in LABELLED}
    if values["prior.conditional"]:
        found[f"{CONDITIONS}label"] = values.get("prior.label_dropout", 0)
        if "samples.guidance" in values:
            found |= {"samples.guidance.label": values["samples.guidance"], "samples.conditions.label": ""}
    return found


def _renamed(name: str) -> str:
    old = next((old for old in RENAMED if f"{name}.".startswith(f"{old}.")), "")
    return RENAMED.get(old, "") + name.removeprefix(old)


def _plain(value: Any) -> Any:
    """1.0 becomes 1: equal values must compare equal, whichever way they are written."""
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def written(targets: Iterable[str], raw: dict[str, Any]) -> frozenset[str]:
    """Files and folders that the targets write. Other files of a revision belong to another run."""
    stages = [stage for stage in of(targets, raw) if stage.stage not in VERDICTS]
    return frozenset(output for stage in stages for output in stage.outputs)


def paths(raw: dict[str, Any]) -> dict[str, str]:
    """Files and folders that the chosen plug-ins read, by dotted name in params.yaml."""
    names = ["dataset.source", f"scorer.{trees.value(raw, 'scorer.name', None)}.weights"]
    if trees.value(raw, "losses.perceptual.weight", None):
        own = f"perceptual.{trees.value(raw, 'perceptual.name', None)}.weights"
        names.append("losses.perceptual.weights" if trees.value(raw, "losses.perceptual.weights", None) else own)
    return {name: path for name in names if (path := trees.value(raw, name, None))}


def changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names that both have with different values."""
    return [name for name in then if name in now and then[name] != now[name]]


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences in words: changed values, new names, missing names."""
    words = [f"{name} was {then[name]!r}, is {now[name]!r}" for name in changed(then, now)]
    words += [f"{name} is new ({now[name]!r})" for name in now if name not in then]
    return words + [f"{name} is gone ({then[name]!r})" for name in then if name not in now]
