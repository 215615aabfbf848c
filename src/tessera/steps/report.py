"""One page of everything that a run found out: it can be mailed, opened on a phone, and read without a network.

Pictures are data URIs, curves are SVG; nothing is fetched and no script runs, and a content security policy keeps it so.
What stands on the page follows from params.yaml, never from what lies about in metrics/: an old file is not a result.

Plug-ins are known here by name only to choose what a reader sees first (`HEADLINE`), what stands beside the accuracy of
the prior (`ORACLE`), and what is said under sheets of images, which carry no words of their own (`CAPTIONS`). Where
params.yaml does not run one, it is left out. What a plug-in is about, the page takes from its own first lines.
"""

from __future__ import annotations

import ast
import base64
import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tessera.core import files, seams

if TYPE_CHECKING:
    import pandas as pd

    from tessera.core.run import Run

SHORT, FOLDED = 12, 64  # rows of a table that is shown, and of one that is folded; of longer ones the file is named
ORACLE = "oracle"  # the diagnostic whose predictors are to be beaten
TRAINED = ("extractor", "tokenizer", "prior")


class Figure(NamedTuple):
    """One number of the headline: a file of metrics/, a pattern of the name in it, its format, and words about it."""

    file: str
    name: str
    form: str
    words: str = "{}"


class Headline(NamedTuple):
    """A number, and beside it the one that it is to be read against."""

    title: str
    figure: Figure
    beside: Figure | None = None


HEADLINE = (
    Headline("PSNR of reconstructions, test", Figure("reconstruction", "psnr_db", ".2f", "{} dB"),
             Figure("reconstruction", "psnr_db_from_z", ".2f", "{} dB without quantization")),
    Headline("SSIM of reconstructions, test", Figure("reconstruction", "ssim", ".3f")),
    Headline("codes in use, validation", Figure("tokenizer", "val.usage", ".1%"),
             Figure("tokenizer", "val.perplexity", ".0f", "perplexity {}")),
    Headline("prior, bits per code, validation", Figure("prior", "val.nll_bits_per_code", ".2f"),
             Figure("prior", "train.nll_bits_per_code", ".2f", "{} on train")),
    Headline("prior, bits per code at most, validation", Figure("prior", "val.nll_bound_bits_per_code", ".2f"),
             Figure("prior", "train.nll_bound_bits_per_code", ".2f", "{} on train")),
    Headline("prior, likeliest code is right, validation", Figure("prior", "val.accuracy", ".1%"),
             Figure(f"diagnostics/{ORACLE}", "grid_*.better", ".1%", "{} by copying a neighbour")),
    Headline("Fréchet distance, samples to test", Figure("evaluation/frechet", "f[di]*.samples_test", ".2f"),
             Figure("evaluation/frechet", "f[di]*.train_test", ".2f", "{} from train to test")),
    Headline("recall of the samples", Figure("evaluation/coverage", "samples.recall", ".2f"),
             Figure("evaluation/coverage", "samples.precision", ".2f", "precision {}")),
    Headline("distance to training images, samples over test", Figure("evaluation/memorisation", "features.median_ratio", ".2f"),
             Figure("evaluation/memorisation", "features.near_share", ".1%", "{} are suspiciously near")),
)  # fmt: skip

CAPTIONS = {
    "dataset/examples": "Training images, spread evenly over the split.",
    "reconstruction/test": "Test images over their reconstructions, one of each family, spread evenly.",
    "tokenizer/reconstructions": "Validation images, and under them their reconstructions at each snapshot of training.",
    "tokenizer/codebook": "Code vectors at each snapshot, on the two principal directions of the last.",
    "diagnostics/equivariance/flips": "Flipped images, their reconstructions, and what is decoded from flipped codes.",
    "diagnostics/robustness/images": "Validation images; decoded from their own codes; then from ever more replaced ones.",
    "diagnostics/semantics/nearest": "Validation images, and beside each the training images that share most codes with it.",
    "evaluation/memorisation/pairs": "Closest training images: the samples nearest to one, over that image.",
    "extensions/interpolation/frames": "From one image to another: a block for each pair, a row for each way.",
    "extensions/super_resolution/test": "Test images at twice the size, and their reconstructions enlarged in other ways.",
}
PREDICTORS = {
    "left": "copy left",
    "above": "copy above",
    "better": "better of the two",
    "either": "either of the two (no predictor: knows which)",
    "constant": "always the most frequent code",
    "random": "at random",
}


