"""Geodesic quantization: k-medoids of latents by shortest paths on their k-nearest-neighbour graph.

Latents of an autoencoder lie on a curved manifold: two latents that are near in space can be far apart along it. Graph
distances approximate geodesics as in Isomap (Tenenbaum, de Silva & Langford 2000). Yang et al. 2018 (arXiv 1809.04747)
cluster latents by geodesics of the decoder's metric; here the metric is Euclidean between latents. Post-hoc, like `kmeans`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tessera.codebooks import codebook, posthoc
from tessera.core.contracts import PostHocQuantizer, Quantized
from tessera.core.params import Strict
from tessera.neighbour_graph import joined, neighbour_graph

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from tessera.core.params import Params

SPARE = 8  # extra candidates, so that no true neighbour is lost to rounding

POST_HOC = True  # fitted to the latents of a finished autoencoder, by `fit`


class Config(Strict):
    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    latents: int = Field(
        ge=2, description="most nodes of the graph: distinct latents, sampled at random", examples=[64]
    )
    neighbours: int = Field(ge=1, description="k, the nearest nodes that a node or a new latent is joined to",
                            examples=[5])  # fmt: skip
    iterations: int = Field(ge=1, description="most iterations of k-medoids", examples=[10])

    def rule(self, params: Params) -> Iterator[str]:
        yield from posthoc.rule("geodesic", self.latents, self.codebook_size)


class Geodesic(nn.Module):
    """The nodes of the graph are latents, and the code vectors are medoids among them. A node has the code of the medoid
    that is nearest along the graph. It is joined to its `neighbours` nearest nodes, and to the nodes that have it as a
    neighbour.

    Any other latent z is joined to its `neighbours` nearest nodes x_j by edges of length |z - x_j|. It gets the code of the
    x_j with the smallest |z - x_j| + (graph distance of x_j to its medoid).

    Buffers, zeros until `fit`: `codes` [K,D]; `nodes` [latents,D]; `node_codes` [latents]; `node_distances` [latents], along
    the graph to the medoids; `fitted`. If there are fewer latents than nodes, the last rows are unused and have infinite
    distance.
    """

    codes: Tensor
    nodes: Tensor
    node_codes: Tensor
    node_distances: Tensor
    fitted: Tensor

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)
        self.register_buffer("codes", torch.zeros(config.codebook_size, dim))
        self.register_buffer("nodes", torch.zeros(config.latents, dim))
        self.register_buffer("node_codes", torch.zeros(config.latents, dtype=torch.int64))
        self.register_buffer("node_distances", torch.zeros(config.latents))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, latents: Float[Tensor, "n d"], generator: Generator) -> None:
        """Runs on the CPU. Prints a line if the graph is not connected.

        Raises:
            InputError: there are fewer distinct latents than codes, or some are not finite. Nothing is changed then.
        """
        k = self.config.codebook_size
        rows = posthoc.checked("geodesic", latents, k)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # distinct latents, before the cut: a sparse graph cannot hold an edge of length 0
        rows = rows[posthoc.distinct("geodesic", rows, k)[: self.config.latents]]
        rng = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=generator)))
        whole = self._graph(rows.numpy())
        medoids, found, _ = k_medoids(whole, seeds(whole, k, rng), self.config.iterations)
        self.codes.copy_(rows[torch.from_numpy(medoids)])
        for buffer, values in (
            (self.nodes, rows),
            (self.node_codes, found.codes),
            (self.node_distances, found.distances),
        ):
            buffer.zero_()[: len(rows)] = torch.as_tensor(values).to(buffer)
        self.node_distances[len(rows) :] = torch.inf
        self.fitted.fill_(True)

    def _graph(self, points: Float[np.ndarray, "n d"]) -> csr_array:
        whole, sizes = joined(points, neighbour_graph(points, self.config.neighbours))
        if len(sizes) > 1:
            shown = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
            print(
                f"geodesic: the {self.config.neighbours}-nearest-neighbour graph of {len(points)} latents has {len(sizes)} "
                f"components ({shown} nodes); joined by their shortest links",
                flush=True,
            )
        return whole

    def assign(self, z: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The code of each latent by the rule of the class. A latent that equals a node has that node's code."""
        centre = codebook.centre(self.codes)
        nodes = self.nodes - centre
        half = torch.where(self.node_distances.isinf(), torch.inf, 0.5 * nodes.square().sum(1))
        rows = max(1, codebook.CHUNK // len(nodes))
        found = []
        for part in z.split(rows):
            scores = torch.addmm(half, part - centre, nodes.t(), alpha=-1)  # see codebook.nearest
            candidates = scores.topk(min(self.config.neighbours + SPARE, len(nodes)), largest=False, sorted=False)
            found.append(self._code(part, candidates.indices))
        return torch.cat(found)

    def _code(self, z: Float[Tensor, "n d"], candidates: Int[Tensor, "n c"]) -> Int[Tensor, " n"]:
        lengths = (z[:, None] - F.embedding(candidates, self.nodes)).square().sum(2).sqrt()
        lengths = torch.where(self.node_distances[candidates].isinf(), torch.inf, lengths)
        lengths, order = lengths.topk(min(self.config.neighbours, lengths.shape[1]), largest=False)
        near = candidates.gather(1, order)
        # a node keeps its own code: if two medoids are equally far, rounding must not decide
        paths = torch.where(lengths == 0, -1, lengths + self.node_distances[near])
        return self.node_codes[near.gather(1, paths.argmin(1, keepdim=True))[:, 0]]

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (self.codes,)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codes).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        assert self.training or self.fitted, "geodesic quantizes nothing before `fit`"
        with torch.autocast(z.device.type, enabled=False):  # half precision would give other codes
            b, d, h, w = z.shape
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, d)
            chosen = self.assign(rows.detach())
            z_q = codebook.straight_through(rows, F.embedding(chosen, self.codes))
        return Quantized(z_q.view(b, h, w, d).permute(0, 3, 1, 2), chosen.view(b, 1, h, w), {})


