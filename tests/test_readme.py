"""The README shows the committed run: its figures, pictures and pipeline are compared with the files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_figures_are_those_of_the_committed_metrics():
    """Rows end in `file: key`, the place that the figure was read from."""
    rows = re.findall(r"^\| .* \| ([-\d.]+) ?%?(?: dB)? \| `([\w/]+): ([\w.]+)` \|$", README, flags=re.M)
    assert len(rows) >= 10
    for shown, file, key in rows:
        value = json.loads((ROOT / "metrics" / f"{file}.json").read_text())
        for part in key.split("."):
            value = value[part]
        decimals = len(shown.partition(".")[2])
        candidates = (f"{value:.{decimals}f}", f"{100 * value:.{decimals}f}")
        assert shown in candidates, f"{file}: {key} is {value}, README says {shown}"


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_graph_is_the_pipeline():
    command = [str(Path(sys.executable).parent / "dvc"), "dag", "--collapse-foreach-matrix", "--mermaid"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    names = dict(re.findall(r'(node\d+)\["(\w+)"\]', drawn))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", drawn)}
    edges = {edge for edge in edges if edge[1] != "report"}  # it reads all: said in words
    graph = re.search(r"```mermaid\n(.*?)```", README, flags=re.S).group(1)
    shown = {pair for line in graph.splitlines() for pair in pairwise(re.findall(r"\w+", line.replace("-->", " ")))}
    shown -= {("flowchart", "LR")}
    assert shown == set(networkx.transitive_reduction(networkx.DiGraph(edges)).edges)
