"""One run of one stage: its params, and a lazy view of the artefacts that earlier stages wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.core import files, models, seams
from tessera.core.contracts import SPLITS, Report
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from tessera.core.contracts import Device, Extractor, ImageShape, Model, Prior, Runtime, Tokenizer
    from tessera.core.params import Params


class Run:
    """What a stage is given. Reading is on demand; `files` names the folders, and this class the
    files of artefacts.

    Attributes:
        params: the sections of params.yaml that the stage declares.
        key: the plug-in of this instance, in stages that run one per plug-in.

    `whole` is all of params.yaml, and no stage reads it: it is there to say whether a model on disk is the one that params.yaml
    describes. A stage that loads a model depends on its artefact, and need not declare the sections that it was made from.
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
        """Devices, progress bars and scratch checkpoints (`tessera.runtime`). Results agree on any of them within rounding:
        other devices and other numbers of threads change bits."""
        assert self._runtime is not None, "this run was made without a runtime, and can only read"
        return self._runtime

    @property
    def device(self) -> Device:
        """Where models are: the device of the runtime, or the CPU without one."""
        return self._runtime.device if self._runtime is not None else "cpu"

    @staticmethod
    def folder(stage: str) -> Path:
        return files.ARTIFACTS / stage

    # dataset

    def images(self, split: str, folder: str = "dataset") -> np.ndarray:
        """uint8 [N,H,W,C], memory-mapped; `folder="targets"` for the larger copies, `"reconstruction"` for decoded ones."""
        return files.load_array(self.folder(folder) / f"{split}.npy")

    def table(self, split: str) -> pd.DataFrame:
        """Names, families and labels of a split, in the order of its images."""
        table = files.read_table(self.folder("dataset") / "table.csv", text=("split", "name", "family", "label_name"))
        return table[table["split"] == split].reset_index(drop=True)

    def labels(self, split: str) -> np.ndarray | None:
        """Class index of each image (int64), or None where the set has no labels."""
        return self.table(split)["label"].to_numpy("int64") if self.label_names else None

    def required_labels(self, split: str) -> np.ndarray:
        """`labels` of a set that has some.

        Raises:
            InputError: it has none.
        """
        labels = self.labels(split)
        if labels is None:
            raise InputError("the data set must have labels, and has none; let it read some, see docs/data.md")
        return labels

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(files.read_json(self.folder("dataset") / "facts.json")["label_names"])

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

    @property
    def space(self) -> CodeSpace:
        return CodeSpace.of_facts(files.read_json(self.folder("codes") / "facts.json"))

    # models

    def tokenizer(self) -> Tokenizer:
        return self._model("tokenizer", models.tokenizer_recipe(self._whole, self.image_shape))

    def prior(self) -> Prior:
        classes = len(self.label_names) if self._whole.value("prior.conditional") else 0
        recipe = models.prior_recipe(self._whole, self.space, classes)
        return self._model("prior", recipe)

    def scorer(self) -> Extractor:
        """The feature network that images are compared by; nothing is ever trained against it."""
        return self._model("scorer", self._extractor_recipe("scorer"))

    def perceptual(self) -> Extractor:
        """The feature network of the loss `perceptual`.

        Raises:
            InputError: the stage `perceptual` made none, since the loss did not ask for it.
        """
        folder = self.folder("perceptual")
        if (folder / models.UNUSED).exists():
            reason = files.read_json(folder / models.UNUSED)["reason"]
            raise InputError(
                f"{folder} holds no network: when the stage perceptual ran, {reason}. Set a weight above 0 and no file of "
                "weights, and run `dvc repro perceptual`"
            )
        return self._model("perceptual", self._extractor_recipe("perceptual"))

    def _extractor_recipe(self, section: str) -> models.Recipe:
        return models.extractor_recipe(self._whole, section, self.image_shape, len(self.label_names))

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
        """`artifacts/<stage>/` with a card of the params, of `notes` on them, and of the metrics; `metrics/<stage>.json`."""
        files.write_metrics(stage, metrics)
        folder = self.folder(stage)
        models.save(folder, model, recipe, models.card(folder.as_posix(), recipe, self.params.chosen(), metrics, notes))

    # samples and features

    @property
    def sample_sets(self) -> tuple[str, ...]:
        """`samples` (of the prior), `baseline` (of the closed-form prior), and `gaussian` where the tokenizer itself can be
        sampled from N(0, I)."""
        return tuple(files.read_json(self.folder("samples") / "facts.json")["sets"])

    def samples(self, of: str = "samples", kind: str = "images") -> np.ndarray:
        """Of one of `sample_sets`: `images` uint8 [N,H,W,C]; of priors `codes` [N,T], and `labels` [N] of conditional ones."""
        return files.load_array(self.folder("samples") / of / f"{kind}.npy")

    def features(self, of: str) -> np.ndarray:
        """Features [N,F] of `train`, `val`, `test`, `reconstruction` (of the test images), or one of `sample_sets`."""
        return files.load_array(self.folder("features") / f"{of}.npy")

    @property
    def distance(self) -> str:
        """What the Fréchet distance on these features is called: `fid` on Inception's only."""
        return files.read_json(self.folder("features") / "facts.json")["distance"]

    # reports

    def measure(self, seam: str) -> Report:
        """The report of this instance's plug-in; where it does not apply, it says why and reports just that."""
        module = seams.plugin(seam, str(self.key))
        reason = module.requires(self.params) if hasattr(module, "requires") else None
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
