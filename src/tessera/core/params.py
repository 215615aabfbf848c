"""params.yaml -> validated, frozen objects. `python -m tessera.core.params` validates the file and lists the seams.

A *singular* section chooses one plug-in (`name:`); beside the values its stage reads it holds values that alternatives
share (`quantizer.beta`) and one sub-section per alternative. A plug-in's `Config` is filled from its own sub-section
and from those shared values that it names as fields. A *plural* section runs each of its keys, the name of a file.
No value has a default in code: params.yaml is the only place where values live.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tessera.core import seams
from tessera.core.errors import InputError


class Strict(BaseModel):
    """Base of every model of params.yaml: no unknown key, no conversion of types, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Training(Strict):
    """How `core.training.fit` trains; the same words under extractor, tokenizer and prior."""

    epochs: int = Field(ge=1, description="passes over the train split", examples=[2])
    batch_size: int = Field(ge=1, description="examples per step, over all devices together; of a small train split fewer, "
                            "see `core.training.suited`", examples=[4])  # fmt: skip
    optimizer: Literal["adam", "adamw"] = Field(description="Adam, or AdamW (decoupled decay)", examples=["adam"])
    lr: float = Field(gt=0, description="peak learning rate", examples=[1e-3])
    weight_decay: float = Field(ge=0, description="weight decay", examples=[0.0])
    warmup_steps: int = Field(ge=0, description="steps of linear warm-up to lr, at most a tenth of all", examples=[2])
    schedule: Literal["constant", "cosine", "restarts"] = Field(
        description="after warm-up: constant, cosine to zero, or cosine with warm restarts", examples=["cosine"]
    )
    restart_epochs: int = Field(ge=1, description="length of each cosine cycle under `restarts`", examples=[1])
    clip_norm: float = Field(ge=0, description="largest gradient norm; 0: not clipped", examples=[1.0])
    weight_ema: float = Field(ge=0, lt=1, description="decay per step of the averaged weights that are kept, lower at the "
                              "start; 0: none", examples=[0.0])  # fmt: skip
    evaluate_every: int = Field(ge=1, description="epochs between evaluations on the validation split", examples=[1])
    patience: int = Field(ge=0, description="evaluations without improvement before stopping; 0: never", examples=[0])
    precision: Literal["no", "bf16", "fp16"] = Field(description="mixed precision; no: float32. fp16 is not for CPUs",
                                                 examples=["no"])  # fmt: skip


class Augmentation(Strict):
    """Random changes to training images only."""

    flip: float = Field(ge=0, le=1, description="probability of a horizontal flip", examples=[0.5])
    shift: int = Field(ge=0, description="largest shift in pixels, in both directions; white comes in", examples=[1])
    scale: float = Field(ge=0, le=1, description="largest change of size; 0.1: from 1/1.1 to 1.1 times; white comes in",
                         examples=[0.1])  # fmt: skip
    recolour: float = Field(ge=0, le=1, description="probability of putting the colour channels in a random order",
                            examples=[0.0])  # fmt: skip


class Split(Strict):
    by: Literal["family", "random"] = Field(description="what stays together", examples=["family"])
    train: float = Field(gt=0, lt=1, description="share of the rows")
    val: float = Field(gt=0, lt=1, description="share of the rows")
    test: float = Field(gt=0, lt=1, description="share of the rows")

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, got {self.train + self.val + self.test:g}")
        return self


class Dataset(Strict):
    name: str
    source: str = Field(min_length=1, description="local file or folder that is read, a DVC dependency")
    image_size: int = Field(ge=4, le=1024, description="pixels a side")
    target_size: int = Field(ge=4, le=2048, description="pixels a side of the larger copies (super-resolution)")
    colour: Literal["rgb", "grey"] = Field(description="channels of the images")
    aspect: Literal["pad", "crop", "stretch"] = Field(description="how an image that is not square becomes so")
    near_duplicate_rmse: float = Field(ge=0, le=255, description="grey levels, on 8x8 thumbnails, below which two "
                                       "images of different families count as near duplicates")  # fmt: skip
    split: Split

    @model_validator(mode="after")
    def _larger(self) -> Dataset:
        if self.target_size < self.image_size:
            raise ValueError(f"target_size must be at least image_size {self.image_size}, got {self.target_size}")
        return self