class Section(NamedTuple):
    title: str
    body: str
    parts: tuple[str, ...] = ()  # instances, for the contents

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def page(run: Run) -> str:
    """The whole document. The same metrics, plots and params give the same bytes."""
    names = {section: values["name"] for section, values in run.params.chosen().items() if _is_choice(values)}
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
    return [
        Section("Summary", _summary(run)),
        Section("Params", _params(run.params.chosen())),
        Section("Verdicts", "".join(_verdict(stage, run) for stage in ("gate", "criteria"))),
        Section("Data", _numbers("dataset") + _shown("dataset")),
        Section("Training", TRAINING + "".join(_training(name) for name in TRAINED), TRAINED),
        Section("Reconstructions", _numbers("reconstruction") + _shown("reconstruction")),
        Section("Codebook", _numbers("tokenizer") + _shown("tokenizer")),
        _instances("Diagnostics", run),
        Section("Prior", _numbers("prior") + _beside_oracle(run)),
        Section("Samples", _samples(run)),
        _instances("Evaluation", run),
        _instances("Extensions", run),
    ]


def _contents(parts: Iterable[Section]) -> str:
    items = []
    for part in parts:
        inner = "".join(f'<li><a href="#{part.anchor}-{escape(key)}">{escape(key)}</a></li>' for key in part.parts)
        items.append(f'<li><a href="#{part.anchor}">{part.title}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>')
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


# Summary, params, verdicts


