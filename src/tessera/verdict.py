"""Compares metrics with the thresholds of params.yaml: `gate` before a prior is trained, `criteria` afterwards.

A metric that does not exist is not judged, and the log says so: `fid` without Inception's features, a diagnostic that
params.yaml does not run, or one that does not apply to these codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tessera.core import files, trees
from tessera.core.errors import InputError
from tessera.core.params import PLURAL, Strict
from tessera.core.run import Run

Metrics = Callable[[str], dict[str, Any]]  # name of a file of metrics/ -> its content; empty if its stage is not run


class Threshold(Strict):
    """One bound on a metric. If `*` matches several metrics, the worst counts; those that have none are named."""

    metric: str = Field(pattern=r"^[a-z0-9_/]+:[A-Za-z0-9_.*]+$", description="file of metrics/ and name in it, such as "
                        "diagnostics/usage:grid_*.usage")  # fmt: skip
    at_least: float | None = Field(default=None, description="smallest value that passes")
    at_most: float | None = Field(default=None, description="largest value that passes")

    @model_validator(mode="after")
    def _one_bound(self) -> Threshold:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.metric} must have at_least or at_most, and not both")
        return self

    @property
    def file(self) -> str:
        return self.metric.partition(":")[0]


class Verdict(Strict):
    """The sections `gate` and `criteria`: thresholds, and what happens if one is not met."""

    on_failure: Literal["warn", "stop"] = Field(description="warn: print it and continue; stop: fail the stage")
    thresholds: dict[str, Threshold]


class Check(NamedTuple):
    """One metric against one threshold. `margin` is in units of the metric, negative if the check fails. `missing` names what `*`
    stands for and what has no such metric, such as the group `val.people` of `val.*.rung`."""

    value: float
    threshold: float
    margin: float
    missing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.margin >= 0


def judge(thresholds: dict[str, Threshold], metrics: Metrics) -> dict[str, Check | None]:
    """Each threshold against the worst of the values that its name matches; None if it matches none."""
    return {name: _check(threshold, metrics(threshold.file)) for name, threshold in thresholds.items()}


def _check(threshold: Threshold, metrics: dict[str, Any]) -> Check | None:
    pattern = threshold.metric.partition(":")[2]
    values = _matching(metrics, pattern)
    if not values:
        return None
    missing = tuple(_missing(metrics, pattern))
    if threshold.at_least is not None:
        return Check(min(values), threshold.at_least, min(values) - threshold.at_least, missing)
    assert threshold.at_most is not None, "a threshold has one of the two"
    return Check(max(values), threshold.at_most, threshold.at_most - max(values), missing)


def _matching(metrics: dict[str, Any], pattern: str) -> list[float]:
    return [float(value) for name, value in trees.numbers(metrics) if fnmatchcase(name, pattern)]


def _missing(metrics: dict[str, Any], pattern: str) -> Iterator[str]:
    """Names under which `pattern` would match a metric and there is none: of those that a part of it with `*` matches. Where a `*`
    stands for several parts, of those as deep in the tree as the ones that hold a match."""
    matched = [name for name, _ in trees.numbers(metrics) if fnmatchcase(name, pattern)]
    depths, ends = {name.count(".") for name in matched}, {name.rpartition(".")[2] for name in matched}
    if depths == {pattern.count(".")}:
        yield from _without(metrics, pattern.split("."))
        return
    for name, below in _groups(metrics):
        asked = [end for end in ends if fnmatchcase(f"{name}.{end}", pattern)]
        if name.count(".") + 1 in depths and asked and not any(end in below for end in asked):
            yield name


def _without(metrics: dict[str, Any], pattern: list[str]) -> Iterator[str]:
    first, *rest = pattern
    for name, below in metrics.items():
        if not rest or not isinstance(below, dict) or not fnmatchcase(name, first):
            continue
        if "*" in first and not _matching(below, ".".join(rest)):
            yield name
        else:
            yield from (f"{name}.{found}" for found in _without(below, rest))


def _groups(metrics: dict[str, Any], before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, below in metrics.items():
        if isinstance(below, dict):
            yield f"{before}{name}", below
            yield from _groups(below, f"{before}{name}.")


def metrics_of(run: Run) -> Metrics:
    """Reader of the metrics of this run. A plug-in that params.yaml does not name gives none: its file is from an older run."""

    def read(file: str) -> dict[str, Any]:
        seam, _, name = file.partition("/")
        current = seam not in PLURAL or name in run.params.keys(seam)
        return files.read_json(files.METRICS / f"{file}.json") if current else {}

    return read


def write(stage: str, verdict: Verdict, run: Run) -> None:
    """Judge, write `metrics/<stage>.json`, and print the verdicts.

    Raises:
        InputError: a threshold is not met and `on_failure` is `stop`. The metrics have been written.
    """
    checks = judge(verdict.thresholds, metrics_of(run))
    files.write_metrics(stage, summary(checks))
    print("\n".join(lines(stage, verdict.thresholds, checks)), flush=True)
    failed = [name for name, check in checks.items() if check is not None and not check.passed]
    if failed and verdict.on_failure == "stop":
        raise InputError(
            f"{', '.join(failed)}: not met, see metrics/{stage}.json, and {stage}.on_failure is 'stop'. Change what leads "
            f"there, {stage}.thresholds, or go on all the same: -S {stage}.on_failure=warn"
        )


def summary(checks: dict[str, Check | None]) -> dict[str, Any]:
    """The content of `metrics/<stage>.json`: only numbers and truth values, because DVC compares them. `not_measured` is the number
    of groups, or whatever `*` stands for, that have no such metric; it is there where it is not 0."""
    judged = {name: check for name, check in checks.items() if check is not None}
    failed = sum(not check.passed for check in judged.values())
    return {
        "passed": not failed,
        "judged": len(judged),
        "failed": failed,
        "checks": {name: _summary(check) for name, check in judged.items()},
    }


def _summary(check: Check) -> dict[str, Any]:
    found = {"value": check.value, "threshold": check.threshold, "margin": check.margin, "pass": check.passed}
    return found | ({"not_measured": len(check.missing)} if check.missing else {})


def lines(stage: str, thresholds: dict[str, Threshold], checks: dict[str, Check | None]) -> Iterator[str]:
    for name, check in checks.items():
        threshold = thresholds[name]
        if check is None:
            yield f"{stage}: {name:14} not measured ({threshold.metric})"
        else:
            sign, word = (">=" if threshold.at_least is not None else "<="), "pass" if check.passed else "FAIL"
            missing = f"  not measured: {', '.join(check.missing)}" if check.missing else ""
            yield f"{stage}: {name:14} {word}  {check.value:.4g} {sign} {check.threshold:g}{missing}"