class Extractor(Strict):
    name: str
    augmentation: Augmentation
    training: Training


class Tokenizer(Strict):
    name: str
    keep: Literal["best", "best_usage", "last"] = Field(description="which epoch's weights go on to the next stages")
    keep_every: int = Field(ge=0, description="keep the weights of every n-th epoch too; 0: none")
    snapshot_epochs: list[Annotated[int, Field(ge=0)]] = Field(
        description="epochs whose codebook and reconstructions are kept; 0: untrained"
    )
    augmentation: Augmentation
    training: Training

    @model_validator(mode="after")
    def _stops(self) -> Tokenizer:
        if self.keep == "last" and self.training.patience:
            raise ValueError(
                f"training.patience must be 0 while keep is last, by which every epoch is better than those before, got "
                f"{self.training.patience}; set it to 0, or keep to best"
            )
        return self


class Quantizer(Strict):
    name: str


class Codes(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")
    copies: int = Field(ge=0, description="augmented copies of the training images that are encoded too, from weak to "
                        "strong; 0: none")  # fmt: skip
    augmentation: Augmentation


class Reconstruction(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")


class Prior(Strict):
    name: str
    conditional: bool = Field(description="condition on the labels of the data set")
    label_dropout: float = Field(ge=0, lt=1, description="probability that a training example loses its label, which "
                                 "samples.guidance needs", examples=[0.1])  # fmt: skip
    augmented: float = Field(
        ge=0, le=1, description="share of training examples taken from the augmented copies of codes"
    )
    annealing: float = Field(ge=0, le=1, description="share of training, at its end, over which the strength of these "
                             "copies falls to none; 0: it does not fall", examples=[0.5])  # fmt: skip
    training: Training


class Samples(Strict):
    count: int = Field(ge=4, description="samples drawn")
    batch_size: int = Field(ge=1, description="samples drawn at once")
    temperature: float = Field(gt=0, description="divides the logits")
    top_k: int = Field(ge=0, description="draw among the k likeliest codes; 0: all")
    top_p: float = Field(gt=0, le=1, description="draw among the fewest codes of this probability; 1: all")
    guidance: float = Field(ge=0, description="of a conditional prior: 1 is p(codes | label), 0 forgets the label, more "
                            "exaggerates it")  # fmt: skip
    baseline: str = Field(description="closed-form prior whose samples stand beside, a file of priors/")


class Features(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")


class Threshold(Strict):
    """One bound on a metric; the worst of several where `*` makes more than one match."""

    metric: str = Field(pattern=r"^[a-z0-9_/]+:[A-Za-z0-9_.*]+$", description="file of metrics/ and name in it, such as "
                        "diagnostics/usage:grid_*.usage")  # fmt: skip
    at_least: float | None = Field(default=None, description="smallest value that passes")
    at_most: float | None = Field(default=None, description="largest value that passes")

    @model_validator(mode="after")
    def _one_bound(self) -> Threshold:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.metric} must have at_least or at_most, and not both")
        return self

    @property
    def file(self) -> str:
        return self.metric.partition(":")[0]


class Verdict(Strict):
    """Metrics against thresholds: the sections `gate` and `criteria`."""

    on_failure: Literal["warn", "stop"] = Field(description="warn: say so and go on; stop: fail the stage")
    thresholds: dict[str, Threshold]


class Runtime(Strict):
    """The machine. No stage declares this section: it must not change results."""

    device: Literal["auto", "cpu"] = Field(description="auto: the accelerator where there is one")
    devices: int = Field(
        ge=1, description="processes (ranks) that share training and extraction on each machine, one per device"
    )
    nodes: int = Field(ge=1, description="machines; with several, see docs/scale.md")
    threads: int = Field(ge=0, description="CPU threads per process; 0: as many as there are cores")
    checkpoint_seconds: float = Field(ge=0, description="between scratch checkpoints of a training stage; 0: each step")
    keep_scratch: int = Field(ge=1, description="scratch folders kept per stage; the oldest go first")


SECTIONS: dict[str, type[Strict]] = {
    "dataset": Dataset,
    "extractor": Extractor,
    "tokenizer": Tokenizer,
    "quantizer": Quantizer,
    "codes": Codes,
    "reconstruction": Reconstruction,
    "prior": Prior,
    "samples": Samples,
    "features": Features,
    "gate": Verdict,
    "criteria": Verdict,
    "runtime": Runtime,
}
CHOOSES = {
    "dataset": "datasets",
    "extractor": "extractors",
    "tokenizer": "tokenizers",
    "quantizer": "quantizers",
    "prior": "priors",
}  # singular section -> its seam
PLURAL = ("losses", "diagnostics", "evaluation", "extensions")  # each key is a file of the seam of that name
JUDGES = {"gate": ("reconstruction", "diagnostics"), "criteria": ("prior", "evaluation")}  # whose metrics each may read
ORDER = ("seed", *SECTIONS, *PLURAL)
FP16_ON_A_CPU = (
    "must be no or bf16 on a CPU, got 'fp16', in which only accelerators compute; set it to no, or to bf16 (fast on CPUs "
    "with AMX)"
)


class Params:
    """The values of params.yaml, section by section, each validated when it is first read.

    `params.tokenizer` holds what the stage reads, `params.config("tokenizer")` the `Config` of the chosen plug-in,
    `params.config("diagnostics", "usage")` that of one key of a plural section.

    Args:
        raw: the file as plain dictionaries.
        declared: sections that may be read (a stage's own); None: all of them.
    """

    def __init__(self, raw: dict[str, Any], declared: frozenset[str] | None = None) -> None:
        self.raw = raw
        self._declared = declared

    def chosen(self) -> dict[str, Any]:
        """The values of the declared sections in the order of the file, without the alternatives that are not chosen."""
        values = {}
        for section in [name for name in self.raw if self._declared is None or name in self._declared]:
            raw = self.raw[section]
            others = set(seams.names(CHOOSES[section])) - {raw["name"]} if section in CHOOSES else set()
            values[section] = {k: v for k, v in raw.items() if k not in others} if isinstance(raw, dict) else raw
        return values

    def restrict(self, declared: frozenset[str]) -> Params:
        return Params(self.raw, declared)

    @cached_property
    def seed(self) -> int:
        return self._section("seed")

    @cached_property
    def dataset(self) -> Dataset:
        return self._own("dataset")

    @cached_property
    def extractor(self) -> Extractor:
        return self._own("extractor")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._own("tokenizer")

    @cached_property
    def quantizer(self) -> Quantizer:
        return self._own("quantizer")

    @cached_property
    def codes(self) -> Codes:
        return self._own("codes")

    @cached_property
    def reconstruction(self) -> Reconstruction:
        return self._own("reconstruction")

    @cached_property
    def prior(self) -> Prior:
        return self._own("prior")

    @cached_property
    def samples(self) -> Samples:
        return self._own("samples")

    @cached_property
    def features(self) -> Features:
        return self._own("features")

    @cached_property
    def gate(self) -> Verdict:
        return self._own("gate")

    @cached_property
    def criteria(self) -> Verdict:
        return self._own("criteria")

    @cached_property
    def runtime(self) -> Runtime:
        return self._own("runtime")

    @cached_property
    def post_hoc(self) -> bool:
        """Whether the chosen quantizer is fitted to the latents of a finished autoencoder, instead of trained with it."""
        import torch

        with torch.device("meta"):  # built without memory, to ask it
            quantizer = seams.plugin("quantizers", self.quantizer.name).build(self.config("quantizer"), None)
        return hasattr(quantizer, "fit")

    @cached_property
    def guidable(self) -> bool:
        """Whether the chosen prior knows codes with and without their label, which guidance other than 1 compares. A trained
        one has the latter from examples that lost it; one in closed form is fitted to all images in any case."""
        return self.prior.conditional and (self.prior.label_dropout > 0 or _closed_form(self, self.prior.name))

    def keys(self, section: str) -> tuple[str, ...]:
        """The plug-ins that a plural section runs."""
        return tuple(self._section(section))

    def config(self, section: str, key: str | None = None) -> Any:
        """The `Config` of the plug-in that a section names, or of `key` (another alternative, or a plural key)."""
        raw = self._section(section)
        if section in PLURAL:
            return seams.plugin(section, str(key)).Config.model_validate(raw[key])
        name = key or raw["name"]
        config = seams.plugin(CHOOSES[section], name).Config
        shared = {k: v for k, v in _shared(section, raw).items() if k in config.model_fields}
        return config.model_validate({**shared, **raw[name]})

    def unread(self, section: str) -> tuple[str, ...]:
        """Shared values of a singular section that the chosen plug-in does not read (beta under `fsq`)."""
        raw = self._section(section)
        fields = seams.plugin(CHOOSES[section], raw["name"]).Config.model_fields
        return tuple(f"{section}.{key}" for key in _shared(section, raw) if key not in fields)

    def _section(self, section: str) -> Any:
        assert self._declared is None or section in self._declared | {"runtime"}, (
            f"the stage reads params section {section!r}, which dvc.yaml does not declare"
        )
        return self.raw[section]

    def _own(self, section: str) -> Any:
        raw = self._section(section)
        return SECTIONS[section].model_validate({k: v for k, v in raw.items() if k in SECTIONS[section].model_fields})


def read(path: str | Path = "params.yaml") -> dict[str, Any]:
    """The file as plain dictionaries, by YAML 1.2: `1e-05`, which `dvc exp run -S x=1e-5` writes, is a number there.

    Raises:
        InputError: the file is missing or is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run from the folder that holds params.yaml") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold sections ({', '.join(ORDER)}), got {type(raw).__name__}")
    return raw


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate the whole file; every plug-in named in it is imported.

    Raises:
        InputError: all problems of the file at once, each with its full path, rule and value.
    """
    raw = read(path)
    found = problems(raw)
    if found:
        lines = "\n".join(f"  {problem}" for problem in found)
        raise InputError(f"{path} has {len(found)} problem{'s' if len(found) > 1 else ''}:\n{lines}")
    return Params(raw)


def problems(raw: dict[str, Any]) -> list[str]:
    """Every problem of the whole file, as lines `section.key: rule, got value`; cross-section rules last."""
    found = list(_unknown("", raw, ORDER)) + [f"{key}: is missing" for key in ORDER if key not in raw]
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
            found += _invalid(section, SECTIONS[section], raw[section])
    return found or list(_rules(Params(raw)))


def _plural_problems(section: str, raw: dict[str, Any]) -> Iterator[str]:
    for key, values in raw.items():
        if key in seams.names(section):
            yield from _invalid(f"{section}.{key}", seams.plugin(section, key).Config, values)
        else:
            yield f"{section}.{key}: {seams.unknown(section, key)}"


def _singular_problems(section: str, raw: dict[str, Any]) -> Iterator[str]:
    """Own values, then every alternative's sub-section with the shared values that it reads, then what nobody reads."""
    seam, own = CHOOSES[section], SECTIONS[section].model_fields
    yield from _invalid(section, SECTIONS[section], {k: v for k, v in raw.items() if k in own})
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
            if line not in reported:  # a shared value is wrong for every alternative that reads it: said once
                reported.add(line)
                yield line
    known = [*own, *sorted(read_by_some), *seams.names(seam)]
    yield from _unknown(f"{section}.", {k: None for k in shared if k not in read_by_some}, known)


def _shared(section: str, raw: dict[str, Any]) -> dict[str, Any]:
    own = SECTIONS[section].model_fields
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
    """The remedy where text looks like a number (a folder 2024) or a truth value, and YAML takes it for one."""
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
    """Cross-section rules: the plug-ins' own, and that what is named elsewhere exists."""
    baseline, raw = params.samples.baseline, params.raw["prior"]
    if baseline not in seams.names("priors"):
        yield f"samples.baseline: {seams.unknown('priors', baseline)}"
    elif baseline not in raw:
        yield f"prior.{baseline}: is missing; samples.baseline is {baseline!r}, whose values belong there"
    elif not _closed_form(params, baseline):
        fitted = ", ".join(name for name in seams.names("priors") if name in raw and _closed_form(params, name))
        yield f"samples.baseline: must be a prior in closed form ({fitted}), got {baseline!r}, which is trained"
    yield from _unknown_metrics(params)
    prior, guidance = params.prior, params.samples.guidance
    if guidance != 1 and not params.guidable:
        yield (
            f"samples.guidance: must be 1 unless prior.conditional is true and prior.label_dropout above 0, got {guidance} "
            f"with {str(prior.conditional).lower()} and {prior.label_dropout:g}: guidance compares with the prior that is "
            "told no label, which training without dropout never sees"
        )
    if params.runtime.device == "cpu":  # under auto the machine decides: `runtime.devices.require_precisions`
        yield from in_fp16(params.raw)
    configs = [params.config(section) for section in CHOOSES]
    configs += [params.config(section, key) for section in PLURAL for key in params.keys(section)]
    found: list[str] = []
    for rule in [config.rule for config in configs if hasattr(config, "rule")]:
        try:
            found += rule(params)
        except InputError as error:  # a rule asked what cannot be built: the same is found by the rule of its owner
            found.append(str(error))
    yield from dict.fromkeys(found)


def in_fp16(raw: dict[str, Any], place: str = "") -> Iterator[str]:
    """A problem of each training in fp16, on a machine without accelerator."""
    for key, value in raw.items():
        if key == "training" and value["precision"] == "fp16":
            yield f"{place}training.precision: {FP16_ON_A_CPU}"
        elif isinstance(value, dict):
            yield from in_fp16(value, f"{place}{key}.")


def _unknown_metrics(params: Params) -> Iterator[str]:
    """A threshold on a file that no stage writes would never be judged. One on a plug-in that is not run is not judged
    either, and the stage says so: its threshold waits for it."""
    for section, stages in JUDGES.items():
        files = [name for stage in stages for name in _metric_files(stage)]
        for name, threshold in getattr(params, section).thresholds.items():
            if threshold.file not in files:
                near = difflib.get_close_matches(threshold.file, files, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(files)}"
                yield f"{section}.thresholds.{name}.metric: no stage before writes metrics/{threshold.file}.json; {hint}"


def _metric_files(stage: str) -> list[str]:
    return [f"{stage}/{name}" for name in seams.names(stage)] if stage in PLURAL else [stage]


def _closed_form(params: Params, prior: str) -> bool:
    """Whether a prior is fitted in one pass; its module has `fit` then. Built for a single code, to ask it."""
    return hasattr(seams.plugin("priors", prior).build(params.config("prior", prior), ((1, 1),), (2,), 0), "fit")


def main() -> int:
    try:
        params = load(sys.argv[1] if len(sys.argv) > 1 else "params.yaml")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("params.yaml is valid. Chosen plug-ins, marked *, among those there are:")
    for section, seam in CHOOSES.items():
        chosen = getattr(params, section).name
        print(f"  {section + '.name':18}" + "  ".join(f"{'*' if n == chosen else ''}{n}" for n in seams.names(seam)))
    for section in PLURAL:
        chosen = params.keys(section)
        print(f"  {section:18}" + "  ".join(f"{'*' if n in chosen else ''}{n}" for n in seams.names(section)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
