"""Distances along a set of points: shortest paths on its k-nearest-neighbour graph, and k-medoids by them. No torch.

The length of the shortest path on the graph estimates the geodesic distance on the manifold that the points lie on
(Isomap: Tenenbaum, de Silva & Langford 2000). Points [N,D] are distinct; a graph is symmetric, sparse [N,N], its entries
Euclidean lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Cells(NamedTuple):
    """The code of each point (which medoid is nearest along the graph) and its graph distance to that medoid."""

    codes: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]


class Clustering(NamedTuple):
    medoids: Int[np.ndarray, " k"]
    cells: Cells
    costs: list[float]  # sum of squared distances to the medoids, at the start and after each iteration; never rises


def neighbour_graph(points: Float[np.ndarray, "n d"], k: int) -> csr_array:
    """An edge between two points where one is among the k nearest of the other. It may be disconnected."""
    from sklearn.neighbors import NearestNeighbors

    points = np.asarray(points, np.float64)
    # a tree compares differences; the matrix product of `brute` rounds, and not the same on every machine
    near = NearestNeighbors(n_neighbors=min(k, len(points) - 1), algorithm="kd_tree").fit(points)
    found = near.kneighbors(return_distance=False)
    return _edges(points, np.repeat(np.arange(len(points)), found.shape[1]), found.ravel())


def joined(points: Float[np.ndarray, "n d"], graph: csr_array) -> tuple[csr_array, list[int]]:
    """The graph with its components joined by their shortest links, and how many points each had, largest first.

    Of the shortest Euclidean links between each two components those are taken that form a minimum spanning tree: the least
    length that connects them. A tree closes no ring: a closed curve that fell into pieces stays open at one of its gaps.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
    from scipy.spatial import KDTree

    points = np.asarray(points, np.float64)
    count, labels = connected_components(graph, directed=False)
    ends = np.zeros((count, count, 2), np.int64)
    lengths = np.zeros((count, count))
    for one in range(count - 1):
        inside, outside = np.flatnonzero(labels == one), np.flatnonzero(labels > one)
        length, near = KDTree(points[inside]).query(points[outside])
        order = np.argsort(length, kind="stable")
        others, first = np.unique(labels[outside[order]], return_index=True)  # the first of a component is its nearest
        shortest = order[first]
        lengths[one, others] = length[shortest]
        ends[one, others] = np.stack([inside[near[shortest]], outside[shortest]], 1)
    tree = minimum_spanning_tree(coo_array(lengths).tocsr()).tocoo()
    links = ends[tree.row, tree.col]
    whole = graph.maximum(_edges(points, links[:, 0], links[:, 1]))
    return whole, sorted(np.bincount(labels).tolist(), reverse=True)


def _edges(points: Float[np.ndarray, "n d"], start: Int[np.ndarray, " e"], end: Int[np.ndarray, " e"]) -> csr_array:
    """Lengths from the differences themselves: never 0 between distinct points, where a sparse graph has no edge."""
    from scipy.sparse import coo_array

    lengths = np.linalg.norm(points[start] - points[end], axis=1)
    one_way = coo_array((lengths, (start, end)), shape=(len(points), len(points))).tocsr()
    return one_way.maximum(one_way.T).tocsr()


def cells(graph: csr_array, medoids: Int[np.ndarray, " k"]) -> Cells:
    """The Voronoi cells of the medoids along a connected graph; each medoid lies in its own."""
    from scipy.sparse.csgraph import dijkstra

    distances, _, sources = dijkstra(graph, indices=medoids, min_only=True, return_predecessors=True)
    code = np.full(graph.shape[0], -1)
    code[medoids] = np.arange(len(medoids))
    return Cells(code[sources], distances)


def seeds(graph: csr_array, k: int, draws: np.random.Generator) -> Int[np.ndarray, " k"]:
    """K distinct points of a connected graph by k-means++ (Arthur & Vassilvitskii 2007) with graph distances."""
    from scipy.sparse.csgraph import dijkstra

    chosen = [int(draws.integers(graph.shape[0]))]
    distances = dijkstra(graph, indices=chosen[0])
    for _ in range(k - 1):
        squares = distances**2
        chosen.append(int(draws.choice(len(squares), p=squares / squares.sum())))
        reach = distances.max()  # farther points are nearer to another seed: the search stops there
        distances = np.minimum(distances, dijkstra(graph, indices=chosen[-1], limit=reach))
    return np.array(chosen)


def k_medoids(graph: csr_array, medoids: Int[np.ndarray, " k"], iterations: int) -> Clustering:
    """From `medoids`: points to cells, then to each cell its best medoid, until no medoid moves, or `iterations` times.

    The cost cannot rise. The points on the shortest path from x to its medoid m have the same nearest medoid, so the path
    lies in the cell, and within the cell m has the very distances it has on the whole graph. A member m' with a lesser sum
    of squares within the cell has no greater one on the whole graph, where there are only more paths; and assigning each
    point anew to its nearest medoid lowers the cost further, if it changes it.
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
        touched = np.union1d(before[moved], found.codes[moved])  # a cell of the same members has the same best medoid
    return Clustering(medoids, found, costs)


def _best_medoids(
    graph: csr_array, medoids: Int[np.ndarray, " k"], codes: Int[np.ndarray, " n"], touched: Int[np.ndarray, " c"]
) -> Int[np.ndarray, " k"]:
    """The member of each touched cell with the least sum of squared shortest paths within the cell, exactly; where another
    is only as good, the medoid stays, or equals would take turns for ever."""
    from scipy.sparse.csgraph import dijkstra

    better = medoids.copy()
    for code in touched:
        members = np.flatnonzero(codes == code)
        costs = np.square(dijkstra(graph[members][:, members])).sum(1)
        best = costs.argmin()
        if costs[best] < costs[np.searchsorted(members, medoids[code])]:
            better[code] = members[best]
    return better
