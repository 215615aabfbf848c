"""What is reported of what the judges say: means, intervals, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from tessera.core.seeding import numpy_generator
from tessera.evaluation.words.config import ALL, EVERY, FIGURES, ORIGINALS, RECONSTRUCTIONS, RETRIEVED, SAMPLES
from tessera.evaluation.words.held_out import Images
from tessera.evaluation.words.judges import Judges
from tessera.features import kernel


class Right(NamedTuple):
    """Of the attributes of names: a row for each name (`Judges.attributes_right`), and the family of each."""

    right: pd.DataFrame
    families: Shaped[np.ndarray, " n"]


def members(held_out: Images) -> dict[str, Int[np.ndarray, " m"]]:
    """Indices of all held-out images, and of each vendor's."""
    of_vendors = {str(vendor): np.flatnonzero(held_out.vendors == vendor) for vendor in np.unique(held_out.vendors)}
    return {ALL: np.arange(len(held_out.rows))} | of_vendors


def intervals(judged: Mapping[str, pd.DataFrame], held_out: Images, resamplings: int, seed: int) -> pd.DataFrame:
    """A row for all vendors and for each, and each set: the mean of each figure over the held-out images, with its interval."""
    rows = []
    for of, own in members(held_out).items():
        weights = kernel.resampled(held_out.concepts[own], resamplings, numpy_generator(seed, "words", "intervals", of))
        for name, frame in judged.items():
            there = np.isin(own, frame.index)
            if there.any():
                found = frame.loc[own[there], list(FIGURES)]
                row = {"of": of, "set": name, "images": len(found),
                       "families": len(np.unique(held_out.concepts[own[there]]))}  # fmt: skip
                rows.append(row | _means(found, weights[:, there]))
    return pd.DataFrame(rows)


def attribute_intervals(right: Mapping[str, Right], judges: Judges, resamplings: int, seed: int) -> pd.DataFrame:
    """A row for each set and attribute: of how many names, how often right, with its interval, and what guessing gives."""
    chance = {name: 1 / len(judge.classes) for name, judge in judges.attributes.items()}
    chance[EVERY] = float(np.prod(list(chance.values())))
    rows = []
    for name, (found, families) in right.items():
        weights = kernel.resampled(families, resamplings, numpy_generator(seed, "words", "attributes", name))
        for attribute in found.columns:
            there = found[attribute].notna().to_numpy()
            if there.any():
                values = _means(found.loc[there, [attribute]].set_axis(["right"], axis=1), weights[:, there])
                rows.append({"set": name, "attribute": attribute, "names": int(there.sum()), **values,
                             "chance": chance[attribute]})  # fmt: skip
    return pd.DataFrame(rows)


def _means(values: pd.DataFrame, weights: Float[np.ndarray, "r n"]) -> dict[str, float]:
    found: dict[str, float] = {}
    with np.errstate(invalid="ignore"):  # a resampling may hold none of these images
        resampled = weights @ values.to_numpy(np.float64) / weights.sum(1, keepdims=True)
    for at, (name, column) in enumerate(values.items()):
        value, low, high = kernel.interval(float(column.mean()), resampled[:, at])
        found |= {str(name): value, f"{name}_low": low, f"{name}_high": high}
    return found


def metrics_of(
    accuracy: pd.DataFrame, held_out: Images, near: Callable[[Int[np.ndarray, " m"]], float]
) -> dict[str, Any]:
    """Under `all` and `vendors`; `top_5_of_reconstructions` is that of the samples over that of the reconstructions."""
    found: dict[str, Any] = {"vendors": {}}
    for of, own in members(held_out).items():
        rows = accuracy[accuracy["of"] == of].set_index("set")
        values: dict[str, Any] = {"held_out": len(own), "near_copies": near(own)}
        for name in rows.index:
            values[name] = {figure: float(rows.loc[name, figure]) for figure in FIGURES}
        for figure in FIGURES:
            values[SAMPLES] |= {
                f"{figure}_{end}": float(rows.loc[SAMPLES, f"{figure}_{end}"]) for end in ("low", "high")
            }
        if values[RECONSTRUCTIONS]["top_5"] > 0:
            values["top_5_of_reconstructions"] = values[SAMPLES]["top_5"] / values[RECONSTRUCTIONS]["top_5"]
        if of == ALL:
            found[ALL] = values
        else:
            found["vendors"][of.replace(".", "_")] = values  # a dot would divide the metric's name
    return found


def metrics_of_attributes(attributes: pd.DataFrame) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in attributes.itertuples():
        found.setdefault(row.set, {})[row.attribute] = float(row.right)
    return found


def of_concepts(judged: Mapping[str, pd.DataFrame], held_out: Images) -> pd.DataFrame:
    """A row for each held-out image; `place` is that of its concept among all, the mean over its samples: 1 is the first."""
    table = pd.DataFrame(
        {
            "vendor": held_out.vendors,
            "name": held_out.names,
            "concept": held_out.concepts,
            "label_name": held_out.labels,
        }
    )
    table = table.join(judged[SAMPLES])
    for name in (ORIGINALS, RECONSTRUCTIONS, RETRIEVED):
        table = table.join(judged[name][["top_5", "vendor_right"]].add_prefix(f"{name}_"))
    return table
