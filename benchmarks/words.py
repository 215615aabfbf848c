"""The page docs/studies/words.md, from a finished run: `python -m benchmarks.words`, after `dvc repro evaluation@words`.

It says what a prior that is told words can draw and what it cannot: concepts that other vendors drew in training and the vendor
that is asked for did not, and words that never stood together (`src/tessera/evaluation/words/`). Figures are those of
metrics/evaluation/words.json and of the tables beside it, which are copied, as are the pictures. Nothing is computed anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.evaluation.words import BY
from tessera.evaluation.words.config import (
    ALL,
    COMPOSED,
    COMPOSED_RECONSTRUCTIONS,
    COMPOSITIONS,
    EVERY,
    ORIGINALS,
    OTHER,
    RECONSTRUCTIONS,
    RETRIEVED,
    SAMPLES,
)
from tessera.evaluation.words.judges import NETWORK
from tessera.evaluation.words.recognition import HEADS
from tessera.studies.pages import markdown
from tessera.studies.sweep import PAGES

NAME = "words"
TITLES = {
    ORIGINALS: "originals",
    RECONSTRUCTIONS: "reconstructions",
    SAMPLES: "samples",
    RETRIEVED: "retrieved",
    OTHER: "another concept's samples",
}
OF_RECONSTRUCTIONS, VENDOR, ATTRIBUTES, NEAR = 0.5, 0.8, 0.8, 0.02  # what was asked for
PICTURES = {
    "held_out": "Held-out concepts, chosen by the seed: the original, the drawings of other vendors that training had, and the "
    "first samples, unselected:",
    "worst": "The worst: of the concepts whose original the judge recognises, those whose samples have it at the last places:",
    COMPOSITIONS: "Names of words that never stood together, chosen by the seed, one sample for each vendor:",
}


class Measured:
    """What the stage `evaluation@words` wrote.

    Raises:
        InputError: it did not run, or the measure does not apply to the run.
    """

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / files.PLOTS / "evaluation" / NAME
        self.metrics = files.read_json(workspace / files.METRICS / "evaluation" / f"{NAME}.json")
        if self.metrics.get("applies") == 0:
            raise InputError(
                "evaluation@words does not apply to this run; its log says why. Train a prior that is told words"
            )
        self.settings: dict[str, Any] = read(workspace / "params.yaml")["evaluation"][NAME]
        text = ("of", "set", "vendor", "name", "concept", "label_name", "judge", "attribute", "composition")
        self.tables = {path.stem: files.read_table(path, text) for path in sorted(self.folder.glob("*.csv"))}

    def row(self, of: str, name: str) -> pd.Series:
        """Figures of a set: `of` is a vendor, or `ALL`."""
        table = self.tables["accuracy"]
        found = table[(table["of"] == of) & (table["set"] == name)]
        return found.iloc[0] if len(found) else pd.Series(float("nan"), table.columns)

    def attribute(self, name: str, attribute: str = EVERY) -> float:
        return self.metrics["attributes"].get(name, {}).get(attribute, float("nan"))


def percent(value: float) -> str:
    return "-" if pd.isna(value) else f"{100 * value:.0f} %"


def with_interval(row: pd.Series, figure: str) -> str:
    if pd.isna(row[figure]):
        return "-"
    return f"{100 * row[figure]:.0f} ({100 * row[f'{figure}_low']:.0f} to {100 * row[f'{figure}_high']:.0f}) %"


def text(measured: Measured) -> str:
    parts = [
        "# Drawing by name",
        headline(measured),
        "`python -m benchmarks.words` wrote this page from `metrics/evaluation/words.json` and the tables of the measure "
        f"(`src/tessera/evaluation/words/`), which stand in [{NAME}-accuracy.csv]({NAME}-accuracy.csv) and files named like it.",
        "The drawings in the pictures are by Noto (OFL 1.1), Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0) and Fluent Emoji (MIT): "
        "[what the licences allow](../data.md#what-the-licences-allow); as a whole they stand under CC BY-SA 4.0.",
        "## What was asked for",
        markdown(targets(measured)),
        "## By vendor",
        "Of held-out images (of samples: the mean over them), with 95 % intervals by resampled families. First, is the concept "
        "among the judge's first five?",
        markdown(by_vendor(measured, "top_5")),
        "Is the vendor right?",
        markdown(by_vendor(measured, "vendor_right")),
        "Are both, of one image?",
        markdown(by_vendor(measured, "top_5_and_vendor")),
        "## What it can draw, and what it cannot",
        "By the label of the data set, best first. A label whose reconstructions are not recognised says more of the judge and "
        "of the tokenizer than of the prior.",
        markdown(by_label(measured)),
    ]
    if "attributes" in measured.tables:
        parts += [
            "## Words beside the concept",
            f"Of images and samples whose name has a value of the attribute, how often judges find it; `{EVERY}`: all of them "
            f"are right, of names that have all. `{COMPOSED}` are compositions of which vendors have drawings, that training did "
            "not see: samples, each by a vendor that drew it; beside them these drawings and their reconstructions.",
            markdown(of_attributes(measured)),
        ]
    if COMPOSITIONS in measured.tables:
        parts += [
            f"{len(measured.tables[COMPOSITIONS])} names hold two words that stand together in no training name. By composition:",
            markdown(of_compositions(measured)),
        ]
    parts += ["## Pictures"]
    for name, says in PICTURES.items():
        if (measured.folder / f"{name}.png").exists():
            parts += [says, f"![{name.replace('_', ' ')}](figures/{NAME}-{name}.png)"]
    parts += ["## Judges", about_judges(measured), markdown(judges(measured))]
    choice = measured.tables["guidance"]
    if BY in choice:
        parts += [
            "## Guidance",
            f"Chosen on {choice['images'].iloc[0]} held-out validation images, one sample each, by how often the concept (of five) "
            "and the vendor are right together:",
            markdown(by_guidance(measured, choice)),
        ]
    return "\n\n".join(parts) + "\n"


def headline(measured: Measured) -> str:
    ours, again = measured.row(ALL, SAMPLES), measured.row(ALL, RETRIEVED)
    relative = measured.metrics[ALL].get("top_5_of_reconstructions", float("nan"))
    return (
        f"**Asked for a name and for a vendor that drew its concept only in test, the prior shows the concept in "
        f"{percent(ours['top_5'])} of the samples** (among the judge's first five; {percent(ours['top_1'])} first), "
        f"{percent(relative)} of what reconstructions of the originals reach. The vendor is right in "
        f"{percent(ours['vendor_right'])}, and both in {percent(ours['top_5_and_vendor'])}; another vendor's drawing of the name, "
        f"from training, reaches {percent(again['top_5_and_vendor'])}. {measured.metrics['held_out']} held-out images, "
        f"{measured.settings['samples']} samples each."
    )


def targets(measured: Measured) -> pd.DataFrame:
    whole, ours = measured.metrics[ALL], measured.row(ALL, SAMPLES)
    again = measured.row(ALL, RETRIEVED)["top_5_and_vendor"]
    every = [measured.attribute(name) for name in (COMPOSED, COMPOSITIONS)]
    ceiling = measured.attribute(COMPOSED_RECONSTRUCTIONS)
    relative = whole.get("top_5_of_reconstructions", float("nan"))
    rows = [
        ("concept among the first five, of the reconstructions' figure", f"at least {percent(OF_RECONSTRUCTIONS)}",
         relative, relative >= OF_RECONSTRUCTIONS),
        ("vendor right", f"at least {percent(VENDOR)}", ours["vendor_right"], ours["vendor_right"] >= VENDOR),
        ("both right", f"more than retrieved, {percent(again)}", ours["top_5_and_vendor"],
         ours["top_5_and_vendor"] > again),
        (f"every attribute right, compositions that vendors drew (their reconstructions: {percent(ceiling)})",
         f"at least {percent(ATTRIBUTES)}", every[0], every[0] >= ATTRIBUTES),
        ("every attribute right, all compositions", f"at least {percent(ATTRIBUTES)}", every[1], every[1] >= ATTRIBUTES),
        ("near-copies of a training image, in codes", f"at most {percent(NEAR)}", whole["near_copies"],
         whole["near_copies"] <= NEAR),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["", "asked for", "found", "met"])
    met = [
        "not measured" if pd.isna(value) else "yes" if ok else "**no**"
        for value, ok in zip(table["found"], table["met"], strict=True)
    ]
    return table.assign(found=table["found"].map(percent), met=met)


def by_vendor(measured: Measured, figure: str) -> pd.DataFrame:
    table = measured.tables["accuracy"]
    rows = []
    for of in dict.fromkeys(table["of"]):
        images = int(measured.row(of, SAMPLES)["images"])
        shown = {title: percent(measured.row(of, name)[figure]) for name, title in TITLES.items() if name != SAMPLES}
        rows.append(
            {"vendor": of, "held out": images, "samples": with_interval(measured.row(of, SAMPLES), figure), **shown}
        )
    return pd.DataFrame(rows)


def by_label(measured: Measured) -> pd.DataFrame:
    table = measured.tables["concepts"]
    grouped = table.groupby("label_name")
    found = pd.DataFrame({
        "held out": grouped.size(),
        "reconstructions": grouped[f"{RECONSTRUCTIONS}_top_5"].mean(),
        "samples": grouped["top_5"].mean(),
        "vendor right": grouped["vendor_right"].mean(),
        "both": grouped["top_5_and_vendor"].mean(),
    }).sort_values("samples", ascending=False, kind="stable")  # fmt: skip
    shown = found[["reconstructions", "samples", "vendor right", "both"]].map(percent)
    return pd.concat([found[["held out"]], shown], axis=1).reset_index(names="label")


def of_attributes(measured: Measured) -> pd.DataFrame:
    table = measured.tables["attributes"]
    rows = []
    for attribute in dict.fromkeys(table["attribute"]):
        own = table[table["attribute"] == attribute].set_index("set")
        shown = {name: f"{with_interval(row, 'right')} of {row['names']}" for name, row in own.iterrows()}
        rows.append({"attribute": attribute, **shown, "guessing": percent(own["chance"].iloc[0])})
    return pd.DataFrame(rows).fillna("-")


def of_compositions(measured: Measured) -> pd.DataFrame:
    table = measured.tables[COMPOSITIONS]
    figures = [name for name in table.columns if name not in ("name", "composition")]
    found = table.groupby("composition", sort=False)[figures].mean().map(percent).reset_index()
    return found.assign(composition=[f"`{name}`" for name in found["composition"]])


def about_judges(measured: Measured) -> str:
    own = measured.settings
    guidance = ", ".join(f"{name} {strength:g}" for name, strength in measured.metrics["guidance"].items()) or "1"
    return (
        f"A judge of concepts sees {own['dimensions']} principal components of the scorer's features: a logistic regression "
        f"(C {own['penalty']:g}), or nearest class means, fitted to real drawings of the training split. That of a vendor's "
        "concepts never saw a drawing by it. Judges of vendors and of attributes may also be a small convolutional network, "
        "trained on pixels of the same drawings, as they are and through the tokenizer. Validation images, likewise both, decided "
        "which head is kept. Samples are of temperature "
        f"{own['temperature']:g}, guidance {guidance}. A near-copy has codes no farther from a training image's than "
        f"{percent(own['quantile'])} of the test images. "
        f"{measured.metrics['same_codes']} test images with the very codes of a training image are left out."
    )


def judges(measured: Measured) -> pd.DataFrame:
    table = measured.tables["judges"]
    scores = {
        f"validation, {head}": pd.to_numeric(table[f"validation_{head}"], errors="coerce").map(percent)
        for head in (*HEADS, NETWORK)
    }
    return table[["judge", "of", "images", "classes", "head"]].assign(**scores)


def by_guidance(measured: Measured, choice: pd.DataFrame) -> pd.DataFrame:
    names = list(measured.metrics["guidance"])
    figures = {"concept, of five": "top_5", "vendor right": "vendor_right", "both": BY}
    found = choice[names].astype(float).map("{:g}".format).add_prefix("guidance of ")
    return found.assign(**{title: choice[figure].map(percent) for title, figure in figures.items()})


def write(measured: Measured, folder: Path) -> Path:
    """The page, its tables and its pictures, below `folder`."""
    for path in sorted(measured.folder.glob("*.csv")):
        _copy(path, folder / f"{NAME}-{path.name}")
    for name in PICTURES:
        if (picture := measured.folder / f"{name}.png").exists():
            _copy(picture, folder / "figures" / f"{NAME}-{name}.png")
    page = folder / f"{NAME}.md"
    with files.writing(page) as stream:
        stream.write(text(measured))
    return page


def _copy(path: Path, to: Path) -> None:
    with files.replacing(to) as temporary:
        shutil.copyfile(path, temporary)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.words", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workspace", type=Path, default=Path(), help="folder with metrics/ and plots/ (default: this one)"
    )
    parser.add_argument("--to", type=Path, default=PAGES, help=f"folder of the page (default {PAGES})")
    options = parser.parse_args(argv)
    try:
        page = write(Measured(options.workspace), options.to)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
