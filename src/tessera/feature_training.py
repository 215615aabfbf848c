"""How a feature network is made: trained by its own `losses` on the train split and kept by its own `accuracy` on the validation
split, or loaded from weights. What the stages `scorer` and `perceptual` share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Generator, Tensor, nn

from tessera.augmentation import Augmentation, augmented
from tessera.core import files, models
from tessera.core.contracts import Device, Extractor, PretrainedExtractor, Runtime, TrainedExtractor
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.run import UNTRAINED, Run
from tessera.core.seeding import seed_globally
from tessera.images.arrays import batches, to_model
from tessera.training.loop import Fitted, Row, Task, fit
from tessera.training.settings import Training


class Settings(Strict):
    """A section that chooses a feature network; `augmentation` and `training` are of one that is trained here."""

    name: str
    augmentation: Augmentation
    training: Training


def make(section: str, run: Run) -> None:
    """Make the network that a section chooses (`scorer`, `perceptual`): `artifacts/<section>/`, its metrics and its curve.

    Raises:
        InputError: its weights cannot be loaded, or the section's `training` suits neither the set nor the machine.
    """
    own, seed = run.params.section(section, Settings), run.params.seed
    recipe = models.extractor_recipe(run.params, section, run.image_shape, len(run.label_names))
    splits = {split: Labelled(run.images(split), run.labels(split)) for split in ("train", "val")}
    seed_globally(seed, streams(section), "initialisation")
    network: Extractor = models.build(recipe)
    fitted = train(network, section, splits, own, seed, run.runtime)
    if run.runtime.main:
        found = {"features": network.dim, **metrics(fitted, splits["val"])}
        run.save_model(section, network, recipe, found, fitted.notes)
        files.write_history(section, fitted.history or UNTRAINED)


def streams(section: str) -> str:
    """Name of the random streams of a section: as they were when one stage trained both networks, so that the same values still
    give the same weights."""
    return f"extractor/{section}"


class Labelled(NamedTuple):
    """A split: images, and the class of each where the set has labels."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"] | None

    def at(self, where: slice | np.ndarray, device: Device) -> tuple[Tensor, Tensor | None]:
        labels = None if self.labels is None else torch.from_numpy(np.array(self.labels[where])).to(device)
        return to_model(self.images[where], device), labels


class Objective(nn.Module):
    """What `fit` calls: forward is the network's losses."""

    def __init__(self, network: TrainedExtractor) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return self.network.losses(x, labels)


def train(
    network: Extractor, section: str, splits: Mapping[str, Labelled], settings: Settings, seed: int, runtime: Runtime
) -> Fitted:
    """Train `network` in place; the epoch of highest validation accuracy is kept. One without `losses` loads its weights from
    elsewhere, and has no history.

    Raises:
        InputError: see `make`.
    """
    if not hasattr(network, "losses"):
        try:
            cast("PretrainedExtractor", network).load_pretrained()
        except InputError as error:  # it knows its own values, not the section that they stand in
            raise InputError(f"{section}.{error}") from error
        return Fitted([], 0, {})

    def batch(indices: np.ndarray, rng: Generator, done: float) -> tuple[Tensor, Tensor | None]:
        x, labels = splits["train"].at(indices, runtime.device)
        return augmented(x, settings.augmentation, rng), labels

    def evaluate(objective: Objective) -> Row:
        return judge(objective.network, splits["val"], settings.training.batch_size, runtime.device)

    task = Task(
        name=section,
        streams=streams(section),
        objective=Objective(cast("TrainedExtractor", network)),
        examples=len(splits["train"].images),
        batch=batch,
        evaluate=evaluate,
        score=lambda row: row["val_accuracy"],
    )
    return fit(task, settings.training, seed, runtime)


@torch.no_grad()
def judge(network: TrainedExtractor, split: Labelled, batch_size: int, device: Device) -> Row:
    """Means over a split of the network's losses and accuracy; the network is in evaluation mode."""
    sums: Row = {}
    for where in batches(len(split.images), batch_size):
        x, labels = split.at(where, device)
        for name, value in {**network.losses(x, labels), "accuracy": network.accuracy(x, labels)}.items():
            sums[f"val_{name}"] = sums.get(f"val_{name}", 0.0) + float(value) * len(x)
    return {name: value / len(split.images) for name, value in sums.items()}


def metrics(fitted: Fitted, val: Labelled) -> Row:
    """Of the kept epoch; `majority` is the accuracy of always naming the most frequent class, which is to be beaten.

    Empty for a network that was not trained here.
    """
    row = next((row for row in fitted.history if row["epoch"] == fitted.epoch), {})
    kept = {name: row[name] for name in row if name == "val_accuracy"}
    if kept and val.labels is not None:
        kept["val_majority"] = float(np.bincount(val.labels).max() / len(val.labels))
    return kept
