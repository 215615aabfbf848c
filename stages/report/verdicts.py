"""The verdicts of `gate` and `criteria`: one line each for the summary, and in full with every threshold of params.yaml."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from stages.report import elements

if TYPE_CHECKING:
    from tessera.core.run import Run

STAGES = ("gate", "criteria")


def lines() -> str:
    """List items: how many checks pass, and which do not."""
    return "".join(map(_line, STAGES))


def _line(stage: str) -> str:
    found = elements.metrics(stage)
    failed = ", ".join(f"<code>{escape(name)}</code>" for name, check in found["checks"].items() if not check["pass"])
    count = f"{found['judged'] - found['failed']} of {found['judged']} checks pass"
    return f'<li>{_mark(found["passed"])} <a href="#verdicts">{stage}</a> {count}{", not " + failed if failed else ""}</li>'


def body(run: Run) -> str:
    """One table per verdict, which also lists metrics that were not measured, and of how many groups one was not."""
    return "".join(_verdict(stage, run) for stage in STAGES)


def _verdict(stage: str, run: Run) -> str:
    own, checks = run.params.chosen()[stage], elements.metrics(stage)["checks"]
    rows = []
    for name, threshold in own["thresholds"].items():
        bound = next(f"{side.replace('_', ' ')} {elements.number(threshold[side])}" for side in ("at_least", "at_most")
                     if threshold.get(side) is not None)  # fmt: skip
        check = checks.get(name)
        value, margin = (elements.number(check["value"]), elements.number(check["margin"])) if check else ("", "")
        mark = _mark(check["pass"]) if check else '<span class="soft">not measured</span>'
        if check and "not_measured" in check:
            mark += f' <span class="soft">{check["not_measured"]:.0f} not measured</span>'
        rows.append([escape(name), mark, value, escape(bound), margin, f"<code>{escape(threshold['metric'])}</code>"])
    after = {"warn": "A check that fails is a warning.", "stop": "A check that fails stops the pipeline."}
    table = elements.table(["check", "verdict", "value", "bound", "margin", "metric"], rows, numeric={2, 4})
    return f"<h3>{stage}</h3>\n<p>{escape(after.get(own['on_failure'], own['on_failure']))}</p>\n{table}"


def _mark(passed: Any) -> str:
    return '<span class="good">✓ pass</span>' if passed else '<span class="bad">✗ fail</span>'
