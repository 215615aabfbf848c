"""params.yaml: what is refused, in which words, and that the file itself keeps its form when it is changed."""

from __future__ import annotations

import copy
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from committed import project
from pydantic import BaseModel, Field
from ruamel.yaml import YAML

from tessera.core import files, params, seams
from tessera.core.errors import InputError
from tessera.core.params import CHOOSES, PLURAL, Params, Strict
from tessera.runtime import stage, validation
from tessera.runtime.inputs import Declared
from tessera.runtime.validation import sections

ROOT = Path(__file__).resolve().parent.parent
FILE = project() / "params.yaml"


def problem(raw: dict[str, Any], where: str) -> str:
    """The one line about `where`."""
    found = [line for line in validation.problems(raw) if line.startswith(f"{where}: ")]
    assert len(found) == 1, validation.problems(raw)
    return found[0]


def write(path: Path, raw: dict[str, Any]) -> Path:
    with open(path, "w") as stream:
        YAML().dump(raw, stream)
    return path


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plug_in("quantizers", "twin", Config)`: one more file of a seam, for this test only."""

    def add(seam: str, name: str, config: type[Strict], **contents: Any) -> None:
        module = ModuleType(f"tessera.{seam}.{name}")
        vars(module).update(Config=config, **contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        there = seams.names
        monkeypatch.setattr(seams, "names", lambda asked: there(asked) + ((name,) if asked == seam else ()))

    return add


# the file


def test_params_yaml_is_valid():
    assert validation.problems(params.read(FILE)) == []


def test_small_params_of_the_tests_are_valid(raw):
    assert validation.problems(raw) == []


def test_every_alternative_has_its_values_in_params_yaml():
    """Choosing with `-S quantizer.name=x` needs no editing."""
    values = params.read(FILE)
    for section, seam in CHOOSES.items():
        useless = {"inception"} if section == "perceptual" else set()  # it passes no gradient
        assert set(seams.names(seam)) - useless <= set(values[section]), section


def test_dvc_changes_one_line(tmp_path):
    """`dvc exp run -S` writes the file with this very function of DVC: any other form would be reformatted then."""
    from dvc.utils.serialize import modify_yaml

    copied = tmp_path / "params.yaml"
    copied.write_text(FILE.read_text())
    with modify_yaml(str(copied)) as values:
        values["quantizer"]["beta"] = 0.75
    before, after = FILE.read_text().splitlines(), copied.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert re.match(r"  beta: 0.75 +# ", changed[0][1])


def test_no_inline_lists():
    def inline(value: Any, place: str) -> Iterator[str]:
        if isinstance(value, list | dict) and value and value.fa.flow_style():
            yield place
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from inline(inner, f"{place}.{key}")

    assert list(inline(YAML().load(FILE.read_text()), "")) == []
    assert list(inline(YAML().load("a: [1]"), "")) == [".a"]


@pytest.mark.parametrize("name", ["dataset.source", "dataset.huggingface.label_column", "scorer.inception.weights",
                                  "dataset.huggingface.hub", "samples.baseline"])  # fmt: skip
@pytest.mark.parametrize("value", [2024, 7, 1.5, True])
def test_text_that_looks_like_a_number_says_how_it_is_written(raw, name, value):
    *place, last = name.split(".")
    section = raw
    for part in place:
        section = section[part]
    section[last] = value
    said = problem(raw, name)
    assert f"got {value!r}; text that looks like this needs quotes" in said
    text = "true" if value is True else value
    assert f"-S '{name}=\"{text}\"'" in said


# models


def nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if is_model(field):
            yield from nested(field.annotation)


def configs() -> Iterator[type[BaseModel]]:
    for seam in seams.SEAMS:
        for name in seams.names(seam):
            yield from nested(seams.plugin(seam, name).Config)


def test_no_field_has_a_default():
    """params.yaml is the only place where values live."""
    own = [model for section in sections().values() for model in nested(section)]
    with_default = [
        f"{model.__module__}.{model.__name__}.{name}"
        for model in [*own, *configs()]
        for name, field in model.model_fields.items()
        if not field.is_required()
    ]
    assert not with_default


def is_model(field: Any) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def test_every_field_of_a_config_has_meaning_and_example():
    """A field that is a model has them in its own fields."""
    bare = [
        f"{model.__module__}.{model.__name__}.{name}"
        for model in configs()
        for name, field in model.model_fields.items()
        if not is_model(field) and not (field.description and field.examples)
    ]
    assert not bare


def test_every_config_is_strict():
    assert all(issubclass(model, Strict) for model in configs())


@pytest.mark.parametrize("seam", seams.SEAMS)
def test_plug_in_names_are_found_and_import(seam):
    for name in seams.names(seam):
        assert seams.plugin(seam, name) is importlib.import_module(f"tessera.{seam}.{name}")


def test_unknown_plug_in_is_refused_before_import():
    with pytest.raises(ValueError, match=r"no 'emma' in src/tessera/quantizers/; there is .*ema.*did you mean 'ema'"):
        seams.plugin("quantizers", "emma")


def test_import_error_inside_a_plug_in_stays_visible(monkeypatch):
    monkeypatch.setattr(seams, "names", lambda seam: ("gone",))
    with pytest.raises(ModuleNotFoundError, match=r"tessera\.quantizers\.gone"):
        seams.plugin("quantizers", "gone")


# problems


def test_all_problems_at_once_with_path_rule_and_value(raw, tmp_path):
    raw["seed"] = -1
    raw["dataset"]["image_size"] = 2
    raw["tokenizer"]["training"]["lr"] = 0
    raw["quantizer"]["ema"]["decay"] = 1.5
    raw["losses"]["mse"]["weight"] = -1.0
    raw["runtime"]["device"] = "tpu"
    with pytest.raises(InputError) as caught:
        validation.load(write(tmp_path / "params.yaml", raw))
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("has 6 problems:")
    assert [line.strip() for line in lines] == [
        "seed: must be a whole number from 0 to 2**63 - 1, got -1",
        "dataset.image_size: should be greater than or equal to 4, got 2",
        "tokenizer.training.lr: should be greater than 0, got 0",
        "quantizer.ema.decay: should be less than 1, got 1.5",
        "runtime.device: should be 'auto' or 'cpu', got 'tpu'",
        "losses.mse.weight: should be greater than or equal to 0, got -1.0",
    ]


@pytest.mark.parametrize(
    ("place", "wrong", "right"),
    [
        ([], "tokeniser", "tokenizer"),
        (["codes"], "batchsize", "batch_size"),
        (["tokenizer", "training"], "epoch", "epochs"),
        (["tokenizer", "vqvae"], "channel", "channels"),
        (["quantizer"], "betta", "beta"),
        (["diagnostics", "autocorrelation"], "distanze", "distance"),
    ],
)
def test_unknown_key_names_its_place_and_the_nearest_spelling(raw, place, wrong, right):
    section = raw
    for part in place:
        section = section[part]
    section[wrong] = section.pop(right)
    assert problem(raw, ".".join([*place, wrong])).endswith(f"is not known here; did you mean {right!r}?")


def test_unknown_key_far_from_any_lists_what_there_is(raw):
    raw["features"]["zzz"] = 1
    assert (
        problem(raw, "features.zzz")
        == "features.zzz: is not known here; there is batch_size, decoded, groups, smallest_group, vendor"
    )


@pytest.mark.parametrize("name", validation.RENAMED)
def test_a_name_of_before_is_answered_by_the_one_of_today(raw: dict[str, Any], name: str) -> None:
    *place, last = name.split(".")
    section = raw
    for part in place:
        section = section[part]
    section[last] = {"anything": 1}
    given = copy.deepcopy(raw)
    assert validation.problems(raw) == [f"{name}: is gone; {validation.RENAMED[name]}"]
    assert raw == given
    assert validation.gone(f"{name}.anything") == f"{name}.anything: is gone; {validation.RENAMED[name]}"
    assert validation.gone(f"{name}s") is None


READERS = {"upsampler": "super_resolution", "infiller": "inpainting"}


@pytest.mark.parametrize("section", READERS)
def test_a_network_that_no_extension_reads_is_not_trained(raw: dict[str, Any], section: str) -> None:
    kept = raw["extensions"].pop(READERS[section])
    said = problem(raw, f"{section}.enabled")
    assert "must be false without" in said
    assert f"extensions.{READERS[section]}, got true" in said
    raw[section]["enabled"] = False
    assert validation.problems(raw) == []
    raw["extensions"][READERS[section]] = kept  # which then says that it does not apply
    assert validation.problems(raw) == []


def test_a_name_of_before_is_told_beside_other_problems(raw: dict[str, Any]) -> None:
    raw["prior"]["pixelcnn"]["architecture"] = "gated"
    raw["features"]["batch_size"] = 0
    gone, other = validation.problems(raw)
    assert gone.startswith("prior.pixelcnn.architecture: is gone; set prior.name to gated_pixelcnn or pixelcnn")
    assert other.startswith("features.batch_size: ")


@pytest.mark.parametrize(
    ("section", "key", "value", "rule"),
    [
        ("codes", "batch_size", "many", "should be a valid integer"),
        ("codes", "batch_size", 2.5, "should be a valid integer"),
        ("codes", "batch_size", True, "should be a valid integer"),
        ("codes", "batch_size", None, "should be a valid integer"),
        ("samples", "temperature", "1", "should be a valid number"),
        ("samples", "temperature", float("nan"), "should be a finite number"),
        ("quantizer", "beta", float("inf"), "should be a finite number"),
        ("upsampler", "enabled", 1, "should be a valid boolean"),
        ("tokenizer", "keep", "first", "should be 'best', 'best_usage' or 'last'"),
    ],
)
def test_wrong_type_is_not_converted(raw, section, key, value, rule):
    raw[section][key] = value
    assert problem(raw, f"{section}.{key}") == f"{section}.{key}: {rule}, got {value!r}"


def test_whole_number_counts_as_a_float(raw):
    """`-S quantizer.beta=1` writes 1."""
    raw["quantizer"]["beta"] = 1
    assert validation.problems(raw) == []


def test_negative_snapshot_epoch_is_refused(raw):
    raw["tokenizer"]["snapshot_epochs"] = [0, -1]
    assert problem(raw, "tokenizer.snapshot_epochs.1").endswith("greater than or equal to 0, got -1")


@pytest.mark.parametrize("section", CHOOSES)
def test_unknown_plug_in_lists_what_there_is(raw, section):
    raw[section]["name"] = "nothing_like_it"
    line = problem(raw, f"{section}.name")
    assert all(name in line for name in seams.names(CHOOSES[section]))


@pytest.mark.parametrize("section", PLURAL)
def test_unknown_key_of_a_plural_section_lists_what_there_is(raw, section):
    raw[section]["nothing_like_it"] = {}
    line = problem(raw, f"{section}.nothing_like_it")
    assert all(name in line for name in seams.names(section))


def test_missing_values_of_the_chosen_plug_in(raw):
    del raw["quantizer"]["ema"]
    assert problem(raw, "quantizer.ema").endswith("is missing; quantizer.name is 'ema', whose values belong there")


def test_missing_section_and_missing_value(raw):
    del raw["features"]
    del raw["prior"]["training"]["lr"]
    assert problem(raw, "features") == "features: is missing"
    assert problem(raw, "prior.training.lr") == "prior.training.lr: is missing"


def test_a_section_that_is_no_section(raw):
    raw["codes"] = 3
    raw["quantizer"]["ema"] = None
    assert problem(raw, "codes") == "codes: must be a section with keys, got 3"
    assert problem(raw, "quantizer.ema") == "quantizer.ema: must be a section with keys, got None"


def test_alternative_that_is_not_chosen_is_checked_too(raw):
    other = next(name for name in raw["dataset"] if name in seams.names("datasets") and name != raw["dataset"]["name"])
    key = next(iter(raw["dataset"][other]))
    raw["dataset"][other][key] = {"wrong": 0}
    assert problem(raw, f"dataset.{other}.{key}")


class Twin(Strict):
    beta: float = Field(ge=0)
    codebook_size: int = Field(ge=2, le=1 << 20)


def test_shared_value_out_of_range_is_reported_once(raw, plug_in):
    plug_in("quantizers", "twin", Twin)
    raw["quantizer"]["twin"] = {}
    raw["quantizer"]["beta"] = -0.5
    found = [line for line in validation.problems(raw) if "beta" in line]
    assert found == ["quantizer.beta: should be greater than or equal to 0, got -0.5"]


def test_wrong_value_that_hides_a_shared_one_is_named_where_it_stands(raw):
    raw["quantizer"]["ema"]["beta"] = -0.5
    assert problem(raw, "quantizer.ema.beta").endswith("got -0.5")
    assert not [line for line in validation.problems(raw) if line.startswith("quantizer.beta")]


def test_shared_value_that_nobody_reads(raw):
    raw["quantizer"]["gamma"] = 1
    assert "is not known here" in problem(raw, "quantizer.gamma")


def test_split_shares_must_sum_to_one(raw):
    raw["dataset"]["split"] |= {"train": 0.5, "val": 0.1, "test": 0.1}
    assert problem(raw, "dataset.split") == "dataset.split: train + val + test must be 1, got 0.7"


def test_target_must_not_be_smaller_than_the_image(raw):
    raw["dataset"] |= {"image_size": 16, "target_size": 8}
    assert problem(raw, "dataset") == "dataset: target_size must be at least image_size 16, got 8"


def test_image_size_must_be_divisible_by_downsampling(raw):
    raw["dataset"] |= {"image_size": 10, "target_size": 10}
    raw["tokenizer"]["vqvae"]["downsampling"] = 4
    line = problem(raw, "tokenizer.vqvae.downsampling")
    assert line.endswith("must divide dataset.image_size 10, got 4; the nearest sizes are 8 and 12")


def test_rules_of_a_plug_in_apply_where_it_is_chosen(raw):
    """A tokenizer that is not chosen may not fit the images; that is no mistake."""
    module = seams.plugin("tokenizers", "vqvae")
    raw["dataset"] |= {"image_size": 10, "target_size": 10}
    config = module.Config.model_validate(raw["tokenizer"]["vqvae"])
    params = [Params({**raw, "dataset": {**raw["dataset"], "image_size": size}}) for size in (12, 10)]
    assert list(config.rule(params[0])) == []
    assert len(list(config.rule(params[1]))) == 1


@pytest.mark.parametrize(
    ("tokenizer", "quantizer", "rule"),
    [
        (
            "vqvae",
            "geodesic",
            "must be one that is trained with the tokenizer under tokenizer.name vqvae, got 'geodesic'",
        ),
        (
            "vqvae2",
            "kmeans",
            "must be one that is trained with the tokenizer under tokenizer.name vqvae2, got 'kmeans'",
        ),
        ("vae", "ema", "must be fitted to a finished autoencoder (it has fit) under tokenizer.name vae, got 'ema'"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(raw, tokenizer, quantizer, rule):
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = tokenizer, quantizer
    assert rule in problem(raw, "quantizer.name")


@pytest.mark.parametrize(("tokenizer", "quantizer"), [("vae", "kmeans"), ("vae", "geodesic"), ("vqvae2", "residual"),
                                                      ("vqvae", "lfq"), ("pixels", "geodesic")])  # fmt: skip
def test_pairs_that_make_sense(raw, tokenizer, quantizer):
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = tokenizer, quantizer
    assert validation.problems(raw) == []


def test_a_codebook_that_cannot_be_built_is_listed_once_with_the_others(raw):
    raw["quantizer"] |= {"name": "lfq", "codebook_size": 300}
    raw["dataset"] |= {"image_size": 10, "target_size": 10}
    found = validation.problems(raw)
    assert len(found) == 2
    assert any("quantizer.codebook_size: must be a power of two" in line for line in found)


def test_baseline_must_be_closed_form(raw):
    raw["samples"]["baseline"] = "pixelcnn"
    line = problem(raw, "samples.baseline")
    assert line.endswith("must be a prior in closed form (histogram, ngram, uniform), got 'pixelcnn', which is trained")


def test_baseline_must_be_a_file(raw):
    raw["samples"]["baseline"] = "histograms"
    assert problem(raw, "samples.baseline").endswith("; did you mean 'histogram'?")


def test_baseline_needs_its_values(raw):
    baseline = raw["samples"]["baseline"]
    assert raw["prior"]["name"] != baseline
    del raw["prior"][baseline]
    assert "samples.baseline" in problem(raw, f"prior.{baseline}")


def test_labels_of_a_prior_need_labels_of_the_data_set(raw):
    raw["prior"]["conditions"]["label"] = 0.1
    assert validation.problems(raw) == []
    raw["dataset"]["name"] = "folder"
    raw["dataset"]["folder"]["labels"] = False
    assert "while dataset.folder.labels is false" in problem(raw, "prior.conditions.label")
    raw["dataset"]["folder"]["labels"] = True
    assert validation.problems(raw) == []
    raw["dataset"]["name"] = "huggingface"
    raw["dataset"]["huggingface"]["label_column"] = ""
    assert "while dataset.huggingface.label_column is empty" in problem(raw, "prior.conditions.label")
    raw["dataset"]["huggingface"]["label_column"] = "label"
    assert validation.problems(raw) == []
    raw["dataset"]["huggingface"]["label_column"], raw["prior"]["conditions"]["label"] = "", "none"
    assert validation.problems(raw) == []


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_guidance_needs_a_prior_that_knows_codes_without_labels(raw, guidance):
    raw["samples"]["guidance"]["label"] = guidance
    raw["extensions"]["variations"]["guidance"] = [1.0]
    for dropout in ("none", 0.0):
        raw["prior"]["conditions"]["label"] = dropout
        assert "must be 1 unless prior.conditions.label is above 0" in problem(raw, "samples.guidance.label")
        raw["prior"]["name"] = "ngram"  # in closed form it is fitted to all images, whatever their label
        assert (validation.problems(raw) == []) == (dropout != "none")
        raw["prior"]["name"] = "pixelsnail"
    raw["prior"]["conditions"]["label"] = 0.1
    assert validation.problems(raw) == []
    raw["samples"]["guidance"] = 2.0
    assert problem(raw, "samples.guidance").startswith(
        "samples.guidance: holds a strength for each condition, such as samples.guid"
    )


def test_conditions_must_be_there_to_be_asked_for(raw):
    raw["prior"]["conditions"]["vendor"] = 0.1
    assert "which knows no vendors, got 0.1; set it, or dataset.name to emoji" in problem(
        raw, "prior.conditions.vendor"
    )
    raw["prior"]["conditions"] |= {"vendor": "none", "words": 0.1}
    assert validation.problems(raw) == []
    raw["samples"]["conditions"] |= {"label": "round", "words": "guitar"}
    assert "must be empty while prior.conditions.label is none, got 'round'" in problem(raw, "samples.conditions.label")
    raw["samples"]["conditions"]["label"] = ""
    raw["prior"]["name"] = "histogram"
    assert "histogram can be told one class, not words nor several conditions, got words" in problem(raw, "prior.name")


@pytest.mark.parametrize("value", [True, 1.0, -0.1, "some", None])
def test_a_condition_is_none_or_a_probability(raw, value):
    raw["prior"]["conditions"]["label"] = value
    assert "must be none, or the probability, from 0 to below 1" in problem(raw, "prior.conditions.label")
    raw["prior"]["conditions"] = {"labl": 0.1}
    assert "did you mean 'label'?" in problem(raw, "prior.conditions.labl")


def test_former_names_of_conditions_are_told(raw):
    raw["prior"]["conditional"] = True
    assert "write prior.conditions.label" in problem(raw, "prior.conditional")


def test_guidance_of_the_sheet_of_labels_needs_lost_labels(raw):
    raw["extensions"]["variations"]["guidance"] = [1.0, 3.0]
    assert validation.problems(raw) == []  # there is no sheet of a prior without labels
    raw["prior"]["conditions"]["label"] = 0.0
    assert problem(raw, "extensions.variations.guidance").endswith("got 3; raise prior.conditions.label")
    raw["prior"]["conditions"]["label"] = 0.1
    assert validation.problems(raw) == []


def test_patience_needs_a_score_that_can_fall(raw):
    raw["tokenizer"]["training"]["patience"] = 3
    assert validation.problems(raw) == []
    raw["tokenizer"]["keep"] = "last"
    assert "training.patience must be 0 while keep is last" in problem(raw, "tokenizer")
    raw["tokenizer"]["training"]["patience"] = 0
    assert validation.problems(raw) == []


@pytest.mark.parametrize(
    ("old", "now"),
    [("diagnostics/probe:fraction_saved", "probe:fraction_saved"), ("reconstruction:mse", "reconstruction:test.mse")],
)
def test_a_threshold_on_a_metric_of_before_is_answered_by_the_one_of_today(
    raw: dict[str, Any], old: str, now: str
) -> None:
    raw["gate"]["thresholds"] = {"mine": {"metric": old, "at_most": 1.0}}
    assert validation.problems(raw) == [f"gate.thresholds.mine.metric: {old} is {now} now"]


def test_the_section_extractor_is_answered_by_its_two_successors(raw):
    raw["extractor"] = raw.pop("scorer")
    found = validation.problems(raw)
    assert "scorer: is missing" in found
    (said,) = [line for line in found if line.startswith("extractor: ")]
    assert "scorer for the network" in said
    assert "perceptual for that of the loss" in said
    assert validation.gone("extractor.training.epochs").startswith("extractor.training.epochs: is gone")
    assert validation.metric_today("extractor:val_accuracy") == "scorer:val_accuracy"


def test_the_loss_perceptual_is_switched_off_by_its_weight_alone(raw):
    """The stage of its network reads it."""
    del raw["losses"]["perceptual"]
    assert validation.problems(raw) == [
        "losses.perceptual: is missing; the stage perceptual reads its weight, which is 0 where the loss is off"
    ]


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("evaluation/likelihood:val.share_saved", "evaluation/likelihood:all.val.fraction_saved"),
        ("evaluation/likelihood:gap_bits_per_code", "evaluation/likelihood:all.gap_bits_per_code"),
        ("evaluation/frechet:fd_*.samples_test", "evaluation/frechet:all.fd_*.samples_test"),
        ("evaluation/memorisation:codes.near_share", "evaluation/memorisation:all.codes.near_fraction"),
    ],
)
def test_metrics_of_before_there_were_groups_are_those_of_all(raw: dict[str, Any], old: str, now: str) -> None:
    assert validation.metric_today(old) == validation.metric_today(now) == now
    raw["criteria"]["thresholds"] = {"mine": {"metric": old, "at_most": 1.0}}
    assert validation.problems(raw) == [f"criteria.thresholds.mine.metric: {old} is {now} now"]


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("samples.precision", "two_sample:val.all.features"),
        ("people.samples.clipped_density", "two_sample:val.all.features"),
        ("samples.recall", "coverage:all.samples.clipped_coverage"),
        ("all.samples.recall", "coverage:all.samples.clipped_coverage"),
    ],
)
def test_a_threshold_on_a_metric_that_is_gone_names_what_replaces_it(raw: dict[str, Any], old: str, now: str) -> None:
    raw["criteria"]["thresholds"] = {"mine": {"metric": f"evaluation/coverage:{old}", "at_least": 0.5}}
    line = f"evaluation/coverage:{old} is gone; set a threshold for evaluation/{now}"
    assert validation.problems(raw) == [f"criteria.thresholds.mine.metric: {line}"]


@pytest.mark.parametrize("old", ["no", False])
def test_precision_no_is_answered_by_float32(raw: dict[str, Any], old: Any) -> None:
    raw["prior"]["training"]["precision"] = raw["infiller"]["training"]["precision"] = old
    places = ("prior", "infiller")
    assert validation.problems(raw) == [f"{place}.training.precision: no is float32 now" for place in places]


@pytest.mark.parametrize(
    "place",
    ["scorer", "perceptual", "tokenizer", "probe", "prior", "infiller", "upsampler"],
)
def test_fp16_is_not_for_cpus(raw, place):
    section = raw
    for part in place.split("."):
        section = section[part]
    section["training"]["precision"] = "bf16"
    assert validation.problems(raw) == []
    section["training"]["precision"] = "fp16"
    assert "must be float32 or bf16 on a CPU, got 'fp16'" in problem(raw, f"{place}.training.precision")
    raw["runtime"]["device"] = "auto"  # the machine decides, when it is asked
    assert validation.problems(raw) == []


SMALLEST = {  # tokenizer -> quantizer, and values by which 8x8 images end at a 1x1 grid
    "vqvae": ("ema", {"downsampling": 8}),
    "vqvae2": ("ema", {"downsampling": 4, "top_downsampling": 2}),
    "prologue": ("ema", {"downsampling": 8, "attention": 0}),
    "vae": ("kmeans", {"downsampling": 8}),
}


@pytest.mark.parametrize(("devices", "nodes", "least"), [(1, 1, 2), (2, 1, 4), (1, 2, 4), (2, 4, 16)])
@pytest.mark.parametrize("name", SMALLEST)
def test_batch_normalisation_needs_two_values_of_a_channel(raw, name, devices, nodes, least):
    raw["tokenizer"]["name"], (raw["quantizer"]["name"], own) = name, SMALLEST[name]
    raw["tokenizer"][name] |= own | {"normalisation": "batch"}
    raw["runtime"] |= {"devices": devices, "nodes": nodes}
    raw["tokenizer"]["training"]["batch_size"] = least
    raw["upsampler"]["enabled"] = False
    assert validation.problems(raw) == []
    raw["tokenizer"]["training"]["batch_size"] = least // 2
    line = problem(raw, "tokenizer.training.batch_size")
    assert f"must be at least {least}" in line
    assert "one value has no variance. Give each training process two images" in line
    for way_out in ({"normalisation": "group"}, {"normalisation": "none"}, {"downsampling": 2}):
        raw["tokenizer"][name] |= own | {"normalisation": "batch"} | way_out
        assert validation.problems(raw) == []


@pytest.mark.parametrize("narrow", [{"channels": 1}, {"block_channels": 1}])
@pytest.mark.parametrize("name", SMALLEST)
def test_group_normalisation_needs_two_values_too(raw, name, narrow):
    raw["tokenizer"]["name"], (raw["quantizer"]["name"], own) = name, SMALLEST[name]
    raw["tokenizer"][name] |= own | {"normalisation": "group"} | narrow
    assert "must not be group where a 1x1 grid has one channel" in problem(raw, f"tokenizer.{name}.normalisation")
    raw["tokenizer"][name] |= dict.fromkeys(narrow, 2)
    assert validation.problems(raw) == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_upsampler_needs_two_values_of_a_channel(raw, batch_size):
    raw["tokenizer"]["vqvae"]["downsampling"] = 8
    raw["upsampler"]["bicubic_residual"] |= {"normalisation": "batch"}
    raw["upsampler"]["training"]["batch_size"] = batch_size
    found = [line for line in validation.problems(raw) if line.startswith("upsampler.training.batch_size: ")]
    assert len(found) == (batch_size == 1)
    raw["dataset"]["target_size"] = 8  # it does not apply then
    assert validation.problems(raw) == []


@pytest.mark.parametrize(("size", "fits"), [(4, False), (5, True), (8, True)])
def test_the_classifier_needs_two_values_of_a_channel(raw, size, fits):
    raw["dataset"] |= {"image_size": size, "target_size": 2 * size}
    raw["losses"]["perceptual"]["weight"] = 0.1
    for section in ("scorer", "perceptual"):
        raw[section]["name"] = "classifier"
        raw[section]["training"]["batch_size"] = 1
        raw[section]["classifier"]["channels"] = {"scorer": 4, "perceptual": 5}[section]

    def found() -> list[str]:
        names = [line.partition(": ")[0] for line in validation.problems(raw)]
        return sorted(name for name in names if name.endswith(".training.batch_size"))

    assert found() == ([] if fits else ["perceptual.training.batch_size", "scorer.training.batch_size"])
    raw["losses"]["perceptual"]["weight"] = 0.0  # no second network is made
    assert found() == ([] if fits else ["scorer.training.batch_size"])


def test_samples_are_enough_for_halves_to_be_compared(raw):
    raw["samples"]["count"] = 3
    assert problem(raw, "samples.count").endswith("greater than or equal to 4, got 3")


# reading


def test_dvc_writes_small_numbers_as_yaml_1_2(tmp_path):
    """YAML 1.1 reads `1e-05`, which `-S x=1e-5` writes, as text."""
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-05\nb: no\n")
    assert params.read(path) == {"a": 1e-05, "b": "no"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"a: 1\na: 2\n", "is not valid YAML"),
        ("a: é".encode("latin-1"), "is not valid YAML"),
        (b"", "must hold sections .* got NoneType"),
        (b"- 1\n", "must hold sections .* got list"),
    ],
)
def test_unreadable_file_is_named(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        params.read(path)
    assert str(path) in str(caught.value)


def test_missing_file_says_where_to_run():
    with pytest.raises(InputError, match=r"run from the folder that holds params\.yaml"):
        params.read("no-such-file.yaml")


def test_config_takes_its_own_and_the_shared_values(raw):
    raw["quantizer"] |= {"beta": 0.75, "codebook_size": 32}
    config = Params(raw).config("quantizer")
    assert (config.beta, config.codebook_size, config.decay) == (0.75, 32, raw["quantizer"]["decay"])


def test_config_of_another_alternative_and_of_a_plural_key(raw, plug_in):
    plug_in("quantizers", "twin", Twin)
    raw["quantizer"] |= {"twin": {}, "beta": 0.75}
    raw["diagnostics"]["autocorrelation"]["distance"] = 5
    assert Params(raw).config("quantizer", "twin") == Twin(beta=0.75, codebook_size=raw["quantizer"]["codebook_size"])
    assert Params(raw).config("diagnostics", "autocorrelation").distance == 5


def test_chosen_values_leave_out_the_alternatives(raw):
    chosen = Params(raw).chosen()
    assert list(chosen) == list(raw)
    assert chosen["seed"] == raw["seed"]
    assert {"name", "vqvae", "training"} <= set(chosen["tokenizer"])
    for section, seam in CHOOSES.items():
        assert set(chosen[section]) & set(seams.names(seam)) == {raw[section]["name"]}


def test_values_cannot_be_changed(raw):
    with pytest.raises(ValueError, match="frozen"):
        Params(raw).section("codes", sections()["codes"]).batch_size = 3


def test_undeclared_section_is_an_assertion(raw):
    restricted = Params(raw).restrict(frozenset({"codes"}))
    assert restricted.value("codes.batch_size") == 4
    assert restricted.chosen() == {"codes": raw["codes"]}
    for read_it in (
        lambda: restricted.value("tokenizer.name"),
        lambda: restricted.seed,
        lambda: restricted.config("quantizer"),
    ):
        with pytest.raises(AssertionError, match=r"which dvc\.yaml does not declare"):
            read_it()
    assert restricted.value("runtime.device") == "cpu"  # the machine is no part of a stage


def test_shared_values_that_the_chosen_plug_in_does_not_read_are_named(raw, plug_in, workspace, monkeypatch, capsys):
    class Lookup(Strict):
        codebook_size: int

    plug_in("quantizers", "lookup", Lookup)
    raw["quantizer"] |= {"name": "lookup", "lookup": {}}
    unread = validation.unread(raw)["quantizer"]
    assert {"quantizer.beta", "quantizer.code_dim", "quantizer.estimator"} <= set(unread)
    assert "quantizer.codebook_size" not in unread
    files.write_json(workspace / "good.json", {"unread": {"quantizer": unread}})
    monkeypatch.setattr(stage, "found_good", lambda: workspace / "good.json")
    stage._name_unread(Params(raw), Declared("tokenizer", (), ("quantizer.name", "quantizer.beta")))
    printed = capsys.readouterr().out
    assert all(name in printed for name in unread)
    assert printed.endswith("is not read by quantizer.name = lookup\n")


def test_nothing_is_unread_by_ema(raw):
    assert validation.unread(raw)["quantizer"] == []


# the command


def test_a_file_that_the_command_finds_valid_is_not_validated_by_the_stages(raw, workspace, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    write(workspace / "params.yaml", raw)
    assert validation.main(["params.yaml"]) == 0  # any file may be looked at
    assert not validation.found_good().exists()
    assert validation.main([]) == 0
    monkeypatch.setattr(stage, "_check", None)
    assert stage._validated() == raw


def test_main_lists_the_seams_with_the_chosen_marked(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["params", str(write(tmp_path / "params.yaml", raw))])
    assert validation.main([]) == 0
    printed = capsys.readouterr().out
    assert f"*{raw['prior']['name']}" in printed
    assert all(name in printed for seam in seams.SEAMS for name in seams.names(seam))


def test_main_prints_every_problem(raw, tmp_path, monkeypatch, capsys):
    broken = copy.deepcopy(raw)
    broken["codes"]["batch_size"], broken["features"]["batch_size"] = 0, 0
    assert validation.main([str(write(tmp_path / "params.yaml", broken))]) == 1
    printed = capsys.readouterr()
    assert "2 problems" in printed.err
    assert "codes.batch_size" in printed.err
    assert "features.batch_size" in printed.err
    assert not printed.out


def test_command_exits_with_what_main_returns_and_no_traceback(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent)}
    command = [sys.executable, "-m", "tessera.runtime.validation"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml: there is no such file")
    assert "Traceback" not in done.stderr
