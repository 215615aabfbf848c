"""probe: codes -> metrics/probe.json, plots/probe/

Trains a small prior of a fixed budget on the codes, to measure how learnable they are before the large prior is trained. The
measure is FSQ's "compression cost" (Mentzer et al. 2023, arXiv 2309.15505, sec. 4.1, with a masked transformer): among
tokenizers that reconstruct equally well, the one whose images take fewer bits is easier to sample. The probe is a gated
PixelCNN and does not depend on the prior of params.yaml, so its numbers compare tokenizers even while priors change.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn

from tessera import sequences, statistics
from tessera.core import files, seams
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import ExactPrior, Grids, Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.core.space import CodeSpace
from tessera.images.arrays import batches, evenly
from tessera.runtime.stage import enter
from tessera.training.loop import Row, Task, fit
from tessera.training.settings import Training

LOOKED_AT = 1000  # images of a split behind one point of the curve, at most
FIXED = {"kernel_size": 3, "condition_blocks": 1}  # values of the gated PixelCNN that params.yaml does not set


class Settings(Strict):
    channels: int = Field(ge=1, description="channels of each stack", examples=[8])
    layers: int = Field(ge=1, description="gated layers of the network of each grid", examples=[2])
    dropout: float = Field(ge=0, lt=1, description="dropout probability", examples=[0.1])
    count: int = Field(ge=1, description="largest number of training images", examples=[8])
    training: Training


def main(run: Run) -> None:
    own = run.params.section("probe", Settings)
    data = Data(run, own)
    seed_globally(run.params.seed, "probe", "initialisation")
    objective = Objective(build(own, run.space))
    fitted = fit(task(objective, data), own.training, run.params.seed, run.runtime)
    if run.runtime.main:
        entropy = statistics.order_zero_bits(run.codes("val"), run.space)
        found = data.bits(objective.probe.to(run.runtime.device))
        files.write_report("probe", report(found, entropy, fitted.history, run.space.grids))


class Objective(nn.Module):
    def __init__(self, probe: ExactPrior) -> None:
        super().__init__()
        self.probe = probe

    def forward(self, codes: Int[Tensor, "b t"], done: float) -> dict[str, Tensor]:
        return self.probe.losses(codes, None, done)


def build(own: Settings, space: CodeSpace) -> ExactPrior:
    module = seams.plugin("priors", "gated_pixelcnn")
    config = {"channels": own.channels, "layers": own.layers, "dropout": own.dropout, **FIXED}
    return module.build(module.Config.model_validate(config), space, UNCONDITIONAL)


class Data:
    """Training codes, of at most `count` images, evenly spaced; and the codes of train and val on which curves are computed."""

    def __init__(self, run: Run, own: Settings) -> None:
        self.device, self.batch_size = run.runtime.device, own.training.batch_size
        codes = {split: torch.from_numpy(run.codes(split).astype(np.int64)) for split in ("train", "val")}
        train = codes["train"]
        self.train = train[evenly(len(train), own.count)]
        count = min(LOOKED_AT, *map(len, codes.values()))
        self.looked_at = {
            split: part[evenly(len(part), count)].to(self.device)
            for split, part in {**codes, "train": self.train}.items()
        }

    def batch(self, indices: np.ndarray, generator: Generator, done: float) -> tuple[Tensor, float]:
        return self.train[indices].to(self.device), done

    @torch.no_grad()
    def bits(self, probe: Any) -> dict[str, Float[np.ndarray, "n t"]]:
        """-log2 p of each code given the codes before it, by split."""
        return {split: bits(probe, codes, self.batch_size) for split, codes in self.looked_at.items()}


def task(objective: Objective, data: Data) -> Task:
    """The training for `fit`. The epoch with the best held-out likelihood is kept."""

    def evaluate(objective: Any) -> Row:
        return {
            f"{split}_nll_bits_per_code": float(found.mean()) for split, found in data.bits(objective.probe).items()
        }

    return Task(
        name="probe",
        objective=objective,
        examples=len(data.train),
        batch=data.batch,
        evaluate=evaluate,
        score=lambda row: -row["val_nll_bits_per_code"],
        curve="probe/curve",
    )


@torch.no_grad()
def bits(probe: Any, codes: Int[Tensor, "n t"], batch_size: int) -> Float[np.ndarray, "n t"]:
    """-log2 p of each code given the codes before it."""
    parts = [codes[where] for where in batches(len(codes), batch_size)]
    nats = [sequences.code_log_prob(probe.logits(part, None), part).cpu().numpy() for part in parts]
    return np.concatenate(nats).astype(np.float64) / -math.log(2)


def report(
    found: dict[str, Float[np.ndarray, "n t"]], entropy: Float[np.ndarray, " t"], history: list[Row], grids: Grids
) -> Report:
    """Metrics of `val` at the best epoch: bits per code and per image, `fraction_saved` and `gap_bits_per_code` (val minus train).
    `fraction_saved` is relative to the order-0 entropy of the split, the bits needed if only the frequency of each code is
    known, and not its neighbours. At 0 the probe has learnt no structure."""
    metrics = {
        "nll_bits_per_code": (per_code := found["val"].mean()),
        "nll_bits_per_image": found["val"].sum(1).mean(),
        "fraction_saved": 1 - per_code / entropy.mean() if entropy.any() else 0.0,
        "gap_bits_per_code": per_code - found["train"].mean(),
    }
    tables = {"curve": pd.DataFrame(history), "positions": _positions(found, entropy, grids)}
    return Report(metrics, tables, {"probe": _picture(**tables, entropy=entropy.mean())})


def _positions(best: dict[str, np.ndarray], entropy: Float[np.ndarray, " t"], grids: Grids) -> pd.DataFrame:
    """Bits at each position of each grid: they show where in the image the information is."""
    places = [(grid, *place) for grid, shape in enumerate(grids) for place in np.ndindex(shape)]
    table = pd.DataFrame(places, columns=["grid", "row", "column"])
    values = {f"{split}_nll_bits": found.mean(0) for split, found in best.items()}
    return table.assign(**values, entropy_bits=entropy)


def _picture(curve: pd.DataFrame, positions: pd.DataFrame, entropy: float) -> Any:
    """The training curve, with the order-0 entropy as a dashed line, and maps of the bits at each position of each grid."""
    from matplotlib.figure import Figure

    grids = list(positions.groupby("grid"))
    figure = Figure(figsize=(4.2 + 3.1 * len(grids), 3.2), layout="constrained")
    axis, *maps = figure.subplots(1, 1 + len(grids), width_ratios=[1.2] + [1] * len(grids))
    for split in ("train", "val"):
        axis.plot(curve["epoch"], curve[f"{split}_nll_bits_per_code"], marker="o", label=split)
    axis.axhline(entropy, color="grey", linestyle="--", linewidth=1, label="order 0")
    axis.set(title="probe", xlabel="epochs", ylabel="bits per code", xlim=(0, None))
    axis.legend(fontsize=8)
    for axis, (grid, part) in zip(maps, grids, strict=True):
        shown = axis.imshow(part.pivot(index="row", columns="column", values="val_nll_bits"), vmin=0, cmap="viridis")
        axis.set(title=f"bits of each code, grid {grid}", xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


if __name__ == "__main__":
    enter(main, trains=True)
