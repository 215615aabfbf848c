"""docs/results.md shows what docs/results/*.csv hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from committed import project

ROOT = Path(__file__).resolve().parent.parent
TABLES = sorted(path.stem for path in (project() / "docs" / "results").glob("*.csv"))


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.chdir(project())
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("table", TABLES)
def test_page_shows_the_table(table):
    from studies import priors, tables, tokenizers

    assert tables.show(table) in (project() / "docs" / "results.md").read_text(), (
        f"put the output of `python -m studies.<tokenizers or priors> {table} --show` into docs/results.md"
    )
    assert {*tokenizers.TABLES, *priors.TABLES} >= set(TABLES)


def test_rows_of_the_studies_are_valid():
    from studies import priors, tokenizers
    from tessera import presets
    from tessera.core.params import read

    for rows in (*tokenizers.TABLES.values(), *priors.TABLES.values()):
        for values in rows.values():
            presets.applied(read(), values)
