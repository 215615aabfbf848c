"""The cost of wrong codes: codes are replaced by near neighbours in the codebook, as a prior would confuse them.

The perturbed FID of Qiu et al. 2025 (arXiv 2509.12474): a fraction of an image's codes ("rate") is replaced, each by one of
its nearest others ("strength"), sampled uniformly. In the paper it orders tokenizers of one K as their samples do; the FID of
clean reconstructions does not. Features are those of our scorer, so values compare only within one data set and scorer.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from tessera import perturbation, scores
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features import frechet
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 12


class Config(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    count: int = Field(ge=4, description="validation images, at most", examples=[6])
    rates: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="fractions of an image's codes that are replaced", examples=[[0.5, 1.0]]
    )
    neighbours: int = Field(ge=1, description="number of nearest codes that can replace a code", examples=[2])


def measure(config: Config, run: Run) -> Report:
    """Fréchet distance and PSNR to the original images. `clean`: plain reconstructions (rate 0); `perturbed`: at the middle
    rate; `rise` and `drop`: their difference."""
    tokenizer, extractor = run.tokenizer(), run.scorer()
    device = run.device
    pixels = run.images("val")
    pixels = np.asarray(pixels[arrays.evenly(len(pixels), config.count)])

    mapped = partial(arrays.mapped, batch_size=config.batch_size, device=device)
    codes, real = mapped(tokenizer.encode, pixels), mapped(extractor, pixels)
    near = perturbation.tables(tokenizer, config.neighbours)
    rng = numpy_generator(run.params.seed, "robustness")
    chances, choices = rng.random(codes.shape), rng.random(codes.shape)
    chances[:, : tokenizer.space.global_codes] = 1  # never replaced: they are not decoded
    rows, shown = [], [pixels[arrays.evenly(len(pixels), SHOWN)]]
    for rate in (0.0, *sorted(config.rates)):
        # same random numbers: a code replaced at one rate is replaced by the same code at all higher rates
        changed = perturbation.replaced(codes, tokenizer.space, near, chances < rate, choices)
        decoded = arrays.decoded(tokenizer, changed, config.batch_size, device)
        shown.append(decoded[arrays.evenly(len(pixels), SHOWN)])
        rows.append({
            "rate": rate,
            "replaced": (changed != codes)[:, tokenizer.space.global_codes :].mean(),
            extractor.distance: frechet.distance(real, mapped(extractor, decoded)),
            "psnr_db": float(scores.psnr_db(scores.mse(decoded, pixels).mean())),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    sheet = pictures.sheet(np.concatenate(shown), len(shown[0]))
    return Report(_headline(table, extractor.distance), {"rates": table},
                  {"rates": _picture(table, extractor.distance), "images": sheet})  # fmt: skip


def _headline(table: pd.DataFrame, distance: str) -> dict[str, Any]:
    clean, perturbed = table.iloc[0], table.iloc[1 + (len(table) - 1) // 2 if len(table) > 2 else 1]
    return {
        "rate": perturbed["rate"],
        distance: {
            "clean": clean[distance],
            "perturbed": perturbed[distance],
            "rise": perturbed[distance] - clean[distance],
        },
        "psnr_db": {
            "clean": clean["psnr_db"],
            "perturbed": perturbed["psnr_db"],
            "drop": clean["psnr_db"] - perturbed["psnr_db"],
        },
    }


def _picture(table: pd.DataFrame, distance: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    labels = {distance: "Fréchet distance to the images", "psnr_db": "PSNR, dB"}
    for axis, (column, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        axis.plot(table["rate"], table[column], marker="o")
        axis.set(xlabel="fraction of codes replaced by a neighbour", ylabel=label, xlim=(-0.02, 1.02))
        axis.set_ylim(bottom=0 if column == distance else None)
        axis.grid(alpha=0.3)
    return figure