def _summary(run: Run) -> str:
    tiles = []
    for line in HEADLINE:
        value = _figure(run, line.figure)
        if value is not None:
            beside = _figure(run, line.beside) if line.beside else None
            note = f'<dd class="beside">{escape(beside)}</dd>' if beside else ""
            tiles.append(f"<div><dt>{escape(line.title)}</dt><dd>{escape(value)}</dd>{note}</div>")
    verdicts = "".join(_verdict_line(stage) for stage in ("gate", "criteria"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>\n<ul class="plain">{verdicts}</ul>\n'


def _figure(run: Run, figure: Figure) -> str | None:
    """Shown once for each grid that it matches; None where its plug-in is not run or does not apply."""
    seam, _, key = figure.file.partition("/")
    if key and key not in run.params.keys(seam):
        return None
    metrics = _flat(_metrics(figure.file))
    found = [format(value, figure.form) for name, value in metrics.items() if fnmatchcase(name, figure.name)]
    return figure.words.format(" / ".join(found)) if found else None


def _verdict_line(stage: str) -> str:
    found = _metrics(stage)
    failed = ", ".join(f"<code>{escape(name)}</code>" for name, check in found["checks"].items() if not check["pass"])
    count = f"{found['judged'] - found['failed']} of {found['judged']} checks pass"
    return f'<li>{_mark(found["passed"])} <a href="#verdicts">{stage}</a> {count}{", not " + failed if failed else ""}</li>'


def _mark(passed: Any) -> str:
    return '<span class="good">✓ pass</span>' if passed else '<span class="bad">✗ fail</span>'


def _verdict(stage: str, run: Run) -> str:
    own, checks = run.params.chosen()[stage], _metrics(stage)["checks"]
    rows = []
    for name, threshold in own["thresholds"].items():
        bound = next(f"{side.replace('_', ' ')} {_number(threshold[side])}" for side in ("at_least", "at_most")
                     if threshold.get(side) is not None)  # fmt: skip
        check = checks.get(name)
        value, margin = (_number(check["value"]), _number(check["margin"])) if check else ("", "")
        mark = _mark(check["pass"]) if check else '<span class="soft">not measured</span>'
        rows.append([escape(name), mark, value, escape(bound), margin, f"<code>{escape(threshold['metric'])}</code>"])
    after = {"warn": "A check that fails is a warning.", "stop": "A check that fails stops the pipeline."}
    table = _table(["check", "verdict", "value", "bound", "margin", "metric"], rows, numeric={2, 4})
    return f"<h3>{stage}</h3>\n<p>{escape(after.get(own['on_failure'], own['on_failure']))}</p>\n{table}"


def _params(chosen: dict[str, Any]) -> str:
    """Chosen values by section, folded; thresholds stand among the verdicts. A loss of weight 0 is not built: it is named."""
    cards = []
    for section in [name for name in chosen if name not in ("runtime", "gate", "criteria")]:
        values = chosen[section]
        if section == "losses":
            off = [name for name, term in values.items() if not term["weight"]]
            values = {name: term for name, term in values.items() if term["weight"]}
            values |= {"of weight 0": ", ".join(off)} if off else {}
        flat = _flat(values) if isinstance(values, dict) else {section: values}
        shown = values["name"] if _is_choice(values) else values if not isinstance(values, dict) else ""
        rows = [[f"<code>{escape(name)}</code>", escape(_value(value))] for name, value in flat.items()]
        summary = f"<summary>{escape(section)} <b>{escape(str(shown))}</b></summary>"
        cards.append(f"<details>{summary}{_table([], rows)}</details>")
    return f'<div class="cards">{"".join(cards)}</div>\n'


def _is_choice(values: Any) -> bool:
    return isinstance(values, dict) and "name" in values


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return "nothing to set" if value == {} else "none" if value == "" else str(value)


# Training curves


TRAINING = (
    '<p>Every term of every loss at each evaluation, <span class="train">training split</span> and '
    '<span class="val">validation split</span>. The upright line is the epoch whose weights went on.</p>\n'
)


def _training(name: str) -> str:
    history, kept = files.read_table(files.PLOTS / f"{name}.csv"), _metrics(name).get("epoch")
    charts = [_curve(title, history, columns, kept) for title, columns in _terms(history).items()]
    body = f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>Nothing was trained.</p>"
    if "bound" in history and history["bound"].any():
        body = "<p>Bits are an upper bound: this prior knows no exact likelihood.</p>" + body
    return f'<h3 id="training-{name}">{name}</h3>\n{body}\n'


def _terms(history: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Term -> line -> column: `train_mse` and `val_mse` are the two lines of `mse`, `lr` is a line of its own. Those of two
    lines first."""
    terms: dict[str, dict[str, str]] = {}
    for column in [name for name in history.columns if name not in ("epoch", "bound")]:
        split, _, term = column.partition("_")
        term, line = (term, split) if split in ("train", "val") else (column, "value")
        terms.setdefault(term, {})[line] = column
    return {term: columns for several in (2, 1) for term, columns in terms.items() if len(columns) == several}


def _curve(term: str, history: pd.DataFrame, columns: dict[str, str], kept: Any) -> str:
    lines, last = {}, []
    for line, column in columns.items():
        points = [(float(x), float(y)) for x, y in zip(history["epoch"], history[column], strict=True) if y != ""]
        points = [point for point in points if math.isfinite(point[1])]
        if points:
            lines[line] = points
            now = next((y for x, y in points if x == kept), points[-1][1])
            last.append(f'<span class="{line}">{line if line != "value" else ""} {_number(now)}</span>')
    if not lines:
        return ""
    chart = _chart(lines, kept, f"{term} by epoch") if max(map(len, lines.values())) > 1 else ""
    return f"<figure><figcaption><b>{escape(term)}</b> {' '.join(last)}</figcaption>{chart}</figure>"


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 170, 44, 14, 8, 22  # of a chart, in its own units


def _chart(lines: dict[str, list[tuple[float, float]]], kept: Any, label: str) -> str:
    """Lines over epochs as SVG, coloured by the style of the page."""
    xs, ys = [[point[axis] for points in lines.values() for point in points] for axis in (0, 1)]
    (left, right), (low, high) = _range(xs), _range(ys)

    def x(value: float) -> str:
        return f"{LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

    drawn = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text x="{LEFT - 5}" y="{y(tick)}" dy=".32em" text-anchor="end">{tick:.6g}</text>'
        for tick in _ticks(low, high)
    ]
    drawn += [
        f'<text x="{x(tick)}" y="{HEIGHT - 6}" text-anchor="middle">{tick:.6g}</text>' for tick in _ticks(left, right)
    ]
    if kept is not None and left <= kept <= right:
        drawn.append(f'<line class="kept" x1="{x(kept)}" x2="{x(kept)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for line, points in lines.items():
        places = " ".join(f"{x(a)},{y(b)}" for a, b in points)
        drawn.append(f'<polyline class="{line}" points="{places}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest; values that are all the same get a tenth of their size about them."""
    low, high = min(values), max(values)
    around = 0.1 * abs(low) or 1.0
    return (low, high) if high - low > 1e-9 * around else (low - around, high + around)


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about so many."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude > 0.7 * (high - low) / about)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


# The prior beside the oracle, samples


def _beside_oracle(run: Run) -> str:
    """An oracle is read against the prior: one that is no better than copying a neighbour has learned smoothness only."""
    if ORACLE not in run.params.keys("diagnostics") or _metrics(f"diagnostics/{ORACLE}").get("applies") == 0:
        return f"<p>The diagnostic <code>{ORACLE}</code>, to read the accuracy against, is not run or does not apply.</p>\n"
    table = files.read_table(files.PLOTS / "diagnostics" / ORACLE / "accuracy.csv")
    table = table[table["split"] == "val"]
    prior = _metrics("prior")
    bars = [
        ("prior, validation", prior["val"]["accuracy"], "val"),
        ("prior, train", prior["train"]["accuracy"], "train"),
    ]
    several = table["grid"].nunique() > 1
    for grid, predictor, accuracy in zip(table["grid"], table["predictor"], table["accuracy"], strict=True):
        words = PREDICTORS.get(predictor, predictor) + (f", grid {grid}" if several else "")
        bars.append((words, float(accuracy), "value"))
    longest = max(accuracy for _, accuracy, _ in bars) or 1.0
    rows = "".join(
        f'<dt>{escape(words)}</dt><dd><span class="bar {kind}" style="width:{100 * accuracy / longest:.1f}%"></span>'
        f"<b>{accuracy:.1%}</b></dd>"
        for words, accuracy, kind in bars
    )
    note = "The accuracy of the prior is over all grids." if several else ""
    return (
        f'<h3 id="prior-oracle">Accuracy beside the oracle</h3>\n<p>{_times(prior, table)} {note} Where a prior is no better '
        f'than copying a neighbour, it has learned smoothness and nothing else.</p>\n<dl class="bars">{rows}</dl>\n'
    )


def _times(prior: dict[str, Any], table: pd.DataFrame) -> str:
    accuracy, best = prior["val"]["accuracy"], table.groupby("predictor")["accuracy"].max()
    said = f"Of the codes of validation images the prior names {accuracy:.1%}"
    if table["grid"].nunique() == 1 and best.get("better", 0) and best.get("random", 0):
        said += f", {accuracy / best['better']:.1f} times the better of copying left and copying above"
        said += f", and {accuracy / best['random']:.0f} times chance"
    return said + "."


def _samples(run: Run) -> str:
    chosen = run.params.chosen()
    drawn = ", ".join(
        f"{key} {_value(chosen['samples'][key])}" for key in ("temperature", "top_k", "top_p", "guidance")
    )
    captions = {
        "samples": f"Samples of the prior {chosen['prior']['name']}, the first ones, unselected ({drawn}).",
        "baseline": f"Samples of the baseline {chosen['samples']['baseline']}, in closed form.",
        "gaussian": "Decoded from N(0, I), without a prior.",
    }
    folder = files.PLOTS / "samples"
    paths = sorted(
        folder.glob("*.png"), key=lambda path: list(captions).index(path.stem) if path.stem in captions else 9
    )
    pictures = "".join(_picture(path, captions.get(path.stem, path.stem)) for path in paths)
    closest = "memorisation" in run.params.keys("evaluation")
    more = '<p>Are they copies? The <a href="#evaluation-memorisation">closest training images</a> tell.</p>\n'
    return f'<div class="shown">{pictures}</div>\n{more if closest else ""}'


# Diagnostics, evaluation, extensions: one part for each plug-in that params.yaml names


def _instances(title: str, run: Run) -> Section:
    seam = title.lower()
    keys = run.params.keys(seam)
    return Section(title, "".join(_instance(seam, key) for key in keys) or "<p>None is run.</p>\n", keys)


def _instance(seam: str, key: str) -> str:
    where = f"{seam}/{key}"
    head = f'<article id="{seam}-{escape(key)}"><h3>{escape(key)}</h3>\n{_about(seam, key)}'
    if _metrics(where).get("applies") == 0:
        return f'{head}<p class="soft">Does not apply to this run: its log says why.</p></article>\n'
    return f"{head}{_numbers(where)}{_shown(where)}</article>\n"


def _about(seam: str, key: str) -> str:
    """The plug-in in its own words: its first paragraph, and folded the rest. Read, not imported."""
    path = seams.PACKAGE / seam / f"{key}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else None
    first, *rest = re.sub(r"\s*(Imports n|N)o torch\.", "", text or "").split("\n\n")
    folded = f"<details><summary>more</summary>{''.join(map(_paragraph, rest))}</details>" if rest else ""
    return f"{_paragraph(first)}{folded}\n" if first else ""


def _paragraph(text: str) -> str:
    if text.startswith("    "):
        return f'<pre class="scroll">{escape(text)}</pre>'
    said = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f"<p>{said}</p>"


# Metrics, pictures and tables of one place: a stage, or an instance of one


def _metrics(file: str) -> dict[str, Any]:
    return files.read_json(files.METRICS / f"{file}.json")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _numbers(file: str) -> str:
    """Metrics, grouped as they are nested; a grid that a diagnostic does not apply to says so."""
    groups: dict[str, list[str]] = {}
    for name, value in _flat(_metrics(file)).items():
        group, _, leaf = name.rpartition(".")
        shown = f"<dt>{escape(leaf)}</dt><dd>{_number(value)}</dd>"
        absent = "<dt>does not apply</dt>"
        groups.setdefault(group, []).append(f"<div>{absent if leaf == 'applies' and value == 0 else shown}</div>")
    lists = [
        f"{f'<h4>{escape(group)}</h4>' if group else ''}<dl>{''.join(cells)}</dl>" for group, cells in groups.items()
    ]
    return f'<div class="numbers">{"".join(f"<div>{inner}</div>" for inner in lists)}</div>\n'


def _number(value: Any) -> str:
    """Four significant digits; whole numbers whole."""
    number = float(value)
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.4g}" if abs(number) < 1e4 else f"{number:,.0f}"


def _shown(where: str) -> str:
    """Pictures, then tables, short ones first: side by side where there is room."""
    folder = files.PLOTS / where
    parts = [_picture(path, CAPTIONS.get(f"{where}/{path.stem}", "")) for path in sorted(folder.glob("*.png"))]
    tables = {path: files.read_table(path) for path in sorted(folder.glob("*.csv"))}
    parts += [_file(path, tables[path]) for path in sorted(tables, key=lambda path: len(tables[path]))]
    return f'<div class="shown">{"".join(parts)}</div>\n' if parts else ""


def _picture(path: Path, caption: str) -> str:
    """Its size stands in the page, so that nothing jumps while it is decoded. A touch shows it as large as it is, in a box
    that scrolls: a checkbox, and no script."""
    data = path.read_bytes()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    name = path.relative_to(files.PLOTS).as_posix()
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><label class="paper"><input type="checkbox" aria-label="full size of {escape(name)}">'
        f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" width="{width}" height="{height}" '
        f'alt="{escape(caption or name)}"></label>{said}</figure>\n'
    )


def _file(path: Path, table: pd.DataFrame) -> str:
    """A short table whole, a longer one folded, of a long one the place: it is in git."""
    if len(table) > FOLDED:
        return f'<p class="soft"><code>{escape(path.as_posix())}</code> has {len(table):,} rows.</p>\n'
    numeric = {i for i, kind in enumerate(table.dtypes) if kind.kind in "if"}
    rows = [
        [_number(cell) if i in numeric else escape(str(cell)) for i, cell in enumerate(row)]
        for row in table.itertuples(index=False)
    ]
    head = [escape(str(name)) for name in table.columns]
    if len(table) > SHORT:
        return f"<details><summary>{escape(path.stem)}, {len(table)} rows</summary>{_table(head, rows, numeric)}</details>\n"
    return _table(head, rows, numeric, path.stem)


def _table(head: list[str], rows: list[list[str]], numeric: Iterable[int] = (), caption: str = "") -> str:
    """Cells are HTML already. It scrolls within its own box, never the page."""
    right = [' class="n"' if i in set(numeric) else "" for i in range(len(head or (rows[0] if rows else ())))]
    top = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(right, head, strict=True)) if head else ""
    body = "".join(f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(right, row, strict=True))}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n'


