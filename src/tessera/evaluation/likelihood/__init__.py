"""How many bits the prior needs for an image's codes; how many fewer on train than on test it has learnt by heart.

Beside it the order-0 entropy: what a coder needs that knows how often each code occurs in that very split, and nothing
of neighbours. `fraction_saved` = 1 - likelihood / entropy is what the prior knows of structure; below 0 it is worse than
counting.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from tessera import conditions, statistics
from tessera.core.contracts import Device, Prior, Report
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run
from tessera.images.arrays import batches, evenly

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tessera.core.space import CodeSpace

METRICS = (
    *(f"*.{split}.{name}{bound}{unit}" for split in ("val", "test") for bound in ("", "_bound")
      for name, unit in (("nll", "_bits_per_code"), ("fraction_saved", ""))),
    "*.gap_bits_per_code", "*.gap_bound_bits_per_code",
)  # fmt: skip


class Config(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    count: int = Field(ge=1, description="images of a split, at most, spread evenly over it", examples=[1000])


def measure(config: Config, run: Run) -> Report:
    """Of each group, by the labels of its images, bits per code and per image on every split. `gap_bits_per_code`: test minus
    train, 0 for a prior that has learnt nothing by heart. `recall_bits_per_code` in the table: what naming one of the training
    images costs, log2(N) / T; a prior near it on train has memorised them. A group without images in a split has no row there.

    Of a prior that is not exact the bits are an upper bound, and the names of metrics say so, also of what is made of them:
    `fraction_saved_bound` is a lower bound, `gap_bound_bits_per_code` the difference of two bounds, itself none."""
    prior = run.prior()
    images, length = run.codes("train").shape
    rows = []
    for split in SPLITS:
        every = run.groups(split)["all"]
        some = every[evenly(len(every), config.count)]
        codes, told = run.codes(split)[some], conditions.of_split(run, prior.conditioning, split)
        found = bits(prior, codes, None if told is None else told[some], config.batch_size, run.device)
        for group, members in run.groups(split).items():
            own = np.isin(some, members)
            if own.any():
                rows.append({"group": group, "split": split, "images": int(own.sum()),
                             "likelihood": "exact" if prior.exact else "bound", **_figures(found[own], codes[own], run.space),
                             "recall_bits_per_code": math.log2(images) / length})  # fmt: skip
    table = pd.DataFrame(rows)
    metrics = {
        str(group): _metrics(own.set_index("split"), prior.exact) for group, own in table.groupby("group", sort=False)
    }
    return Report(metrics, {"splits": table})


def _figures(bits: Float[np.ndarray, " n"], codes: Int[np.ndarray, "n t"], space: CodeSpace) -> dict[str, float]:
    image, entropy, length = float(bits.mean()), float(statistics.order_zero_bits(codes, space).sum()), codes.shape[1]
    return {
        "nll_bits_per_code": image / length,
        "nll_bits_per_image": image,
        "entropy_bits_per_code": entropy / length,
        "entropy_bits_per_image": entropy,
        "fraction_saved": 1 - image / entropy if entropy else 0.0,  # one code everywhere: there is nothing to save
    }


def _metrics(table: pd.DataFrame, exact: bool) -> dict[str, Any]:
    """Of one group, from its rows by split."""
    bound = "" if exact else "_bound"
    per_code, saved = table["nll_bits_per_code"].to_dict(), table["fraction_saved"].to_dict()
    metrics: dict[str, Any] = {
        split: {f"nll{bound}_bits_per_code": per_code[split], f"fraction_saved{bound}": saved[split]}
        for split in ("val", "test")
        if split in per_code
    }
    if {"train", "test"} <= set(per_code):
        metrics[f"gap{bound}_bits_per_code"] = per_code["test"] - per_code["train"]
    return metrics


@torch.no_grad()
def bits(
    prior: Prior, codes: Int[np.ndarray, "n t"], told: Int[np.ndarray, "n c"] | None, batch_size: int, device: Device
) -> Float[np.ndarray, " n"]:
    """-log2 p(codes) of each image."""
    found = []
    for where in batches(len(codes), batch_size):
        given = None if told is None else torch.from_numpy(np.array(told[where])).to(device)
        nats = prior.log_prob(torch.from_numpy(np.array(codes[where], np.int64)).to(device), given)
        found.append(nats.double().cpu().numpy() / -math.log(2))
    return np.concatenate(found)
