"""The k-nearest-neighbour graph of a set of points, for geodesic distances. No torch.

The length of the shortest path on the graph estimates the geodesic distance on the manifold of the points (Isomap: Tenenbaum,
de Silva & Langford 2000). Points [N,D] must be distinct. A graph is a symmetric sparse matrix [N,N] of Euclidean edge lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def neighbour_graph(points: Float[np.ndarray, "n d"], k: int) -> csr_array:
    """The graph with an edge between two points if one is among the k nearest of the other. It may be disconnected."""
    from sklearn.neighbors import NearestNeighbors

    points = np.asarray(points, np.float64)
    # a tree compares differences; the matrix product of `brute` rounds differently on different machines
    near = NearestNeighbors(n_neighbors=min(k, len(points) - 1), algorithm="kd_tree").fit(points)
    found = near.kneighbors(return_distance=False)
    return _edges(points, np.repeat(np.arange(len(points)), found.shape[1]), found.ravel())


def joined(points: Float[np.ndarray, "n d"], graph: csr_array) -> tuple[csr_array, list[int]]:
    """The graph with its components joined by their shortest links, and the number of points per component, largest first.

    The candidates are the shortest Euclidean links between every two components; the links of a minimum spanning tree are added,
    which is the smallest total length that connects all. A tree has no cycle, so a closed curve in pieces stays open at one gap.
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
        others, first = np.unique(labels[outside[order]], return_index=True)  # first of a component: its nearest
        shortest = order[first]
        lengths[one, others] = length[shortest]
        ends[one, others] = np.stack([inside[near[shortest]], outside[shortest]], 1)
    tree = minimum_spanning_tree(coo_array(lengths).tocsr()).tocoo()
    links = ends[tree.row, tree.col]
    whole = graph.maximum(_edges(points, links[:, 0], links[:, 1]))
    return whole, sorted(np.bincount(labels).tolist(), reverse=True)


def _edges(points: Float[np.ndarray, "n d"], start: Int[np.ndarray, " e"], end: Int[np.ndarray, " e"]) -> csr_array:
    """Edges with lengths from coordinate differences: never 0 for distinct points; a sparse graph has no edge where it is 0."""
    from scipy.sparse import coo_array

    lengths = np.linalg.norm(points[start] - points[end], axis=1)
    one_way = coo_array((lengths, (start, end)), shape=(len(points), len(points))).tocsr()
    return one_way.maximum(one_way.T).tocsr()
