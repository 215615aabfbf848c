"""Artefacts say what they were made from, and a stage refuses those that do not belong together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.core import files
from tessera.core.errors import InputError
from tessera.runtime import pipeline, provenance
from tessera.runtime.inputs import Declared, Inputs

STAGES = {  # as in dvc.yaml: what each reads, and its folder
    "dataset": ("data.parquet",),
    "scorer": ("artifacts/dataset",),
    "perceptual": ("artifacts/dataset",),
    "tokenizer": ("artifacts/dataset", "artifacts/perceptual"),
    "codes": ("artifacts/dataset", "artifacts/tokenizer"),
    "reconstruction": ("artifacts/dataset", "artifacts/tokenizer"),
    "prior": ("artifacts/dataset/table.csv", "artifacts/codes", "artifacts/gate.txt"),
    "upsampler": ("artifacts/dataset", "artifacts/tokenizer", "artifacts/codes"),
    "infiller": ("artifacts/codes",),
    "samples": ("artifacts/dataset", "artifacts/codes", "artifacts/tokenizer", "artifacts/prior"),
    "features": ("artifacts/dataset", "artifacts/scorer", "artifacts/reconstruction", "artifacts/samples"),
    "evaluation": ("artifacts/codes", "artifacts/prior", "artifacts/reconstruction", "artifacts/samples", "artifacts/features"),
    "extensions": ("artifacts/dataset", "artifacts/codes", "artifacts/tokenizer", "artifacts/upsampler", "artifacts/infiller"),
}  # fmt: skip
MODELS = ("scorer", "perceptual", "tokenizer", "prior", "upsampler", "infiller")


def text(stage: str, version: str) -> None:
    """The files of an artefact, as that version of it has them."""
    folder = Path("artifacts") / stage
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "recipe.json") if stage in MODELS else ("train.npy", "table.csv"):
        (folder / name).write_text(f"{stage} {version} {name}")


def make(stage: str, version: str = "first") -> None:
    """What the entry point does around a stage."""
    what = Declared(stage, STAGES[stage], (), (f"artifacts/{stage}",))
    inputs = Inputs(what)
    provenance.require_consistent(stage, what.deps, inputs.files)
    provenance.forget(what.outs)
    text(stage, version)
    provenance.write(what.outs, what.deps, inputs.files)


@pytest.fixture
def run(workspace: Path) -> Path:
    """All stages, in order."""
    Path("data.parquet").touch()
    Path("params.yaml").write_text("seed: 0\n")
    Path("artifacts").mkdir()
    Path("artifacts/gate.txt").touch()
    for stage in STAGES:
        make(stage)
    return workspace


@pytest.mark.parametrize("stage", STAGES)
def test_what_belongs_together_is_read(stage, run):
    make(stage)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("dataset", "evaluation", "extensions")])
def test_what_was_made_anew_in_its_order_is_read(stage, run):
    for later in list(STAGES)[list(STAGES).index(stage) :]:
        make(later, "second")


MIXED = {  # what was made anew alone, who reads it next -> what that says
    ("tokenizer", "samples"): "artifacts/codes was made from artifacts/tokenizer",
    ("tokenizer", "features"): None,  # it reads neither; the two that were decoded are of one tokenizer
    ("dataset", "codes"): "artifacts/tokenizer was made from artifacts/dataset",
    ("dataset", "samples"): "artifacts/codes was made from artifacts/dataset",
    ("codes", "samples"): "artifacts/prior was made from artifacts/codes",
    ("codes", "evaluation"): "artifacts/prior was made from artifacts/codes",
    ("prior", "evaluation"): "artifacts/samples was made from artifacts/prior",
    ("samples", "evaluation"): "artifacts/features was made from artifacts/samples",
    ("scorer", "evaluation"): None,
    ("perceptual", "codes"): None,
    ("codes", "extensions"): "artifacts/upsampler was made from artifacts/codes",
    ("infiller", "extensions"): None,
}


@pytest.mark.parametrize(("anew", "reader"), MIXED)
def test_what_does_not_belong_together_is_refused(anew, reader, run):
    make(anew, "second")
    said = MIXED[anew, reader]
    if said is None:
        make(reader)
        return
    with pytest.raises(InputError, match=f"{said} [0-9a-f]{{8}}, but .* Run `dvc repro {reader}`, without -s"):
        make(reader)


def test_two_that_were_made_from_different_ones_are_refused_by_who_reads_neither(run):
    make("tokenizer", "second")
    make("reconstruction", "second")  # of the new one, the samples of the old one
    with pytest.raises(
        InputError, match=r"artifacts/samples was made from artifacts/tokenizer .*, but artifacts/reconstruction was"
    ):
        make("features")


def test_a_part_of_what_is_read_whole_counts(run):
    """The prior read the table of the data set; another one is noticed by who reads all of it."""
    for stage in ("dataset", "scorer", "perceptual", "tokenizer", "codes"):
        make(stage, "second")
    with pytest.raises(InputError, match=r"artifacts/prior was made from artifacts/(codes|dataset/table\.csv)"):
        make("samples")


IRRELEVANT: dict[str, Callable[[], object]] = {
    "card": lambda: Path("artifacts/tokenizer/README.md").write_text("another metric"),
    "snapshots": lambda: Path("artifacts/tokenizer/snapshots.safetensors").write_text("more"),
    "kept epochs": lambda: files.write_json(Path("artifacts/tokenizer/epochs/0001.safetensors"), 1),
    "record": lambda: files.write_json(Path("artifacts/tokenizer/made_from.json"), {}),
    "time": lambda: Path("artifacts/tokenizer/model.safetensors").touch(),
}


@pytest.mark.parametrize("change", IRRELEVANT)
def test_what_no_stage_computes_with_does_not_count(change, run):
    """Or each new metric on a card would call for new codes."""
    IRRELEVANT[change]()
    make("samples")


RELEVANT: dict[str, Callable[[], object]] = {
    "weights": lambda: Path("artifacts/tokenizer/model.safetensors").write_text("x"),
    "recipe": lambda: Path("artifacts/tokenizer/recipe.json").write_text("x"),
    "weights gone": lambda: Path("artifacts/tokenizer/model.safetensors").unlink(),
    "array": lambda: Path("artifacts/dataset/train.npy").write_text("x"),
    "array renamed": lambda: Path("artifacts/dataset/train.npy").rename("artifacts/dataset/val.npy"),
}


@pytest.mark.parametrize("change", RELEVANT)
def test_what_a_stage_computes_with_counts(change, run):
    RELEVANT[change]()
    with pytest.raises(InputError, match="do not belong together"):
        make("samples")


def test_an_artefact_without_record_is_refused_and_one_that_is_not_there_left_to_the_stage(run):
    Path("artifacts/codes/made_from.json").unlink()
    with pytest.raises(InputError, match=r"artifacts/codes has no made_from\.json.* Run `dvc repro samples`"):
        make("samples")
    for file in Path("artifacts/codes").iterdir():
        file.unlink()
    Path("artifacts/codes").rmdir()
    provenance.require_consistent("reader", ("artifacts/codes",), {})


def test_a_single_file_has_no_record(run):
    provenance.forget(("artifacts/gate.txt", "report.html"))
    provenance.write(("artifacts/gate.txt", "report.html"), ("artifacts/codes",), {})
    assert Path("artifacts/gate.txt").is_file()


def test_a_stage_that_fails_leaves_no_record(run):
    """Half of it may be new."""
    what = Declared("codes", STAGES["codes"], (), ("artifacts/codes",))
    provenance.forget(what.outs)
    assert not Path("artifacts/codes/made_from.json").exists()


def test_a_study_reads_what_belongs_together_and_nothing_else(run):
    provenance.require_together("dataset", "tokenizer", "codes", "prior")
    make("tokenizer", "second")
    provenance.require_together("dataset", "tokenizer")
    with pytest.raises(InputError, match=r"artifacts/codes was made from .* Run `dvc repro`, without -s"):
        provenance.require_together("tokenizer", "codes")


# metrics and plots

PIPELINE = """\
stages:
  tokenizer:
    cmd: x
    params: [quantizer.beta]
    outs: [artifacts/tokenizer]
  reconstruction:
    cmd: x
    deps: [artifacts/tokenizer]
    metrics: [metrics/reconstruction.json]
  diagnostics:
    foreach: ${diagnostics}
    do:
      cmd: x
      deps: [artifacts/tokenizer]
      params: ["diagnostics.${key}"]
      metrics: ["metrics/diagnostics/${key}.json"]
  gate:
    cmd: x
    deps: [metrics/reconstruction.json, metrics/diagnostics]
    params: [gate]
