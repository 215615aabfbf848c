"""Fréchet distance and KID between sets of features (`features.frechet`).

The Fréchet distance is called `fid` on Inception's features only; on others `fd_classifier` and the like, to be compared
within one data set and one trained network. Every set here has the same number of images, and `train_test`, two sets of
real images, is the floor: nothing drawn from the data is expected below it. But reconstructions are of the test images
themselves, and may be. KID is called `kid` beside `fid`, and otherwise after the features, `kid_classifier`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, numpy_generator
from tessera.features.frechet import distance, kid
from tessera.features.neighbours import fewer, subset

PAIRS = (
    ("samples", "test"),
    ("samples", "train"),
    ("reconstruction", "test"),
    ("reconstruction", "train"),
    ("baseline", "test"),
    ("train", "test"),
    ("gaussian", "test"),
)  # `gaussian`: of a tokenizer that decodes N(0, I), where there is one
KERNEL = ("samples_test", "samples_test_low", "samples_test_high", "reconstruction_test")  # KID's headline


class Config(Strict):
    count: int = Field(ge=4, description="images of every set, drawn by the seed; all sets are cut to the smallest "
                       "if that has fewer", examples=[8])  # fmt: skip
    kid_subsets: int = Field(ge=2, description="random subsets that KID is averaged over", examples=[3])
    kid_subset_size: int = Field(ge=2, description="images of each; at most half of a set, for subsets to differ",
                                 examples=[4])  # fmt: skip


def measure(config: Config, run: Run) -> Report:
    """Headline: samples against test. Table: every pair."""
    pairs = [pair for pair in PAIRS if pair[0] != "gaussian" or "gaussian" in run.sample_sets]
    names = sorted({name for pair in pairs for name in pair})
    features = {name: run.features(name) for name in names}
    smallest = min(len(array) for array in features.values())
    count = fewer("evaluation.frechet.count", config.count, smallest, smallest)
    chosen = {
        name: np.asarray(array[subset(numpy_generator(run.params.seed, "frechet", name), len(array), count)])
        for name, array in features.items()
    }
    size = fewer("evaluation.frechet.kid_subset_size", config.kid_subset_size, count // 2, count)
    frechet, rows = {}, []
    kernel: dict[str, float] = {}
    for first, second in pairs:
        pair, name = (chosen[first], chosen[second]), f"{first}_{second}"
        seed = derive(run.params.seed, "frechet", "kid", name)
        frechet[name] = distance(*pair)
        mean, low, high = kid(*pair, subsets=config.kid_subsets, size=size, seed=seed)
        kernel |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append([first, second, count, frechet[name], mean, low, high])
    kid_name = "kid" if run.distance == "fid" else f"kid_{run.distance.removeprefix('fd_')}"
    columns = ["first", "second", "images", run.distance, kid_name, f"{kid_name}_low", f"{kid_name}_high"]
    metrics: dict[str, Any] = {  # the other pairs, and their intervals, stand in the table
        "images": count,
        run.distance: {name: value for name, value in frechet.items() if name != "reconstruction_train"},
        kid_name: {name: kernel[name] for name in KERNEL},
    }
    return Report(metrics, {"pairs": pd.DataFrame(rows, columns=columns)})
