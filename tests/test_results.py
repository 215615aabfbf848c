"""docs/results.md shows what docs/results/*.csv hold: tables of scripts that are gone, kept as history."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from committed import project

from tessera.studies.pages import markdown, short

FOLDER = project() / "docs" / "results"
PAGE = (project() / "docs" / "results.md").read_text()
TABLES = sorted(path.stem for path in FOLDER.glob("*.csv"))


def shown(table: str) -> str:
    """One line a row name: means over seeds, with the standard deviation where there are several."""
    values = pd.read_csv(FOLDER / f"{table}.csv")
    columns = values.columns.drop(["row", "seed", "kept_epoch"])
    lines = []
    for name in values["row"].unique():
        part = values.loc[values["row"] == name, columns]
        lines.append([name, len(part), *(cell(part[column]) for column in columns)])
    return markdown(pd.DataFrame(lines, columns=["row", "seeds", *columns]))


def cell(values: pd.Series) -> str:
    if not pd.api.types.is_numeric_dtype(values):
        return ", ".join(dict.fromkeys(values.astype(str)))
    if values.isna().all():
        return "-"
    spread = values.std()  # of one seed: NaN
    return short(values.mean()) + (f" ± {spread:.2g}" if spread > 0 else "")


@pytest.mark.parametrize("table", TABLES)
def test_page_shows_the_table(table):
    assert shown(table) in PAGE


@pytest.mark.parametrize("table", TABLES)
def test_page_says_which_script_made_the_table_and_at_which_commit(table):
    (line,) = re.findall(
        rf"^\| `{re.escape(table)}` \| `(\w+)\.py {re.escape(table)}` \| (\w{{7}}) \| (.+) \|$", PAGE, flags=re.M
    )
    script, _, now = line
    assert script in ("tokenizers", "priors")
    study = re.match(r"`([\w-]+)`", now)[1]
    assert (project() / "studies" / f"{study}.yaml").exists()
