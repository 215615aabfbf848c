"""Results of the runs: state, metrics, curves. They are kept as CSV in docs/studies/, from which the pages are made.

A result belongs to the values that it was made with: its row holds a digest of them, and docs/studies/NAME-values.json the
values themselves. If the run has other values now, the result does not count, and the page says why.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tessera.core import files, trees
from tessera.core.errors import InputError
from tessera.runtime.validation import metric_today
from tessera.studies import direct, plan, queue, sweep
from tessera.studies.sweep import PAGES

CURVES = ("tokenizer", "prior")  # names of plots/<name>.csv
OWN = ("run", "state", "values")  # columns beside the metrics
NOT_YET = {"missing": "not run yet"}  # state -> words for it
SAID = 5  # differences shown for a result with other values
Values = dict[str, Any]


class Result(NamedTuple):
    """The result of one run. `metrics` by `file:name`; `curves` by file of plots/, one row per evaluation. `state`: done, failed,
    missing, or another key of `queue.ENDS`. `digest` is of the values that it was made with, `values` are these values if they
    are known. `why` says why it is missing.
    """

    run: str
    state: str
    metrics: dict[str, float]
    curves: dict[str, pd.DataFrame]
    digest: str = ""
    values: Values = {}  # noqa: RUF012 (never changed)
    why: str = ""


def digest(values: Values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def collect(
    name: str, study: sweep.Study, commits: Iterable[str] | None = ("HEAD",), ended: Mapping[str, str] | None = None
) -> list[Result]:
    """For each run, the first result that has its present values: from its experiment at these commits (None: no commit), from its
    folder of a run without DVC, or kept by an earlier collection. If none has, the last of these with other values, which
    `fitting` rejects. `ended`: final states of runs, as far as they are known."""
    found = {entry["name"]: entry for entry in queue.experiments(commits)} if commits is not None else {}
    before = {result.run: result for result in load(name)}
    results = []
    for run, values in sweep.counted(study).items():
        there = [_of_experiment(run, found.get(queue.experiment(name, run)), study), _of_folder(name, run, study),
                 before.get(run)]  # fmt: skip
        settled = [result for result in there if result is not None and result.state in ("done", *queue.ENDS)]
        own = [result for result in settled if result.digest == digest(values)]
        lost = Result(run, (ended or {}).get(run, "missing"), {}, {})
        results.append((own + settled[::-1] + [lost])[0])
    return results


def fitting(result: Result, values: Values) -> Result:
    """The result if it has these values; otherwise a missing result that says why."""
    if result.digest == digest(values) or not (result.digest or result.state == "done"):
        return result
    differ = plan.differences(result.values, values) if result.values else ["nothing is known of its values"]
    more = [f"and {len(differ) - SAID} others"] if len(differ) > SAID else []
    return Result(result.run, "missing", {}, {}, why="made with other values: " + "; ".join(differ[:SAID] + more))


def _of_experiment(run: str, entry: dict[str, Any] | None, study: sweep.Study) -> Result | None:
    if entry is None:
        return None
    values = plan.counted(study.targets, entry["params"])
    state = {"success": "done"}.get(entry["state"], entry["state"])
    if state != "done":
        return Result(run, state, {}, {}, digest(values), values)
    written = plan.written(study.targets, entry["params"])
    metrics: dict[str, float] = {}
    for file, tree in entry["metrics"].items():
        if file in written and tree:
            metrics |= _numbers(tree, file.removeprefix("metrics/").removesuffix(".json"))
    texts = {
        name: queue.read(entry["revision"], f"plots/{name}.csv") for name in CURVES if f"plots/{name}.csv" in written
    }
    curves = {name: pd.read_csv(io.StringIO(text)) for name, text in texts.items() if text}
    return Result(run, state, metrics, curves, digest(values), values)


def _of_folder(name: str, run: str, study: sweep.Study) -> Result | None:
    where, state = direct.folder(name, run), direct.state(name, run)
    if state == "missing":
        return None
    raw = direct.params(name, run)
    values = plan.counted(study.targets, raw) if raw else {}
    made = Result(run, state, {}, {}, digest(values), values)
    if state != "done" or not raw:
        return made
    written = plan.written(study.targets, raw)
    for path in sorted((where / "metrics").rglob("*.json")):
        if path.relative_to(where).as_posix() in written:
            file = path.relative_to(where / "metrics").with_suffix("").as_posix()
            made.metrics.update(_numbers(json.loads(path.read_text()), file))
    made.curves.update({name: pd.read_csv(path) for name in CURVES if (path := where / f"plots/{name}.csv").exists()})
    return made


def _numbers(tree: dict[str, Any], file: str) -> dict[str, float]:
    return {metric_today(name): number for name, number in trees.numbers(tree, f"{file}:")}


def metric(result: Result, pattern: str) -> float:
    """The mean of the metrics that match a pattern such as `diagnostics/usage:grid_*.usage`; NaN if none does."""
    values = [value for name, value in result.metrics.items() if fnmatchcase(name, metric_today(pattern))]
    return float(np.mean(values)) if values else float("nan")


# kept


def save(study: str, results: list[Result]) -> None:
    rows = [{"run": result.run, "state": result.state, "values": result.digest, **dict(sorted(result.metrics.items()))}
            for result in results]  # fmt: skip
    files.write_table(PAGES / f"{study}.csv", pd.DataFrame(rows))
    files.write_json(_values_file(study), _shared({result.run: result.values for result in results if result.values}))
    for name in CURVES:
        parts = [result.curves[name].assign(run=result.run) for result in results if name in result.curves]
        if parts:
            table = pd.concat(parts)
            files.write_table(PAGES / f"{study}-{name}.csv", table[["run", *table.columns.drop("run")]])


def _values_file(study: str) -> Path:
    return PAGES / f"{study}-values.json"


def _shared(values: dict[str, Values]) -> dict[str, Any]:
    """Values common to all runs once, and for each run the others."""
    first, *others = list(values.values()) or [{}]
    common = {n: v for n, v in first.items() if all(n in other and other[n] == v for other in others)}
    runs = {run: {n: v for n, v in own.items() if n not in common} for run, own in values.items()}
    return {"all": common, "runs": runs}


def load(study: str) -> list[Result]:
    """The results that docs/studies/ holds for a study, with any values."""
    path = PAGES / f"{study}.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path, dtype=dict.fromkeys(OWN, str))
    known = files.read_json(_values_file(study)) if _values_file(study).exists() else {"all": {}, "runs": {}}
    values = {run: {**known["all"], **own} for run, own in known["runs"].items()}
    curves = {name: _curves(study, name) for name in CURVES}
    rows = [_row(row.dropna(), curves, values) for _, row in table.iterrows()]
    return [row for row in rows if row.state != "missing"]


def _row(row: pd.Series, curves: dict[str, dict[str, pd.DataFrame]], values: dict[str, Values]) -> Result:
    metrics = {metric_today(str(name)): float(value) for name, value in row.items() if name not in OWN}
    own = {name: by_run[row["run"]] for name, by_run in curves.items() if row["run"] in by_run}
    known, of = values.get(row["run"], {}), row.get("values", "")
    if known and of == digest(known):
        known = plan.today(known)
        return Result(row["run"], row["state"], metrics, own, digest(known), known)
    return Result(row["run"], row["state"], metrics, own, of, {})


def _curves(study: str, name: str) -> dict[str, pd.DataFrame]:
    path = PAGES / f"{study}-{name}.csv"
    if not path.exists():
        return {}
    return {
        run: part.drop(columns="run") for run, part in pd.read_csv(path, dtype={"run": str}).groupby("run", sort=False)
    }


def missing(results: Iterable[Result], values: dict[str, Values]) -> Iterator[Result]:
    """Results that are not `done`, or have other values than their run."""
    yield from (result for result in (fitting(r, values[r.run]) for r in results) if result.state != "done")


def declare(study: str, values: dict[str, Values]) -> Iterator[str]:
    """Accept kept results for the present values if no known value has changed: if their values are not known, or if params.yaml
    only got or lost names since. Yields one line for each run that this applies to.

    Raises:
        InputError: it applies to no run.
    """
    kept, declared = [], []
    for result in load(study):
        now = values.get(result.run)
        if now is not None and result.digest != digest(now) and not plan.changed(result.values, now):
            names = plan.differences(result.values, now) if result.values else ["its values were not known"]
            declared.append(f"{result.run}: {'; '.join(names)}")
            result = result._replace(digest=digest(now), values=now)
        kept.append(result)
    if not declared:
        raise InputError(f"{study}: no kept result differs from its run by new or missing names alone")
    save(study, kept)
    yield from declared
