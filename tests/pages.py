"""What the tests read in README.md and docs/: fenced blocks, commands and links, of the last commit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from committed import project

FENCE = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
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
    """Each line of the shell blocks as its words, and each command that stands in the prose in backticks."""
    for block in blocks(page, "shell"):
        for line in block.text.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)
    for command in COMMAND.findall(prose(page)):
        words = shlex.split(command)
        yield words if words[0] != "-S" else ["dvc", "exp", "run", *words]


def links(page: str) -> Iterator[tuple[Path, str]]:
    """File and heading of each link that leads into the repository; heading is "" where none is named."""
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page)):
        name, _, heading = target.partition("#")
        yield (Path(page).parent / name if name else Path(page)), heading


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
