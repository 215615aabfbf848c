"""The k-nearest-neighbour graph of a set of points, along which distances are measured. No torch.

The length of the shortest path on the graph estimates the geodesic distance on the manifold that the points lie on
(Isomap: Tenenbaum, de Silva & Langford 2000). Points [N,D] are distinct; a graph is symmetric, sparse [N,N], its entries
Euclidean lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array


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