"""
RAW = {"quantizer": {"beta": 0.1}, "diagnostics": {"usage": {"a": 1}, "probe": {}}, "gate": {"at_least": 1}}


def locked(**versions: str) -> dict:
    """dvc.lock after all stages ran; `versions` of the tokenizer that `made` it, and that others read."""
    of = {"made": "1", "reconstruction": "1", "usage": "1", "probe": "1"} | versions

    def entry(read: str, **params: object) -> dict:
        return {"deps": [{"path": "artifacts/tokenizer", "md5": read}], "params": {"params.yaml": params}}

    outs = [{"path": "artifacts/tokenizer", "md5": of["made"]}]
    return {
        "tokenizer": {"outs": outs, "params": {"params.yaml": {"quantizer.beta": 0.1}}},
        "reconstruction": entry(of["reconstruction"]),
        "diagnostics@usage": entry(of["usage"], **{"diagnostics.usage": {"a": 1}}),
        "diagnostics@probe": entry(of["probe"], **{"diagnostics.probe": {}}),
    }


@pytest.fixture
def judge(workspace):
    """`judge(stages)`: the gate begins on this dvc.lock."""
    Path("dvc.yaml").write_text(PIPELINE)

    def begin(stages: dict, raw: dict = RAW) -> None:
        files.write_json(Path("dvc.lock"), {"schema": "2.0", "stages": stages})
        pipeline.require_up_to_date("gate", ("metrics/reconstruction.json", "metrics/diagnostics"), raw)

    return begin


OUT_OF_DATE = {
    "tokenizer alone made anew": (locked(made="2"), "tokenizer has made another artifacts/tokenizer since"),
    "and the reconstruction": (locked(made="2", reconstruction="2"), "diagnostics@usage wrote is out of date"),
    "one diagnostic of another": (locked(probe="2"), "diagnostics@probe wrote is out of date"),
}


@pytest.mark.parametrize("case", OUT_OF_DATE)
def test_metrics_of_another_tokenizer_are_not_judged(case, judge):
    stages, said = OUT_OF_DATE[case]
    with pytest.raises(InputError, match=rf"{said}.*Run `dvc repro gate`, without -s"):
        judge(stages)


@pytest.mark.parametrize(
    ("place", "name"), [(("quantizer", "beta"), r"quantizer\.beta"), (("diagnostics", "usage"), r"diagnostics\.usage")]
)
def test_metrics_of_other_values_are_not_judged(place, name, judge):
    raw = copy.deepcopy(RAW)
    raw[place[0]][place[1]] = 7
    with pytest.raises(InputError, match=rf"out of date: {name} has changed since"):
        judge(locked(), raw)


GOOD = {
    "all of one run": (locked(), RAW),
    "a new threshold": (locked(), {**RAW, "gate": {"at_least": 2}}),
    "a diagnostic that is not run any more": (locked(probe="2"), {**RAW, "diagnostics": {"usage": {"a": 1}}}),
    "stages that dvc never ran": ({}, RAW),
}


@pytest.mark.parametrize("case", GOOD)
def test_metrics_that_belong_together_are_judged(case, judge):
    judge(*GOOD[case])
    Path("dvc.lock").unlink()
    pipeline.require_up_to_date("gate", ("metrics/reconstruction.json",), RAW)  # without dvc
