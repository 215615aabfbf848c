"""The artefacts that the page plays with, as they are now: a stage may replace them while the page is open.

Models are read by their own recipe, not by params.yaml, so that the page still shows a run after its params were edited. Values
such as the temperature come from params.yaml. All is computed on the CPU: a training on an accelerator is not disturbed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from jaxtyping import Int, UInt8

from tessera import conditions
from tessera.commands import trained
from tessera.core import files, models
from tessera.core.conditioning import MADE_OF_CODES, Conditioning
from tessera.core.contracts import SPLITS
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.images import arrays
from tessera.release import sums
from tessera.runtime import provenance
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from tessera.core.contracts import Prior, Tokenizer

Value = TypeVar("Value")
TWO_LEVELS = "`dvc exp run -S tokenizer.name=vqvae2`"  # the command for what needs several levels
BATCH = 64  # images encoded or decoded at once
MODELS = ("tokenizer", "prior")
COMMITTED = f"No model has been trained here: this is {trained.COMMITTED}, the models of the committed run."
MADE_BY = {"dataset": "table.csv", "codes": "facts.json", "samples": "facts.json", "features": "facts.json",
           "reconstruction": "test.npy"}  # stage -> a file that is there when it has run  # fmt: skip


def models_folder() -> Path:
    """The folder whose sub-folders `tokenizer`, `prior` and `infiller` hold the models that the page plays with: `artifacts`, or
    where no model has been trained, the committed ones, as the commands have it."""
    none = len(trained.missing(files.ARTIFACTS, MODELS)) == len(MODELS)
    return trained.COMMITTED if none and not trained.missing(trained.COMMITTED, MODELS) else files.ARTIFACTS


class Picture(NamedTuple):
    """An image that a person chose: pixels in the tokenizer's shape, and its key in the data set, empty of an upload."""

    name: str
    pixels: UInt8[np.ndarray, "h w c"]
    key: str = ""


