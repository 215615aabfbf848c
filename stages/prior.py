"""prior: codes -> artifacts/prior/, plots/prior.csv

Trains a prior: the objective, the training examples, and its score, the likelihood of held-out codes.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field, PlainValidator
from torch import Generator, Tensor, nn

from tessera import conditions as told
from tessera import negatives
from tessera.autoregression.condition import with_features
from tessera.autoregression.sampling import sample_batches
from tessera.core import collectives, files, models
from tessera.core.conditioning import NEIGHBOUR, Conditioning
from tessera.core.contracts import Device, Prior, Runtime, Sampling
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator, seed_globally
from tessera.core.space import CodeSpace
from tessera.images import arrays
from tessera.negatives import Discriminator, Negatives
from tessera.runtime.stage import enter
from tessera.training.loop import LOOKED_AT, Fitted, Row, Task, fit
from tessera.training.settings import Training

SAMPLED = 256  # images that are sampled at once


def _dropout(value: Any) -> Any:
    if value != "none" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1):
        raise ValueError(
            f"must be none, or the probability, from 0 to below 1, of an example without it, got {value!r}"
        )
    return value


def _dropout_above_0(value: Any) -> Any:
    """Of what is made of all codes of an image: where a part of them is hidden, a prior must do without it."""
    if value == 0:
        raise ValueError(
            f"must be none, or the probability, above 0 and below 1, of an example without it, got {value!r}: inpainting and "
            "variations leave it out"
        )
    return _dropout(value)


Dropout = Annotated[Any, PlainValidator(_dropout)]
DropoutAbove0 = Annotated[Any, PlainValidator(_dropout_above_0)]


class Told(Strict):
    """What the prior is told of an image: `none`, or the probability that a training example goes without it."""

    label: Dropout = Field(description="the label of the data set", examples=["none"])
    vendor: Dropout = Field(description="who has made it, of a data set of several vendors", examples=["none"])
    words: Dropout = Field(description="the words of its name", examples=["none"])
    cluster: DropoutAbove0 = Field(
        description="the cluster that its latents are in (codes.clusters)", examples=["none"]
    )
    neighbour: DropoutAbove0 = Field(description="a near training image (codes.neighbours)", examples=["none"])


class Words(Strict):
    least_count: int = Field(ge=1, description="names of training images that a word must stand in", examples=[1])
    most: int = Field(ge=1, le=64, description="words of a name that are read", examples=[4])


class Settings(Strict):
    name: str
    conditions: Told
    words: Words
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
    negatives: Negatives


def main(run: Run) -> None:
    own = run.params.section("prior", Settings)
    data = Data.of(run)
    recipe = models.prior_recipe(run.params, run.space, data.conditioning)
    seed_globally(run.params.seed, "prior", "initialisation")
    objective = Objective(with_features(models.build(recipe), run), own.corruption)
    require_exact(objective.prior, own)
    fitted = in_closed_form(objective, data) or fit(task(objective, data), own.training, run.params.seed, run.runtime)
    if own.negatives.rounds:
        fitted = tuned(objective.prior, fitted, data, run.params.seed, run.runtime)
    if run.runtime.main:
        run.save_model("prior", objective.prior, recipe, metrics(fitted), notes=fitted.notes)
        files.write_history("prior", fitted.history)


class Objective(nn.Module):
    """In training mode the prior sees corrupted codes, and its loss is of the true ones. Like dropout, corruption takes torch's
    global generator, which the loop seeds for each step and rank."""

    def __init__(self, prior: Prior, corruption: float = 0.0) -> None:
        super().__init__()
        self.prior, self.corruption = prior, corruption

    def forward(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, done: float
    ) -> dict[str, Tensor]:
        if not (self.training and self.corruption):
            return self.prior.losses(codes, conditions, done)
        return self.prior.losses(codes, conditions, done, corrupted(codes, self.corruption, self.prior.space))


class Data:
    """Codes by split, and what the prior is told of their images."""

    def __init__(
        self,
        codes: dict[str, Int[np.ndarray, "n t"]],
        augmented: Int[np.ndarray, "copies n t"],
        conditions: dict[str, Int[np.ndarray, "n c"] | None],
        conditioning: Conditioning,
        own: Settings,
        device: Device,
        weights: Float[np.ndarray, " n"] | None = None,
        neighbours: Int[np.ndarray, "n k"] | None = None,
    ) -> None:
        """`weights`: of the training images, up to a factor; None: all alike. `neighbours`: near training images of each; None: the
        prior is told none."""
        self.codes, self.augmented, self.weights, self.neighbours = codes, augmented, weights, neighbours
        self.conditions, self.conditioning = conditions, conditioning
        self.own, self.batch_size, self.device = own, own.training.batch_size, device
        count = min(LOOKED_AT, *(len(array) for array in codes.values()))
        self.looked_at = {split: arrays.evenly(len(array), count) for split, array in codes.items()}

    @classmethod
    def of(cls, run: Run) -> Data:
        conditioning, splits = told.wanted(run), ("train", "val")
        own = run.params.section("prior", Settings)
        return cls(
            {split: run.codes(split) for split in splits},
            run.augmented_codes(),
            {split: told.of_split(run, conditioning, split) for split in splits},
            conditioning,
            own,
            run.runtime.device,
            inverse_sqrt_family(run.table("train")["family"].to_numpy(str))
            if own.example_weights == "inverse_sqrt_family"
            else None,
            run.neighbours("train") if NEIGHBOUR in conditioning else None,
        )

    def rows(self, split: str, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        codes = torch.from_numpy(self.codes[split][indices].astype(np.int64)).to(self.device)
        own = self.conditions[split]
        return codes, None if own is None else torch.from_numpy(own[indices]).to(self.device)

    def batch(self, indices: np.ndarray, generator: Generator, done: float) -> tuple[Tensor, Tensor | None, float]:
        """Training examples at `indices` of an epoch, images or, with `weights`, strata: the plain codes of an image, or with
        probability `augmented` the codes of a copy that is weak enough at this point of training; and its conditions, each of them
        with probability `dropout` left out, whole and for itself. The neighbour is any of those of the image, each alike."""
        if self.weights is not None:
            indices = weighted(indices, self.weights, generator)
        codes, conditions = self.rows("train", indices)
        usable = weak_enough(len(self.augmented), done, self.own.annealing) if self.own.augmented else 0
        if usable:
            copy = torch.randint(usable, (len(indices),), generator=generator).numpy()
            changed = torch.from_numpy(self.augmented[copy, indices].astype(np.int64)).to(self.device)
            chosen = torch.rand(len(indices), generator=generator) < self.own.augmented
            codes = torch.where(chosen[:, None].to(self.device), changed, codes)
        if conditions is not None:
            parts = self.conditioning.split(conditions)  # views of rows that belong to this batch alone
            for part, own in zip(self.conditioning, parts, strict=True):
                if part.name == NEIGHBOUR and self.neighbours is not None:
                    own[:] = self.any_neighbour(indices, generator)[:, None]
                if part.dropout:
                    lost = torch.rand(len(indices), generator=generator) < part.dropout
                    own[lost.to(self.device)] = part.none
        return codes, conditions, done

    def any_neighbour(self, indices: np.ndarray, generator: Generator) -> Int[Tensor, " b"]:
        """One of the neighbours of each image, each alike."""
        assert self.neighbours is not None
        chosen = torch.randint(self.neighbours.shape[1], (len(indices),), generator=generator).numpy()
        return torch.from_numpy(self.neighbours[indices, chosen].astype(np.int64)).to(self.device)


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


def require_exact(prior: Prior, own: Settings) -> None:
    """
    Raises:
        InputError: the prior has no likelihood that a discriminator can be made of, or no training.
    """
    if own.negatives.rounds and (hasattr(prior, "fit") or not prior.exact):
        why = "is fitted in closed form" if hasattr(prior, "fit") else "has only a bound of its likelihood"
        raise InputError(
            f"prior.negatives.rounds: must be 0 under prior.name {own.name}, which {why}, got {own.negatives.rounds}; set it to 0, "
            "or choose a prior that is trained by its exact likelihood, such as pixelsnail"
        )


def tuned(prior: Prior, fitted: Fitted, data: Data, seed: int, runtime: Runtime) -> Fitted:
    """Tune the trained prior in place against its own samples, `prior.negatives.rounds` times (see `tessera.negatives`). On return
    it holds the weights of the epoch whose discriminator is best at validation images and samples that were not trained on. Where
    the best of a round knows no more of these than chance, the weights before it stay, and no round follows. The history goes on
    with the rows of each round."""
    own, history, kept = data.own.negatives, list(fitted.history), fitted.epoch
    for number in range(1, own.rounds + 1):
        begun, before = int(history[-1]["epoch"]), copy.deepcopy(prior.state_dict())
        discriminator = Discriminator(prior, own.alpha, own.beta)
        found = fit(Round(prior, data, number, seed, runtime).task(discriminator), own.training, seed, runtime)
        rows = [{**row, "epoch": begun + row["epoch"], "round": number} for row in found.history]
        history += [
            {"train_discriminator" if name == "train_total" else name: row[name] for name in row} for row in rows
        ]
        best = next(row for row in rows if row["epoch"] == begun + found.epoch)
        if best["val_discriminator"] >= negatives.untrained_loss(own.alpha):
            prior.load_state_dict(before)
            if runtime.main:
                print(f"prior.negatives: round {number} of {own.rounds} has learned nothing that holds for validation images (loss "
                      f"{best['val_discriminator']:.4f}, by chance {negatives.untrained_loss(own.alpha):.4f}); the weights before "
                      "it are kept", flush=True)  # fmt: skip
            break
        kept = begun + found.epoch
    return fitted._replace(history=history, epoch=kept)


class Round:
    """A round of `prior.negatives`: the reference, its samples, and others of its samples beside validation images."""

    def __init__(self, prior: Prior, data: Data, number: int, seed: int, runtime: Runtime) -> None:
        self.data, self.runtime, self.name = data, runtime, f"prior.negatives-{number}"
        self.reference = copy.deepcopy(prior).to(data.device).eval().requires_grad_(False)
        self.codes, self.conditions = self._sampled(
            self._told_in_training(seed), data.own.negatives.samples, seed, "train"
        )
        shown = data.looked_at["val"]
        self.val, told = data.rows("val", shown)
        self.val_conditions = told
        self.held_out, _ = self._sampled(told, len(shown), seed, "val")
        self.log_prob_of_val = self._log_prob(self.reference, self.val)
        self.log_prob_of_held_out = self._log_prob(self.reference, self.held_out)

    def _told_in_training(self, seed: int) -> Int[Tensor, "n c"] | None:
        """Conditions of training examples, some left out, as often as in training: then the images and the samples of the loss
        differ in nothing but the codes."""
        own, train = self.data.own.negatives, len(self.data.codes["train"])
        if not self.data.conditioning:
            return None
        rng, found = numpy_generator(seed, self.name, "conditions"), []
        order = np.concatenate([rng.permutation(train) for _ in range(-(-own.samples // train))])[: own.samples]
        for index, where in enumerate(arrays.batches(own.samples, SAMPLED)):
            _, conditions, _ = self.data.batch(order[where], generator(seed, self.name, "conditions", index), 1.0)
            found.append(cast("Tensor", conditions))
        return torch.cat(found)

    def _sampled(
        self, conditions: Int[Tensor, "n c"] | None, count: int, seed: int, of: str
    ) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n c"] | None]:
        """Samples of the reference, the same on all ranks."""

        def rng(index: int) -> Generator:
            return generator(seed, self.name, of, index)

        codes = sample_batches(self.reference, count, SAMPLED, rng, Sampling(), conditions).contiguous()
        collectives.take_from_rank_0(codes)  # on GPUs ranks may differ by rounding
        return codes, conditions

    @torch.no_grad()
    def _log_prob(self, prior: Prior, codes: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """Under the conditions of the validation images, in nats."""
        told, found = self.val_conditions, []
        for where in arrays.batches(len(codes), self.data.batch_size):
            found.append(prior.log_prob(codes[where], None if told is None else told[where]).float())
        return torch.cat(found)

    def task(self, discriminator: Discriminator) -> Task:
        """The training for `fit`. The epoch with the best discriminator is kept: bits of held-out images rise where the prior takes
        its probability from what only samples have, so they cannot choose."""
        return Task(
            name="prior.negatives",
            objective=discriminator,
            examples=len(self.data.codes["train"]),
            batch=self.batch,
            evaluate=self.evaluate,
            score=lambda row: -row["val_discriminator"],
            streams=self.name,
            curve="prior",
            checkpoint=self.name,
        )

    def batch(
        self, indices: np.ndarray, generator: Generator, done: float
    ) -> tuple[Int[Tensor, "2*b t"], Int[Tensor, "2*b c"] | None, Float[Tensor, " 2*b"]]:
        """Training examples, then as many random samples, and log p_ref of each. Examples are augmented as at the start of training
        for the whole round: plain images are soon told from samples by heart, which says nothing of others."""
        codes, conditions, _ = self.data.batch(indices, generator, 0.0)
        chosen = torch.randint(len(self.codes), (len(indices),), generator=generator).to(codes.device)
        codes = torch.cat([codes, self.codes[chosen]])
        if conditions is not None and self.conditions is not None:
            conditions = torch.cat([conditions, self.conditions[chosen]])
        with torch.no_grad(), self.runtime.autocast():  # as log p is computed, so that rounding is no difference
            reference = self.reference.log_prob(codes, conditions).float()
        return codes, conditions, reference

    def evaluate(self, discriminator: Discriminator) -> Row:
        """The row of `prior`, and loss and accuracy of the discriminator on validation images and held-out samples."""
        own, prior = self.data.own.negatives, discriminator.prior
        real = self._log_prob(prior, self.val) - self.log_prob_of_val
        false = self._log_prob(prior, self.held_out) - self.log_prob_of_held_out
        terms = {name: float(value) for name, value in negatives.losses(real, false, own.alpha, own.beta).items()}
        row = _evaluate(discriminator, self.data, self.data.looked_at)
        row |= {f"val_{name}": value for name, value in terms.items()}
        return row | {
            "val_discriminator": sum(terms.values()),
            "discriminator_accuracy": negatives.accuracy(real, false),
        }


def _evaluate(objective: Objective | Discriminator, data: Data, looked_at: dict[str, np.ndarray]) -> Row:
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
    if "round" not in row:
        return {"epoch": fitted.epoch, **split}
    found = {"round": row["round"], "loss": row["val_discriminator"], "accuracy": row["discriminator_accuracy"]}
    return {"epoch": fitted.epoch, **split, "negatives": found}


if __name__ == "__main__":
    enter(main, trains=True)