# Single column on a phone, contents beside it on a wide screen. Pictures were drawn on white: they lie on white paper in
# both themes, a little dimmed in the dark one.
STYLE = """
:root { color-scheme: light dark; --ink: #1f2733; --soft: #5d6878; --line: #e3e7ed; --page: #f6f7f9; --card: #fff;
  --accent: #23648f; --train: #7d93aa; --val: #c8561f; --good: #27704a; --bad: #b02a25; }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --soft: #97a3b3; --line: #2d3642; --page: #13171d;
  --card: #1b2129; --accent: #7db8e0; --train: #7f93a9; --val: #f0884e; --good: #6cc598; --bad: #f08a84; }
  .paper { filter: brightness(.9); } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 0 1rem 4rem; }
a { color: var(--accent); }
code, pre, dt, th, caption, h4 { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .875em; overflow-wrap: anywhere; }
pre { font-size: .8125rem; margin: .5rem 0; }
header { padding: 1.5rem 0 .25rem; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0; font-size: clamp(1.4rem, 5vw, 2rem); line-height: 1.25; font-weight: 650; }
h2 { margin: 0 0 1rem; font-size: 1.375rem; font-weight: 650; }
h3 { margin: 2rem 0 .4rem; font-size: 1.0625rem; font-weight: 650; }
h4 { margin: 0 0 .25rem; font-size: .8125rem; font-weight: 600; color: var(--soft); }
p { margin: .4rem 0 .75rem; max-width: 46rem; }
section { padding: 2rem 0 .5rem; border-top: 1px solid var(--line); margin-top: 2rem; }
header + section { border: 0; margin: 0; padding-top: 1rem; }
section, article, h3 { scroll-margin-top: 3.25rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .875rem; }
nav { position: sticky; top: 0; z-index: 1; background: var(--page); border-bottom: 1px solid var(--line); }
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul { display: flex; overflow-x: auto; padding: 0 .5rem; scrollbar-width: none; }
nav li ul { display: none; }
nav a { display: block; padding: .7rem .6rem; white-space: nowrap; color: var(--soft); text-decoration: none; font-size: .9375rem; }
nav a:hover { color: var(--ink); }
dl { margin: 0; }
dt { font-size: .8125rem; color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); gap: .6rem; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tiles dt { font-family: inherit; line-height: 1.35; }
.tiles dd { font-size: 1.5rem; font-weight: 600; line-height: 1.4; }
.tiles dd.beside { font-size: .875rem; font-weight: 400; color: var(--soft); }
.plain { list-style: none; margin: 1.25rem 0 0; padding: 0; }
.plain li { margin: .35rem 0; }
.good, .bad { font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); } p.soft { font-size: .875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); gap: .6rem; align-items: start; }
.cards details[open] { grid-column: 1 / -1; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 0 1rem; max-width: 46rem; }
summary { cursor: pointer; padding: .55rem 0; font-size: .9375rem; color: var(--soft); }
summary b { color: var(--ink); font-weight: 600; }
details[open] { padding-bottom: .75rem; }
article > details { background: none; border: 0; padding: 0; margin: -.5rem 0 .5rem; }
article > details p { font-size: .9375rem; }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem; margin: .75rem 0 1rem; }
.numbers > div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .65rem 1rem;
  max-width: 100%; }
.numbers dl { display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; }
.numbers dd { font-size: 1.0625rem; font-weight: 600; }
.shown { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; margin: .75rem 0 1rem; }
.shown > * { min-width: 0; margin-top: 0; margin-bottom: 0; } .shown > p { flex-basis: 100%; }
figure { margin: 0; max-width: 100%; }
.paper { background: #fff; border: 1px solid var(--line); border-radius: .6rem; padding: .5rem;
  display: inline-block; max-width: 100%; }
.paper input { position: absolute; opacity: 0; }
.paper:has(:focus-visible) { outline: 2px solid var(--accent); } .paper:has(:checked) { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; }
:checked + img { max-width: none; }
figcaption { font-size: .875rem; color: var(--soft); max-width: 46rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .8125rem; font-weight: 600; padding-bottom: .2rem; }
th, td { text-align: left; padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-size: .8125rem; font-weight: 500; color: var(--soft); }
td code { white-space: nowrap; overflow-wrap: normal; }
.n { text-align: right; }
details table { width: 100%; }
.cards table { table-layout: fixed; } .cards td:first-child { width: 52%; }
details td { white-space: normal; vertical-align: top; }
details td code { white-space: normal; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .75rem; }
.charts figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .75rem .4rem; }
.charts figcaption { line-height: 1.35; margin-bottom: .35rem; overflow-wrap: anywhere; }
.charts b { color: var(--ink); font-weight: 600; } .charts span { white-space: nowrap; font-variant-numeric: tabular-nums; }
.train { color: var(--train); } .val { color: var(--val); } .value { color: var(--accent); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 10.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg line { stroke: var(--line); } svg line.kept { stroke: var(--soft); stroke-dasharray: 2 3; }
polyline { fill: none; stroke: currentColor; stroke-width: 1.75; stroke-linejoin: round; }
.bars { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: .45rem 1rem;
  align-items: center; max-width: 46rem; }
.bars dt { font-family: inherit; font-size: .875rem; text-align: right; overflow-wrap: normal; line-height: 1.3; }
.bars dd { display: flex; align-items: center; gap: .5rem; padding-right: 3.5rem; }
.bars b { font-weight: 600; font-size: .875rem; margin-right: -3.5rem; }
.bar { display: block; flex: none; height: 1.05rem; min-width: 2px; border-radius: .2rem; background: currentColor; opacity: .85; }
@media (min-width: 40rem) { .tiles { grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); gap: .75rem; } }
@media (min-width: 72rem) {
  body { display: grid; grid-template-columns: 12rem minmax(0, 64rem); justify-content: center; column-gap: 2rem; }
  nav { align-self: start; height: 100vh; overflow-y: auto; border: 0; padding: 2rem 0; }
  nav > ul { display: block; padding: 0; overflow: visible; }
  nav a { padding: .25rem 0; }
  nav li ul { display: block; padding-left: .9rem; }
  nav li ul a { font-size: .8125rem; padding: .1rem 0; }
  section, article, h3 { scroll-margin-top: 1rem; }
  main { margin: 0; padding-top: 1rem; }
}
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
"""
