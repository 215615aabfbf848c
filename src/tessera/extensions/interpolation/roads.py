"""Interpolation along training images: shortest paths on the nearest-neighbour graph of their z_q (Isomap: Tenenbaum, de
Silva & Langford 2000)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tessera import neighbour_graph
from tessera.core.contracts import Device, Tokenizer
from tessera.extensions.interpolation.paths import Ends, decoded
from tessera.features import neighbours
from tessera.images import arrays

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BATCH = 256  # images whose z_q are looked up at once
DIRECTIONS = 64  # most principal directions: in more dimensions the search tree for neighbours compares all pairs


class Roads(NamedTuple):
    """A graph of the training images `rows`, with one point for each distinct z_q; `place` maps further codes to points."""

    pixels: UInt8[np.ndarray, "n h w c"]
    rows: Int[np.ndarray, " p"]
    points: Float[np.ndarray, "p d"]
    edges: csr_array | None
    place: Callable[[Int[np.ndarray, "m t"]], Float[np.ndarray, "m d"]]


def training_roads(
    tokenizer: Tokenizer, pixels: UInt8[np.ndarray, "n h w c"], codes: Int[np.ndarray, "n t"], count: int, k: int,
    seed: int, device: Device,
) -> Roads:  # fmt: skip
    """The graph of at most `count` images, each joined to its `k` nearest. Points are z_q in its principal directions (randomised
    PCA with `seed`), where distances are nearly those of z_q itself."""
    from sklearn.decomposition import PCA

    def flat(codes: Int[np.ndarray, "m t"]) -> Float[np.ndarray, "m f"]:
        parts = (torch.from_numpy(codes[where]).long() for where in arrays.batches(len(codes), BATCH))
        found = (tokenizer.vectors(part.to(device)) for part in parts)
        return np.concatenate([torch.cat([z.flatten(1) for z in levels], 1).cpu().numpy() for levels in found])

    rows = arrays.evenly(len(codes), count)
    vectors = flat(codes[rows])
    directions = PCA(min(DIRECTIONS, *vectors.shape), svd_solver="randomized", random_state=seed).fit(vectors)
    points, first = np.unique(directions.transform(vectors), axis=0, return_index=True)  # distinct points
    edges = None
    if len(points) > 1:
        edges, _ = neighbour_graph.joined(points, neighbour_graph.neighbour_graph(points, k))
    return Roads(pixels, rows[first], points, edges, lambda codes: directions.transform(flat(codes)))


def learned(tokenizer: Tokenizer, ends: Ends, fraction: Tensor, *, roads: Roads) -> Float[Tensor, "frames c h w"]:
    """Goes from the first image to its nearest training image, along the graph to the training image nearest to the last, and
    to the last image. z is blended on each edge, at constant speed over the whole path."""
    first, last = neighbours.nearest(roads.place(ends.codes.cpu().numpy()), roads.points)[0]
    visited = shortest(roads.edges, first, last)
    between = tokenizer.latents(arrays.to_model(roads.pixels[roads.rows[visited]], fraction.device))
    stops = [torch.cat([z[:1], middle, z[1:]]) for z, middle in zip(ends.z, between, strict=True)]
    squares = [z.diff(dim=0).double().square().flatten(1).sum(1) for z in stops]
    stretch = sum(squares[1:], start=squares[0]).sqrt()
    way = torch.cat([stretch.new_zeros(1), stretch.cumsum(0)])
    reached = fraction.double() * way[-1]
    start = (torch.searchsorted(way, reached, right=True) - 1).clamp(0, len(stretch) - 1)
    part = ((reached - way[start]) / stretch[start].clamp(min=1e-12)).clamp(0, 1).float()[:, None, None, None]
    return decoded(tokenizer, tuple(torch.lerp(z[start], z[start + 1], part) for z in stops))


def shortest(edges: csr_array, first: int, last: int) -> list[int]:
    """The points on the shortest path in a connected graph, both ends included."""
    from scipy.sparse.csgraph import dijkstra

    before = dijkstra(edges, indices=first, return_predecessors=True)[1]
    path = [int(last)]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    return path[::-1]