# k-medoids along a graph, without torch


class Cells(NamedTuple):
    """The code of each point (its nearest medoid along the graph) and its graph distance to that medoid."""

    codes: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]


class Clustering(NamedTuple):
    medoids: Int[np.ndarray, " k"]
    cells: Cells
    costs: list[float]  # sum of squared distances to the medoids, initially and after each iteration; never rises


def cells(graph: csr_array, medoids: Int[np.ndarray, " k"]) -> Cells:
    """The Voronoi cells of the medoids along a connected graph; each medoid lies in its own cell."""
    from scipy.sparse.csgraph import dijkstra

    distances, _, sources = dijkstra(graph, indices=medoids, min_only=True, return_predecessors=True)
    code = np.full(graph.shape[0], -1)
    code[medoids] = np.arange(len(medoids))
    return Cells(code[sources], distances)


def seeds(graph: csr_array, k: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """K distinct points of a connected graph by k-means++ (Arthur & Vassilvitskii 2007) with graph distances."""
    from scipy.sparse.csgraph import dijkstra

    chosen = [int(rng.integers(graph.shape[0]))]
    distances = dijkstra(graph, indices=chosen[0])
    for _ in range(k - 1):
        squares = distances**2
        chosen.append(int(rng.choice(len(squares), p=squares / squares.sum())))
        reach = distances.max()  # points farther than this are nearer to another seed, so the search can stop
        distances = np.minimum(distances, dijkstra(graph, indices=chosen[-1], limit=reach))
    return np.array(chosen)


def k_medoids(graph: csr_array, medoids: Int[np.ndarray, " k"], iterations: int) -> Clustering:
    """Starts from `medoids` and alternates: assign points to cells, then find the best medoid of each cell. Stops when no
    medoid moves, or after `iterations`.

    The cost cannot rise. All points on the shortest path from x to its medoid m have the same nearest medoid, so the path
    lies in the cell: distances to m within the cell equal those on the whole graph. A member m' with a smaller sum of
    squares within the cell has no larger sum on the whole graph, which only adds paths. Assigning each point anew to its
    nearest medoid cannot raise the cost either.
    """
    found = cells(graph, medoids)
    costs, touched = [float(np.square(found.distances).sum())], np.arange(len(medoids))
    for _ in range(iterations):
        better = _best_medoids(graph, medoids, found.codes, touched)
        if np.array_equal(better, medoids):
            break
        before, medoids = found.codes, better
        found = cells(graph, medoids)
        costs.append(float(np.square(found.distances).sum()))
        moved = before != found.codes
        touched = np.union1d(before[moved], found.codes[moved])  # a cell with unchanged members keeps its best medoid
    return Clustering(medoids, found, costs)


def _best_medoids(
    graph: csr_array, medoids: Int[np.ndarray, " k"], codes: Int[np.ndarray, " n"], touched: Int[np.ndarray, " c"]
) -> Int[np.ndarray, " k"]:
    """For each touched cell, the member with the smallest sum of squared shortest paths within the cell, computed exactly.
    On a tie the present medoid stays: otherwise tied members could alternate for ever."""
    from scipy.sparse.csgraph import dijkstra

    better = medoids.copy()
    for code in touched:
        members = np.flatnonzero(codes == code)
        costs = np.square(dijkstra(graph[members][:, members])).sum(1)
        best = costs.argmin()
        if costs[best] < costs[np.searchsorted(members, medoids[code])]:
            better[code] = members[best]
    return better


def build(config: Config, dim: int | None) -> PostHocQuantizer:
    """`dim`: channels of the latents if the tokenizer fixes them; None: `code_dim`."""
    return Geodesic(config, config.code_dim if dim is None else dim)
