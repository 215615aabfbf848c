"""The report on made-up metrics and pictures, and in Chromium, where there is one, as a phone shows it; DVC's page of plots."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from committed import project
from dvc_render.html import render_html
from dvc_render.vega import VegaRenderer

from stages.report import chart, definitions, elements, prior, summary
from stages.report.page import render
from tessera.core import files, seams, trees
from tessera.core.errors import InputError
from tessera.core.params import PLURAL, Params
from tessera.core.run import Run

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

METRICS = {
    "dataset": {"rows": {"train": 2920, "val": 365}, "classes": 10},
    "scorer": {"features": 64, "val_accuracy": 0.8137},
    "perceptual": {"applies": 0},
    "tokenizer": {"epoch": 10, "val": {"total": 0.04, "usage": 0.985, "perplexity": 177.07}, "train": {"total": 0.03}},
    "reconstruction": {"test": {"mse": 0.02, "psnr_db": 22.52, "ssim": 0.8418, "psnr_db_from_z": 23.91}, "val": {"mse": 0.0264}},
    "prior": {"epoch": 30, "val": {"nll_bits_per_code": 4.6086, "accuracy": 0.3},
              "train": {"nll_bits_per_code": 3.32, "accuracy": 0.44}},
    "upsampler": {"epoch": 8, "val": {"mse": 0.03, "psnr_db": 21.4}},
    "infiller": {"applies": 0},
    "diagnostics/usage": {"grid_0": {"usage": 0.987654}, "grid_1": {"applies": 0}},
    "diagnostics/oracle": {"grid_0": {"left": 0.1, "above": 0.09, "better": 0.1, "random": 0.004}},
    "diagnostics/semantics": {"applies": 0},
    "probe": {"nll_bits_per_code": 5.45, "fraction_saved": 0.27},
    "features": {"groups": 2, "group_accuracy": 0.9, "samples": {"people": 0.538, "rest": 0.462}},
    "evaluation/frechet": {"all": {"fd_classifier": {"samples_test": 1.72, "train_test": 1.48}}},
    "evaluation/memorisation": {"all": {"features": {"median_ratio": 0.998, "near_fraction": 0.0}},
                                "rest": {"features": {}}},
    "extensions/interpolation": {"smoothness": 0.9},
    "gate": {"passed": 0, "judged": 2, "failed": 1, "checks": {
        "usage": {"value": 0.987654, "threshold": 0.5, "margin": 0.487654, "pass": 1,
                  "not_measured": 2},
        "mse": {"value": 0.0264, "threshold": 0.015, "margin": -0.0114, "pass": 0}}},
    "criteria": {"passed": 1, "judged": 0, "failed": 0, "checks": {}},
}  # fmt: skip
CURVES = {
    "scorer": {"epoch": [0]},
    "perceptual": {"epoch": [0]},
    "tokenizer": {"epoch": [5, 10], "lr": [0.002, 0.001], "train_mse": [0.1, 0.03], "val_mse": [0.04, 0.03],
                  "train_commitment": [0.01, 0.009], "val_ssim": [0.74, 0.78]},
    "prior": {"epoch": [0], "bound": [1], "val_nll_bits_per_code": [4.6086]},
    "upsampler": {"epoch": [4, 8], "train_mse": [0.05, 0.03], "val_mse": [0.04, 0.03]},
    "infiller": {"epoch": [0]},
}  # fmt: skip
ORACLE = {"left": 0.1, "above": 0.09, "better": 0.1, "either": 0.17, "constant": 0.07, "random": 0.004}
PICTURES = (
    "dataset/examples", "tokenizer/codebook", "reconstruction/test", "samples/samples", "samples/baseline", "features/groups",
    "diagnostics/usage/histogram", "diagnostics/oracle/accuracy", "evaluation/memorisation/pairs",
    "extensions/interpolation/frames",
)  # fmt: skip


@pytest.fixture
def run(workspace: Path, raw: dict[str, Any]) -> Run:
    """A finished run with metrics, curves, tables and pictures in the working folder."""
    for seam in PLURAL[1:]:
        wanted = [name.partition("/")[2] for name in METRICS if name.startswith(f"{seam}/")]
        raw[seam] = {name: raw[seam][name] for name in wanted}
    usage = {"metric": "diagnostics/usage:grid_*.usage", "at_least": 0.5}
    raw["gate"] = {
        "on_failure": "warn",
        "thresholds": {"usage": usage, "mse": {"metric": "reconstruction:val.mse", "at_most": 0.015}},
    }
    fid = {"metric": "evaluation/frechet:all.fid.samples_test", "at_most": 100.0}
    raw["criteria"] = {"on_failure": "stop", "thresholds": {"fid": fid}}
    for name, metrics in METRICS.items():
        files.write_metrics(name, metrics)
    for name, columns in CURVES.items():
        files.write_table(files.PLOTS / f"{name}.csv", pd.DataFrame(columns))
    for index, name in enumerate(PICTURES):
        files.write_picture(files.PLOTS / f"{name}.png", np.full((40, 900, 3), 20 * index, np.uint8))
    files.write_table(files.PLOTS / "diagnostics" / "oracle" / "accuracy.csv", predictors())
    return Run(Params(raw))


def predictors(grid: int = 0) -> pd.DataFrame:
    rows = [{"split": split, "grid": grid, "predictor": name, "accuracy": value * share}
            for split, share in (("train", 0.5), ("val", 1.0)) for name, value in ORACLE.items()]  # fmt: skip
    return pd.DataFrame(rows)


class Reader(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


def part(page: str, anchor: str) -> str:
    """A section or an instance, up to the next."""
    return re.search(rf'<(section|article) id="{anchor}">.*?</\1>', page, flags=re.S).group(0)


# what is on the page


def test_every_picture_is_inside(run):
    page = render(run)
    for name in PICTURES:
        data = base64.b64encode((files.PLOTS / f"{name}.png").read_bytes()).decode()
        assert page.count(f"data:image/png;base64,{data}") == 1, name
    assert page.count("<img ") == len(PICTURES)


def test_nothing_is_outside(run):
    page = render(run)
    found = Reader(page)
    anchors = found.all("id")
    assert len(anchors) == len(set(anchors))
    assert all(target.startswith("data:") for target in found.all("src"))
    assert all(target[0] == "#" and target[1:] in anchors for target in found.all("href"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert not re.search(r"url\(|@import|\bon[a-z]+=", page)
    assert "default-src 'none'" in page


def test_text_is_escaped(run):
    mean = '<script>alert("x")</script>'
    run.params.raw["dataset"]["source"] = mean
    run.params.raw["gate"]["thresholds"]["<i>"] = {"metric": "<b>:<u>", "at_least": 1.0}
    files.write_metrics("extensions/interpolation", {mean: 1.0})
    files.write_table(files.PLOTS / "extensions/interpolation/pairs.csv", pd.DataFrame({mean: [mean]}))
    files.write_table(files.PLOTS / "tokenizer.csv", pd.DataFrame({"epoch": [1, 2], mean: [1, 2]}))
    found = Reader(render(run))
    assert not {"script", "i", "u"} & {tag for tag, _ in found.tags}
    assert found.text.count(mean) == 5


def test_the_same_run_gives_the_same_page(run, workspace):
    page = render(run)
    assert page == render(run)
    assert str(workspace) not in page


def test_what_params_do_not_name_is_not_shown(run):
    """A file of an older run is no result."""
    files.write_metrics("diagnostics/positions", {"old": 1.0})
    files.write_picture(files.PLOTS / "diagnostics/positions/maps.png", np.zeros((4, 4, 3), np.uint8))
    assert "positions" not in Reader(render(run)).text


def test_what_does_not_apply_says_so(run):
    files.write_picture(files.PLOTS / "diagnostics/semantics/nearest.png", np.zeros((4, 4, 3), np.uint8))
    page = render(run)
    assert "Does not apply to this run" in part(page, "diagnostics-semantics")
    assert "<img" not in part(page, "diagnostics-semantics")
    assert "<h4>grid_1</h4><dl><div><dt>does not apply</dt></div></dl>" in part(page, "diagnostics-usage")
    assert page.count("oes not apply") == 2


def test_a_missing_metric_is_an_error_that_names_the_file(run):
    (files.METRICS / "evaluation/frechet.json").unlink()
    with pytest.raises(InputError, match=r"metrics/evaluation/frechet\.json: there is no such file"):
        render(run)


def test_headline_shows_each_number_beside_another(run):
    found = Reader(part(render(run), "summary")).text
    for shown in (
        "22.52 dB",
        "23.91 dB without quantization",
        "98.5%",
        "4.61",
        "30.0%",
        "10.0% by copying a neighbour",
    ):
        assert shown in found
    assert "clipped" not in found  # `coverage` is not run


def test_each_figure_leads_to_its_definition(run):
    page = render(run)
    titles = re.findall(r"<dt>(.*?)</dt>", part(page, "summary"))
    assert len(titles) > 3
    assert all(title.startswith('<a href="#') for title in titles)
    assert '<dt><a href="#definition-ssim">ssim</a></dt>' in part(page, "reconstructions")
    assert '<b><a href="#definition-lr">lr</a></b>' in part(page, "training")
    assert "definition-" not in part(page, "diagnostics"), "plug-ins define their own"
    assert "uniform windows" in re.search(r'<dt id="definition-ssim">.*?</dd>', page)[0]


def test_every_figure_of_the_committed_run_is_defined_or_explains_itself(monkeypatch):
    """Names of counts of images, classes and groups, and of losses, which params.yaml names."""
    monkeypatch.chdir(project())
    counts = {"train", "val", "test", "images", "classes", "val_near_train", "test_near_train", "groups"}
    named = {
        name
        for file in ("dataset", "reconstruction", "tokenizer", "probe", "prior", "features")
        for group, name in [
            place.rpartition(".")[::2] for place, _ in trees.numbers(files.read_json(files.METRICS / f"{file}.json"))
        ]
        if file != "features" or not group
    }
    curves = {column for path in files.PLOTS.glob("*.csv") for column in files.read_table(path).columns}
    named |= {column.removeprefix("train_").removeprefix("val_") for column in curves - {"bound"}}
    assert named - counts - set(definitions.DEFINITIONS) == set()


def test_verdicts_show_every_threshold(run):
    page = render(run)
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", part(page, "verdicts"))]
    assert [row.strip("|").split("|")[0] for row in rows] == ["check", "usage", "mse", "check", "fid"]
    assert "✓ pass" in rows[1]
    assert "2 not measured" in rows[1]
    assert "not measured" not in rows[2]
    assert "✗ fail" in rows[2]
    assert "-0.0114" in rows[2]
    assert "not measured" in rows[4]
    assert "at most 100" in rows[4]
    assert "1 of 2 checks pass, not mse" in Reader(part(page, "summary")).text


def test_the_prior_stands_beside_the_oracle(run):
    found = Reader(part(render(run), "prior")).text
    assert "predicts 30.0% of the codes of validation images correctly, 3.0 times the better of copying" in found
    assert "copying left and copying above, and 75 times chance" in found
    order = [
        "prior, validation",
        "prior, train",
        "copy left",
        "copy above",
        "better of the two",
        "either",
        "always",
        "at random",
    ]
    assert sorted(order, key=found.index) == order
    assert "5.0%" not in found  # of the train split


def test_several_grids_are_told_apart_from_the_prior_over_all(run):
    files.write_table(files.PLOTS / "diagnostics/oracle/accuracy.csv", pd.concat([predictors(0), predictors(1)]))
    found = Reader(part(render(run), "prior")).text
    assert "copy left, grid 1" in found
    assert "over all grids" in found
    assert "times" not in found


def test_without_an_oracle_the_page_says_what_is_missing(run):
    del run.params.raw["diagnostics"]["oracle"]
    assert "The diagnostic oracle, to read the accuracy against, is not run" in Reader(render(run)).text


def test_every_term_has_a_curve(run):
    training = part(render(run), "training")
    assert re.findall(r"<figcaption><b>(?:<a[^>]*>)?(\w+)", training) == [
        "mse",
        "lr",
        "commitment",
        "ssim",
        "nll_bits_per_code",
        "mse",
    ]
    assert re.findall(r'<polyline class="(\w+)"', training) == ["train", "val", "value", "train", "val", "train", "val"]
    assert '<span class="val">val 0.03</span>' in training
    assert training.count('class="kept"') == 5
    assert "Nothing was trained" in training
    assert "upper bound" in training


def test_a_curve_runs_through_its_points():
    svg = chart.svg({"val": [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)]}, 5, "x")
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', svg).group(1).split()]
    left, right = chart.LEFT, chart.WIDTH - chart.RIGHT
    top, bottom = chart.TOP, chart.HEIGHT - chart.BOTTOM
    assert points == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 30), (-3e-5, 4e-5), (0.037, 0.111), (995.0, 1005.0)])
def test_ticks_are_round_and_inside(low, high):
    ticks = chart.ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
    assert all(float(f"{tick:.6g}") == tick for tick in ticks)


def test_long_tables_are_folded_or_named(run):
    folder = files.PLOTS / "diagnostics/usage"
    for rows in (elements.SHORT, elements.FOLDED, elements.FOLDED + 1):
        files.write_table(folder / f"of_{rows}.csv", pd.DataFrame({"row": range(rows)}))
    usage = part(render(run), "diagnostics-usage")
    assert f"<caption>of_{elements.SHORT}</caption>" in usage
    assert f"<summary>of_{elements.FOLDED}, {elements.FOLDED} rows</summary>" in usage
    assert f"{folder.as_posix()}/of_{elements.FOLDED + 1}.csv" in usage
    assert usage.count("<tr>") == 2 + elements.SHORT + elements.FOLDED


@pytest.mark.parametrize(
    ("value", "shown"), [(2920, "2,920"), (0.0264, "0.0264"), (1.0, "1"), (177.073, "177.1"), (-0.01141, "-0.01141")]
)
def test_numbers_have_four_digits(value, shown):
    assert elements.number(value) == shown


def test_plug_ins_are_introduced_in_their_own_words(run):
    oracle = part(render(run), "diagnostics-oracle")
    assert "Accuracy of copying a neighbour" in oracle
    assert "Imports no torch" not in oracle


def test_names_that_the_page_knows_exist():
    known = [line.figure.file for line in summary.HEADLINE] + [
        line.beside.file for line in summary.HEADLINE if line.beside
    ]
    known += [name.rpartition("/")[0] for name in elements.CAPTIONS if name.count("/") == 2] + [
        f"diagnostics/{prior.ORACLE}"
    ]
    for seam, _, name in [file.partition("/") for file in known if "/" in file]:
        assert name in seams.names(seam)
    for name in elements.CAPTIONS:
        assert (project() / "plots" / f"{name}.png").exists(), name


def test_the_stage_writes_the_page(run, workspace, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    importlib.import_module("stages.report.__main__").main(run)
    assert (workspace / "report.html").read_text(encoding="utf-8") == render(run)


def test_the_page_costs_no_torch():
    code = "import sys; import stages.report.page, tessera.core.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# in a browser

PROBE = """<script>addEventListener("load", () => {
  const inner = frames[0], page = inner.document, found = {
    width: inner.innerWidth, scrolls: page.documentElement.scrollWidth, images: page.images.length,
    missing: [...page.images].filter(image => !image.naturalWidth).length,
    charts: [...page.querySelectorAll("main > div")].map(div => ({ id: div.id, title: div.querySelector("h2, summary").textContent,
      lines: [...div.querySelectorAll("svg[role] path")].map(path => path.getAttribute("d")),
      dashed: div.querySelectorAll("svg[role] path:not([stroke-dasharray=none])").length,
      legend: [...div.querySelectorAll("li")].map(item => item.textContent),
      rows: div.querySelectorAll("td:first-child").length })) };
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(found); document.body.append(out);
})</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`browse(page, width)`: what Chromium makes of a page at a width that no window of its own can have: in a frame."""

    def look(page: str, width: int = 390) -> dict[str, Any]:
        file = tmp_path / "framed.html"
        frame = f'<iframe style="border:0;width:{width}px;height:844px" srcdoc="{escape(page)}"></iframe>'
        file.write_text(f'<!doctype html><meta charset="utf-8">{frame}{PROBE}', encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
        command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
        return json.loads(unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.S).group(1)))

    return look


@in_chromium
def test_the_page_fits_a_phone(run, browse):
    """With every fold open and half of the pictures, which are 900 pixels wide here, at full size; and a table that is wider."""
    wide = pd.DataFrame({f"a_long_name_of_column_{i}": [0.123456] for i in range(12)})
    files.write_table(files.PLOTS / "diagnostics/usage/wide.csv", wide)
    page = render(run).replace("<details>", "<details open>")
    page = page.replace('type="checkbox"', 'type="checkbox" checked', len(PICTURES) // 2)
    found = browse(page)
    assert found["width"] == 390
    assert found["scrolls"] <= 390
    assert (found["images"], found["missing"]) == (len(PICTURES), 0)


def spec(name: str, rows: list[dict[str, Any]], fields: list[str], x: str = "epoch") -> VegaRenderer:
    """As DVC fills its `linear` template: several fields become one column, with their names in another."""
    sources = [{"filename": "plots/tokenizer.csv", "field": field} for field in fields]
    y = "dvc_inferred_y_value" if len(fields) > 1 else fields[0]
    return VegaRenderer(rows, name, template="linear", title=name, x=x, y=y, anchors_y_definitions=sources)


@in_chromium
def test_plots_of_dvc_are_drawn_without_a_network(browse, tmp_path):
    """Specs and page as `dvc plots diff` writes them: text from CSV files, a number where DVC invents the axis `step`."""
    fields, revisions = ["train_total", "val_total"], ["main", "workspace"]
    two = [
        {"epoch": str(epoch), "dvc_inferred_y_value": str(1 / epoch), "field": field, "filename": "plots/tokenizer.csv",
         "rev": revision}
        for revision in revisions for field in fields for epoch in (5, 10, 100)
    ]  # fmt: skip
    one = [
        {"epoch": str(epoch), "val.accuracy": value, "rev": "main"}
        for epoch, value in ((1, "0.5"), (2, ""), (3, "0.7"))
    ]
    table = [{"name": "<b>" * 40, "step": step, "rev": revision} for revision in revisions for step in range(60)]
    charts = [
        spec("loss", two, fields),
        spec("accuracy", one, ["val.accuracy"]),
        spec("images", table, ["name"], x="step"),
    ]
    written = render_html(charts, tmp_path / "plots.html", ROOT / ".dvc/html/page.html")
    page = Path(written).read_text(encoding="utf-8")
    assert not re.search(r'src="|<link|@import|url\(', page)
    found = browse(page.replace('make("details", {})', 'make("details", { open: "" })'))
    assert (found["width"], found["scrolls"] <= 390) == (390, True)
    loss, accuracy, images = found["charts"]
    assert loss["title"] == "loss"
    assert [len(re.findall("[ML]", line)) for line in loss["lines"]] == [3, 3, 3, 3]
    assert loss["dashed"] == 2
    assert loss["legend"] == [f"{revision} · {field}" for revision in revisions for field in fields]
    assert [len(re.findall("[ML]", line)) for line in accuracy["lines"]] == [2]
    assert accuracy["legend"] == ["main"]
    assert (images["title"], images["lines"], images["rows"]) == ("images: a table of 120 rows", [], 100)
