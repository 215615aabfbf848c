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

from tessera.codes import statistics
from tessera.core.contracts import Device, Prior, Report
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run
from tessera.images.arrays import batches, evenly

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Config(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    count: int = Field(ge=1, description="images of a split, at most, spread evenly over it", examples=[1000])


def measure(config: Config, run: Run) -> Report:
    """Bits per code and per image on every split. `gap_bits_per_code`: test minus train, 0 for a prior that has learnt
    nothing by heart. `recall_bits_per_code` in the table: what naming one of the training images costs, log2(N) / T; a prior
    near it on train has memorised them.

    Of a prior that is not exact the bits are an upper bound, and the names of metrics say so, also of what is made of them:
    `fraction_saved_bound` is a lower bound, `gap_bound_bits_per_code` the difference of two bounds, itself none."""
    prior = run.prior()
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        codes = run.codes(split)
        some = evenly(len(codes), config.count)
        codes, labels = codes[some], run.required_labels(split)[some] if prior.classes else None
        image = bits(prior, codes, labels, config.batch_size, run.device).mean()
        entropy = statistics.order_zero_bits(codes, run.space).sum()
        rows.append(
            {
                "split": split,
                "likelihood": "exact" if prior.exact else "bound",
                "nll_bits_per_code": image / codes.shape[1],
                "nll_bits_per_image": image,
                "entropy_bits_per_code": entropy / codes.shape[1],
                "entropy_bits_per_image": entropy,
                "fraction_saved": 1 - image / entropy
                if entropy
                else 0.0,  # one code everywhere: there is nothing to save
            }
        )
    table = pd.DataFrame(rows).set_index("split")
    bound = "" if prior.exact else "_bound"
    per_code, saved = table["nll_bits_per_code"], table["fraction_saved"]
    metrics: dict[str, Any] = {
        split: {f"nll{bound}_bits_per_code": per_code[split], f"fraction_saved{bound}": saved[split]}
        for split in ("val", "test")
    }
    metrics[f"gap{bound}_bits_per_code"] = per_code["test"] - per_code["train"]
    images, length = run.codes("train").shape  # all that there are to name
    table["recall_bits_per_code"] = math.log2(images) / length
    return Report(metrics, {"splits": table.reset_index()})


@torch.no_grad()
def bits(
    prior: Prior, codes: Int[np.ndarray, "n t"], labels: Int[np.ndarray, " n"] | None, batch_size: int, device: Device
) -> Float[np.ndarray, " n"]:
    """-log2 p(codes) of each image."""
    found = []
    for where in batches(len(codes), batch_size):
        given = None if labels is None else torch.from_numpy(np.array(labels[where])).to(device)
        nats = prior.log_prob(torch.from_numpy(np.array(codes[where], np.int64)).to(device), given)
        found.append(nats.double().cpu().numpy() / -math.log(2))
    return np.concatenate(found)
