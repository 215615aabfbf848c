"""Elements of the sections: metrics, pictures and tables of a stage, or of one instance of a stage, as HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.report import definitions
from tessera.core import files, trees

if TYPE_CHECKING:
    import pandas as pd

SHORT, FOLDED = 12, 64  # most rows of a table in full, and of a folded one; a longer one gives its path

CAPTIONS = {
    "dataset/examples": "Training images, spread evenly over the split.",
    "reconstruction/test": "Test images over their reconstructions, one per family, spread evenly.",
    "tokenizer/reconstructions": "Validation images, and under them their reconstructions at each snapshot of training.",
    "tokenizer/codebook": "Code vectors at each snapshot, on the two principal directions of the last.",
    "diagnostics/equivariance/flips": "Flipped images, their reconstructions, and images decoded from flipped codes.",
    "diagnostics/robustness/images": "Validation images; decoded from their codes; then with ever more codes replaced.",
    "diagnostics/semantics/nearest": "Validation images, and beside each the training images that have most codes in common.",
    "evaluation/memorisation/pairs": "Closest training images: the samples nearest to one, over that image.",
    "extensions/interpolation/frames": "From one image to another: one block per pair, one row per way.",
    "extensions/super_resolution/test": "Test images at twice the size, and their reconstructions enlarged in other ways.",
}


def metrics(file: str) -> dict[str, Any]:
    """The metrics of a stage or an instance, nested as in its file."""
    return files.read_json(files.METRICS / f"{file}.json")


def numbers(file: str) -> str:
    """Metrics as HTML, in groups as they are nested, with links to the definitions of those that no plug-in defines. A grid to
    which a diagnostic does not apply is marked so."""
    named = escape if "/" in file else definitions.linked
    groups: dict[str, list[str]] = {}
    for name, value in trees.leaves(metrics(file)):
        if value == {}:  # of a group without samples
            continue
        group, _, leaf = name.rpartition(".")
        shown = f"<dt>{named(leaf)}</dt><dd>{number(value)}</dd>"
        absent = "<dt>does not apply</dt>"
        groups.setdefault(group, []).append(f"<div>{absent if leaf == 'applies' and value == 0 else shown}</div>")
    lists = [
        f"{f'<h4>{escape(group)}</h4>' if group else ''}<dl>{''.join(cells)}</dl>" for group, cells in groups.items()
    ]
    return f'<div class="numbers">{"".join(f"<div>{inner}</div>" for inner in lists)}</div>\n'


def number(value: Any) -> str:
    """A number with four significant digits; whole numbers in full."""
    exact = float(value)
    if exact == int(exact) and abs(exact) < 1e15:
        return f"{int(exact):,}"
    return f"{exact:.4g}" if abs(exact) < 1e4 else f"{exact:,.0f}"


def text(value: Any) -> str:
    """A value of params.yaml as text, not escaped."""
    if isinstance(value, list):
        return ", ".join(map(text, value)) or "none"
    return "nothing to set" if value == {} else "none" if value == "" else str(value)


def plots(where: str) -> str:
    """The content of a folder of plots/: pictures, then tables from short to long; side by side if there is room."""
    folder = files.PLOTS / where
    parts = [picture(path, CAPTIONS.get(f"{where}/{path.stem}", "")) for path in sorted(folder.glob("*.png"))]
    tables = {path: files.read_table(path) for path in sorted(folder.glob("*.csv"))}
    parts += [_file(path, tables[path]) for path in sorted(tables, key=lambda path: len(tables[path]))]
    return f'<div class="shown">{"".join(parts)}</div>\n' if parts else ""


def picture(path: Path, caption: str) -> str:
    """A PNG inside the page. The page states its size, so the layout does not jump while it is decoded. A touch shows it in full
    size in a box that scrolls; this uses a checkbox and no script."""
    data = path.read_bytes()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    name = path.relative_to(files.PLOTS).as_posix()
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><label class="paper"><input type="checkbox" aria-label="full size of {escape(name)}">'
        f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" width="{width}" height="{height}" '
        f'alt="{escape(caption or name)}"></label>{said}</figure>\n'
    )


def _file(path: Path, frame: pd.DataFrame) -> str:
    """A short table in full, a longer one folded; of a long one only its path, since the file is in git."""
    if len(frame) > FOLDED:
        return f'<p class="soft"><code>{escape(path.as_posix())}</code> has {len(frame):,} rows.</p>\n'
    numeric = {i for i, kind in enumerate(frame.dtypes) if kind.kind in "if"}
    rows = [
        [number(cell) if i in numeric else escape(str(cell)) for i, cell in enumerate(row)]
        for row in frame.itertuples(index=False)
    ]
    head = [escape(str(name)) for name in frame.columns]
    if len(frame) > SHORT:
        return f"<details><summary>{escape(path.stem)}, {len(frame)} rows</summary>{table(head, rows, numeric)}</details>\n"
    return table(head, rows, numeric, path.stem)


def table(head: list[str], rows: list[list[str]], numeric: Iterable[int] = (), caption: str = "") -> str:
    """A table of cells that are HTML already. It scrolls in its own box, so that the page does not."""
    right = [' class="n"' if i in set(numeric) else "" for i in range(len(head or (rows[0] if rows else ())))]
    top = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(right, head, strict=True)) if head else ""
    body = "".join(f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(right, row, strict=True))}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n'
