"""Clipped coverage of samples in feature space. Imports no torch.

It is the fraction of the real images that samples cover as independent real ones would (`features.clipped`), and 0 for noise. Its
companions, recall and clipped density, do not keep the order of damaged images (docs/studies/judges.md), so they are not measured.

The real set are reconstructions of the test images: against training images a prior that copies them would be perfect, and
against the test images themselves the blur of the decoder would be measured. What real images reach is the row
`reconstruction_train`, training images that passed the tokenizer, in the place of samples. Where each image is its own family that
is about 1. Where there are families it is less, since training images come in whole families: compare samples with that row, and
not with 1. Samples have no families, so they may lie above it. The row `baseline` says what codes without structure reach. For
each group of images all sets have the same number. Of features their direction counts.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from pydantic import Field

from tessera import sets
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.features.clipped import collapsed, coverage, directions
from tessera.features.neighbours import fewer

REAL, TRAIN = "reconstruction", "reconstruction_train"
FAKE, CONTROLS = ("samples", TRAIN, "baseline"), ("baseline",)
METRICS = ("*.images", *(f"*.{of}.clipped_coverage" for of in ("samples", TRAIN)))


class Config(Strict):
    count: int = Field(ge=4, le=10000, description="images of every set, chosen by the seed; fewer where a set has fewer",
                       examples=[8])  # fmt: skip
    neighbours: int = Field(ge=1, le=100, description="k: a ball reaches to the k-th nearest image of another family; at most half "
                            "of a set", examples=[2])  # fmt: skip


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
        found = {name: coverage(points[REAL], points.get(name, nothing), families, k) for name in FAKE}
        known = {name: {"clipped_coverage": value} for name, value in found.items() if not math.isnan(value)}
        for name in [name for name in FAKE if name not in known]:
            print(f"evaluation.coverage: {name}, group {group}: not measured, there are too few images", flush=True)
        if known and collapsed(directions(points[REAL]), families, k):
            print(
                f"evaluation.coverage: group {group}: 0, since the reconstructions of most test images are the same",
                flush=True,
            )
        rows += [
            {"group": group, "fake": name, "images": len(families), "neighbours": k, "clipped_coverage": found[name]}
            for name in FAKE
        ]
        metrics[group] = {"images": len(families)} | {
            name: known.get(name, {}) for name in FAKE if name not in CONTROLS
        }
    return Report(metrics, {"coverage": pd.DataFrame(rows)})
