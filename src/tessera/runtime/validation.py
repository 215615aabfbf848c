"""Validation of the whole params.yaml before any work. `python -m tessera.runtime.validation` runs it and lists the seams.

It imports every stage for the class of its section, and every named plug-in for its `Config`. Therefore it runs in a process
of its own, and no stage depends on it.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from tessera.core import files, seams, trees
from tessera.core.conditioning import CLUSTER, NEIGHBOUR
from tessera.core.errors import InputError
from tessera.core.params import CHOOSES, PLURAL, Params, Strict, bounded, closed_form, pretrained, read
from tessera.runtime.scratch import root
from tessera.runtime.settings import in_fp16

if TYPE_CHECKING:
    from tessera.verdict import Verdict

ORDER = (
    "seed",
    "dataset",
    "scorer",
    "perceptual",
    "tokenizer",
    "quantizer",
    "codes",
    "reconstruction",
    "probe",
    "prior",
    "upsampler",
    "infiller",
    "samples",
    "features",
    "gate",
    "criteria",
    "runtime",
    *PLURAL,
)
CLASSES = {  # section -> place of its class; all other sections have `Settings` in the stage of the same name
    "scorer": ("tessera.feature_training", "Settings"),
    "quantizer": ("stages.tokenizer", "QuantizerSettings"),
    "gate": ("tessera.verdict", "Verdict"),
    "criteria": ("tessera.verdict", "Verdict"),
    "runtime": ("tessera.runtime.settings", "Settings"),
}
JUDGES = {
    "gate": ("reconstruction", "diagnostics", "probe"),
    "criteria": ("prior", "evaluation"),
}  # section -> stages whose metrics its thresholds may name

READERS = {
    "upsampler": "super_resolution",
    "infiller": "inpainting",
}  # section of a network -> the one extension that reads it
TABLES = ("histogram", "ngram")  # priors that count the codes of each class
OF_LATENTS = ("smoothness", "code_entropy", "predictability", "joint_prior")  # losses without a gradient in the decoder
MOVED = {  # former name in params.yaml, of a value or a section -> its name today
    "extensions.super_resolution.training": "upsampler.training",
    **{f"extensions.super_resolution.{key}": f"upsampler.{key}" for key in ("flip", "shift")},
    **{
        f"extensions.super_resolution.{key}": f"upsampler.bicubic_residual.{key}"
        for key in ("channels", "outer_channels", "blocks", "outer_blocks", "normalisation")
    },
    "extensions.inpainting.network": "infiller",
    **{f"extensions.inpainting.{key}": f"infiller.{key}" for key in ("steps", "training")},
}
RENAMED = {  # former name in params.yaml -> what to write instead
    "extractor": "it is two sections: write scorer for the network that images are compared by, and perceptual for that of the "
    "loss; each has name, augmentation, training and the values of its networks",
    "diagnostics.probe": "it is a stage of its own: set the values of section probe, and probe.training.epochs for its steps",
    "prior.pixelcnn.architecture": "set prior.name to gated_pixelcnn or pixelcnn; each has a sub-section of its own",
    "prior.conditional": "write prior.conditions.label: none for false, or the label's dropout, such as 0.1, for true",
    "prior.label_dropout": "prior.conditions.label is the label's dropout, or none",
    "diagnostics.positions.share": "write diagnostics.positions.fraction",
    "extensions.variations.shares": "write extensions.variations.fractions",
    **{old: f"a stage of its own trains the network: write {now}" for old, now in MOVED.items()},
    **{
        f"{place}.{key}": f"KID is over all pairs; write {place}.resamplings, of the families, for its interval"
        for place in ("evaluation.frechet", "extensions.temperature")
        for key in ("kid_subsets", "kid_subset_size")
    },
}
RENAMED_VALUES: dict[
    str, dict[str | bool, str]
] = {  # last two parts of a dotted name -> former value -> the same value today
    "training.precision": {"no": "float32", False: "float32"},  # a reader of YAML 1.1 reads no as False
}
RENAMED_METRICS = {  # former beginning of a metric `file:name` -> its beginning today
    "extractor:": "scorer:",
    "diagnostics/probe:": "probe:",
    "probe:share_saved": "probe:fraction_saved",
    **{
        f"evaluation/likelihood:{split}.{old}": f"evaluation/likelihood:all.{split}.{now}"
        for split in ("val", "test")
        for old, now in (("share_saved", "fraction_saved"), ("", ""))
    },
    "evaluation/likelihood:gap_": "evaluation/likelihood:all.gap_",
    **{
        f"evaluation/memorisation:{space}.{old}": f"evaluation/memorisation:all.{space}.{now}"
        for space in ("features", "pixels", "codes")
        for old, now in (("near_share", "near_fraction"), ("", ""))
    },
    **{f"evaluation/frechet:{name}": f"evaluation/frechet:all.{name}" for name in ("images", "fid", "fd_", "kid")},
    "evaluation/coverage:samples.recall": "evaluation/coverage:all.samples.recall",
    "extensions/super_resolution:epoch": "upsampler:epoch",
    "extensions/atlas:context_share": "extensions/atlas:context_fraction",
    "extensions/variations:share_": "extensions/variations:fraction_",
    **{f"reconstruction:{name}": f"reconstruction:test.{name}" for name in ("mse", "psnr_db", "ssim", "by_family")},
}

GONE_METRICS = {  # pattern of a metric that there was -> what says now what it was read for
    "evaluation/coverage:samples.precision": "evaluation/two_sample:val.all.features",
    "evaluation/coverage:*density": "evaluation/two_sample:val.all.features",
    "evaluation/coverage:*recall": "evaluation/coverage:all.samples.clipped_coverage",
    "evaluation/coverage:samples.coverage": "evaluation/coverage:all.samples.clipped_coverage",
}


@cache
def sections() -> dict[str, type[Strict]]:
    """The class of each section except lists of plug-ins."""
    sys.path.append(str(seams.PACKAGE.parent.parent))  # the folder of `stages`, whatever the working directory is
    found = {}
    for section in [name for name in ORDER if name not in ("seed", *PLURAL)]:
        module, name = CLASSES.get(section, (f"stages.{section}", "Settings"))
        found[section] = getattr(importlib.import_module(module), name)
    return found


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate the whole file. Every plug-in that it names is imported.

    Raises:
        InputError: the file has problems. The message lists them all, each with its full path, rule and value.
    """
    raw = read(path)
    found = problems(raw)
    if found:
        lines = "\n".join(f"  {problem}" for problem in found)
        raise InputError(f"{path} has {len(found)} problem{'s' if len(found) > 1 else ''}:\n{lines}")
    return Params(raw)


