"""params.yaml as plain values, and its sections as validated, frozen objects.

A *singular* section chooses one plug-in (`name:`). It also holds the values that its stage reads, values that the alternatives
share (`quantizer.beta`), and one sub-section per alternative. A plug-in's `Config` is filled from its own sub-section and from
the shared values that it has as fields. A *plural* section runs every plug-in that it has as a key. Code has no default
values: they live only in params.yaml. The class of a section stands in the file of its stage, and
`tessera.runtime.validation` checks the whole file.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from tessera.core import seams, trees
from tessera.core.errors import InputError


class Strict(BaseModel):
    """Base class of every model of params.yaml: no unknown keys, no conversion of types, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


CHOOSES = {
    "dataset": "datasets",
    "scorer": "extractors",
    "perceptual": "extractors",
    "tokenizer": "tokenizers",
    "quantizer": "quantizers",
    "prior": "priors",
    "upsampler": "upsamplers",
}  # singular section -> its seam
PLURAL = ("losses", "diagnostics", "evaluation", "extensions")  # each key is a plug-in of the seam of the same name

Section = TypeVar("Section", bound=Strict)


class Params:
    """The values of params.yaml. A section is validated when it is read.

    Args:
        raw: the file as plain dictionaries.
        declared: the sections that the stage may read; None: all sections.
    """

    def __init__(self, raw: dict[str, Any], declared: frozenset[str] | None = None) -> None:
        self.raw = raw
        self._declared = declared

    @property
    def seed(self) -> int:
        return self.value("seed")

    def value(self, dotted: str) -> Any:
        """A plain value by its dotted name, such as `prior.augmented`. The whole file has been validated before.

        Raises:
            InputError: there is no such value.
        """
        section, _, place = dotted.partition(".")
        found = self._section(section)
        try:
            return trees.value(found, place) if place else found
        except KeyError:
            raise InputError(f"params.yaml has no {dotted}") from None

    def section(self, name: str, kind: type[Section]) -> Section:
        """The values of a section that are fields of its class `kind`."""
        raw = self._section(name)
        return kind.model_validate({key: value for key, value in raw.items() if key in kind.model_fields})

    def chosen(self) -> dict[str, Any]:
        """The values of the declared sections in the order of the file, without alternatives that are not chosen."""
        values = {}
        for section in [name for name in self.raw if self._declared is None or name in self._declared]:
            raw = self.raw[section]
            others = set(seams.names(CHOOSES[section])) - {raw["name"]} if section in CHOOSES else set()
            values[section] = {k: v for k, v in raw.items() if k not in others} if isinstance(raw, dict) else raw
        return values

    def restrict(self, declared: frozenset[str]) -> Params:
        return Params(self.raw, declared)

    @property
    def post_hoc(self) -> bool:
        """Whether the chosen quantizer is fitted to the latents of a finished autoencoder instead of trained with it."""
        return getattr(seams.plugin("quantizers", self.value("quantizer.name")), "POST_HOC", False)

    @property
    def perceptual_network(self) -> bool:
        """Whether the loss `perceptual` compares by the network of the section `perceptual`: it is on, and by no file of other
        weights."""
        return self.value("losses.perceptual.weight") > 0 and not self.value("losses.perceptual.weights")

    @property
    def conditions(self) -> dict[str, float]:
        """What the chosen prior is told of an image -> the probability that a training example goes without it."""
        return {name: float(value) for name, value in self.value("prior.conditions").items() if value != "none"}

    @property
    def words(self) -> tuple[int, int]:
        """In how many names of training images a word must stand, and how many words of a name the prior reads."""
        own = self.value("prior.words")
        return own["least_count"], own["most"]

    def guidable(self, condition: str) -> bool:
        """Whether the chosen prior can predict with and without a condition. Guidance other than 1 compares the two predictions. A
        trained prior learns the second from examples that went without, a closed-form prior always from all images."""
        dropout = self.conditions.get(condition)
        return dropout is not None and (dropout > 0 or closed_form(self.value("prior.name")))

    def keys(self, section: str) -> tuple[str, ...]:
        """The plug-ins that a plural section runs."""
        return tuple(self._section(section))

    def config(self, section: str, key: str | None = None) -> Any:
        """The `Config` of the plug-in that a section names, or of the plug-in `key`."""
        raw = self._section(section)
        if section in PLURAL:
            return seams.plugin(section, str(key)).Config.model_validate(raw[key])
        name = key or raw["name"]
        config = seams.plugin(CHOOSES[section], name).Config
        return config.model_validate({**shared(raw, config), **raw[name]})

    def _section(self, section: str) -> Any:
        assert self._declared is None or section in self._declared | {"runtime"}, (
            f"the stage reads params section {section!r}, which dvc.yaml does not declare"
        )
        return self.raw[section]


def shared(raw: dict[str, Any], config: type[BaseModel]) -> dict[str, Any]:
    """The values at the top of a singular section that are fields of a plug-in's `Config`."""
    return {key: value for key, value in raw.items() if key in config.model_fields}


def pretrained(extractor: str) -> bool:
    """Whether a feature network has its weights from elsewhere, the same ones in every section that chooses it."""
    return getattr(seams.plugin("extractors", extractor), "PRETRAINED", False)


def closed_form(prior: str) -> bool:
    """Whether a prior is fitted in one pass by `fit` instead of trained."""
    return getattr(seams.plugin("priors", prior), "CLOSED_FORM", False)


def bounded(prior: str) -> bool:
    """Whether a prior knows only a lower bound of its likelihood: its `exact` is False."""
    return getattr(seams.plugin("priors", prior), "BOUND", False)


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """A stage reads params.yaml five times, and to parse it takes as long as the work of some stages."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text)


def read(path: str | Path = "params.yaml") -> dict[str, Any]:
    """The file as plain dictionaries, by YAML 1.2: there `1e-05`, which `dvc exp run -S x=1e-5` writes, is a number.

    Raises:
        InputError: the file is missing or is not YAML.
    """
    from ruamel.yaml.error import YAMLError

    try:
        raw = copy.deepcopy(_parsed(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run from the folder that holds params.yaml") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold sections by name, got {type(raw).__name__}")
    return raw
