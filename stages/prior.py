"""prior: codes -> artifacts/prior/, plots/prior.csv

Trains a prior: the objective, the training examples, and its score, the likelihood of held-out codes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera.core import files, models
from tessera.core.contracts import Device, Prior
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.core.space import CodeSpace
from tessera.images import arrays
from tessera.runtime.stage import enter
from tessera.training.loop import LOOKED_AT, Fitted, Row, Task, fit
from tessera.training.settings import Training


class Settings(Strict):
    name: str
    conditional: bool = Field(description="condition on the labels of the data set")
    label_dropout: float = Field(ge=0, lt=1, description="probability that a training example loses its label, which "
                                 "samples.guidance needs", examples=[0.1])  # fmt: skip
    augmented: float = Field(
        ge=0, le=1, description="fraction of training examples taken from the augmented copies of codes"
    )
    annealing: float = Field(ge=0, le=1, description="last fraction of training, in which the augmentation strength falls "
                             "to none; 0: it does not fall", examples=[0.5])  # fmt: skip
    example_weights: Literal["uniform", "inverse_sqrt_family"] = Field(
        description="how often a training image is taken: all alike, or in proportion to 1/sqrt(images of its family)"
    )
    corruption: float = Field(ge=0, lt=1, description="fraction of the codes that the prior sees in training which are replaced "
                              "by random ones; what it must predict stays true", examples=[0.1])  # fmt: skip
    training: Training


def main(run: Run) -> None:
    own = run.params.section("prior", Settings)
    data = Data.of(run)
    recipe = models.prior_recipe(run.params, run.space, data.classes)
    seed_globally(run.params.seed, "prior", "initialisation")
    objective = Objective(models.build(recipe), own.corruption)
    fitted = in_closed_form(objective, data) or fit(task(objective, data), own.training, run.params.seed, run.runtime)
    if run.runtime.main:
        run.save_model("prior", objective.prior, recipe, metrics(fitted), notes=fitted.notes)
        files.write_history("prior", fitted.history)


class Objective(nn.Module):
    """In training mode the prior sees corrupted codes, and its loss is of the true ones. Like dropout, corruption takes torch's
    global generator, which the loop seeds for each step and rank."""

    def __init__(self, prior: Prior, corruption: float = 0.0) -> None:
        super().__init__()
        self.prior, self.corruption = prior, corruption

    def forward(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, done: float) -> dict[str, Tensor]:
        if not (self.training and self.corruption):
            return self.prior.losses(codes, labels, done)
        return self.prior.losses(codes, labels, done, corrupted(codes, self.corruption, self.prior.space))


class Data:
    """Codes by split, and labels if the prior is conditional."""

    def __init__(
        self,
        codes: dict[str, Int[np.ndarray, "n t"]],
        augmented: Int[np.ndarray, "copies n t"],
        labels: dict[str, Int[np.ndarray, " n"]] | None,
        classes: int,
        own: Settings,
        device: Device,
        weights: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        """`weights`: of the training images, up to a factor; None: all alike."""
        self.weights = weights
        self.codes, self.augmented, self.labels, self.classes = codes, augmented, labels, classes
        self.own, self.batch_size, self.device = own, own.training.batch_size, device
        count = min(LOOKED_AT, *(len(array) for array in codes.values()))
        self.looked_at = {split: arrays.evenly(len(array), count) for split, array in codes.items()}

    @classmethod
    def of(cls, run: Run) -> Data:
        conditional, splits = run.params.value("prior.conditional"), ("train", "val")
        if conditional and not run.label_names:
            raise InputError("prior.conditional: must be false where the data set has no labels, got true; set it to false, or "
                             "let the data set read labels")  # fmt: skip
        own = run.params.section("prior", Settings)
        return cls(
            {split: run.codes(split) for split in splits},
            run.augmented_codes(),
            {split: run.required_labels(split) for split in splits} if conditional else None,
            len(run.label_names) if conditional else 0,
            own,
            run.runtime.device,
            inverse_sqrt_family(run.table("train")["family"].to_numpy(str))
            if own.example_weights == "inverse_sqrt_family"
            else None,
        )

    def rows(self, split: str, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        codes = torch.from_numpy(self.codes[split][indices].astype(np.int64)).to(self.device)
        labels = torch.from_numpy(self.labels[split][indices]).to(self.device) if self.labels is not None else None
        return codes, labels

    def batch(self, indices: np.ndarray, generator: Generator, done: float) -> tuple[Tensor, Tensor | None, float]:
        """Training examples at `indices` of an epoch, images or, with `weights`, strata: the plain codes of an image, or with
        probability `augmented` the codes of a copy that is weak enough at this point of training; and its label, or with
        probability `label_dropout` none."""
        if self.weights is not None:
            indices = weighted(indices, self.weights, generator)
        codes, labels = self.rows("train", indices)
        usable = weak_enough(len(self.augmented), done, self.own.annealing) if self.own.augmented else 0
        if usable:
            copy = torch.randint(usable, (len(indices),), generator=generator).numpy()
            changed = torch.from_numpy(self.augmented[copy, indices].astype(np.int64)).to(self.device)
            chosen = torch.rand(len(indices), generator=generator) < self.own.augmented
            codes = torch.where(chosen[:, None].to(self.device), changed, codes)
        if labels is not None and self.own.label_dropout:
            lost = torch.rand(len(indices), generator=generator) < self.own.label_dropout
            labels = labels.masked_fill(lost.to(self.device), self.classes)
        return codes, labels, done


def weak_enough(copies: int, done: float, annealing: float) -> int:
    """How many of the copies, ordered from weak to strong, may be used when the fraction `done` of training is completed: first
    all, then ever fewer over the last fraction `annealing`, none at the end. Zhang et al. 2023, "phased data augmentation",
    arXiv 2305.12681, narrow it in phases."""
    left = (1 - done) / annealing if annealing else 1.0
    return math.floor(copies * min(1.0, left))


def inverse_sqrt_family(families: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1/sqrt(images of the family) of each image: a family of n is taken as often as sqrt(n) images that have no variants, where
    without weights it is taken as often as n."""
    _, family, counts = np.unique(families, return_inverse=True, return_counts=True)
    return counts[family] ** -0.5


