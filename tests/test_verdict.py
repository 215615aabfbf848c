"""Gate and criteria: metrics against thresholds."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
from committed import project

from tessera import verdict
from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.runtime.validation import JUDGES, problems
from tessera.verdict import Threshold

ROOT = Path(__file__).resolve().parent.parent
USAGE = {"grid_0": {"usage": 0.9, "perplexity": 100.0}, "grid_1": {"usage": 0.4, "perplexity": 30.0}}


def least(metric: str, bound: float) -> Threshold:
    return Threshold(metric=metric, at_least=bound)


def most(metric: str, bound: float) -> Threshold:
    return Threshold(metric=metric, at_most=bound)


@pytest.mark.parametrize(
    ("threshold", "value", "margin"),
    [
        (least("diagnostics/usage:grid_0.usage", 0.5), 0.9, 0.4),
        (most("diagnostics/usage:grid_0.usage", 0.5), 0.9, -0.4),
        (least("diagnostics/usage:grid_*.usage", 0.5), 0.4, -0.1),  # the worst of the two
        (most("diagnostics/usage:grid_*.usage", 0.5), 0.9, -0.4),
        (least("diagnostics/usage:grid_0.usage", 0.9), 0.9, 0.0),
    ],
)
def test_the_worst_match_is_held_against_the_bound(threshold, value, margin):
    check = verdict.judge({"it": threshold}, lambda file: USAGE)["it"]
    assert (check.value, check.threshold) == (value, threshold.at_least or threshold.at_most)
    assert math.isclose(check.margin, margin, abs_tol=1e-12)
    assert check.passed == (margin >= 0)


@pytest.mark.parametrize("tree", [{}, {"applies": 0}, {"grid_0": {"applies": 0}}, {"grid_0": {"other": 1.0}}])
def test_what_is_not_there_is_not_judged(tree):
    checks = verdict.judge({"it": least("diagnostics/learnability:grid_*.score", 50.0)}, lambda file: tree)
    assert checks == {"it": None}
    assert verdict.summary(checks) == {"passed": True, "judged": 0, "failed": 0, "checks": {}}


def test_summary_counts():
    thresholds = {"good": least("a:x", 1.0), "bad": most("a:x", 1.0), "gone": least("a:y", 1.0)}
    found = verdict.summary(verdict.judge(thresholds, lambda file: {"x": 2.0}))
    assert (found["passed"], found["judged"], found["failed"]) == (False, 2, 1)
    assert found["checks"]["bad"] == {"value": 2.0, "threshold": 1.0, "margin": -1.0, "pass": False}


LADDER = {
    "val": {
        "all": {"rung": 0.4},
        "people": {"images": 3},
        "rest": {"rung": 0.9, "rung_low": 0.1},
        "food": {"in_order": 0.0},
    },
    "test": {"all": {"rung": 2.0}, "people": {}},
}


@pytest.mark.parametrize(
    ("metric", "value", "missing"),
    [
        ("val.*.rung", 0.9, ("val.people", "val.food")),
        ("*.all.rung", 2.0, ()),
        ("*.*.rung", 2.0, ("val.people", "val.food", "test.people")),
        ("*.rest.rung", 0.9, ("test",)),
        ("val.all.rung", 0.4, ()),
        ("val.*.rung*", 0.9, ("val.people", "val.food")),
    ],
)
def test_groups_without_the_metric_are_named_and_counted(metric, value, missing):
    thresholds = {"rung": most(f"evaluation/ladder:{metric}", 1.0)}
    checks = verdict.judge(thresholds, lambda file: LADDER)
    assert (checks["rung"].value, checks["rung"].missing) == (value, missing)
    (line,) = verdict.lines("criteria", thresholds, checks)
    assert line.endswith(f"<= 1  not measured: {', '.join(missing)}" if missing else "<= 1")
    assert verdict.summary(checks)["checks"]["rung"].get("not_measured", 0) == len(missing)


def test_a_metric_that_no_group_has_is_not_measured():
    assert verdict.judge({"it": most("evaluation/ladder:val.*.kid", 1.0)}, lambda file: LADDER) == {"it": None}


@pytest.mark.parametrize(
    ("bounds", "said"),
    [({}, "at_least or at_most"), ({"at_least": 1.0, "at_most": 2.0}, "not both"), ({"at_least": math.nan}, "finite")],
)
def test_a_threshold_has_one_bound(bounds, said):
    raw = read(project() / "params.yaml")
    raw["gate"]["thresholds"]["usage"] = {"metric": "diagnostics/usage:grid_*.usage", **bounds}
    (problem,) = problems(raw)
    assert problem.startswith("gate.thresholds.usage")
    assert said in problem


@pytest.mark.parametrize(
    ("section", "metric"),
    [("gate", "diagnostics/usages:x"), ("gate", "prior:val.accuracy"), ("criteria", "evaluation/fid:x")],
)
def test_a_metric_that_no_stage_before_writes_is_a_mistake(section, metric):
    raw = read(project() / "params.yaml")
    raw[section]["thresholds"]["mine"] = {"metric": metric, "at_least": 0.0}
    (problem,) = problems(raw)
    assert problem.startswith(
        f"{section}.thresholds.mine.metric: no stage before writes metrics/{metric.split(':')[0]}"
    )


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("evaluation/ladder:val.*.rnug", "did you mean 'val.*.rung'?"),
        ("evaluation/ladder:vla.all.rung", "did you mean 'val.*.rung'?"),
        ("evaluation/coverage:*.sample.clipped_coverage", "did you mean '*.samples.clipped_coverage'?"),
        ("evaluation/frechet:*.fid.samples_tset", "did you mean '*.fid.samples_test'?"),
        ("evaluation/memorisation:all.feature.median_ratio", "did you mean '*.features.median_ratio'?"),
        ("evaluation/coverage:x", "there is *.images, *.samples.clipped_coverage, "),
        ("evaluation/two_sample:val.*.halves", "did you mean 'val.*.critic_halves'?"),
    ],
)
def test_a_metric_that_the_measure_never_gives_is_a_mistake(metric, hint):
    raw = read(project() / "params.yaml")
    raw["criteria"]["thresholds"]["mine"] = {"metric": metric, "at_most": 1.0}
    (problem,) = problems(raw)
    file, _, name = metric.partition(":")
    assert problem.startswith(f"criteria.thresholds.mine.metric: {file} gives no metric {name!r}; {hint}")


@pytest.mark.parametrize("metric", [
    "evaluation/ladder:val.*.rung", "evaluation/ladder:*.kid_classifier", "evaluation/ladder:test.p*e.train_kid*",
    "evaluation/frechet:*.fd_*.samples_*", "evaluation/likelihood:*saved_bound", "evaluation/ladder:applies",
    "evaluation/two_sample:*.rest.critic_train", "evaluation/coverage:*.clipped_coverage", "prior:val.anything",
])  # fmt: skip
def test_a_metric_that_some_run_may_give_is_none(metric):
    raw = read(project() / "params.yaml")
    raw["criteria"]["thresholds"]["mine"] = {"metric": metric, "at_most": 1.0}
    assert problems(raw) == []


def test_every_default_threshold_is_of_a_metric_of_the_committed_run():
    """Except what needs Inception: a misspelt name would never be judged."""
    raw = read(project() / "params.yaml")
    for section in JUDGES:
        thresholds = Params(raw).section(section, verdict.Verdict).thresholds
        checks = verdict.judge(thresholds, lambda file: files.read_json(project() / "metrics" / f"{file}.json"))
        assert {name for name, check in checks.items() if check is None} <= {"fid"}


# the stages


@pytest.fixture
def gate(raw, workspace, monkeypatch):
    """`gate(usage, on_failure)`: the stage on this usage of one grid, with one threshold."""
    monkeypatch.syspath_prepend(str(ROOT))
    main = importlib.import_module("stages.gate").main
    raw["gate"]["thresholds"] = {"usage": {"metric": "diagnostics/usage:grid_*.usage", "at_least": 0.5}}

    def judged(usage: float, on_failure: str = "warn") -> None:
        files.write_metrics("diagnostics/usage", {"grid_0": {"usage": usage}})
        raw["gate"]["on_failure"] = on_failure
        main(Run(Params(raw)))

    yield judged
    sys.modules.pop("stages.gate", None)


def test_gate_file_is_the_same_whatever_passes(gate):
    gate(0.6)
    first = Path("artifacts/gate.txt").read_bytes()
    gate(0.9)
    assert Path("artifacts/gate.txt").read_bytes() == first
    gate(0.1)
    assert Path("artifacts/gate.txt").read_bytes() == first  # on_failure is warn


def test_gate_stops_by_name_and_keeps_its_metrics(gate):
    with pytest.raises(InputError, match=r"usage: not met.*-S gate\.on_failure=warn"):
        gate(0.1, "stop")
    assert not Path("artifacts/gate.txt").exists()
    assert json.loads(Path("metrics/gate.json").read_text())["checks"]["usage"]["pass"] == 0
    gate(0.6, "stop")
    assert Path("artifacts/gate.txt").exists()


def test_an_older_metric_of_a_diagnostic_that_is_not_run_is_not_judged(gate, raw, capsys):
    del raw["diagnostics"]["usage"]
    gate(0.1, "stop")
    assert "usage          not measured" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["*.rung", "*rung", "*.*.rung", "test.*rung"])
def test_a_star_over_several_levels_names_the_group_without_the_metric(pattern):
    groups = {
        "val": {"all": {"rung": 1}, "people": {"rung": 2}},
        "test": {"all": {"rung": 0.5}, "people": {"images": 3}},
    }
    assert list(verdict._missing(groups, pattern)) == ["test.people"]