def problems(raw: dict[str, Any]) -> list[str]:
    """All problems of the file, as lines `section.key: rule, got value`. Only a file without any is checked for rules across
    sections."""
    raw, found = _without_renamed(raw)
    found += [*_unknown("", raw, ORDER), *(f"{key}: is missing" for key in ORDER if key not in raw)]
    if isinstance(raw.get("losses"), dict) and "perceptual" not in raw["losses"]:
        found.append(
            "losses.perceptual: is missing; the stage perceptual reads its weight, which is 0 where the loss is off"
        )
    if "seed" in raw and not (type(raw["seed"]) is int and 0 <= raw["seed"] < 2**63):
        found.append(f"seed: must be a whole number from 0 to 2**63 - 1, got {raw['seed']!r}")
    for section in [key for key in ORDER if key in raw and key != "seed"]:
        if not isinstance(raw[section], dict):
            found.append(f"{section}: must be a section with keys, got {raw[section]!r}")
        elif section in PLURAL:
            found += _plural_problems(section, raw[section])
        elif section in CHOOSES:
            found += _singular_problems(section, raw[section])
        else:
            found += _invalid(section, sections()[section], raw[section])
    return found or list(_rules(Params(raw)))


def gone(name: str) -> str | None:
    """The remedy for a dotted name that params.yaml had once, or that lies in a section that it had; None for other names."""
    old = next((old for old in RENAMED if f"{name}.".startswith(f"{old}.")), None)
    return f"{name}: is gone; {RENAMED[old]}" if old is not None else None


