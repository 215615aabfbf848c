"""Precision, recall, density and coverage of samples against held-out images, in feature space. Imports no torch.

The real set is the test split: against training images a prior that copies them would be perfect. All four depend on
the number of images, so every set has the same; what real images reach is the row `train`, training images in the
place of samples, and only a comparison with it says anything (variants of one image stay in one split, so even it is
far from 1). Baseline and reconstructions stand beside. Read coverage and recall first: a few real images far from the
others have balls so large that precision takes noise for real, and can be higher for it than for real images.
The formulas: `tessera.features.neighbours.overlap`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import Field

from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features.neighbours import fewer, overlap, subset

FAKE = ("samples", "train", "baseline", "reconstruction")


class Config(Strict):
    count: int = Field(ge=4, le=10000, description="images of every set, drawn by the seed; all sets are cut to the "
                       "smallest if that has fewer", examples=[8])  # fmt: skip
    neighbours: int = Field(ge=1, le=100, description="k: the k-th nearest neighbour in its own set is as far as an "
                            "image's ball reaches; at most half of a set", examples=[2])  # fmt: skip


def measure(config: Config, run: Run) -> Report:
    """Metrics of the samples. The table sets them beside the ceiling `train`, the floor `baseline`, and reconstructions."""
    features = {name: run.features(name) for name in ("test", *FAKE)}
    smallest = min(len(array) for array in features.values())
    count = fewer("evaluation.coverage.count", config.count, smallest, smallest)
    chosen = {
        name: np.asarray(array[subset(numpy_generator(run.params.seed, "coverage", name), len(array), count)])
        for name, array in features.items()
    }
    # balls that reach most of their own set would cover anything
    k = fewer("evaluation.coverage.neighbours", config.neighbours, (count - 1) // 2, count)
    found = {name: overlap(chosen["test"], chosen[name], k)._asdict() for name in FAKE}
    table = pd.DataFrame([{"fake": name, "images": count, "neighbours": k, **found[name]} for name in FAKE])
    return Report({"samples": found["samples"]}, {"overlap": table})
