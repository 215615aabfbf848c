"""Fréchet distance and KID between sets of features, by torch-fidelity's own statistics.

Fréchet distance (Heusel et al. 2017, arXiv 1706.08500, eq. 6): |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)), of Gaussians
fitted to the two sets. It is called `fid` on Inception's features only; on others `fd_classifier` and the like, to be
compared within one data set and one trained network. It shrinks as sets grow, so every set here has the same number of
images, and `train_test`, two sets of real images, is the floor: nothing drawn from the data is expected below it. But
reconstructions are of the test images themselves, and may be.

KID (Binkowski et al. 2018, arXiv 1801.01401): squared MMD with the kernel (ab/F + 1)^3, unbiased, hence around 0, and
sometimes below, for equal distributions. Called `kid` beside `fid`, and otherwise after the features, `kid_classifier`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, numpy_generator
from tessera.nn.neighbours import subset

if TYPE_CHECKING:
    from jaxtyping import Float

PAIRS = (
    ("samples", "test"),
    ("samples", "train"),
    ("reconstruction", "test"),
    ("reconstruction", "train"),
    ("baseline", "test"),
    ("train", "test"),
    ("gaussian", "test"),
)  # `gaussian`: of a tokenizer that decodes N(0, I), where there is one
NORMAL_95 = 1.959964  # standard deviations on either side of a mean that hold 95 % of a Gaussian


class Config(Strict):
    count: int = Field(ge=4, description="images of every set, drawn by the seed; all sets are cut to the smallest "
                       "if that has fewer", examples=[8])  # fmt: skip
    kid_subsets: int = Field(ge=2, description="random subsets that KID is averaged over", examples=[3])
    kid_subset_size: int = Field(ge=2, description="images of each; at most half of a set, for subsets to differ",
                                 examples=[4])  # fmt: skip


class Kid(NamedTuple):
    """Mean over subsets, and where 95 % of subsets lie: the spread of one subset, not the error of the mean."""

    mean: float
    low: float
    high: float


def measure(config: Config, run: Run) -> Report:
    """Headline: samples against test. Table: every pair."""
    pairs = [pair for pair in PAIRS if pair[0] != "gaussian" or "gaussian" in run.sample_sets]
    names = sorted({name for pair in pairs for name in pair})
    features = {name: run.features(name) for name in names}
    count = min(config.count, *(len(array) for array in features.values()))
    chosen = {
        name: np.asarray(array[subset(numpy_generator(run.params.seed, "frechet", name), len(array), count)])
        for name, array in features.items()
    }
    size = min(config.kid_subset_size, count // 2)
    frechet, kernel, rows = {}, {}, []
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
        kid_name: {name: kernel[name] for name in ("samples_test", "samples_test_low", "samples_test_high")},
    }
    return Report(metrics, {"pairs": pd.DataFrame(rows, columns=columns)})


def distance(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> float:
    """Fréchet distance of two sets of features, in float64."""
    import torch  # torch-fidelity's functions take tensors and compute in NumPy
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    first, second = (fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (a, b))
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def kid(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"], subsets: int, size: int, seed: int) -> Kid:
    """KID of two sets of features over random subsets of `size` of each; the seed alone decides which."""
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(
        *(torch.from_numpy(x.astype(np.float64)) for x in (a, b)),
        kid_subsets=subsets,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=seed % 2**32,  # it seeds NumPy's older generator, which takes 32 bits
        verbose=False,
    )
    mean, spread = found[KEY_METRIC_KID_MEAN], NORMAL_95 * found[KEY_METRIC_KID_STD]
    return Kid(mean, mean - spread, mean + spread)