def metric_today(name: str) -> str:
    """Today's name of a metric `file:name`, or of a pattern of such names."""
    old = next((old for old in RENAMED_METRICS if name.startswith(old)), "")
    return RENAMED_METRICS.get(old, "") + name.removeprefix(old)


def _without_renamed(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`raw` without the names of `RENAMED` and with today's values for `RENAMED_VALUES`, and one problem for each of them."""
    raw, found = copy.deepcopy(raw), []
    for name in RENAMED:
        *place, last = name.split(".")
        section: Any = raw
        for part in place:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            del section[last]
            found.append(cast("str", gone(name)))
    for name, value in list(trees.leaves(raw)):
        section_of_it, _, key = name.rpartition(".")
        values = RENAMED_VALUES.get(f"{section_of_it.rpartition('.')[2]}.{key}", {})
        if isinstance(value, str | bool) and value in values:
            trees.value(raw, section_of_it)[key] = values[value]
            found.append(f"{name}: {value or 'no'} is {values[value]} now")
    return raw, found


def unread(raw: dict[str, Any]) -> dict[str, list[str]]:
    """For each section that chooses a plug-in, the shared values that the chosen one does not read (`beta` under `fsq`)."""
    found = {}
    for section, seam in CHOOSES.items():
        fields = seams.plugin(seam, raw[section]["name"]).Config.model_fields
        found[section] = [f"{section}.{key}" for key in _shared(section, raw[section]) if key not in fields]
    return found


def found_good() -> Path:
    """The file that records that this version of params.yaml is valid under this version of the code."""
    digest = hashlib.sha256(Path("params.yaml").read_bytes() if Path("params.yaml").exists() else b"")
    for folder in (seams.PACKAGE, seams.PACKAGE.parent.parent / "stages"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return (root() / "valid" / f"{digest.hexdigest()[:24]}.json").resolve()


def record(path: str | Path, to: Path) -> Params:
    """`load` the file, and write `unread` to the file `to`. A stage reads it instead of validating the same file again.

    Raises:
        InputError: see `load`.
    """
    params = load(path)
    files.write_json(to, {"unread": unread(params.raw)})
    return params


def _plural_problems(section: str, raw: dict[str, Any]) -> Iterator[str]:
    for key, values in raw.items():
        if key in seams.names(section):
            yield from _invalid(f"{section}.{key}", seams.plugin(section, key).Config, values)
        else:
            yield f"{section}.{key}: {seams.unknown(section, key)}"


def _singular_problems(section: str, raw: dict[str, Any]) -> Iterator[str]:
    """Problems of the section's own values, then of each alternative's sub-section with its shared values, then unknown keys."""
    seam, own = CHOOSES[section], sections()[section].model_fields
    yield from _invalid(section, sections()[section], {k: v for k, v in raw.items() if k in own})
    name = raw.get("name")
    if name is not None and name not in seams.names(seam):
        yield f"{section}.name: {seams.unknown(seam, name)}"
    elif name is not None and name not in raw:
        yield f"{section}.{name}: is missing; {section}.name is {name!r}, whose values belong there"
    shared, read_by_some, reported = _shared(section, raw), set(), set()
    for alternative in [key for key in raw if key in seams.names(seam)]:
        config = seams.plugin(seam, alternative).Config
        read_by_some |= set(config.model_fields)
        if not isinstance(raw[alternative], dict):
            yield f"{section}.{alternative}: must be a section with keys, got {raw[alternative]!r}"
            continue
        values = {k: v for k, v in shared.items() if k in config.model_fields}
        above = set(values) - set(raw[alternative])
        for line in _invalid(f"{section}.{alternative}", config, {**values, **raw[alternative]}, section, above):
            if line not in reported:  # a wrong shared value is wrong for all alternatives that read it: report it once
                reported.add(line)
                yield line
    known = [*own, *sorted(read_by_some), *seams.names(seam)]
    yield from _unknown(f"{section}.", {k: None for k in shared if k not in read_by_some}, known)


def _shared(section: str, raw: dict[str, Any]) -> dict[str, Any]:
    own = sections()[section].model_fields
    return {k: v for k, v in raw.items() if k not in own and k not in seams.names(CHOOSES[section])}


def _invalid(
    path: str, model: type[Strict], values: Any, section: str = "", shared: set[str] | frozenset[str] = frozenset()
) -> Iterator[str]:
    try:
        model.model_validate(values)
    except ValidationError as errors:
        for error in errors.errors():
            place = [str(part) for part in error["loc"]]
            base = section if place and place[0] in shared else path
            where = ".".join([base, *place])
            if error["type"] == "extra_forbidden":
                yield from _unknown(f"{'.'.join([base, *place[:-1]])}.", {place[-1]: None}, _fields(model, place[:-1]))
            elif error["type"] == "missing":
                yield f"{where}: is missing"
            else:
                rule = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
                got = "" if error["type"] == "value_error" else f", got {error['input']!r}"
                yield f"{where}: {rule}{got}{_quoted(where, error)}"


def _quoted(where: str, error: Any) -> str:
    """The remedy for text that looks like a number (a folder 2024) or a truth value, for which YAML takes it; else ''."""
    value = error["input"]
    if error["type"] != "string_type" or not isinstance(value, int | float):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"""; text that looks like this needs quotes: in the file '{text}', or -S '{where}="{text}"'"""


def _fields(model: Any, place: list[str]) -> list[str]:
    for part in place:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))


