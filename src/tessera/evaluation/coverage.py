"""Clipped density and clipped coverage of samples, and their recall, in feature space. Imports no torch.

Density is the fraction of good samples, coverage the fraction of the real images that they cover as independent real ones would
(`features.clipped`); both are 0 for noise. Recall is the fraction of the real images that lie between samples at all
(`features.neighbours.recall`).

The real set are reconstructions of the test images: against training images a prior that copies them would be perfect, and
against the test images themselves the blur of the decoder would be measured. What real images reach is the row
`reconstruction_train`, training images that passed the tokenizer, in the place of samples. Where each image is its own family that
is about 1. Where there are families it is less, since training images come in whole families: compare samples with that row, and
not with 1. Samples have no families, so they may lie above it. The row `baseline` says what codes without structure reach. For
each group of images all sets have the same number, since recall depends on it. Of features their direction counts.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from tessera import sets
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.features.clipped import FIGURES, collapsed, directions, figures
from tessera.features.neighbours import fewer

REAL, TRAIN = "reconstruction", "reconstruction_train"
FAKE, CONTROLS = ("samples", TRAIN, "baseline"), ("baseline",)
METRICS = ("*.images", *(f"*.{of}.{name}" for of in ("samples", TRAIN) for name in FIGURES))


class Config(Strict):
    count: int = Field(ge=4, le=10000, description="images of every set, chosen by the seed; fewer where a set has fewer",
                       examples=[8])  # fmt: skip
    neighbours: int = Field(ge=1, le=100, description="k: a ball reaches to the k-th nearest image of another family, of recall to "
                            "the k-th nearest sample; at most half of a set", examples=[2])  # fmt: skip


def measure(config: Config, run: Run) -> Report:
    """Of each group the metrics of the samples and of training images; the table has the baseline too. A set with fewer images of a
    group than the others, or than k needs, is not measured there: its row is empty, and the log names it."""
    chosen = sets.equal(run, "coverage", config.count, (REAL, "samples", TRAIN), CONTROLS)
    count = len(chosen["all"][REAL])
    k = fewer("evaluation.coverage.neighbours", config.neighbours, (count - 1) // 2, count)
    metrics: dict[str, Any] = {}
    rows = []
    for group, of in chosen.items():
        points = {name: run.features(name)[images] for name, images in of.items()}
        families, nothing = run.families(REAL)[of[REAL]], points[REAL][:0]
        found = {name: figures(points[REAL], points.get(name, nothing), families, k) for name in FAKE}
        for name in [name for name in FAKE if not found[name]]:
            print(f"evaluation.coverage: {name}, group {group}: not measured, there are too few images", flush=True)
        if any(found.values()) and collapsed(directions(points[REAL]), families, k):
            print(
                f"evaluation.coverage: group {group}: 0, since the reconstructions of most test images are the same",
                flush=True,
            )
        rows += [
            {"group": group, "fake": name, "images": len(families), "neighbours": k, **found[name]} for name in FAKE
        ]
        metrics[group] = {"images": len(families)} | {name: found[name] for name in FAKE if name not in CONTROLS}
    return Report(metrics, {"coverage": pd.DataFrame(rows)})
