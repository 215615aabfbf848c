"""At which positions a prior can learn structure, and at which it can only recognise the image. Imports no torch.

Three entropies of each position, in bits. `entropy_bits`: entropy of the code over the training images.
`given_prefix_bits`: H(c_t | c_<t) over the training images, given the exact prefix. Its sum over positions is at most
log2 N. It falls to 0 where the prefix identifies the image, even if the codes are hard to predict. It is the floor that a
prior of sufficient capacity reaches on its training images by memorising, and says nothing about unseen images. The fall is
the entropy cliff of Zheng et al. 2026 (arXiv 2605.06207), at t* = ceil(log2 N / log2 K) codes: `cliff`; with the perplexity
of the codes in place of K: `cliff_effective`. `named_after` is measured: the number of leading codes that identify a
`fraction` of the training images. It is later than the cliff if most images begin with background.

`given_neighbours_bits` cannot be memorised: it is the cross-entropy, on the validation split, of counts over the training
split, given the left and the upper code. In expectation it is at least the entropy of a code given these two. Unseen contexts
back off (Witten & Bell 1991, method C), with d the number of different codes seen in a context:

    p(c | l, u) = (n(l,u,c) + d(l,u) p(c | l)) / (n(l,u) + d(l,u)),  p(c | l) and p(c) likewise, from 1 / K
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field

from tessera import statistics
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS = {
    "entropy_bits": "of the code",
    "given_neighbours_bits": "given left and upper, val",
    "given_prefix_bits": "given the exact prefix",
}


class Config(Strict):
    fraction: float = Field(gt=0, le=1, description="fraction of the training images that a prefix must identify",
                         examples=[0.5])  # fmt: skip


def measure(config: Config, run: Run) -> Report:
    """Means of the three entropies over the positions of each grid. For the whole sequence, grid after grid:
    `identity_bits` = log2 N; `named`, the fraction of images that it identifies; `named_after` and the cliffs, which are
    missing if the whole sequence is too short."""
    train, val = (run.space.split(run.codes(split)) for split in ("train", "val"))
    grids = zip(range(len(run.space.grids)), train, val, run.space.sizes, strict=True)
    table = pd.concat([_places(*of_grid) for of_grid in grids], ignore_index=True)
    table["given_prefix_bits"], table["distinct"], table["named"] = prefixes(np.asarray(run.codes("train")))
    identity = math.log2(len(train[0]))
    named = np.flatnonzero(table["named"] >= config.fraction)
    after = {
        "cliff": enough(table.pop("most_bits").to_numpy(), identity),
        "cliff_effective": enough(table.pop("used_bits").to_numpy(), identity),
        "named_after": int(named[0]) + 1 if len(named) else None,
    }
    found = {name: value for name, value in after.items() if value is not None}
    means = table.groupby("grid")[list(MAPS)].mean()
    metrics: dict[str, Any] = {f"grid_{grid}": of_grid.to_dict() for grid, of_grid in means.iterrows()}
    metrics["sequence"] = {"identity_bits": identity, **found, "named": float(table["named"].iloc[-1])}
    return Report(
        metrics, {"positions": table}, {"maps": _maps(table), "prefix": _curves(table, found, config.fraction)}
    )


def _places(grid: int, train: Int[np.ndarray, "n h w"], val: Int[np.ndarray, "m h w"], k: int) -> pd.DataFrame:
    """One row for each position of a grid."""
    y, x = np.indices(train.shape[1:]).reshape(2, -1)
    bits = [statistics.entropy_bits(statistics.frequencies(column, k)) for column in train.reshape(len(train), -1).T]
    unseen = -np.log2(backed_off(train, val, k)).mean(axis=0).reshape(-1)
    rows = pd.DataFrame({"grid": grid, "y": y, "x": x, "entropy_bits": bits, "given_neighbours_bits": unseen})
    return rows.assign(most_bits=math.log2(k), used_bits=statistics.entropy_bits(statistics.frequencies(train, k)))


def prefixes(codes: Int[np.ndarray, "n t"]) -> tuple[Float[np.ndarray, " t"], ...]:
    """For the prefix up to and including each position: H(c_t | c_<t) in bits, the number of distinct prefixes divided by N,
    and the fraction of images with a prefix of their own."""
    n, ids, before, found = len(codes), np.zeros(len(codes), np.int64), 0.0, []
    for column in codes.astype(np.int64).T:
        keys = ids * (column.max() + 1) + column
        _, ids, counts = np.unique(keys, return_inverse=True, return_counts=True)
        bits = statistics.entropy_bits(counts / n)
        found.append((max(0.0, bits - before), len(counts) / n, (counts == 1).sum() / n))
        before = bits
    return tuple(np.array(found).T)


def enough(bits: Float[np.ndarray, " t"], wanted: float) -> int | None:
    """The smallest number of leading codes with `wanted` bits in total, ceil(log2 N / log2 K) for codebooks of one size; None
    if all codes have fewer."""
    reached = np.cumsum(bits) >= wanted - 1e-9  # log2 27 and 3 log2 3 differ in the last bit
    return int(reached.argmax()) + 1 if reached.any() else None


def backed_off(train: Int[np.ndarray, "n h w"], val: Int[np.ndarray, "m h w"], k: int) -> Float[np.ndarray, "m h w"]:
    """p(c | left, upper) of each code of `val`, from counts in `train`."""
    p = np.full(val.shape, 1 / k)
    for seen, here in zip(_contexts(train, k), _contexts(val, k), strict=True):
        pairs = seen * k + train
        kinds = np.maximum(_count(np.unique(pairs) // k, here), 1)  # 1: an unseen context gets the shorter one's p
        p = (_count(pairs, here * k + val) + kinds * p) / (_count(seen, here) + kinds)
    return p


def _contexts(codes: Int[np.ndarray, "n h w"], k: int) -> tuple[Int[np.ndarray, "n h w"], ...]:
    """A number for each context: empty, left code, left and upper code. Beyond the border the code is K."""
    framed = np.pad(codes.astype(np.int64), ((0, 0), (1, 0), (1, 0)), constant_values=k)
    left, upper = framed[:, 1:, :-1], framed[:, :-1, 1:]
    return np.zeros_like(left), left, left * (k + 1) + upper


def _count(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each of `wanted` occurs in `keys`."""
    found, counts = np.unique(keys, return_counts=True)
    place = np.searchsorted(found, wanted).clip(max=len(found) - 1)
    return np.where(found[place] == wanted, counts[place], 0)


