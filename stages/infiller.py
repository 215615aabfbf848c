"""infiller: codes -> artifacts/infiller/, plots/infiller.csv, a small masked prior that fills in hidden codes

It is the prior `masked` without dropout: codes are revealed in random order, each given all known codes (Austin et al. 2021,
arXiv 2107.03006). The extension `inpainting` compares it with the chosen prior, which sees only the codes before. It is made only
where `infiller.enabled` is true, and the chosen prior is not such a one itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera import conditions as told
from tessera import sequences
from tessera.attention import masking
from tessera.attention.causal import Size
from tessera.autoregression.condition import with_features
from tessera.core import files, models, seams
from tessera.core.conditioning import Conditioning
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.seeding import generator, seed_globally
from tessera.images import arrays
from tessera.runtime.stage import enter
from tessera.training.loop import Row, Task, fit
from tessera.training.settings import Training

PRIOR = "masked"
FIXED = {
    "dropout": 0.0,
    "bound_draws": 1,
    "decoding": "random",
    "choice_temperature": 0.0,
}  # what params.yaml does not set
# names of random streams as when the extension trained it, so that the same values give the same weights
STREAMS, OWN_STREAMS = "extensions.inpainting", "inpainting"


class Settings(Size):
    enabled: bool = Field(description="false: nothing is trained, and extensions.inpainting leaves its method masked out",
                          examples=[True])  # fmt: skip
    steps: int = Field(ge=1, description="most forward passes per sample", examples=[3])
    training: Training


def unused(params: Params) -> str | None:
    """Why no infiller is made; None where one is."""
    if not params.value("infiller.enabled"):
        return "infiller.enabled is false"
    return f"prior.name is {PRIOR}, which fills in by itself" if params.value("prior.name") == PRIOR else None


def main(run: Run) -> None:
    reason = unused(run.params)
    if reason is None:
        train(run)
    elif run.runtime.main:
        run.save_unused("infiller", reason)


def train(run: Run) -> None:
    """The epoch with the best bound on `val` is kept."""
    own, seed = run.params.section("infiller", Settings), run.params.seed
    conditioning = told.wanted(run).always()
    recipe = recipe_of(own, run, conditioning)
    seed_globally(seed, OWN_STREAMS, "initialisation")
    objective = Objective(with_features(models.build(recipe), run))
    fitted = fit(
        task(objective, Data(run, conditioning), own.training.batch_size, seed), own.training, seed, run.runtime
    )
    if run.runtime.main:
        kept = next(row for row in fitted.history if row["epoch"] == fitted.epoch)
        metrics = {"epoch": fitted.epoch, "val": {"nll_bound_bits_per_code": kept["val_nll_bits_per_code"]}}
        run.save_model("infiller", objective.prior, recipe, metrics, fitted.notes)
        files.write_history("infiller", fitted.history)


def recipe_of(own: Settings, run: Run, conditioning: Conditioning) -> models.Recipe:
    size = {"channels": own.channels, "layers": own.layers, "heads": own.heads, "steps": own.steps}
    config = seams.plugin("priors", PRIOR).Config.model_validate({**size, **FIXED})
    return models.recipe("priors", PRIOR, config, **run.space.facts, **conditioning.facts)


class Objective(nn.Module):
    """The bound in nats per code, from one random mask per image."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, numbers: Float[Tensor, "b t+1"]
    ) -> dict[str, Tensor]:
        """`numbers`, uniform on [0, 1), determine the hidden codes."""
        masked = masking.masks(numbers[0, 0], numbers[:, 1:])
        log_prob = sequences.code_log_prob(self.prior.logits(codes, conditions, masked), codes)
        return {"nll": -masking.mean(log_prob, masked).mean()}


class Data:
    """Codes of train and val, and what the prior is told of their images."""

    def __init__(self, run: Run, conditioning: Conditioning) -> None:
        self.device, splits = run.runtime.device, ("train", "val")
        self.codes = {split: torch.from_numpy(run.codes(split).astype(np.int64)) for split in splits}
        given = {split: told.of_hidden(run, conditioning, split) for split in splits}
        self.conditions = {split: None if own is None else torch.from_numpy(own) for split, own in given.items()}

    def batch(self, split: str, rows: np.ndarray, rng: Generator) -> tuple[Tensor, Tensor | None, Tensor]:
        codes, given = self.codes[split][rows].to(self.device), self.conditions[split]
        numbers = torch.rand(len(rows), codes.shape[1] + 1, generator=rng).to(self.device)
        return codes, None if given is None else given[rows].to(self.device), numbers


def task(objective: Objective, data: Data, batch_size: int, seed: int) -> Task:
    """The training for `fit`."""

    def evaluate(objective: Any) -> Row:
        rng, total, count = generator(seed, OWN_STREAMS, "validation"), 0.0, len(data.codes["val"])
        for where in arrays.batches(count, batch_size):  # the same masks each time
            rows = np.arange(count)[where]
            total += float(objective(*data.batch("val", rows, rng))["nll"]) * len(rows)
        return {"bound": 1.0, "val_nll_bits_per_code": total / count / math.log(2)}

    return Task(
        name="infiller",
        streams=STREAMS,
        objective=objective,
        examples=len(data.codes["train"]),
        batch=lambda rows, rng, done: data.batch("train", rows, rng),
        evaluate=evaluate,
        score=lambda row: -row["val_nll_bits_per_code"],
    )


if __name__ == "__main__":
    enter(main, trains=True)
