"""One run of one stage: its params, and a lazy view of the artefacts that earlier stages wrote."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.core import files, models, seams
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import SPLITS, Report
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace

if TYPE_CHECKING:
    import pandas as pd

    from tessera.core.contracts import Device, Extractor, ImageShape, Model, Prior, Runtime, Tokenizer, Upsampler
    from tessera.core.params import Params

TEXT = ("split", "name", "family", "label_name", "vendor_name")  # columns of the table, those that it has
UNTRAINED: list[dict[str, float]] = [{"epoch": 0}]  # the curve of a network that was not trained here


class Run:
    """The input of a stage. Files are read on demand. `files` names the folders, and this class the files of artefacts.

    Attributes:
        params: the sections of params.yaml that the stage declares.
        key: the plug-in of this instance, in stages that run one per plug-in.

    `whole` is all of params.yaml. No stage reads it: it only serves to check that a model on disk is the one that params.yaml
    describes. A stage that loads a model depends on the model's artefact, and need not declare the sections behind it.
    """

    def __init__(
        self,
        params: Params,
        key: str | None = None,
        runtime: Runtime | None = None,
        whole: Params | None = None,
    ) -> None:
        self.params, self.key, self._runtime = params, key, runtime
        self._whole = whole or params

    @property
    def runtime(self) -> Runtime:
        """Devices, progress bars and scratch checkpoints (`tessera.runtime`). Results on different devices or with different
        numbers of threads agree within rounding, but not bit by bit."""
        assert self._runtime is not None, "this run was made without a runtime, and can only read"
        return self._runtime

    @property
    def device(self) -> Device:
        """The device of models: that of the runtime, or the CPU if there is no runtime."""
        return self._runtime.device if self._runtime is not None else "cpu"

    @staticmethod
    def folder(stage: str) -> Path:
        return files.ARTIFACTS / stage

    # dataset

    def images(self, split: str, folder: str = "dataset") -> np.ndarray:
        """uint8 [N,H,W,C], memory-mapped. `folder="targets"` reads the larger copies, `"reconstruction"` the decoded images."""
        return files.load_array(self.folder(folder) / f"{split}.npy")

    def table(self, split: str) -> pd.DataFrame:
        """Names, families and labels of a split, in the order of its images."""
        table = files.read_table(self.folder("dataset") / "table.csv", text=TEXT)
        return table[table["split"] == split].reset_index(drop=True)

    def labels(self, split: str) -> np.ndarray | None:
        """Class index of each image (int64), or None if the data set has no labels."""
        return self.table(split)["label"].to_numpy("int64") if self.label_names else None

    def required_labels(self, split: str) -> np.ndarray:
        """Class index of each image (int64).

        Raises:
            InputError: the data set has no labels.
        """
        labels = self.labels(split)
        if labels is None:
            raise InputError("the data set must have labels, and has none; let it read some, see docs/data.md")
        return labels

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(files.read_json(self.folder("dataset") / "facts.json")["label_names"])

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Column of classes of the table -> their names, of those that the data set has: `label`, `vendor`."""
        facts = files.read_json(self.folder("dataset") / "facts.json")
        return {
            key.removesuffix("_names"): tuple(value) for key, value in facts.items() if key.endswith("_names") and value
        }

    @property
    def image_shape(self) -> ImageShape:
        _, height, width, channels = self.images("train").shape
        return channels, height, width

    # codes

    def codes(self, split: str) -> np.ndarray:
        """Codes [N,T] of a split, memory-mapped."""
        return files.load_array(self.folder("codes") / f"{split}.npy")

    def augmented_codes(self) -> np.ndarray:
        """Codes [copies,N,T] of augmented copies of the training images, in the order of `codes("train")`."""
        return files.load_array(self.folder("codes") / "augmented.npy")

    def clusters(self, split: str) -> np.ndarray:
        """The cluster of each image of a split [N] (int64), from 0 to `cluster_count` - 1."""
        return files.load_array(self.folder("codes") / "clusters" / f"{split}.npy")

    @property
    def cluster_count(self) -> int:
        """0 where the stage `codes` was asked for none."""
        return files.read_json(self.folder("codes") / "facts.json").get("clusters", 0)

    def neighbours(self, split: str) -> np.ndarray:
        """Near training images of each image of a split [N,k] (int32): their places in `train`, nearest first. They are of other
        families than the image. k is `neighbour_count`."""
        return files.load_array(self.folder("codes") / "neighbours" / f"{split}.npy")

    def neighbour_features(self) -> np.ndarray:
        """Features of the training images [N,F] (float32), by which they are near: of the tokenizer's latents."""
        return files.load_array(self.folder("codes") / "neighbours" / "features.npy")

    @property
    def neighbour_count(self) -> int:
        """k; 0 where the stage `codes` was asked for none."""
        return files.read_json(self.folder("codes") / "facts.json").get("neighbours", 0)

    @property
    def space(self) -> CodeSpace:
        return CodeSpace.of_facts(files.read_json(self.folder("codes") / "facts.json"))

    # models

    def tokenizer(self) -> Tokenizer:
        return self._model("tokenizer", models.tokenizer_recipe(self._whole, self.image_shape))

    def prior(self) -> Prior:
        return self._model("prior", models.prior_recipe(self._whole, self.space, self._conditioning("prior")))

    def _conditioning(self, stage: str) -> Conditioning:
        """What a stored prior is told: conditions by the names in params.yaml.

        Raises:
            InputError: it is told something else. (That its classes and words are those of the data set, provenance says.)
        """
        folder, asked = self.folder(stage), self._whole.conditions
        told = models.conditioning_of(folder)
        if set(told.names) != set(asked) or (stage == "prior" and told.dropout != asked):
            raise InputError(
                f"{folder} does not fit params.yaml: prior.conditions are {told.dropout} in the model, {asked} in params.yaml. "
                f"Run `dvc repro {stage}`"
            )
        return told

    def scorer(self) -> Extractor:
        """The feature network that images are compared by; nothing is ever trained against it."""
        return self._model("scorer", self._extractor_recipe("scorer"))

    def perceptual(self) -> Extractor:
        """The feature network of the loss `perceptual`.

        Raises:
            InputError: the stage `perceptual` made none, since the loss did not ask for it.
        """
        if reason := self.unused("perceptual"):
            raise InputError(
                f"{self.folder('perceptual')} holds no network: when the stage perceptual ran, {reason}. Set a weight above 0 and "
                "no file of weights, and run `dvc repro perceptual`"
            )
        return self._model("perceptual", self._extractor_recipe("perceptual"))

    def _extractor_recipe(self, section: str) -> models.Recipe:
        return models.extractor_recipe(self._whole, section, self.image_shape, len(self.label_names))

    def upsampler(self, tokenizer: Tokenizer) -> Upsampler:
        """The network that decodes the tokenizer's code vectors at twice the size. See `unused`."""
        return self._model("upsampler", self.upsampler_recipe(tokenizer))

    def upsampler_recipe(self, tokenizer: Tokenizer) -> models.Recipe:
        import torch

        with torch.no_grad():
            every = tokenizer.vectors(torch.zeros(1, tokenizer.space.length, dtype=torch.int64, device=self.device))
        levels = tokenizer.space.placed(every)
        return models.upsampler_recipe(self._whole, self.image_shape, [tuple(level.shape[1:]) for level in levels])

    def infiller(self) -> Prior:
        """The masked prior that fills in hidden codes. See `unused`."""
        stored = models.read_recipe(self.folder("infiller"))
        own = {key: value for key, value in self._whole.value("infiller").items() if key in stored.config}
        arguments = models.plain({**self.space.facts, **self._conditioning("infiller").facts})
        return self._model("infiller", stored._replace(config=stored.config | own, arguments=arguments))

    def unused(self, stage: str) -> str | None:
        """Why a stage made no network when it ran, since nothing asked for one; None if there is one."""
        path = self.folder(stage) / models.UNUSED
        return files.read_json(path)["reason"] if path.exists() else None

    def _model(self, stage: str, wanted: models.Recipe) -> Any:
        folder = self.folder(stage)
        stored = models.read_recipe(folder)
        if stored != wanted:
            raise InputError(
                f"{folder} does not fit params.yaml: {_difference(stored, wanted)}. Run `dvc repro {stage}`"
            )
        return models.load(folder, self.device)

    def save_model(
        self, stage: str, model: Model, recipe: models.Recipe, metrics: dict[str, Any], notes: Sequence[str] = ()
    ) -> None:
        """Write `artifacts/<stage>/` and `metrics/<stage>.json`. The model's card shows params, `notes` and metrics."""
        files.write_metrics(stage, metrics)
        folder = self.folder(stage)
        (folder / models.UNUSED).unlink(missing_ok=True)
        models.save(folder, model, recipe, models.card(folder.as_posix(), recipe, self.params.chosen(), metrics, notes))

    def save_unused(self, stage: str, reason: str) -> None:
        """Write the reason in the place of a network that nothing asks for, and of its metrics and curve."""
        shutil.rmtree(self.folder(stage), ignore_errors=True)  # of what another run made nothing may stay beside it
        files.write_json(self.folder(stage) / models.UNUSED, {"reason": reason})
        files.write_metrics(stage, {"applies": 0})
        files.write_history(stage, UNTRAINED)

    # samples and features

    @property
    def sample_sets(self) -> tuple[str, ...]:
        """`samples` (from the prior), `baseline` (from the closed-form prior), and `gaussian` if the tokenizer can decode
        latents sampled from N(0, I)."""
        return tuple(files.read_json(self.folder("samples") / "facts.json")["sets"])

    def samples(self, of: str = "samples", kind: str = "images") -> np.ndarray:
        """An array of one of `sample_sets`. `kind`: `images` uint8 [N,H,W,C]; for priors also `codes` [N,T]."""
        return files.load_array(self.folder("samples") / of / f"{kind}.npy")

    def sample_conditions(self, of: str) -> pd.DataFrame | None:
        """What each sample of one of `sample_sets` was drawn for (`conditions.described`); None where nothing was said."""
        path = self.folder("samples") / of / "conditions.csv"
        return files.read_table(path, text=(*TEXT, "words")) if path.exists() else None

    def sample_labels(self, of: str) -> np.ndarray | None:
        """The label that each sample of one of `sample_sets` was drawn for [N]; None where some were drawn for none."""
        table = self.sample_conditions(of)
        labels = None if table is None or "label" not in table else table["label"].to_numpy("int64")
        return None if labels is None or (labels < 0).any() else labels

    def features(self, of: str) -> np.ndarray:
        """Features [N,F] of the images `train`, `val`, `test`; of the reconstructions of test images, `reconstruction`, of val,
        `reconstruction_val`, and of some training images, evenly spaced, `reconstruction_train`; or of one of `sample_sets`."""
        return files.load_array(self.folder("features") / f"{of}.npy")

    def families(self, of: str) -> np.ndarray:
        """The family of each image that `features(of)` has a row for, text [N]; a sample is a family of its own."""
        return files.load_array(self.folder("features") / "families" / f"{of}.npy")

    def groups(self, of: str) -> dict[str, np.ndarray]:
        """Indices of the images of `features(of)`: under `all` of all that samples are compared with (`features.vendor`), and of
        each group that figures are printed for."""
        facts = files.read_json(self.folder("features") / "facts.json")
        path = self.folder("features") / "groups" / f"{of}.npy"
        group = files.load_array(path) if path.exists() else np.zeros(len(self.features(of)), np.int64)
        return {"all": np.flatnonzero(group >= 0)} | {
            name: np.flatnonzero(group == facts["groups"].index(name)) for name in facts["shown"]
        }

    @property
    def distance(self) -> str:
        """Name of the Fréchet distance on these features; only on Inception's features is it `fid`."""
        return files.read_json(self.folder("features") / "facts.json")["distance"]

    # reports

    def measure(self, seam: str) -> Report:
        """The report of this instance's plug-in. If the plug-in does not apply, print why and report only `applies: 0`."""
        module = seams.plugin(seam, str(self.key))
        reason = module.requires(self) if hasattr(module, "requires") else None
        if reason is not None:
            print(f"{seam}@{self.key} does not apply: {reason}", flush=True)
            return Report({"applies": 0})
        return module.measure(self.params.config(seam, self.key), self)

    def write(self, seam: str, report: Report) -> None:
        files.write_report(f"{seam}/{self.key}", report)


def _difference(stored: models.Recipe, wanted: models.Recipe) -> str:
    have, want = _facts(stored), _facts(wanted)
    key = next(key for key in {**have, **want} if have.get(key) != want.get(key))
    return f"{key} is {have.get(key)!r} in the model, {want.get(key)!r} in params.yaml"


def _facts(recipe: models.Recipe) -> dict[str, Any]:
    quantizer, values = recipe.quantizer or (None, {})
    facts = {"seam": recipe.seam, "name": recipe.name, "quantizer.name": quantizer, **recipe.config, **recipe.arguments}
    return facts | {f"quantizer.{key}": value for key, value in values.items()}


__all__ = ["SPLITS", "Run"]