def _maps(table: pd.DataFrame) -> Figure:
    """The three entropies as maps of the grid, with one scale."""
    from matplotlib.figure import Figure

    grids = sorted(table["grid"].unique())
    figure = Figure(figsize=(10.4, 3.6 * len(grids)), layout="constrained")
    for grid, axes in zip(grids, figure.subplots(len(grids), 3, squeeze=False), strict=True):
        part = table[table["grid"] == grid]
        top = max(float(part[list(MAPS)].max().max()), 1e-9)
        for axis, (name, title) in zip(axes, MAPS.items(), strict=True):
            plotted = axis.imshow(part.pivot(index="y", columns="x", values=name), vmin=0, vmax=top, cmap="magma")
            axis.set(title=f"grid {grid}: {title}\nmean {part[name].mean():.2f} bits", xticks=[], yticks=[])
        figure.colorbar(plotted, ax=axes, label="bits", shrink=0.9)
    return figure


def _curves(table: pd.DataFrame, found: dict[str, int], fraction: float) -> Figure:
    """Fraction of training images that each prefix identifies, and fraction of distinct prefixes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, label in {"named": "named by it alone", "distinct": "distinct prefixes / N"}.items():
        axis.plot(np.arange(1, len(table) + 1), table[name], label=label)
    axis.axhline(fraction, color="grey", linestyle=":")
    for (name, value), style in zip(found.items(), ("--", "-.", "-"), strict=False):
        axis.axvline(value, color="grey", linewidth=1, linestyle=style, label=f"{name.replace('_', ' ')}: {value}")
    axis.set(title="training images told apart by a prefix", xlabel="codes", ylabel="fraction", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    return figure
