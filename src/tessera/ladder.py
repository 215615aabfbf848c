"""The ladder of damage: sets of codes that are worse and worse, made from the codes of real images. NumPy, no torch.

A measure of samples is worth printing if it sees what the eye sees. Damage of known order shows whether it does, and gives
its values a scale. On each rung an image exchanges half of its regions with other images; the regions become smaller:

    halves         one half, left, right, top or bottom, of one other image
    quadrants      two of the four quadrants, each of another image
    blocks         half of the blocks of 2x2 codes, each of another image
    single_codes   half of the codes, each of another image
    shuffled       all codes in other places

The other image, the partner, is of the same group and of another family. Each region has a partner of its own: with one
partner for all of them, halves and quadrants could hardly be told apart.

Two damaged images may share a partner, so they are no independent images, and a mean over such pairs is too large. Therefore
the families are divided into two sides, and a partner is always of the same side: an image of one side shares no code with any
of the other, damaged or not.

All grids of an image exchange the same places. A region is defined on the finest grid; a code of a coarser grid belongs to
the region in which its centre lies. A rung with the same regions as the rung before it is left out: `blocks` of a 4x4 grid
are its quadrants, and the quadrants of a 2x2 grid are its single codes. A grid of odd sides has unequal halves and
quadrants, and smaller blocks at its last row and column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from tessera.core.seeding import numpy_generator
from tessera.core.space import CodeSpace

SHUFFLED = "shuffled"
NOWHERE = -1  # region of global codes, which is never exchanged
FEWEST = 6  # families: with fewer a resampling of them too often holds those of one side alone
Regions = Int[np.ndarray, " t"]  # region of each code of an image, or NOWHERE


class Images(NamedTuple):
    """The images that exchange codes: `names` key their random numbers, so that their order does not matter."""

    codes: Int[np.ndarray, "n t"]
    names: Shaped[np.ndarray, " n"]
    families: Shaped[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]


class Damaged(NamedTuple):
    """`side` is 0 or 1: all codes of an image come from images of its side."""

    codes: Int[np.ndarray, "n t"]
    side: Int[np.ndarray, " n"]


def rungs(space: CodeSpace) -> tuple[str, ...]:
    """Names of the rungs that these grids have, least damage first; none where every grid is one code."""
    return (*_partitions(space), SHUFFLED) if max(map(math.prod, space.placed_grids), default=1) > 1 else ()


def why_not(space: CodeSpace, families: Shaped[np.ndarray, " n"]) -> str | None:
    """Why there is no ladder for these images, or None."""
    if not rungs(space):
        return "an image has one code per grid, of which no part can be exchanged"
    if (have := len(np.unique(families))) < FEWEST:
        return f"the images are of {have} families, and {FEWEST} are needed: half of them for each side"
    return None


def damaged(images: Images, space: CodeSpace, rung: str, seed: int, number: int) -> Damaged:
    """All images on one rung. `number` counts the repetitions; each has other regions and partners."""
    codes, side = np.array(images.codes), sides(images, seed, number)
    partitions = _partitions(space)
    most = 0 if rung == SHUFFLED else max(_exchanged(regions) for regions in partitions[rung])
    partners = _partners(images, side, most, seed, number)
    for at, name in enumerate(images.names):
        generator = numpy_generator(seed, "ladder", rung, number, name)
        if rung == SHUFFLED:
            codes[at] = images.codes[at][_permutation(space, generator)]
            continue
        options = partitions[rung]
        regions = options[generator.integers(len(options))]
        exchanged = generator.permutation(regions.max() + 1)[: _exchanged(regions)]
        for region, partner in zip(exchanged, partners[:, at], strict=False):
            where = regions == region
            codes[at, where] = images.codes[partner, where]
    return Damaged(codes, side)


def sides(images: Images, seed: int, number: int) -> Int[np.ndarray, " n"]:
    """The side of each image, 0 or 1: that of its family. Both sides have as many families, give or take one, also in each group
    if no family is in several, and as many images as that allows. Each repetition has other sides."""
    names, family, counts = np.unique(images.families, return_inverse=True, return_counts=True)
    lots = numpy_generator(seed, "ladder", "sides", number).permutation(len(names))
    found, taken, size = np.full(len(names), -1), np.zeros(2, np.int64), np.zeros(2, np.int64)
    for group in np.unique(images.groups):
        own, here = np.unique(family[images.groups == group]), np.zeros(2, np.int64)
        for each in own[np.lexsort((lots[own], -counts[own]))]:
            if found[each] < 0:
                full = taken >= (len(names) + 1) // 2
                side = np.lexsort((size, taken, here, full))[0]
                found[each] = side
                taken[side] += 1
                size[side] += counts[each]
            here[found[each]] += 1
    return found[family]


def _exchanged(regions: Regions) -> int:
    """How many regions an image exchanges: half of them."""
    return int(regions.max() + 1) // 2


def _partners(
    images: Images, side: Int[np.ndarray, " n"], count: int, seed: int, number: int
) -> Int[np.ndarray, "k n"]:
    """Partners of all images for each of `count` regions: of the same side, the same group and another family; of any group, where
    those are of one family.

    For each region every image is the partner of one other, where no family has more than half of the images: they stand in a
    circle, family beside family, and all go on by the same number of places. And a repetition has the same partners on every
    rung, one after another. So the draws of a rung differ less, and differences of rungs still less, than with partners at random.
    """
    order = np.lexsort((images.names, images.families))
    family = np.unique(images.families, return_inverse=True)[1]
    found = np.empty((count, len(order)), np.int64)
    for one in range(2):
        alike = order[side[order] == one]
        for group in np.unique(images.groups[alike]):
            members = alike[images.groups[alike] == group]
            lenders = alike if len(np.unique(family[members])) < 2 else members
            for region in range(count):
                generator = numpy_generator(seed, "ladder", "partners", number, one, group, region)
                partner = _others(family[lenders], generator)
                found[region, members] = lenders[partner[np.isin(lenders, members)]]
    return found


def _others(family: Int[np.ndarray, " n"], generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    """For each image the index of one of another family."""
    n, largest = len(family), int(np.bincount(family).max())
    if 2 * largest > n:  # no circle: some must lend more than once
        return np.array([generator.choice(np.flatnonzero(family != own)) for own in family])
    lots = generator.permutation(family.max() + 1)[family]
    circle = np.lexsort((generator.random(n), lots))
    found = np.empty(n, np.int64)
    found[circle] = np.roll(circle, -int(generator.integers(largest, n - largest, endpoint=True)))
    return found


def _permutation(space: CodeSpace, generator: np.random.Generator) -> Int[np.ndarray, " t"]:
    """New places for the codes within their grid; grids of one shape get the same, or depths would be exchanged too."""
    of_shape: dict[tuple[int, int], Int[np.ndarray, " l"]] = {}
    start = space.global_codes
    found = [np.arange(start)]  # global codes have no place
    for grid, length in zip(space.placed_grids, space.lengths[space.global_grids :], strict=True):
        if grid not in of_shape:
            of_shape[grid] = generator.permutation(length)
        found.append(start + of_shape[grid])
        start += length
    return np.concatenate(found)


def _partitions(space: CodeSpace) -> dict[str, list[Regions]]:
    """Of each rung but the last, the ways to divide an image into regions, numbered from 0."""
    height, width = max(space.placed_grids, key=math.prod)
    ways: dict[str, list[Callable[[int, int], tuple[int, ...]]]] = {
        "halves": [lambda y, x: (2 * y // height,), lambda y, x: (2 * x // width,)],
        "quadrants": [lambda y, x: (2 * y // height, 2 * x // width)],
        "blocks": [lambda y, x: (y // 2, x // 2)],
        "single_codes": [lambda y, x: (y, x)],
    }
    found: dict[str, list[Regions]] = {}
    for name, options in ways.items():
        divided = [_numbered(space.global_codes, [way(y, x) for y, x in _centres(space)]) for way in options]
        earlier = {tuple(regions) for of in found.values() for regions in of}
        divided = [regions for regions in divided if regions.max() > 0 and tuple(regions) not in earlier]
        if divided:
            found[name] = divided
    return found


def _centres(space: CodeSpace) -> Iterator[tuple[int, int]]:
    """Of each code of an image that has a place, that of its centre on the finest grid."""
    height, width = max(space.placed_grids, key=math.prod)
    for rows, columns in space.placed_grids:
        for row in range(rows):
            for column in range(columns):
                yield (2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // (2 * columns)


def _numbered(global_codes: int, labels: list[tuple[int, ...]]) -> Regions:
    numbers = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    return np.array([NOWHERE] * global_codes + [numbers[label] for label in labels])
