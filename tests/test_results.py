"""docs/results.md shows what docs/results/*.csv hold."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLES = sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.csv"))


@pytest.mark.parametrize("table", TABLES)
def test_page_shows_the_table(table, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from studies import tokenizers

    assert tokenizers.show(table) in (ROOT / "docs" / "results.md").read_text(), (
        f"put the output of `python -m studies.tokenizers {table} --show` into docs/results.md"
    )
    assert set(tokenizers.TABLES) >= set(TABLES)


def test_rows_of_the_studies_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from studies import tokenizers
    from tessera import presets
    from tessera.core.params import read

    for rows in tokenizers.TABLES.values():
        for values in rows.values():
            presets.applied(read(), values)