def weighted(
    strata: Int[np.ndarray, " b"], weights: Float[np.ndarray, " n"], generator: Generator
) -> Int[np.ndarray, " b"]:
    """An image for each of `strata`, from 0 to n - 1: one of those at which the sum of the weights before is in the stratum's nth
    of the whole, in proportion (stratified sampling). Over an epoch, which visits all strata, an image is expected n times its
    part of the weights, and the times that it comes are less than two away from that."""
    reached = weights.cumsum()
    within = torch.rand(len(strata), generator=generator, dtype=torch.float64).numpy()
    places = (strata + within) / len(weights) * reached[-1]
    return np.minimum(np.searchsorted(reached, places, side="right"), len(weights) - 1)


def corrupted(codes: Int[Tensor, "b t"], fraction: float, space: CodeSpace) -> Int[Tensor, "b t"]:
    """`codes`, of which each is, with probability `fraction`, replaced by one drawn uniformly from its codebook, itself included:
    1 - `pkeep` of taming-transformers (Esser et al. 2021, arXiv 2012.09841)."""
    parts = zip(space.split(codes), space.sizes, strict=True)
    others = space.join(torch.randint_like(part, size) for part, size in parts)
    return torch.where(torch.rand(codes.shape, device=codes.device) < fraction, others, codes)


def task(objective: Objective, data: Data) -> Task:
    """The training for `fit`. The epoch with the best held-out likelihood is kept."""
    return Task(
        name="prior",
        objective=objective,
        examples=len(data.codes["train"]),
        batch=data.batch,
        evaluate=lambda objective: _evaluate(objective, data, data.looked_at),
        score=lambda row: -row["val_nll_bits_per_code"],
    )


def in_closed_form(objective: Objective, data: Data) -> Fitted | None:
    """Fit a closed-form prior (one that has `fit`); None for a prior that is trained."""
    if not hasattr(objective.prior, "fit"):
        return None
    objective.prior.fit(*data.rows("train", np.arange(len(data.codes["train"]))))
    objective.to(data.device).eval()
    with torch.no_grad():
        row = {"epoch": 0, **_evaluate(objective, data, data.looked_at)}
    objective.cpu()
    return Fitted([row], 0, {})


def _evaluate(objective: Objective, data: Data, looked_at: dict[str, np.ndarray]) -> Row:
    """Bits per code and per image, and top-1 accuracy, of validation images and as many training images, in eval mode. If the
    prior is not exact (`bound` 1), the bits are an upper bound."""
    row: Row = {"bound": float(not objective.prior.exact)}
    for split, indices in looked_at.items():
        nats, right = 0.0, 0.0
        for where in arrays.batches(len(indices), data.batch_size):
            found = objective.prior.likelihood(*data.rows(split, indices[where]))
            nats -= float(found.log_prob.sum())
            right += float(found.accuracy.sum())
        bits = nats / math.log(2) / len(indices)
        row[f"{split}_nll_bits_per_code"] = bits / data.codes[split].shape[1]
        row[f"{split}_nll_bits_per_image"] = bits
        row[f"{split}_accuracy"] = right / len(indices)
    return row


def metrics(fitted: Fitted) -> dict[str, Any]:
    """Metrics of the kept epoch. The gap between train and val measures memorisation. Bits that are a bound have another name, so
    `dvc metrics diff` never compares them with exact ones."""
    row = next(row for row in fitted.history if row["epoch"] == fitted.epoch)
    bits = "nll_bound_bits_per_code" if row["bound"] else "nll_bits_per_code"
    split = {
        name: {bits: row[f"{name}_nll_bits_per_code"], "accuracy": row[f"{name}_accuracy"]} for name in ("val", "train")
    }
    return {"epoch": fitted.epoch, **split}


if __name__ == "__main__":
    enter(main, trains=True)
