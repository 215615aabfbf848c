"""What the tests read in README.md and docs/: fenced blocks, commands and links, of the last commit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from committed import project

from tessera import presets

FENCE = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
PLACEHOLDER = re.compile(r"[A-Z]+")  # NAME, RUN: what the reader fills in
PRESET = re.compile(r"\$\(python -m tessera\.presets ([\w-]+)\)")
COMMAND = re.compile(r"`((?:dvc|python -m|make|pytest|-S) [^`]+)`")
FIGURE = re.compile(r"^\| .* \| ([-\d.]+) ?%?(?: dB)? \| `([\w/]+): ([\w.]+)` \|$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block. `file` is the path that a comment above it (`<!-- file: PATH -->`) says it is the content of."""

    language: str
    text: str
    file: str | None


def text(page: str) -> str:
    return (project() / page).read_text(encoding="utf-8")


def guides() -> list[str]:
    """README.md and the pages of docs/ that tell a user what to do."""
    return ["README.md", *sorted(f"docs/{path.name}" for path in (project() / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[Block]:
    found = [Block(match["language"], match["text"], match["file"]) for match in FENCE.finditer(text(page))]
    return [block for block in found if block.language == language]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text(page))


def commands(page: str) -> Iterator[list[str]]:
    """The words of each line of the shell blocks, and of each command that stands in the prose in backticks."""
    for block in blocks(page, "shell"):
        yield from filter(None, map(words, block.text.replace("\\\n", " ").splitlines()))
    for command in COMMAND.findall(prose(page)):
        yield words(command) if not command.startswith("-S") else ["dvc", "exp", "run", *words(command)]


def words(line: str) -> list[str]:
    """As a shell splits a line: `$(python -m tessera.presets NAME)` becomes what it prints, `$COMMIT` some commit."""
    return shlex.split(PRESET.sub(_printed, line).replace("$COMMIT", "0" * 40), comments=True)


def _printed(preset: re.Match[str]) -> str:
    return "" if PLACEHOLDER.fullmatch(preset[1]) else shlex.join(presets.arguments(presets.overrides(preset[1])))


def links(page: str) -> Iterator[tuple[Path, str]]:
    """File and heading of each link that leads into the repository; heading is "" where none is named."""
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page)):
        name, _, heading = target.partition("#")
        yield (Path(page).parent / name if name else Path(page)), heading


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
