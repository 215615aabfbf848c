"""Tables of runs: one CSV row per row name and seed in docs/results/, shown as Markdown with mean and deviation over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from tessera.studies.pages import markdown, short

__all__ = ["markdown", "short", "show", "write"]
FOLDER = Path("docs/results")


def write(table: str, row: dict[str, Any], order: Iterable[str]) -> None:
    """Put a row into the table's file, in place of the same row of the same seed; `order` is that of the row names."""
    path = FOLDER / f"{table}.csv"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # rows may be run side by side
        old = pd.read_csv(path) if path.exists() else pd.DataFrame()
        if len(old):
            old = old[(old["row"] != row["row"]) | (old["seed"] != row["seed"])]
        places = {name: index for index, name in enumerate(order)}
        new = pd.concat([old, pd.DataFrame([row])])
        new = new.sort_values(["row", "seed"], key=lambda part: part.map(places) if part.name == "row" else part)
        new.to_csv(path, index=False, float_format="%.6g")


def show(table: str) -> str:
    values = pd.read_csv(FOLDER / f"{table}.csv")
    columns = values.columns.drop(["row", "seed", "kept_epoch"])
    lines = []
    for name in values["row"].unique():
        part = values.loc[values["row"] == name, columns]
        cells = [_cell(part[column]) for column in columns]
        lines.append([name, len(part), *cells])
    return markdown(pd.DataFrame(lines, columns=["row", "seeds", *columns]))


def _cell(values: pd.Series) -> str:
    if not pd.api.types.is_numeric_dtype(values):
        return ", ".join(dict.fromkeys(values.astype(str)))
    if values.isna().all():
        return "-"
    spread = values.std()  # of one seed: NaN
    return short(values.mean()) + (f" ± {spread:.2g}" if spread > 0 else "")
