"""Which trained models a command uses: those of the workspace, or else the committed ones, which a fresh clone has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from tessera.commands import line
from tessera.core import files, models
from tessera.core.contracts import Device, Prior, Sampling, Tokenizer
from tessera.core.errors import InputError, listed
from tessera.core.params import Strict
from tessera.release import sums

EXPORTED = Path("models")  # `python -m tessera.export NAME` writes models/NAME
COMMITTED = EXPORTED / "default"
SAMPLING = "sampling.json"  # beside the weights of an exported prior


class AsSampled(Strict):
    """How a run drew its samples."""

    temperature: float = Field(gt=0)
    top_k: int = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    guidance: dict[str, Annotated[float, Field(ge=0)]]


class Facts(BaseModel):
    """Of the stage `samples`; of an older run without `sampling`."""

    sampling: AsSampled | None = None


class Trained(NamedTuple):
    """A folder with models, one folder each: `artifacts`, or one that was exported."""

    folder: Path

    def tokenizer(self, device: Device) -> Tokenizer:
        return self._load("tokenizer", device)

    def prior(self, device: Device) -> Prior:
        return self._load("prior", device)

    def digest(self, kind: str) -> str:
        """SHA-256 of a model's weights: which model it is."""
        return files.sha256(self.folder / kind / models.WEIGHTS)

    def sampling(self) -> Sampling:
        """As the stage `samples` of the run drew its samples; plain where that is not known.

        Raises:
            InputError: the file that says so is damaged.
        """
        path, remedy = self.folder / "prior" / SAMPLING, "Export the folder again"
        whole: type[Strict | Facts] = AsSampled
        if not path.is_file():
            path, whole, remedy = self.folder / "samples" / "facts.json", Facts, "Run `dvc repro samples`"
        if not path.is_file():
            return Sampling()
        try:
            found = whole.model_validate(files.read_json(path))
        except ValidationError as error:
            (first, *_) = error.errors()
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise InputError(f"{path}: {where}: {first['msg']}. {remedy}") from None
        own = found.sampling if isinstance(found, Facts) else found
        return Sampling() if own is None else Sampling(**own.model_dump())

    def _load(self, kind: str, device: Device) -> Any:
        """
        Raises:
            InputError: a file is missing, damaged or of another model; or it is not a model of this kind.
        """
        sums.require(self.folder, f"{kind}/")
        folder = self.folder / kind
        if (seam := models.read_recipe(folder).seam) != f"{kind}s":
            raise InputError(
                f"{folder} must hold a model of {kind}s, got one of {seam}. Name another folder by --models"
            )
        return models.load(folder, device)


def add_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", default=argparse.SUPPRESS,
        help="the folder that holds tokenizer/ and prior/ (default: artifacts, or where no model has been trained, "
        "models/default: those of the committed run)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto: an accelerator if there is one"
    )


def find(options: argparse.Namespace, *kinds: str) -> Trained:
    """The folder that holds models of these `kinds`: `--models`, or `artifacts`, or where that has none at all `models/default`,
    which is said.

    Raises:
        InputError: there is none, or it lacks one of them. The message names where models were looked for, and the remedy.
    """
    given: Path | None = getattr(options, "models", None)
    if given is not None:
        if lacking := missing(given, kinds):
            raise InputError(
                f"--models {given}: there is no {listed(lacking)}. Name a folder that `python -m tessera.export NAME` wrote, "
                "or artifacts"
            )
        return Trained(given)
    lacking = missing(files.ARTIFACTS, kinds)
    if not lacking:
        return Trained(files.ARTIFACTS)
    if len(missing(files.ARTIFACTS, ("tokenizer", "prior"))) < 2:  # a run that has not come to its end
        raise InputError(
            f"{files.ARTIFACTS} has no {listed(lacking)} yet. Run `dvc repro {kinds[-1]}`, or take the committed models by "
            f"--models {COMMITTED}"
        )
    if missing(COMMITTED, kinds):
        raise InputError(
            f"neither {files.ARTIFACTS} nor {COMMITTED} holds trained models. Run `dvc repro {kinds[-1]}` or `dvc pull`, or name a "
            "folder of models by --models"
        )
    line.say(f"{files.ARTIFACTS} holds no trained models: using {COMMITTED}, those of the committed run")
    return Trained(COMMITTED)


def missing(folder: Path, kinds: Sequence[str]) -> list[str]:
    """The recipes that `folder` lacks."""
    return [name for name in (f"{kind}/{models.RECIPE}" for kind in kinds) if not (folder / name).is_file()]


def device(options: argparse.Namespace) -> Device:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if options.device == "cpu" or accelerator is None else accelerator
