"""What came of each run: its state, its metrics, its curves. Kept as CSV in docs/studies/, from which pages are made."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tessera.core import files
from tessera.studies import direct, queue

PAGES = Path("docs/studies")
CURVES = ("tokenizer", "prior")  # of plots/<name>.csv


class Result(NamedTuple):
    """`metrics` by `file:name`; `curves` by file of plots/, one row an evaluation. `state`: done, failed, missing."""

    run: str
    state: str
    metrics: dict[str, float]
    curves: dict[str, pd.DataFrame]


def collect(study: str, runs: list[str], experiments: bool = True) -> list[Result]:
    """Of each run: its experiment of the current commit, else its folder of a run without DVC, else what an earlier
    collection kept."""
    found = {entry["name"]: entry for entry in queue.experiments()} if experiments else {}
    before = {result.run: result for result in load(study)}
    results = []
    for run in runs:
        entry = found.get(queue.experiment(study, run))
        if entry is not None:
            results.append(_of_experiment(run, entry))
        elif direct.state(study, run) != "missing":
            results.append(_of_folder(study, run))
        else:
            results.append(before.get(run, Result(run, "missing", {}, {})))
    return results


def _of_experiment(run: str, entry: dict[str, Any]) -> Result:
    state = {"success": "done"}.get(entry["state"], entry["state"])
    metrics = {}
    for file, tree in entry["metrics"].items():
        if file.startswith("metrics/") and tree:
            metrics |= flat(file.removeprefix("metrics/").removesuffix(".json"), tree)
    texts = {name: queue.read(entry["revision"], f"plots/{name}.csv") for name in CURVES}
    curves = {name: pd.read_csv(io.StringIO(text)) for name, text in texts.items() if text}
    return Result(run, state, metrics, curves) if state == "done" else Result(run, state, {}, {})


def _of_folder(study: str, run: str) -> Result:
    where, state = direct.folder(study, run), direct.state(study, run)
    if state != "done":
        return Result(run, state, {}, {})
    metrics = {}
    for path in sorted((where / "metrics").rglob("*.json")):
        metrics |= flat(path.relative_to(where / "metrics").with_suffix("").as_posix(), json.loads(path.read_text()))
    curves = {name: pd.read_csv(path) for name in CURVES if (path := where / f"plots/{name}.csv").exists()}
    return Result(run, state, metrics, curves)


def flat(file: str, tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in tree.items():
        found |= flat(file, value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{file}:{prefix}{key}": value}
    return found


def metric(result: Result, pattern: str) -> float:
    """The mean of the metrics that match, such as `diagnostics/usage:grid_*.usage`; NaN where none does."""
    values = [value for name, value in result.metrics.items() if fnmatchcase(name, pattern)]
    return float(np.mean(values)) if values else float("nan")


# kept


def save(study: str, results: list[Result]) -> None:
    rows = [{"run": result.run, "state": result.state, **dict(sorted(result.metrics.items()))} for result in results]
    files.write_table(PAGES / f"{study}.csv", pd.DataFrame(rows))
    for name in CURVES:
        parts = [result.curves[name].assign(run=result.run) for result in results if name in result.curves]
        if parts:
            table = pd.concat(parts)
            files.write_table(PAGES / f"{study}-{name}.csv", table[["run", *table.columns.drop("run")]])


def load(study: str) -> list[Result]:
    """What docs/studies/ has of a study's runs."""
    path = PAGES / f"{study}.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path, dtype={"run": str, "state": str})
    curves = {name: _curves(study, name) for name in CURVES}
    return [_row(row.dropna(), curves) for _, row in table.iterrows()]


def _row(row: pd.Series, curves: dict[str, dict[str, pd.DataFrame]]) -> Result:
    metrics = {str(name): float(value) for name, value in row.items() if name not in ("run", "state")}
    own = {name: by_run[row["run"]] for name, by_run in curves.items() if row["run"] in by_run}
    return Result(row["run"], row["state"], metrics, own)


def _curves(study: str, name: str) -> dict[str, pd.DataFrame]:
    path = PAGES / f"{study}-{name}.csv"
    if not path.exists():
        return {}
    return {
        run: part.drop(columns="run") for run, part in pd.read_csv(path, dtype={"run": str}).groupby("run", sort=False)
    }


def missing(study: str, runs: list[str], experiments: bool = True) -> Iterator[str]:
    """Runs that have not ended well."""
    yield from (result.run for result in collect(study, runs, experiments) if result.state != "done")