def _unknown(prefix: str, values: dict[str, Any], known: Any) -> Iterator[str]:
    for key in [key for key in values if key not in known]:
        near = difflib.get_close_matches(str(key), list(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"
        yield f"{prefix}{key}: is not known here; {hint}"


def _rules(params: Params) -> Iterator[str]:
    """Problems across sections: the rules of the plug-ins, and names of plug-ins and metrics that do not exist."""
    baseline, raw = params.value("samples.baseline"), params.raw["prior"]
    if baseline not in seams.names("priors"):
        yield f"samples.baseline: {seams.unknown('priors', baseline)}"
    elif baseline not in raw:
        yield f"prior.{baseline}: is missing; samples.baseline is {baseline!r}, whose values belong there"
    elif not closed_form(baseline):
        fitted = ", ".join(name for name in seams.names("priors") if name in raw and closed_form(name))
        yield f"samples.baseline: must be a prior in closed form ({fitted}), got {baseline!r}, which is trained"
    yield from _unknown_metrics(params)
    scorer = params.value("scorer.name")
    if params.perceptual_network and params.value("perceptual.name") == scorer and pretrained(scorer):
        yield (
            f"perceptual.name: must not be {scorer}, whose weights are those of the network that scores (scorer.name): nothing "
            "is trained against its judge; choose classifier, or give VGG16 in losses.perceptual.weights"
        )
    yield from _trained_for_nothing(params)
    yield from _conditions(params)
    yield from _made_of_codes(params)
    yield from _vendor(params)
    yield from _negatives(params)
    yield from _tuning(params)
    if params.value("runtime.device") == "cpu":  # under auto it depends on the machine: `devices.require_precisions`
        yield from in_fp16(params.raw)
    configs = [params.config(section) for section in CHOOSES]
    configs += [params.config(section, key) for section in PLURAL for key in params.keys(section)]
    found: list[str] = []
    for rule in [config.rule for config in configs if hasattr(config, "rule")]:
        try:
            found += rule(params)
        except InputError as error:  # a rule built a model that cannot be built: the owner's rule reports the same
            found.append(str(error))
    yield from dict.fromkeys(found)


def _conditions(params: Params) -> Iterator[str]:
    """Problems of what the prior is told, and of what samples are drawn for."""
    told, name = params.conditions, params.value("dataset.name")
    if "vendor" in told and not getattr(seams.plugin("datasets", name), "VENDORS", False):
        yield (
            f"prior.conditions.vendor: must be none while dataset.name is {name}, which knows no vendors, got {told['vendor']:g}; "
            "set it, or dataset.name to emoji"
        )
    for condition, strength in params.value("samples.guidance").items():
        if strength != 1 and not params.guidable(condition):
            yield (
                f"samples.guidance.{condition}: must be 1 unless prior.conditions.{condition} is above 0, got {strength:g} with "
                f"{told.get(condition, 'none')}: guidance compares with predictions without the {condition}, which training "
                "without dropout never sees"
            )
    for condition, text in params.value("samples.conditions").items():
        if text and condition not in told:
            yield (
                f"samples.conditions.{condition}: must be empty while prior.conditions.{condition} is none, got {text!r}; set the "
                "latter to 0.1, so that the prior is told it"
            )


def _made_of_codes(params: Params) -> Iterator[str]:
    """Problems of conditions that the stage `codes` must make first."""
    told, prior = params.conditions, params.value("prior.name")
    for condition, made, some in ((CLUSTER, "clusters", 32), (NEIGHBOUR, "neighbours", 8)):
        if condition in told and not params.value(f"codes.{made}.count"):
            guided = params.value(f"samples.guidance.{condition}") != 1
            yield (
                f"prior.conditions.{condition}: must be none while codes.{made}.count is 0, got {told[condition]:g}; set "
                f"codes.{made}.count, to {some} say, or it to none"
                + (f" and samples.guidance.{condition} to 1" * guided)
            )
    if NEIGHBOUR in told and prior in TABLES:
        yield (
            f"prior.conditions.{NEIGHBOUR}: must be none under prior.name {prior}, which counts classes and cannot be told a "
            f"feature, got {told[NEIGHBOUR]:g}; set it to none, or choose a prior that is trained, such as transformer"
        )
    asked, count = params.value(f"samples.conditions.{CLUSTER}"), params.value("codes.clusters.count")
    if asked and CLUSTER in told and count and not (asked.isdecimal() and int(asked) < count):
        yield (
            f"samples.conditions.{CLUSTER}: must be empty or a number from 0 to {count - 1}, as many clusters as "
            f"codes.clusters.count says, got {asked!r}"
        )


def _vendor(params: Params) -> Iterator[str]:
    """A data set that knows no vendors has none that samples could be compared with."""
    name, vendor = params.value("dataset.name"), params.value("features.vendor")
    if vendor and not getattr(seams.plugin("datasets", name), "VENDORS", False):
        yield (
            f"features.vendor: must be empty while dataset.name is {name}, which knows no vendors, got {vendor!r}; set it to '', "
            "or dataset.name to emoji"
        )


def _tuning(params: Params) -> Iterator[str]:
    """The decoder is tuned by what its images are like: terms of latents and codes have no gradient in it."""
    weighted = [name for name in params.keys("losses") if params.raw["losses"][name]["weight"]]
    epochs = params.value("tokenizer.tuning.training.epochs")
    if epochs and set(weighted) <= set(OF_LATENTS):
        yield (
            f"tokenizer.tuning.training.epochs: must be 0 unless a loss of images has a weight above 0, got {epochs} with "
            f"{', '.join(weighted) or 'none'}; set it to 0, or losses.mse.weight to 1"
        )


def _negatives(params: Params) -> Iterator[str]:
    """A discriminator made of a prior needs its exact likelihood, and weights that can be trained on."""
    name, rounds = params.value("prior.name"), params.value("prior.negatives.rounds")
    if rounds and (closed_form(name) or bounded(name)):
        why = "is fitted in closed form" if closed_form(name) else "has only a bound of its likelihood"
        yield (
            f"prior.negatives.rounds: must be 0 under prior.name {name}, which {why}, got {rounds}; set it to 0, or choose a prior "
            "that is trained by its exact likelihood, such as pixelsnail"
        )


def _trained_for_nothing(params: Params) -> Iterator[str]:
    """DVC cannot know whether a key is there, so a section says whether its network is wanted, and this compares the two."""
    for section, extension in READERS.items():
        if params.value(f"{section}.enabled") and extension not in params.keys("extensions"):
            yield (
                f"{section}.enabled: must be false without extensions.{extension}, got true: nothing else reads its network. "
                f"Set it to false, or put extensions.{extension} back"
            )


def _unknown_metrics(params: Params) -> Iterator[str]:
    """Problems of thresholds on files that no stage writes, and on metrics that a plug-in never gives: they would never be
    judged. A threshold on a plug-in that is not run is no problem: it is not judged either, but the stage says so."""
    for section, stages in JUDGES.items():
        files = [name for stage in stages for name in _metric_files(stage)]
        for name, threshold in cast("Verdict", params.section(section, sections()[section])).thresholds.items():
            if instead := next((now for old, now in GONE_METRICS.items() if fnmatchcase(threshold.metric, old)), None):
                yield f"{section}.thresholds.{name}.metric: {threshold.metric} is gone; set a threshold for {instead}"
            elif (today := metric_today(threshold.metric)) != threshold.metric:
                yield f"{section}.thresholds.{name}.metric: {threshold.metric} is {today} now"
            elif threshold.file not in files:
                near = difflib.get_close_matches(threshold.file, files, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(files)}"
                yield f"{section}.thresholds.{name}.metric: no stage before writes metrics/{threshold.file}.json; {hint}"
            else:
                yield from _not_given(f"{section}.thresholds.{name}.metric", *threshold.metric.split(":"))


def _not_given(where: str, file: str, metric: str) -> Iterator[str]:
    """A problem if the plug-in that writes a file says which metrics it gives (`METRICS`), and none of them can be meant."""
    seam, _, plugin = file.partition("/")
    given = getattr(seams.plugin(seam, plugin), "METRICS", ()) if seam in PLURAL else ()
    if given and not any(_meet(metric, of) for of in (*given, "applies")):
        near = difflib.get_close_matches(metric, given, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(given)}"
        yield f"{where}: {file} gives no metric {metric!r}; {hint}"


@cache
def _meet(wanted: str, given: str) -> bool:
    """Whether some name matches both patterns. `*` of a threshold stands for any text, that of `METRICS` for text without dots."""
    if not wanted or not given:
        return not (wanted + given).strip("*")
    if wanted[0] == "*":
        return _meet(wanted[1:], given) or _meet(wanted, given[1:])
    if given[0] == "*":
        return _meet(wanted, given[1:]) or (wanted[0] != "." and _meet(wanted[1:], given))
    return wanted[0] == given[0] and _meet(wanted[1:], given[1:])


def _metric_files(stage: str) -> list[str]:
    return [f"{stage}/{name}" for name in seams.names(stage)] if stage in PLURAL else [stage]


def main(given: list[str] | None = None) -> int:
    """Command line: `[FILE]`, or `--record TO`, which the entry point of a stage uses. Without arguments the stages need not
    validate params.yaml again."""
    given = sys.argv[1:] if given is None else given
    try:
        if given[:1] == ["--record"]:
            record("params.yaml", Path(given[1]))
            return 0
        params = load(given[0]) if given else record("params.yaml", found_good())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("params.yaml is valid. Chosen plug-ins, marked *, among those there are:")
    for section, seam in CHOOSES.items():
        chosen = params.value(f"{section}.name")
        print(f"  {section + '.name':18}" + "  ".join(f"{'*' if n == chosen else ''}{n}" for n in seams.names(seam)))
    for section in PLURAL:
        chosen = params.keys(section)
        print(f"  {section:18}" + "  ".join(f"{'*' if n in chosen else ''}{n}" for n in seams.names(section)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
