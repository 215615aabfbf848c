"""One meaning per word: names of the code, of params.yaml and of metrics, against the tables in docs/architecture.md."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from committed import project
from ruamel.yaml import YAML

from tessera.core import trees

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src/tessera", "stages", "benchmarks")
CONTRACTS = ("Tokenizer", "Quantizer", "Prior", "Extractor", "Upsampler")
STAGE = "probe"  # a stage, and the section and the threshold of its name
# Public names that hold a word in another meaning. To rename one costs every params.yaml or result that holds it.
PARAMS = {
    # name in params.yaml: the file of its `Config`, and why it stays
    "prior.masked.bound_draws": ("src/tessera/priors/masked.py", "recipes of saved priors hold it"),
    "prior.masked.steps": ("src/tessera/priors/masked.py", "passes; recipes of saved priors hold it"),
    "infiller.steps": ("stages/infiller.py", "the same word as of the prior `masked`, which it is"),
}


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """Of each word in the second table: names that may hold it anywhere, and files or folders where it may stand."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("| word in a name |")[2].partition("\n\n")[0]
    found = {}
    for line in text.splitlines()[2:]:
        words, compounds, places = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|"))
        found |= dict.fromkeys(words, (compounds, places))
    return found


def words(name: str) -> list[str]:
    """`MaskedConv2d` and `masked_conv2d` alike: the words of a name, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def names(source: str) -> Iterator[tuple[str, int]]:
    """What the file names itself, and in which line: not what it only uses, which others have named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def banned(name: str, file: str, table: dict[str, tuple[list[str], list[str]]]) -> list[str]:
    """Words of a name that may not stand in it, in this file."""
    found = []
    for word, (compounds, places) in table.items():
        rest = "_".join(words(name))
        for compound in compounds:
            rest = re.sub(rf"(^|_){compound}(?=_|$)", "", rest)
        if word in rest.split("_") and not any(file == place or file.startswith(place + "/") for place in places):
            found.append(word)
    return found


def found_in(root: Path, table: dict[str, tuple[list[str], list[str]]]) -> list[str]:
    problems, kept = [], {(file, name.rpartition(".")[2]) for name, (file, _) in PARAMS.items()}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        file = path.relative_to(root).as_posix()
        own = [(path.parent.name if path.stem == "__init__" else path.stem, 1), *names(path.read_text())]
        for name, line in own:
            if (file, name) not in kept:
                problems += [f"{file}:{line}: {name}: {word!r}" for word in banned(name, file, table)]
    return problems


def test_no_name_of_the_code_holds_a_word_in_another_meaning() -> None:
    assert found_in(ROOT, rows()) == []


@pytest.mark.parametrize(
    "text",
    [
        "def share_of_x(): ...",
        "def f(rank): ...",
        "drawn = 1",
        "class Graphs: ...",
        "import a as cfg",
        "def mask_of(x): ...",
    ],
)
def test_a_name_that_does_is_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "src/tessera/images/new.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert len(found_in(tmp_path, rows())) == 1


@pytest.mark.parametrize(("text", "file"), [
    ("rank = 0", "training/new.py"), ("def step(): ...", "training/loop.py"), ("cuda_graph = 1", "codes/new.py"),
    ("shared = shareable = 1", "codes/new.py"), ("graph.step(share=1)", "codes/new.py"),
    ("known_mask = 1", "codes/new.py"),
])  # fmt: skip
def test_a_name_that_does_not_is_none(tmp_path: Path, text: str, file: str) -> None:
    path = tmp_path / "src/tessera" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert found_in(tmp_path, rows()) == []


def test_contracts_alone_have_the_names_of_contracts() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name != "contracts.py"]
    classes = [
        node.name for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    assert "Settings" in classes
    assert not set(CONTRACTS) & set(classes)


def test_the_second_table_is_of_words_that_the_prose_rules_out() -> None:
    words_section = (ROOT / "docs" / "architecture.md").read_text().partition("## Words")[2]
    prose = words_section.partition("Names in `src")[0] + words_section.partition("Names never used: ")[2]
    assert len(rows()) > 10
    assert [word for word in rows() if re.sub(r"(s|n|ped)$", "", word) not in re.sub(r"s\b", "", prose)] == []


def test_names_of_params_hold_no_word_in_another_meaning() -> None:
    raw: dict[str, Any] = YAML(typ="safe").load((project() / "params.yaml").read_text())
    held = set()
    for name, _ in trees.leaves(raw):
        file = "src/tessera/training/settings.py" if ".training." in name else "params.yaml"
        held |= {name for part in name.split(".") if part != STAGE and banned(part, file, rows())}
    assert held == set(PARAMS)


def test_names_of_metrics_hold_no_word_in_another_meaning() -> None:
    held = set()
    for path in (project() / "metrics").rglob("*.json"):
        for name, _ in trees.leaves(json.loads(path.read_text())):
            held |= {part for part in name.split(".") if part != STAGE and banned(part, "metrics", rows())}
    assert held == set()
