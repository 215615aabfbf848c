"""Studies: what their files may say, what runs share, what is collected, and which diagnostic is said to predict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from committed import project

from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.studies import direct, pages, queue, ranks, results, sweep
from tessera.studies.results import Result

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def written(workspace, monkeypatch):
    """`written(name, text)`: a study in an empty repository that has our params, presets and pipeline."""
    for name in ("params.yaml", "dvc.yaml", "presets"):
        (workspace / name).symlink_to(project() / name)
    (workspace / "studies").mkdir()

    def write(name: str, text: str) -> sweep.Study:
        (workspace / "studies" / f"{name}.yaml").write_text(text)
        return sweep.load(name)

    return write


POOL = """title: Pool
text: two
base: {seed: 3}
runs:
  a: {}
  b: {quantizer.beta: 0.5}
  c: {preset: vqvae-small, seed: 4}
"""


# the file


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "studies").glob("*.yaml")))
def test_every_study_names_runs_and_values_that_there_are(name, monkeypatch):
    monkeypatch.chdir(project())
    study = sweep.load(name)
    _, owner = sweep.pool_of(name, study)
    assert study.title
    assert study.text
    raw = read()
    for run in sweep.shown(name, study):
        for changed in sweep.changes(owner, run):
            sweep.value(raw, changed.removeprefix("~"))
    for source in [*study.columns.values(), *(f.x for f in study.figures if f.kind == "lines")]:
        assert ":" in source or sweep.value(raw, source) is not None, source


def test_a_run_is_its_preset_then_the_base_then_its_own_values(written):
    study = written("pool", POOL)
    assert sweep.changes(study, "b") == {"seed": 3, "quantizer.beta": 0.5}
    assert sweep.changes(study, "c") == {
        "tokenizer.name": "vqvae",
        "tokenizer.vqvae.channels": 64,
        "tokenizer.vqvae.outer_channels": 16,
        "tokenizer.vqvae.blocks": 1,
        "tokenizer.vqvae.block_channels": 32,
        "seed": 4,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: x\ntext: x\nrun: {}\n", "run: Extra inputs"),
        ("title: x\ntext: x\nruns: {'a b': {}}\n", "letters, digits"),
        ("title: x\ntext: x\nruns: {a: {}}\nshown: [z]\n", r"no runs z; there are a"),
        ("text: x\nruns: {a: {}}\n", "title: Field required"),
        (
            "title: x\ntext: x\nruns: {a: {quantizer.betta: 1}, b: {~seed.x: null}}\n",
            r"does not have:\n  runs\.a: quantizer\.betta\n  runs\.b: ~seed\.x",
        ),
        (
            "title: x\ntext: x\nruns: {a: {}}\ncolumns: {beta: quantizer.betta, usage: 'diagnostics/usage:x'}\n",
            r"columns: quantizer\.betta",
        ),
        (
            "title: x\ntext: x\nruns: {a: {}}\nfigures: [{kind: lines, x: seeed, y: 'a:b', title: x}]\n",
            "figures: seeed",
        ),
        ("title: x\ntext: x\npool: wrong\n", "pool wrong has no runs of its own; it names the pool wrong"),
        ("title: x\ntext: x\npool: other\nruns: {a: {}}\n", "runs of its own and those of the pool other"),
    ],
)
def test_mistakes_are_named(written, text, said):
    with pytest.raises(InputError, match=said):
        written("wrong", text)


def test_unknown_study_is_named(written):
    written("pool", POOL)
    with pytest.raises(InputError, match=r"studies/pol\.yaml: there is no such study; there are pool"):
        sweep.load("pol")


# without DVC


@pytest.fixture
def made(written, workspace, monkeypatch):
    """`made(run)`: the stages that a direct run had to do itself; the work of a stage is to write its outputs."""
    did = []

    def work(stage, key, raw):
        did.append(stage)
        for path in direct.Cache(raw, workspace)._outputs(stage, key):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"seed": raw["seed"]}) if path.endswith(".json") else "epoch,val_usage\n1,0.5\n"
            Path(path).write_text(text)

    monkeypatch.setattr(direct, "_work", work)
    written("pool", POOL + "  hot: {samples.temperature: 1.5}\n")

    def make(run: str) -> list[str]:
        did.clear()
        assert direct.one("pool", run, {"threads": 1}) == 0
        return list(dict.fromkeys(did))

    return make


def test_runs_share_what_stages_make_of_the_same_values(made):
    first = made("a")
    assert first[:2] == ["dataset", "extractor"]
    assert "report" not in first
    assert made("a") == []
    assert made("hot") == ["samples", "features", "evaluation", "criteria"]
    assert made("b")[0] == "tokenizer"
    assert made("c")[0] == "dataset"  # another seed


def test_a_direct_run_is_collected_and_a_failed_one_said(made, monkeypatch, workspace):
    made("a")
    monkeypatch.setattr(direct, "_work", lambda *_: 1 / 0)
    assert direct.one("pool", "c", {}) == 1
    assert "ZeroDivisionError" in (direct.folder("pool", "c") / direct.DONE).read_text()
    found = {result.run: result for result in results.collect("pool", ["a", "b", "c"], experiments=False)}
    assert {name: result.state for name, result in found.items()} == {"a": "done", "b": "missing", "c": "failed"}
    assert found["a"].metrics["evaluation/frechet:seed"] == 3
    assert list(found["a"].curves["tokenizer"]["val_usage"]) == [0.5]
    assert list(results.missing("pool", ["a", "b", "c"], experiments=False)) == ["b", "c"]


@pytest.mark.parametrize(("code", "left", "said"), [(0, "done", "done"), (1, "done", "failed"), (1, "", "failed")])
def test_a_run_that_fails_is_not_what_an_earlier_one_was(workspace, monkeypatch, capsys, code, left, said):
    done = direct.folder("pool", "a") / direct.DONE
    done.parent.mkdir(parents=True)
    done.write_text('{"state": "done"}')
    process = f"import sys, pathlib; assert not (p := pathlib.Path({str(done)!r})).exists()\n"
    process += f'{left!r} and p.write_text(\'{{"state": "{left}"}}\'); sys.exit({code})'
    started = direct.subprocess.Popen
    monkeypatch.setattr(direct.subprocess, "Popen", lambda _, **how: started([sys.executable, "-c", process], **how))
    direct.start("pool", ["a"], 1, [])
    assert f"a: {said}" in capsys.readouterr().out
    assert direct.state("pool", "a") == said


@pytest.mark.parametrize("source", ["../set", "data/set", "/set"])
def test_a_source_is_found_from_the_folder_of_a_run(made, workspace, monkeypatch, source):
    params, given = sweep.params, []
    monkeypatch.setattr(
        sweep, "params", lambda *of: (raw := params(*of)) | {"dataset": raw["dataset"] | {"source": source}}
    )
    monkeypatch.setattr(direct, "_work", lambda stage, key, raw: given.append(raw["dataset"]["source"]) or 1 / 0)
    assert direct.one("pool", "a", {}) == 1
    assert given == [str((workspace / source).resolve())]


def test_runtime_options_are_of_that_section():
    assert direct.options(["threads=2", "device=cpu", "checkpoint_seconds=1.5"]) == {
        "threads": 2, "device": "cpu", "checkpoint_seconds": 1.5,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"--runtime takes NAME=VALUE"):
        direct.options(["thread=2"])


# with DVC


def test_experiments_are_read_as_dvc_shows_them(written, monkeypatch):
    shown = [
        {"rev": "workspace", "name": None, "experiments": None},
        {"rev": "e4", "name": "main", "experiments": [
            {"name": "pool-a", "executor": {"state": "success"}, "revs": [{"rev": "cf", "data": {"metrics": {
                "metrics/diagnostics/usage.json": {"data": {"grid_0": {"usage": 0.5}}}}}}]},
            {"name": "pool-b", "executor": {"state": "failed"}, "revs": [{"rev": "e0", "data": {"metrics": {
                "metrics/prior.json": {"error": {"type": "FileNotFoundError"}}}}}]},
            {"name": "mine", "executor": None, "revs": [{"rev": "aa", "data": {}}]},
        ]},
    ]  # fmt: skip
    monkeypatch.setattr(queue, "dvc", lambda *_: json.dumps(shown))
    monkeypatch.setattr(queue, "read", lambda revision, path: "epoch,val_usage\n1,0.25\n" if revision == "cf" else None)
    written("pool", POOL)
    a, b, c = results.collect("pool", ["a", "b", "c"])
    assert (a.state, b.state, c.state) == ("done", "failed", "missing")
    assert a.metrics == {"diagnostics/usage:grid_0.usage": 0.5}
    assert a.curves["tokenizer"]["val_usage"].iloc[0] == 0.25


# what is kept


def row(name: str, state: str = "done", **metrics: float) -> Result:
    curve = pd.DataFrame({"epoch": [1, 2], "val_usage": [0.5, 0.75]})
    return Result(name, state, metrics, {"tokenizer": curve} if state == "done" else {})


def test_what_is_kept_is_what_was_collected(workspace):
    rows = [row("a", x=1.0), row("b", "failed"), row("c", x=2.0, y=3.0)]
    results.save("pool", rows)
    again = results.load("pool")
    assert [(r.run, r.state, r.metrics) for r in again] == [(r.run, r.state, r.metrics) for r in rows]
    pd.testing.assert_frame_equal(again[2].curves["tokenizer"].reset_index(drop=True), rows[2].curves["tokenizer"])


def test_metric_is_the_mean_over_grids():
    both = row("a", **{"diagnostics/usage:grid_0.usage": 0.5, "diagnostics/usage:grid_1.usage": 1.0})
    assert results.metric(both, "diagnostics/usage:grid_*.usage") == 0.75
    assert np.isnan(results.metric(both, "diagnostics/usage:grid_*.perplexity"))


def test_page_has_table_figures_published_figures_and_what_failed(written):
    text = POOL + (
        "columns: {beta: quantizer.beta, usage: 'diagnostics/usage:grid_*.usage'}\nfindings: Up.\nfigures:\n"
        "- {kind: lines, x: quantizer.beta, y: 'diagnostics/usage:grid_*.usage', title: Use}\n"
        "- {kind: curves, x: epoch, y: val_usage, title: Over epochs}\n"
        "published:\n- {source: Theirs, columns: [beta, usage], rows: [[0.1, 0.6]]}\n"
    )
    study = written("pool", text)
    usage = {"diagnostics/usage:grid_0.usage": 0.625}
    results.save("pool", [row("a", **usage), row("b", "failed"), row("c", **usage)])
    page = pages.write("pool", study).read_text()
    assert "| a | 0.15 | 0.625 |" in page
    assert "| b | 0.5 | - |" in page
    assert "Without result: `b` (failed)" in page
    assert "| 0.1 | 0.6 |" in page
    pictures = sorted(path.name for path in pages.FIGURES.glob("*.png"))
    assert len(pictures) == 2
    assert all(f"figures/{name}" in page for name in pictures)


@pytest.mark.parametrize("name", sorted(path.stem for path in (project() / "docs" / "studies").glob("*.md")))
def test_committed_page_is_that_of_the_committed_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(project())
    study = sweep.load(name)
    pool, owner = sweep.pool_of(name, study)
    found = {result.run: result for result in results.load(pool)}
    rows = [found[run] for run in sweep.shown(name, study)]
    page = (results.PAGES / f"{name}.md").read_text()
    if study.columns:
        assert pages.markdown(pages.table(study, rows, owner).map(pages.short)) in page
    if study.ranks:
        done = [row for row in rows if row.state == "done"]
        assert pages.markdown(ranks.outcomes(done).map(pages.short)) in page
    if study.findings:
        assert study.findings.strip() in page


# which diagnostic predicts


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_scipys(seed):
    draws = np.random.default_rng(seed)
    x, y = draws.integers(0, 6, 20).astype(float), draws.standard_normal(20)  # x has ties
    assert ranks.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_of_a_constant_is_none():
    assert np.isnan(ranks.spearman(np.ones(5), np.arange(5.0)))


def test_excess_is_what_the_rate_does_not_explain():
    rate = np.array([128.0, 256, 512, 1024, 2048])
    assert ranks.excess(rate, 0.8 * rate**0.9) == pytest.approx(np.zeros(5), abs=1e-12)
    worse = 0.8 * rate**0.9 * np.array([1, 1, 2.0, 1, 1])
    assert ranks.excess(rate, worse).argmax() == 2
    assert ranks.excess(np.full(3, 64.0), np.array([2.0, 4, 8])) == pytest.approx([-1, 0, 1])


def test_interval_holds_the_correlation_and_narrows_with_runs():
    draws = np.random.default_rng(0)
    x = draws.standard_normal(80)
    y = x + draws.standard_normal(80)
    few, many = ranks.interval(x[:16], y[:16]), ranks.interval(x, y)
    assert many[0] < ranks.spearman(x, y) < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def made_up(n: int = 12) -> list[Result]:
    """Runs whose `good` diagnostic orders the excess bits, whose `noise` does not, on two numbers of codes."""
    draws, rows = np.random.default_rng(1), []
    for index in range(n):
        codes = 64 if index % 3 else 16
        metrics = {
            ranks.CODES: codes, ranks.RATE: 8.0 * codes, ranks.BITS: 4 + 0.1 * index,
            "evaluation/frechet:fd_classifier.samples_test": 2.0 + index,
            "evaluation/frechet:fd_classifier.reconstruction_test": 1.0,
            "evaluation/frechet:kid_classifier.samples_test": 0.1 * index,
            "evaluation/frechet:kid_classifier.reconstruction_test": 0.0,
            "diagnostics/good:grid_0.value": float(index), "diagnostics/noise:value": draws.standard_normal(),
            "diagnostics/same:value": 1.0, "diagnostics/probe:share_saved": -float(index),
        }  # fmt: skip
        rows.append(Result(f"run-{index}", "done", metrics, {}))
    return rows


def test_the_diagnostic_that_predicts_comes_first_and_probe_apart():
    table = ranks.correlations(made_up())
    assert list(table["diagnostic"]) == [
        "diagnostics/good:grid_*.value",
        "diagnostics/noise:value",
        "diagnostics/probe:share_saved",
    ]
    good, noise, probe = table.itertuples()
    assert good.fd == pytest.approx(1)
    assert probe.fd == pytest.approx(-1)
    assert good.excess > 0.9
    assert noise.fd_low < 0 < noise.fd_high


def test_the_study_is_drawn_over_all_and_within_one_grid(workspace):
    parts = ranks.write("learnability", [*made_up(), Result("lost", "failed", {}, {})])
    assert any(part.startswith("## All runs: 12") for part in parts)
    assert any(part.startswith("## One grid: 8") for part in parts)
    assert sorted(path.name for path in pages.FIGURES.glob("*")) == [
        "learnability-all-runs.png",
        "learnability-one-grid.png",
    ]
