"""Sets of images to compare, of equal numbers, for each group. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features.neighbours import fewer, subset

MADE_OF = {"reconstruction": "test"}  # set -> the set of its originals, image by image


def equal(
    run: Run, measure: str, count: int, sets: Sequence[str], controls: Sequence[str]
) -> dict[str, dict[str, Int[np.ndarray, " count"]]]:
    """For each group, indices of as many images of every set: `count`, or as many as the smallest of `sets` has of that group.

    The seed decides which images; of reconstructions they are those of the originals. `controls` need not have images of every
    group: one that has fewer is not there for that group.
    """
    members = {name: run.groups(name) for name in (*sets, *controls)}
    found = {}
    for group in members[sets[0]]:
        smallest = min(len(members[name][group]) for name in sets)
        wanted = (
            fewer(f"evaluation.{measure}.count", count, smallest, smallest) if group == "all" else min(count, smallest)
        )
        found[group] = {
            name: of[group][subset(_stream(run.params.seed, measure, group, name), len(of[group]), wanted)]
            for name, of in members.items()
            if len(of[group]) >= wanted
        }
    return found


def _stream(seed: int, measure: str, group: str, name: str) -> np.random.Generator:
    return numpy_generator(seed, measure, group, MADE_OF.get(name, name))
