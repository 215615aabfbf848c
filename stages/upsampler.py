"""upsampler: dataset, tokenizer, codes -> artifacts/upsampler/, plots/upsampler.csv, a new decoder to twice the image size

It decodes the tokenizer's frozen code vectors; the extension `super_resolution` compares it with other enlargements. It is made
only where `upsampler.enabled` is true, the targets have twice the size, and the code vectors lie on grids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera import upsampling
from tessera.core import files, models
from tessera.core.contracts import Tokenizer, Upsampler
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.images import arrays
from tessera.runtime.stage import enter
from tessera.training.loop import LOOKED_AT, Row, Task, fit
from tessera.training.settings import Training
from tessera.upsampling import FACTOR, Seen

STREAMS = (
    "extensions.super_resolution"  # as when that extension trained it, so that the same values give the same weights
)


class Settings(Strict):
    name: str
    enabled: bool = Field(description="false: nothing is trained, and extensions.super_resolution does not apply")
    flip: float = Field(ge=0, le=1, description="probability of a horizontal flip of a training image", examples=[0.5])
    shift: int = Field(ge=0, description="largest shift of the training images of a step along each axis, in pixels of the "
                       "originals; white comes in", examples=[1])  # fmt: skip
    training: Training


def main(run: Run) -> None:
    reason = upsampling.unused(run.params)
    if reason is None:
        train(run)
    elif run.runtime.main:
        run.save_unused("upsampler", reason)


def train(run: Run) -> None:
    """The epoch with the smallest validation error is kept. The tokenizer is not trained."""
    own, seed, tokenizer = run.params.section("upsampler", Settings), run.params.seed, run.tokenizer()
    recipe = run.upsampler_recipe(tokenizer)
    seed_globally(seed, STREAMS, "initialisation")
    objective = Objective(models.build(recipe))
    fitted = fit(task(objective, tokenizer, own, run), own.training, seed, run.runtime)
    if run.runtime.main:
        kept = next(row for row in fitted.history if row["epoch"] == fitted.epoch)
        val = {name.removeprefix("val_"): value for name, value in kept.items() if name.startswith("val_")}
        run.save_model("upsampler", objective.upsampler, recipe, {"epoch": fitted.epoch, "val": val}, fitted.notes)
        files.write_history("upsampler", fitted.history)


class Objective(nn.Module):
    def __init__(self, upsampler: Upsampler) -> None:
        super().__init__()
        self.upsampler = upsampler

    def forward(self, seen: Seen, target: Float[Tensor, "b c 2*h 2*w"]) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(self.upsampler(*seen), target)}


def task(objective: Objective, tokenizer: Tokenizer, own: Settings, run: Run) -> Task:
    """The training for `fit`: the tokenizer encodes the flipped and shifted training images."""
    device, batch_size = run.runtime.device, own.training.batch_size
    small, large, targets = run.images("train"), run.images("train", "targets"), run.images("val", "targets")
    looked_at = arrays.evenly(len(targets), LOOKED_AT)

    def batch(indices: np.ndarray, rng: Generator, done: float) -> tuple[Seen, Tensor]:
        rows = np.sort(indices)  # sorted: a memory map is faster to read forwards
        pair = arrays.to_model(small[rows], device), arrays.to_model(large[rows], device)
        x, target = augmented(*pair, own.flip, own.shift, rng)
        with torch.no_grad():
            codes = tokenizer.encode(x)
        return upsampling.see(tokenizer, codes), target

    def evaluate(objective: Any) -> Row:
        def enlarge(rows: np.ndarray) -> dict[str, np.ndarray]:
            return {"val": arrays.to_pixels(objective.upsampler(*upsampling.of_split(run, tokenizer, "val", rows)))}

        row = upsampling.judged(enlarge, targets, looked_at, batch_size)["val"]
        return {f"val_{name}": value for name, value in row.items()}

    return Task(
        name="upsampler",
        streams=STREAMS,
        objective=objective,
        examples=len(small),
        batch=batch,
        evaluate=evaluate,
        score=lambda row: -row["val_mse"],
    )


def augmented(
    x: Float[Tensor, "b c h w"], target: Float[Tensor, "b c 2*h 2*w"], flip: float, shift: int, generator: Generator
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c 2*h 2*w"]]:
    """Flips each pair with probability `flip`, and shifts all images alike by up to `shift` pixels, targets by twice as many;
    white (1) comes in."""
    mirrored = (torch.rand(len(x), generator=generator) < flip).to(x.device)[:, None, None, None]
    dy, dx = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()

    def moved(pixels: Tensor, factor: int) -> Tensor:
        height, width = pixels.shape[2:]
        top, left = factor * dy, factor * dx
        padded = F.pad(torch.where(mirrored, pixels.flip(3), pixels), (factor * shift,) * 4, value=1.0)
        cut = padded[:, :, top : top + height, left : left + width]
        return cut.contiguous(memory_format=torch.channels_last)

    return moved(x, 1), moved(target, FACTOR)


if __name__ == "__main__":
    enter(main, trains=True)
