"""A small prior of a fixed budget, trained on the spot: its held-out bits say what codes cost to whoever learns them.

The figure of merit of FSQ's "compression cost" (Mentzer et al. 2023, arXiv 2309.15505, sec. 4.1, with a masked transformer):
among tokenizers that reconstruct equally well, the one whose images take fewer bits is easier to sample. The probe, a gated
PixelCNN, is not the prior of params.yaml and does not follow it: its numbers compare tokenizers, also while priors change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.gated import GatedPixelCNN
from tessera.codes import sequences, statistics
from tessera.core.contracts import Grids, Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator, seed_globally
from tessera.core.space import CodeSpace
from tessera.images.arrays import batches, evenly
from tessera.networks.condition import Condition

LOOKED_AT = 1000  # images of a split behind one point of the curve, at most
KERNEL_SIZE, CONDITION_BLOCKS, CLIP_NORM = 3, 1, 1.0
PASSES = 20  # over the train split, at most: beyond, the few codes of a small one are known by heart before the first evaluation


class Config(Strict):
    channels: int = Field(ge=1, description="of each stack", examples=[8])
    layers: int = Field(ge=1, description="gated layers, of each grid's network", examples=[2])
    dropout: float = Field(ge=0, lt=1, description="probability", examples=[0.1])
    steps: int = Field(
        ge=1, description=f"updates; of a small train split fewer, {PASSES} passes over it", examples=[8]
    )
    batch_size: int = Field(ge=1, description="images per update", examples=[4])
    lr: float = Field(gt=0, description="peak learning rate of AdamW; a cosine leads to 0", examples=[1e-2])
    weight_decay: float = Field(ge=0, description="of AdamW", examples=[0.0])
    evaluations: int = Field(ge=1, description="along the way, evenly; the best held-out one counts", examples=[2])


class Probe(Autoregressive):
    """A gated PixelCNN per grid, given all earlier grids, as `priors/pixelcnn` has it; it is never sampled from."""

    def __init__(self, config: Config, space: CodeSpace) -> None:
        super().__init__(space, 0, config.dropout)
        c = config.channels
        self.networks = nn.ModuleList(GatedPixelCNN(k, c, config.layers, KERNEL_SIZE) for k in space.sizes)
        self.conditions = nn.ModuleList(
            Condition(c, grid, space.sizes[:index], 0, CONDITION_BLOCKS) for index, grid in enumerate(space.grids)
        )

    def predict(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        parts = self.space.split(codes)
        given = [condition(parts[:index], labels, dropout) for index, condition in enumerate(self.conditions)]
        return tuple(network(*one, dropout) for network, *one in zip(self.networks, parts, given, strict=True))


def measure(config: Config, run: Run) -> Report:
    """Of `val`, at the best evaluation: bits per code and image, and `share_saved` of the order-0 entropy of that split,
    the bits of whoever knows how often each code occurs and nothing of its neighbours; 0 says that the probe learnt no
    structure. `gap_bits_per_code`: val minus train."""
    space = run.space
    device = run.runtime.device if run.runtime else "cpu"
    codes = {split: torch.from_numpy(run.codes(split).astype(np.int64)).to(device) for split in ("train", "val")}
    count = min(LOOKED_AT, *(len(part) for part in codes.values()))
    looked_at = {split: part[evenly(len(part), count)] for split, part in codes.items()}
    seed_globally(run.params.seed, "probe", "initialisation")
    probe = Probe(config, space).to(device, memory_format=torch.channels_last)
    found, history = [], []
    for step in trained(probe, codes["train"], config, run.params.seed):
        found.append({split: bits(probe, part, config.batch_size) for split, part in looked_at.items()})
        history.append({"step": step, **{f"{split}_nll_bits_per_code": x.mean() for split, x in found[-1].items()}})
    best = min(found, key=lambda each: each["val"].mean())
    entropy = statistics.order_zero_bits(run.codes("val"), space)
    metrics = {
        "nll_bits_per_code": (per_code := best["val"].mean()),
        "nll_bits_per_image": best["val"].sum(1).mean(),
        "share_saved": 1 - per_code / entropy.mean() if entropy.any() else 0.0,
        "gap_bits_per_code": per_code - best["train"].mean(),
    }
    tables = {"curve": pd.DataFrame(history), "positions": _positions(best, entropy, space.grids)}
    return Report(metrics, tables, {"probe": _picture(**tables, entropy=entropy.mean())})


def trained(probe: Probe, codes: Int[Tensor, "n t"], config: Config, seed: int) -> Iterator[int]:
    """Train in place; stops in eval mode whenever an evaluation is due, and says after how many updates."""
    steps = budget(config, len(codes))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = numpy_generator(seed, "probe", "order")
    due = set(np.linspace(0, steps, config.evaluations + 1).astype(int))
    for step in range(1, steps + 1):
        seed_globally(seed, "probe", "step", step)  # dropout
        chosen = draws.choice(len(codes), min(config.batch_size, len(codes)), replace=False)
        loss = probe.train().losses(codes[chosen], None)["nll"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        if step in due:
            probe.eval()
            yield step


def budget(config: Config, images: int) -> int:
    """Updates: the same for all tokenizers compared on so many training images."""
    steps = min(config.steps, math.ceil(PASSES * images / min(config.batch_size, images)))
    if steps < config.steps:
        print(
            f"diagnostics.probe.steps: {steps} instead of {config.steps}, since the train split has {images} images",
            flush=True,
        )
    return steps


@torch.no_grad()
def bits(probe: Probe, codes: Int[Tensor, "n t"], batch_size: int) -> Float[np.ndarray, "n t"]:
    """-log2 p of each code given those before it."""
    parts = [codes[where] for where in batches(len(codes), batch_size)]
    nats = [sequences.code_log_prob(probe.logits(part, None), part).cpu().numpy() for part in parts]
    return np.concatenate(nats).astype(np.float64) / -math.log(2)


def _positions(best: dict[str, np.ndarray], entropy: Float[np.ndarray, " t"], grids: Grids) -> pd.DataFrame:
    """Bits of each place of each grid: where in the picture the information is."""
    places = [(grid, *place) for grid, shape in enumerate(grids) for place in np.ndindex(shape)]
    table = pd.DataFrame(places, columns=["grid", "row", "column"])
    values = {f"{split}_nll_bits": found.mean(0) for split, found in best.items()}
    return table.assign(**values, entropy_bits=entropy)


def _picture(curve: pd.DataFrame, positions: pd.DataFrame, entropy: float) -> Any:
    """The training, with the order-0 entropy dashed; then what each place takes, in raster order within a grid."""
    from matplotlib.figure import Figure

    grids = list(positions.groupby("grid"))
    figure = Figure(figsize=(4.2 + 3.1 * len(grids), 3.2), layout="constrained")
    axis, *maps = figure.subplots(1, 1 + len(grids), width_ratios=[1.2] + [1] * len(grids))
    for split in ("train", "val"):
        axis.plot(curve["step"], curve[f"{split}_nll_bits_per_code"], marker="o", label=split)
    axis.axhline(entropy, color="grey", linestyle="--", linewidth=1, label="order 0")
    axis.set(title="probe", xlabel="updates", ylabel="bits per code", xlim=(0, None))
    axis.legend(fontsize=8)
    for axis, (grid, part) in zip(maps, grids, strict=True):
        shown = axis.imshow(part.pivot(index="row", columns="column", values="val_nll_bits"), vmin=0, cmap="viridis")
        axis.set(title=f"bits of each code, grid {grid}", xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure
