"""README.md and docs/ do what they say: examples run, commands are valid, links lead somewhere, figures are measured ones."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import networkx
import pages
import pytest
import torch
from committed import ROOT, project
from conftest import example
from ruamel.yaml import YAML

from tessera import presets
from tessera.core import seams
from tessera.core.errors import InputError
from tessera.runtime.validation import problems, read
from tessera.studies import sweep

GUIDES = pages.guides()
WITH_LINKS = sorted(
    str(path.relative_to(project()))
    for path in [project() / "README.md", *(project() / "docs").rglob("*.md")]
    + [project() / folder / "README.md" for folder in ("benchmarks", "data", "examples", "findings")]
)
BY_TASK = [page for page in GUIDES if page != "docs/results.md"]
OTHER_PROGRAMS = ("dask", "git", "npm", "pip", "source")  # what the shell blocks use beside our own commands and dvc


def holds_plug_in(page: str) -> bool:
    return any(block.file for block in pages.blocks(page, "python"))


# examples


@pytest.mark.parametrize("page", [page for page in GUIDES if pages.blocks(page, "python")])
def test_python_blocks_run(page, tiny_run):
    """One after another, as a reader would type them, beside the artefacts of a tiny run."""
    names: dict[str, Any] = {"__name__": page}
    for block in pages.blocks(page, "python"):
        if block.file is None:
            exec(compile(block.text, page, "exec"), names)


@pytest.mark.parametrize("page", BY_TASK)
def test_each_page_has_an_example(page):
    assert pages.blocks(page, "python") or pages.blocks(page, "shell")


@pytest.fixture
def plug_in(monkeypatch) -> Any:
    """`plug_in(page)`: the module that a block of the page is the file of, found by `seams` as if it lay there."""

    def found(page: str) -> tuple[ModuleType, str, str]:
        (block,) = [block for block in pages.blocks(page, "python") if block.file]
        seam, name = Path(block.file).parts[2], Path(block.file).stem
        assert block.file == f"src/tessera/{seam}/{name}.py"
        assert seam in seams.SEAMS
        module = ModuleType(f"tessera.{seam}.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block.text, block.file, "exec"), module.__dict__)
        own = seams.names
        monkeypatch.setattr(seams, "names", lambda of: (*own(of), name) if of == seam else own(of))
        return module, seam, name

    return found


def test_the_quantizer_of_the_page_keeps_the_contract(plug_in):
    module, _, name = plug_in("docs/tokenizers.md")
    quantizer = module.build(example(module.Config), None)
    z = torch.randn(2, quantizer.dim, 3, 5, requires_grad=True)
    quantized = quantizer(z)
    assert quantized.codes.shape == (2, 1, 3, 5)
    assert torch.allclose(quantized.z_q, quantizer.decode(quantized.codes), atol=1e-6)
    vectors = quantizer.codebooks[0]
    assert vectors.shape == (quantizer.codebook_sizes[0], quantizer.dim)
    assert torch.equal(vectors[quantized.codes[:, 0]].permute(0, 3, 1, 2), quantizer.decode(quantized.codes))
    quantized.z_q.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    chosen = merged(read(project() / "params.yaml"), "docs/tokenizers.md")
    chosen["quantizer"]["name"] = name
    assert problems(chosen) == []


def test_the_diagnostic_of_the_page_measures(plug_in, tiny_run):
    module, seam, name = plug_in("docs/architecture.md")
    assert problems(merged(read(project() / "params.yaml"), "docs/architecture.md")) == []
    report = module.measure(example(module.Config), tiny_run(name))
    assert seam == "diagnostics"
    assert 1 <= report.metrics["distinct"] <= tiny_run(name).codes("val").shape[1]


@pytest.mark.parametrize("page", ["docs/diagnostics.md"])
def test_yaml_blocks_are_valid_params(page):
    raw = read(project() / "params.yaml")
    assert merged(raw, page) != raw
    assert problems(merged(raw, page)) == []


def merged(raw: dict[str, Any], page: str) -> dict[str, Any]:
    """params.yaml with the sections that the page shows put in."""
    for block in pages.blocks(page, "yaml"):
        raw = _merged(raw, YAML(typ="safe").load(block.text)) if block.file is None else raw
    return raw


def _merged(raw: Any, shown: Any) -> Any:
    if not (isinstance(raw, dict) and isinstance(shown, dict)):
        return shown
    return raw | {key: _merged(raw.get(key), value) for key, value in shown.items()}


def test_the_study_of_the_page_loads(tmp_path, monkeypatch):
    (block,) = [block for block in pages.blocks("docs/studies.md", "yaml") if block.file]
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project() / name, tmp_path)
    (tmp_path / block.file).parent.mkdir()
    (tmp_path / block.file).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    study = sweep.load(Path(block.file).stem)
    for run in study.runs:
        presets.applied(read(), sweep.changes(study, run))


# commands


class Commands:
    """Checks commands without running them: that programs, stages, options and names exist, and that values are valid."""

    def __init__(self, raw: dict[str, Any]) -> None:
        from dvc.cli.parser import get_main_parser
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.raw, self.dvc, self.overrides = raw, get_main_parser(), OverridesParser.create()
        self.stages = set(YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"])

    def check(self, words: list[str]) -> None:
        program, *arguments = words
        if program == "dvc":
            self._check_dvc(arguments)
        elif program == "make":
            _check_make(arguments)
        elif program == "python":
            assert arguments[0] == "-m", words
            _check_module(arguments[1], arguments[2:])
        elif program == "pytest":
            assert (ROOT / arguments[0]).exists(), words
        else:
            assert program in OTHER_PROGRAMS, words

    def _check_dvc(self, arguments: list[str]) -> None:
        try:
            parsed = self.dvc.parse_args(arguments)
        except BaseException as error:  # dvc's parser ends the process, or raises an error of its own
            pytest.fail(f"dvc {' '.join(arguments)}: {error}")
        if arguments[0] == "repro" or arguments[:2] == ["exp", "run"]:
            for stage, _, key in (target.partition("@") for target in parsed.targets or ()):
                assert stage in self.stages, arguments
                assert not key or key in self.raw[stage], arguments
        for values in self._values(getattr(parsed, "set_param", None) or [], getattr(parsed, "queue", False)):
            presets.applied(self.raw, values)

    def _values(self, overrides: list[str], queued: bool) -> Iterator[dict[str, Any]]:
        """What `-S` sets, for each run of a sweep, by Hydra's grammar, as dvc reads it."""
        parsed = [self.overrides.parse_override(override) for override in overrides]
        assert queued or not any(each.is_sweep_override() for each in parsed), f"a sweep needs --queue: {overrides}"
        names = [("~" if each.is_delete() else "") + each.key_or_group for each in parsed]
        choices = [list(each.sweep_iterator()) if each.is_sweep_override() else [each.value()] for each in parsed]
        for values in itertools.product(*choices):
            yield presets.remaining(self.raw, dict(zip(names, values, strict=True)))


