"""The README is an entrance: short, with one picture and six figures of the committed run."""

from __future__ import annotations

import numpy as np
import pages
from committed import project

from benchmarks import overview


def test_it_is_short():
    assert len(pages.text("README.md").splitlines()) <= 150


def test_it_has_six_figures():
    """That they are those of the committed metrics, tests/test_docs.py tests."""
    assert len(pages.FIGURE.findall(pages.text("README.md"))) == 6


def test_its_picture_is_of_the_committed_sheets():
    committed = overview.read(project() / "docs/overview.png")
    assert np.array_equal(committed, overview.picture(project() / "plots")), "run python -m benchmarks.overview"
    assert pages.text("README.md").count("![") == 1
    assert "](docs/overview.png)" in pages.text("README.md")
