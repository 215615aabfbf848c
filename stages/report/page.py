"""The document: its head, its contents, and its sections in reading order.

Pictures are data URIs and curves are SVG. Nothing is fetched and no script runs; a content security policy enforces it.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from stages.report import definitions, elements, params, plugins, prior, samples, summary, training, verdicts
from stages.report.style import STYLE

if TYPE_CHECKING:
    from tessera.core.run import Run


class Section(NamedTuple):
    """A title, its content as HTML, and the instances in it that the table of contents links to."""

    title: str
    body: str
    parts: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def render(run: Run) -> str:
    """The whole document. The same metrics, plots and params give the same bytes."""
    names = {section: values["name"] for section, values in run.params.chosen().items() if params.is_choice(values)}
    title = " · ".join(escape(names[section]) for section in ("dataset", "tokenizer", "quantizer", "prior"))
    parts = sections(run)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>tessera: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{_contents(parts)}\n<main>\n"
        f"<header><p>tessera</p><h1>{title}</h1></header>\n"
        + "\n".join(f'<section id="{part.anchor}"><h2>{part.title}</h2>\n{part.body}</section>' for part in parts)
        + "\n<footer>Written by the stage <code>report</code> from <code>params.yaml</code>, <code>metrics/</code> and "
        "<code>plots/</code>.</footer>\n</main>\n</body>\n</html>\n"
    )


def sections(run: Run) -> list[Section]:
    """The sections in reading order: results and params of the run, then the stages along the pipeline."""
    return [
        Section("Summary", summary.body(run)),
        Section("Params", params.body(run.params.chosen())),
        Section("Verdicts", verdicts.body(run)),
        Section("Data", elements.numbers("dataset") + elements.plots("dataset")),
        Section("Training", training.body(), training.TRAINED),
        Section("Reconstructions", elements.numbers("reconstruction") + elements.plots("reconstruction")),
        Section("Codebook", elements.numbers("tokenizer") + elements.plots("tokenizer")),
        _instances("Diagnostics", run),
        Section("Probe", elements.numbers("probe") + elements.plots("probe")),
        Section("Prior", prior.body(run)),
        Section("Samples", samples.body(run)),
        _instances("Evaluation", run),
        _instances("Extensions", run),
        Section("Definitions", definitions.body()),
    ]


def _contents(parts: Iterable[Section]) -> str:
    items = []
    for part in parts:
        inner = "".join(f'<li><a href="#{part.anchor}-{escape(key)}">{escape(key)}</a></li>' for key in part.parts)
        items.append(f'<li><a href="#{part.anchor}">{part.title}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>')
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def _instances(title: str, run: Run) -> Section:
    seam = title.lower()
    keys = run.params.keys(seam)
    return Section(title, plugins.body(seam, keys), keys)
