"""The README shows the committed run: its figures, pictures and pipeline are compared with the committed files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import networkx
from committed import ROOT, project

README = (project() / "README.md").read_text()


def test_figures_are_those_of_the_committed_metrics():
    """Rows end in `file: key`, the place that the figure was read from."""
    rows = re.findall(r"^\| .* \| ([-\d.]+) ?%?(?: dB)? \| `([\w/]+): ([\w.]+)` \|$", README, flags=re.M)
    assert len(rows) >= 10
    for shown, file, key in rows:
        value = json.loads((project() / "metrics" / f"{file}.json").read_text())
        for part in key.split("."):
            value = value[part]
        decimals = len(shown.partition(".")[2])
        candidates = (f"{value:.{decimals}f}", f"{100 * value:.{decimals}f}")
        assert shown in candidates, f"{file}: {key} is {value}, README says {shown}"


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (project() / target).exists(), target


def test_the_graph_is_the_pipeline(tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(project() / "params.yaml", tmp_path)
    dvc = str(Path(sys.executable).parent / "dvc")
    subprocess.run([dvc, "init", "-q", "--no-scm"], cwd=tmp_path, capture_output=True, check=True)
    command = [dvc, "dag", "--collapse-foreach-matrix", "--mermaid"]
    drawn = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    names = dict(re.findall(r'(node\d+)\["(\w+)"\]', drawn))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", drawn)}
    edges = {edge for edge in edges if edge[1] != "report"}  # it reads all: said in words
    graph = re.search(r"```mermaid\n(.*?)```", README, flags=re.S).group(1)
    shown = {pair for line in graph.splitlines() for pair in pairwise(re.findall(r"\w+", line.replace("-->", " ")))}
    shown -= {("flowchart", "LR")}
    assert shown == set(networkx.transitive_reduction(networkx.DiGraph(edges)).edges)
