"""Diagnostics, evaluation, extensions: one article per plug-in that params.yaml names, with all that it measured."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from html import escape

from stages.report import elements
from tessera.core import seams


def body(seam: str, keys: Iterable[str]) -> str:
    """One article per plug-in of a seam, in the order of params.yaml."""
    return "".join(_article(seam, key) for key in keys) or "<p>None is run.</p>\n"


def _article(seam: str, key: str) -> str:
    where = f"{seam}/{key}"
    head = f'<article id="{seam}-{escape(key)}"><h3>{escape(key)}</h3>\n{_about(seam, key)}'
    if elements.metrics(where).get("applies") == 0:
        return f'{head}<p class="soft">Does not apply to this run: its log says why.</p></article>\n'
    return f"{head}{elements.numbers(where)}{elements.plots(where)}</article>\n"


def _about(seam: str, key: str) -> str:
    """The docstring of the plug-in: its first paragraph, and the rest folded. The file is parsed, not imported."""
    path = seams.code(seam, key)
    path = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else None
    first, *rest = re.sub(r"\s*(Imports n|N)o torch\.", "", text or "").split("\n\n")
    folded = f"<details><summary>more</summary>{''.join(map(_paragraph, rest))}</details>" if rest else ""
    return f"{_paragraph(first)}{folded}\n" if first else ""


def _paragraph(text: str) -> str:
    if text.startswith("    "):
        return f'<pre class="scroll">{escape(text)}</pre>'
    said = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f"<p>{said}</p>"