class Kept:
    """Values that were made from files; one is made again when a file of it has changed. Threads may share it."""

    def __init__(self) -> None:
        self._values: dict[Any, tuple[Any, Any]] = {}
        self._lock = threading.RLock()

    def get(self, name: Any, paths: Iterable[Path], make: Callable[[], Value]) -> Value:
        stamps = tuple(map(_stamp, paths))
        with self._lock:
            before, value = self._values.get(name, (None, None))
            if before != stamps:
                value = make()
                self._values[name] = (stamps, value)
            return cast("Value", value)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class Workspace(Run):
    """The run whose artefacts lie in the working folder. `kept` remembers what is slow to make."""

    def __init__(self, params: Params) -> None:
        settings = params.section("runtime", Settings).model_copy(update={"device": "cpu", "devices": 1, "nodes": 1})
        super().__init__(params, runtime=Runtime(settings))
        self.kept = Kept()

    @classmethod
    def here(cls) -> Workspace:
        """
        Raises:
            InputError: the working folder holds no params.yaml.
        """
        return cls(Params(read()))

    # models

    def tokenizer(self) -> Tokenizer:
        return self._own("tokenizer")

    def prior(self) -> Prior:
        prior: Prior = self._own("prior")
        if prior.space != self.tokenizer().space:
            raise InputError(
                f"{models_folder() / 'prior'} models codes in {prior.space.grids}, but the tokenizer makes "
                f"{self.tokenizer().space.grids}: they do not belong together. Run `dvc repro prior`"
            )
        return prior

    def infiller(self) -> Prior:
        return self._own("infiller")

    def _own(self, stage: str) -> Any:
        folder = models_folder() / stage

        def load() -> Any:
            sums.require(models_folder(), f"{stage}/")  # as the commands do; a run's own folder has none
            return models.load(folder, self.device)

        return self.kept.get(folder, self.files_of(stage), load)

    @staticmethod
    def files_of(stage: str) -> tuple[Path, Path]:
        """Weights and recipe of a model."""
        folder = models_folder() / stage
        return folder / models.WEIGHTS, folder / models.RECIPE

    @property
    def models(self) -> str:
        """Names of the models that are there, the grids of codes, and whose models they are if not those of a run here."""
        if not self.there("tokenizer"):
            return "There are no models here yet."
        recipes = {stage: models.read_recipe(models_folder() / stage) for stage in MODELS if self.there(stage)}
        of = recipes["tokenizer"]
        space = self.tokenizer().space
        grids = " and ".join(f"{h}x{w} codes of {k}" for (h, w), k in zip(space.grids, space.sizes, strict=True))
        quantizer = f" with {of.quantizer[0]}" if of.quantizer and of.name != "pixels" else ""
        prior = f"; prior {recipes['prior'].name}" if "prior" in recipes else ""
        committed = f" {COMMITTED}" if models_folder() == trained.COMMITTED else ""
        return f"Tokenizer {of.name}{quantizer}, {grids}{prior}.{committed}"

    # what is there

    def why_not(self, *stages: str) -> str | None:
        """One sentence that says which artefacts are missing, or do not belong together, and the command that makes them; None
        if the artefacts of all these stages are there."""
        missing = [stage for stage in stages if not self.there(stage)]
        if missing:
            return f"No artefacts of {' and '.join(missing)} are here yet: `dvc repro {' '.join(missing)}` makes them."
        try:
            paths = [path for stage in stages for path in sorted(self.folder(stage).glob("*"))]
            own = [stage for stage in stages if self.folder(stage).exists()]  # else its model stands elsewhere
            self.kept.get(("together", *stages), paths, lambda: provenance.require_together(*own))
        except InputError as error:
            return str(error)
        return None

    def there(self, stage: str) -> bool:
        if stage in MADE_BY:
            own = stage == "dataset" or models_folder() == files.ARTIFACTS  # else they are of other models
            return own and (self.folder(stage) / MADE_BY[stage]).exists()
        return all(path.exists() for path in self.files_of(stage))

    # images

    def table(self, split: str) -> pd.DataFrame:
        path = self.folder("dataset") / "table.csv"
        return self.kept.get(("table", split), [path], lambda: super(Workspace, self).table(split))

    def names(self, most: int) -> list[tuple[str, str]]:
        """Name and key of images of all splits: all of test and val, as far as `most` reaches, and evenly spread ones of train.
        A name that several images have gets a number. Empty if there is no data set."""
        if not self.there("dataset"):
            return []
        return self.kept.get(("names", most), [self.folder("dataset") / "table.csv"], lambda: self._names(most))

    def _names(self, most: int) -> list[tuple[str, str]]:
        found, seen = [], {}  # type: ignore[var-annotated]
        for split in reversed(SPLITS):
            own = self.table(split)["name"]
            for row in evenly(len(own), most - len(found)):
                name = own[row]
                seen[name] = seen.get(name, 0) + 1
                title = name if seen[name] == 1 else f"{name} ({seen[name]})"
                found.append((title, f"{split}:{row}"))
        return sorted(found, key=lambda each: each[0].casefold())

    def picture(self, key: str) -> Picture:
        """The image of a key such as `test:12`.

        Raises:
            InputError: there is no such image, or the tokenizer is for images of another shape.
        """
        split, _, row = str(key).partition(":")
        if split not in SPLITS or not row.isdigit() or int(row) >= len(self.table(split)):
            raise InputError(f"there is no image {key!r} in the data set any more; choose another one")
        place = self.table(split).iloc[int(row)]
        pixels = np.asarray(self.images(split)[int(row)])
        channels, height, width = self.tokenizer().image_shape
        if pixels.shape != (height, width, channels):
            raise InputError(
                f"the data set has images of {pixels.shape}, the tokenizer is for {(height, width, channels)}: they do not "
                "belong together. Run `dvc repro tokenizer`"
            )
        return Picture(place["name"], pixels, str(key))

    def tells(self, conditioning: Conditioning) -> bool:
        """Whether it is known what images have of these conditions: some are of the data set, others of its codes."""
        of_codes = any(name in conditioning for name in MADE_OF_CODES)
        return self.there("dataset") and (self.there("codes") or not of_codes)

    def told(self, picture: Picture, conditioning: Conditioning, hidden: bool = False) -> Int[Tensor, "1 c"] | None:
        """What a prior is told of a picture, of which a part may be `hidden`. Nothing is said of an upload, nor where what the
        stage `codes` made is missing; an unconditional prior is told None."""
        import torch

        if not picture.key or not self.tells(conditioning):
            return conditioning.nothing(1, self.device) if conditioning else None
        split, _, row = picture.key.partition(":")
        look_up = conditions.of_hidden if hidden else conditions.of_split
        told = look_up(self, conditioning, split, [int(row)])
        return None if told is None else torch.from_numpy(told).to(self.device)

    # codes

    def encoded(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Int[np.ndarray, "n t"]:
        return arrays.mapped(self.tokenizer().encode, pixels, BATCH, self.device)

    def decoded(self, codes: Int[np.ndarray, "n t"]) -> UInt8[np.ndarray, "n h w c"]:
        return arrays.decoded(self.tokenizer(), np.asarray(codes, np.int64), BATCH, self.device)


def evenly(n: int, count: int) -> Int[np.ndarray, " m"]:
    return arrays.evenly(n, count) if n and count > 0 else np.zeros(0, np.int64)
