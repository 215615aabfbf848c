"""Whether codes move with the image: the code of a detail should not depend on its position.

A prior must learn a detail once for each of its encodings, so codes that follow shifts and flips are easier to learn.
EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509), here the loss `equivariance`, trains latents to follow scaling and rotation.
This diagnostic measures how well a finished tokenizer follows changes that are exact on pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor

from tessera import statistics
from tessera.core.contracts import Device, Report, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 12
Level = tuple[Int[Tensor, "n r h w"], Float[Tensor, "n d h w"]]  # codes and z_q


class Config(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    count: int = Field(ge=2, description="validation images, at most", examples=[6])


def measure(config: Config, run: Run) -> Report:
    """Encodes changed images and compares with the changed codes, per level and change. `equal`: fraction of codes that are
    equal (`chance`: for two codes sampled by frequency). `distance`: distance of z_q, divided by the mean distance of two
    random z_q; 0 is exact, 1 unrelated.

    `cell`: images shifted right and down by the pixels of one code; codes should shift by one. `pixel`: images shifted by one
    pixel; most codes should stay. `flip`: mirrored images; codes should be mirrored. After shifts the outermost codes are
    left out, since they see the border and the white that comes in; a grid with a side below 4 codes keeps them. Global codes
    have no place, and their level is not counted.
    """
    tokenizer, pixels = run.tokenizer(), run.images("val")
    device = run.device
    x = arrays.to_model(np.asarray(pixels[arrays.evenly(len(pixels), config.count)]))
    before, flipped = (_levels(tokenizer, part, config.batch_size, device) for part in (x, x.flip(3)))
    nudged = _levels(tokenizer, shifted(x, 1, 1), config.batch_size, device)
    rows = []
    for index, level in enumerate(before):
        cell = [side // cells for side, cells in zip(x.shape[2:], level[1].shape[2:], strict=True)]
        moved = _levels(tokenizer, shifted(x, *cell), config.batch_size, device)[index]
        pairs = {
            "cell": (_inner(moved, 1, 0), _inner(level, 0, 1)),
            "pixel": (_inner(nudged[index], 0, 0), _inner(level, 0, 0)),
            "flip": (flipped[index], (level[0].flip(3), level[1].flip(3))),
        }
        apart = _apart(level[1], generator(run.params.seed, "equivariance", index))
        chance = np.mean([float((statistics.frequencies(part, int(part.max()) + 1) ** 2).sum())
                          for part in level[0].transpose(0, 1).numpy()])  # fmt: skip
        rows += [
            {"level": index, "change": change, **compared(found, wanted, apart), "chance": chance}
            for change, (found, wanted) in pairs.items()
            if found[0].numel()  # a level of one code has none left after a shift
        ]
    table = pd.DataFrame(rows)
    metrics: dict[str, Any] = {
        f"level_{index}": {f"{row.change}_{name}": getattr(row, name) for name in ("equal", "distance")
                           for row in part.itertuples()}
        for index, part in table.groupby("level")
    }  # fmt: skip
    sheet = _flips(tokenizer, x, device)
    return Report(metrics, {"changes": table}, {"changes": _picture(table), "flips": sheet})


def shifted(x: Float[Tensor, "b c h w"], dy: int, dx: int) -> Float[Tensor, "b c h w"]:
    """Shifts down by `dy` and right by `dx` pixels; white (1) comes in."""
    return torch.nn.functional.pad(x, (dx, 0, dy, 0), value=1.0)[:, :, : x.shape[2], : x.shape[3]]


@torch.no_grad()
def _levels(tokenizer: Tokenizer, x: Float[Tensor, "n c h w"], batch_size: int, device: Device) -> list[Level]:
    parts = [x[where].to(device) for where in arrays.batches(len(x), batch_size)]
    found = [tokenizer.space.placed(tokenizer.quantize(tokenizer.latents(part))) for part in parts]
    return [
        (torch.cat([q.codes.cpu() for q in level]), torch.cat([q.z_q.float().cpu() for q in level]))
        for level in zip(*found, strict=True)
    ]


def _inner(level: Level, after: int, before: int) -> tuple[Tensor, Tensor]:
    """Codes and z_q without the border, the first `after` rows and columns inside it, and the last `before` ones."""

    def cut(part: Shaped[Tensor, "n a h w"]) -> Shaped[Tensor, "n a i j"]:
        h, w = part.shape[2:]
        border = int(min(h, w) >= 4)
        return part[:, :, border + after : h - border - before, border + after : w - border - before]

    return cut(level[0]), cut(level[1])


def compared(found: Level, wanted: Level, apart: float) -> dict[str, float]:
    far = torch.linalg.vector_norm(found[1] - wanted[1], dim=1).mean().item()
    equal = (found[0] == wanted[0]).double().mean().item()
    return {"equal": equal, "distance": far / apart if apart else 0.0}


def _apart(z_q: Float[Tensor, "n d h w"], rng: torch.Generator) -> float:
    """Mean distance between z_q at random places of random images."""
    rows = z_q.movedim(1, 3).flatten(0, 2)
    return torch.linalg.vector_norm(rows - rows[torch.randperm(len(rows), generator=rng)], dim=1).mean().item()


@torch.no_grad()
def _flips(tokenizer: Tokenizer, x: Float[Tensor, "n c h w"], device: Device) -> np.ndarray:
    """Rows: mirrored images; decoded from their own codes; decoded from the mirrored codes of the original images."""
    x = x[arrays.evenly(len(x), SHOWN)].to(device)
    own = tokenizer.decode(tokenizer.encode(x.flip(3)))
    mirrored = tokenizer.decode_vectors(tuple(q.z_q.flip(3) for q in tokenizer.quantize(tokenizer.latents(x))))
    return pictures.sheet(arrays.to_pixels(torch.cat([x.flip(3), own, mirrored])), len(x))


def _picture(table: pd.DataFrame) -> Figure:
    from matplotlib.figure import Figure

    levels = list(table.groupby("level"))
    figure = Figure(figsize=(7.6, 2.6 * len(levels)), layout="constrained")
    labels = {"equal": "fraction of equal codes", "distance": "distance of z_q (random: 1)"}
    for row, (level, part) in zip(figure.subplots(len(levels), 2, squeeze=False), levels, strict=True):
        for axis, (column, label) in zip(row, labels.items(), strict=True):
            axis.bar(part["change"], part[column], width=0.6)
            axis.set(title=f"level {level}", ylabel=label, ylim=(0, max(1.0, 1.05 * part[column].max())))
        row[0].axhline(part["chance"].iloc[0], color="grey", linestyle="--", linewidth=1)
    return figure