def _check_make(arguments: list[str]) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE).group(1).split()
    for argument in arguments:
        name, _, value = argument.partition("=")
        known = (*presets.names(), "NAME") if name == "PRESET" else phony
        assert (value or name) in known, arguments


def _check_module(module: str, arguments: list[str]) -> None:
    found = importlib.util.find_spec(module)
    if found and found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    assert found, f"python -m {module}: there is no such module"
    source, ours = Path(found.origin), module.startswith(("tessera.", "benchmarks.", "studies.", "stages."))
    for option in [argument for argument in arguments if ours and argument.startswith("--")]:
        assert re.search(rf"\b{option[2:]}\b", source.read_text()), f"python -m {module} has no option {option}"
    named = [argument for argument in arguments[:1] if not argument.startswith("-")]
    known = {"tessera.studies": sweep.names, "tessera.presets": presets.names}.get(module)
    for name in named if known else []:
        assert pages.PLACEHOLDER.fullmatch(name) or name in known(), f"python -m {module} {name}"


@pytest.fixture(scope="module")
def committed_commands() -> Commands:
    return Commands(read(project() / "params.yaml"))


@pytest.mark.parametrize("page", [page for page in GUIDES if not holds_plug_in(page)])
def test_commands_are_valid(page, committed_commands, monkeypatch):
    monkeypatch.chdir(project())
    for words in pages.commands(page):
        committed_commands.check(words)


@pytest.mark.parametrize("page", [page for page in GUIDES if holds_plug_in(page)])
def test_commands_are_valid_with_the_plug_in_of_the_page(page, plug_in, monkeypatch):
    plug_in(page)
    monkeypatch.chdir(project())
    commands = Commands(merged(read(), page))
    for words in pages.commands(page):
        commands.check(words)


@pytest.mark.parametrize(
    "command",
    [
        "dvc exp run -S quantizer.betta=0.1",
        "dvc exp run -S quantizer.beta=-1",
        "dvc exp run -S quantizer.beta=0.1,0.2",
        "dvc exp run --quene -S quantizer.beta=0.1",
        "dvc repro gates",
        "dvc repro extensions@unknown",
        "dvc exp run $(python -m tessera.presets unknown)",
        "make repr",
        "make repro PRESET=unknown",
        "python -m tessera.unknown",
        "python -m tessera.core",
        "python -m tessera.studies unknown",
        "python -m tessera.studies --unheard",
        "pytest tests/test_unknown.py",
        "unknown",
    ],
)
def test_wrong_commands_are_found(command, committed_commands, monkeypatch):
    monkeypatch.chdir(project())
    with pytest.raises((AssertionError, InputError, pytest.fail.Exception)):
        committed_commands.check(pages.words(command))


# links, names, figures


@pytest.mark.parametrize("page", WITH_LINKS)
def test_links_lead_somewhere(page):
    for path, heading in pages.links(page):
        assert (project() / path).exists(), f"{page} links to {path}"
        if heading:
            assert heading in pages.headings(str(path)), f"{page} links to {path}#{heading}"


def test_files_that_the_architecture_names_exist():
    named = set(re.findall(r"`((?:[\w-]+/)+[\w-]+\.\w+|[\w-]+\.py)(?::[^`]*)?`", pages.prose("docs/architecture.md")))
    assert len(named) > 10
    made = re.compile(r"(metrics|plots|artifacts|docs/studies|src/tessera/diagnostics/distinct|studies/NAME)\b")
    for name in named:
        there = [ROOT / name, ROOT / "src/tessera" / name]
        assert made.match(name) or any(path.exists() for path in there), name


@pytest.mark.parametrize("seam", seams.SEAMS)
def test_every_plug_in_stands_on_a_page(seam):
    told = "".join(pages.prose(page) for page in GUIDES)
    assert [name for name in seams.names(seam) if f"`{name}`" not in told] == []


def test_every_preset_and_study_stands_on_its_page():
    told = pages.text("docs/studies.md")
    assert [name for name in presets.names() if f"`{name}`" not in told] == []
    pages_of = [path.stem for path in (project() / "docs/studies").glob("*.md")]
    assert [name for name in pages_of if f"studies/{name}.md" not in told and name != "pool"] == []


@pytest.mark.parametrize("page", GUIDES)
def test_figures_are_those_of_the_committed_metrics(page):
    """Rows end in `file: key`, the place that the figure was read from."""
    for shown, file, key in pages.FIGURE.findall(pages.text(page)):
        value = json.loads((project() / "metrics" / f"{file}.json").read_text())
        for part in key.split("."):
            value = value[part]
        decimals = len(shown.partition(".")[2])
        candidates = (f"{value:.{decimals}f}", f"{100 * value:.{decimals}f}")
        assert shown in candidates, f"{file}: {key} is {value}, {page} has {shown}"


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
    (graph,) = pages.blocks("docs/architecture.md", "mermaid")
    shown = {
        pair for line in graph.text.splitlines() for pair in pairwise(re.findall(r"\w+", line.replace("-->", " ")))
    }
    shown -= {("flowchart", "LR")}
    assert shown == set(networkx.transitive_reduction(networkx.DiGraph(edges)).edges)
