"""Findings are scripts that install and run other packages; here only what holds without running them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "findings"
FINDINGS = sorted(FOLDER.glob("*.sh"))
HEADER = ("Title", "Packages", "Expected", "Instead", "Seen", "Date", "Matters")


def test_the_page_lists_every_finding():
    listed = re.findall(r"^\| \[`([^`]+)`\]\(\1\.sh\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert listed == [path.stem for path in FINDINGS]


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_has_its_header_pins_and_grammar(path):
    text = path.read_text()
    header = text.split("set -euo pipefail\n")[0]
    assert tuple(re.findall(r"^# (\w+): +\S", header, re.MULTILINE)) == HEADER
    for package, version in re.findall(r"\b([\w-]+)==([\d.]+\d)", text):
        assert f"{package} {version}".lower() in header.lower(), "the header names every pinned version"
    assert "trap 'rm -rf \"$work\"' EXIT" in text
    subprocess.run(["bash", "-n", str(path)], check=True)
