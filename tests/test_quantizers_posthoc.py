"""Quantizers fitted to the latents of a finished model: k-means, and medoids along the neighbour graph."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components, dijkstra
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs, make_moons, make_swiss_roll

from tessera import neighbour_graph
from tessera.codebooks import codebook, posthoc
from tessera.core.errors import InputError
from tessera.quantizers import geodesic, kmeans

BOTH = pytest.mark.parametrize("module", [kmeans, geodesic], ids=["kmeans", "geodesic"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, d: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d, generator=seeded(seed))


def fitted(tiny: Any, module: ModuleType, z: torch.Tensor, seed: int = 0, **values: Any) -> Any:
    quantizer = module.build(tiny(module.Config, code_dim=z.shape[1], **values), None)
    quantizer.fit(z, seeded(seed))
    return quantizer.eval()


def chosen(quantizer: Any, z: torch.Tensor) -> np.ndarray:
    """The codes of latents [N,D], by the forward pass."""
    return quantizer(z[:, :, None, None]).codes.flatten().numpy()


# both


@BOTH
def test_before_fit_all_is_zero_and_evaluation_is_refused(tiny, module):
    """No draw at construction: the autoencoder's initialisation must not depend on K."""
    before = torch.get_rng_state()
    quantizer = module.build(tiny(module.Config), None)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(value.any() for value in quantizer.state_dict().values())
    with pytest.raises(AssertionError, match="before `fit`"):
        quantizer.eval()(torch.zeros(1, 4, 1, 1))


@BOTH
def test_can_be_built_without_memory(tiny, module):
    with torch.device("meta"):
        quantizer = module.build(tiny(module.Config), 7)
    assert all(value.is_meta for value in quantizer.state_dict().values())
    assert quantizer.codebooks[0].shape == (8, 7)


@BOTH
@pytest.mark.parametrize("n", [8, 40, 300])
def test_state_has_one_shape_however_many_latents_were_fitted_to(tiny, module, n):
    quantizer, z = fitted(tiny, module, rows(n)), rows(200, seed=2)
    again = module.build(tiny(module.Config), None)
    again.load_state_dict(quantizer.state_dict())
    np.testing.assert_array_equal(chosen(quantizer, z), chosen(again.eval(), z))
    assert len(np.unique(chosen(quantizer, rows(n)))) == 8


@BOTH
def test_fit_is_decided_by_the_generator_alone(tiny, module):
    z, states = rows(300), []
    for seed, global_seed in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        states.append(fitted(tiny, module, z, seed).state_dict())
    same, other = (all(torch.equal(value, states[0][name]) for name, value in state.items()) for state in states[1:])
    assert same
    assert not other


@BOTH
def test_fit_does_not_touch_what_it_is_given(tiny, module):
    z = rows(50).requires_grad_()
    quantizer, kept = fitted(tiny, module, z), z.detach().clone()
    assert torch.equal(z.detach(), kept)
    assert not any(value.requires_grad for value in quantizer.state_dict().values())
    assert not list(quantizer.parameters())


@BOTH
def test_latents_of_half_precision_are_fitted_in_float32(tiny, module):
    half = rows(100).bfloat16()
    expected = fitted(tiny, module, half.float()).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fitted(tiny, module, half).state_dict().items())


@BOTH
@pytest.mark.parametrize(
    ("z", "message"),
    [
        (rows(7), "at least as many distinct latents as quantizer.codebook_size 8, got 7 latents; lower"),
        (
            rows(5).repeat(20, 1),
            "codebook_size 8, got 5 distinct latents among (64|100); lower quantizer.codebook_size",
        ),
        (rows(20).index_fill(0, torch.tensor([3, 5]), torch.nan), "must be finite, 2 of 20 are not; train"),
        (rows(20).index_fill(0, torch.tensor([3]), -torch.inf), "must be finite, 1 of 20 are not; train"),
    ],
)
def test_latents_that_cannot_be_fitted_to_are_refused(tiny, module, z, message):
    quantizer = module.build(tiny(module.Config), None)
    with pytest.raises(InputError, match=f"^quantizer.{module.__name__.split('.')[-1]}: .*{message}"):
        quantizer.fit(z, seeded())
    assert not any(value.any() for value in quantizer.state_dict().values())


@BOTH
def test_as_many_distinct_latents_as_codes_are_all_codes(tiny, module):
    z = rows(8)
    quantizer = fitted(tiny, module, z.repeat_interleave(5, 0))
    torch.testing.assert_close(quantizer.codes[chosen(quantizer, z)], z)


@BOTH
def test_more_codes_than_latents_are_a_problem_of_params(tiny, module):
    name = module.__name__.split(".")[-1]
    assert list(tiny(module.Config, latents=8).rule(None)) == []
    (line,) = tiny(module.Config, latents=7).rule(None)
    assert line.startswith(f"quantizer.{name}.latents: must be at least quantizer.codebook_size 8, got 7; ")


@BOTH
def test_at_most_so_many_latents_are_fitted_to(tiny, module):
    """The others, here far away, may be anything: all of them drawn, one code lies out there."""
    z = torch.cat([rows(4000), torch.full((1, 4), 1e4)])
    assert fitted(tiny, module, z, latents=64).codes.abs().max() < 10
    assert fitted(tiny, module, z[-300:], latents=300).codes.abs().max() == 1e4


def test_first_of_equal_rows():
    z = torch.tensor([[1.0, 2], [0.0, 5], [1.0, 2], [-0.0, 5], [2.0, 1]])
    assert posthoc.distinct("kmeans", z, 3).tolist() == [0, 1, 4]


# k-means


def blobs(n: int = 600, d: int = 5, k: int = 12, seed: int = 0) -> torch.Tensor:
    """They overlap, so that no cluster empties."""
    return torch.from_numpy(make_blobs(n, d, centers=k, cluster_std=3.0, random_state=seed)[0]).float()


def inertia(z: torch.Tensor, codes: torch.Tensor) -> float:
    return float(torch.cdist(z, codes).min(1).values.square().sum())


@pytest.mark.parametrize("seed", range(3))
def test_lloyd_is_scikit_learns_from_the_same_centres(seed):
    z = blobs(seed=seed)
    start = z[torch.randperm(len(z), generator=seeded(seed))[:20]]
    ours = kmeans.lloyd(z, start, 300)
    theirs = KMeans(20, init=start.numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(z.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs.cluster_centers_, atol=1e-4)
    assert inertia(z, ours) == pytest.approx(theirs.inertia_, rel=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_iterations_bound_lloyd(iterations):
    z = blobs()
    found = kmeans.lloyd(z, z[:20], iterations)
    theirs = KMeans(20, init=z[:20].numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(z.numpy())
    np.testing.assert_allclose(found.numpy(), theirs.cluster_centers_, atol=1e-4)


def test_inertia_is_that_of_scikit_learns_kmeans(tiny):
    """k-means++, one start each, mean over seeds; 3% apart at most."""
    z = blobs(n=1500, k=40)
    ours = [inertia(z, fitted(tiny, kmeans, z, s, codebook_size=40, latents=1500, iterations=300).codes)
            for s in range(5)]  # fmt: skip
    theirs = [KMeans(40, init="k-means++", n_init=1, random_state=s).fit(z.numpy()).inertia_ for s in range(5)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.03)


def test_kmeans_plus_plus_draws_by_squared_distance():
    """Two codes of three points at 0, 1 and 3, the first uniform; of 2 draws the one with the lower cost is kept (after 3
    both cost as much, and the first draw is)."""
    z, counts = torch.tensor([[0.0], [1.0], [3.0]]), {}
    for seed in range(3000):
        pair = tuple(kmeans.first_codes(z, 2, seeded(seed)).flatten().tolist())
        counts[pair] = counts.get(pair, 0) + 1 / 3000
    for first, best, worst, missed in [(0, 3, 1, 0.1**2), (1, 3, 0, 0.2**2), (3, 0, 1, 4 / 13)]:
        assert counts.get((first, worst), 0) == pytest.approx(missed / 3, abs=0.03)
        assert counts[first, best] == pytest.approx((1 - missed) / 3, abs=0.03)


def test_first_codes_are_distinct_rows():
    z = rows(30).repeat(4, 1)
    codes = kmeans.first_codes(z, 30, seeded())
    assert len(codes.unique(dim=0)) == 30
    assert all((z == code).all(1).any() for code in codes)


def test_an_emptied_cluster_moves_to_the_farthest_latent():
    """Two of four codes start where nobody is: they take the two outliers, one each though one is there twice."""
    z = torch.tensor([[0.0], [0.1], [5.0], [5.1], [30.0], [30.0], [-20.0]])
    found = kmeans.lloyd(z, torch.tensor([[0.0], [5.0], [900.0], [901.0]]), 50)
    torch.testing.assert_close(found.flatten().sort().values, torch.tensor([-20.0, 0.05, 5.05, 30.0]))


@settings(max_examples=20)
@given(st.integers(8, 60), st.integers(0, 10**6))
def test_every_code_is_the_mean_of_the_latents_that_choose_it(n, seed):
    """Also from equal centres, all but one of them empty."""
    z = rows(n, 2, seed)
    codes = kmeans.lloyd(z, z[:1].repeat(8, 1), 200)
    counts, sums = codebook.statistics(z, codebook.nearest(z, codes), 8)
    assert (counts > 0).all()
    torch.testing.assert_close(sums / counts[:, None], codes, atol=1e-5, rtol=1e-5)


# distances along the graph


def whole_graph(points: np.ndarray, k: int) -> Any:
    return neighbour_graph.joined(points, neighbour_graph.neighbour_graph(points, k))[0]


def test_neighbour_graph_by_brute_force():
    points, k = rows(40, 3).numpy(), 4
    lengths = np.linalg.norm(points[:, None].astype(float) - points, axis=2)
    near = lengths <= np.sort(lengths, 1)[:, k : k + 1]  # itself is the first of the row
    expected = np.where(near | near.T, lengths, 0)
    np.testing.assert_allclose(neighbour_graph.neighbour_graph(points, k).toarray(), expected, rtol=1e-12)


def test_distances_on_a_circle_are_arcs():
    """400 points on a circle of radius 3: within 1% of the arc, where the chord is up to 36% short."""
    angles = (np.arange(400) + np.random.default_rng(0).uniform(-0.4, 0.4, 400)) * 2 * np.pi / 400
    points = 3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    turns = np.abs(angles[:, None] - angles)
    arcs = 3 * np.minimum(turns, 2 * np.pi - turns)
    np.testing.assert_allclose(dijkstra(whole_graph(points, 6)), arcs, rtol=0.01, atol=1e-9)


def swiss_roll(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N,3] on (t cos t, y, t sin t), and unrolled [N,2]: the length of the spiral up to t, and y."""
    points, t = make_swiss_roll(n, random_state=0)
    return points, np.stack([(t * np.sqrt(1 + t**2) + np.arcsinh(t)) / 2, points[:, 1]], 1)


def test_distances_on_a_swiss_roll_are_those_of_the_unrolled_plane():
    """3000 points, 10 neighbours: 4% over on average, 99% of pairs at most 10%; in space half are a third nearer or more."""
    points, plane = swiss_roll(3000)
    sources = np.arange(0, 3000, 60)
    exact = np.linalg.norm(plane[sources, None] - plane, axis=2)
    far = exact > 10
    ratio = (dijkstra(whole_graph(points, 10), indices=sources) / np.maximum(exact, 1e-9))[far]
    assert ratio.mean() == pytest.approx(1.04, abs=0.01)
    assert ((ratio > 0.999) & (ratio < 1.1)).mean() > 0.99
    straight = np.linalg.norm(points[sources, None] - points, axis=2)[far] / exact[far]
    assert np.median(straight) < 0.67


def test_components_are_joined_by_their_shortest_links():
    """Three groups on a line and one above: a minimum spanning tree by hand."""
    points = np.array([[0, 0], [1, 0], [10, 0], [11, 0], [30, 0], [31, 0], [11, 6], [12, 6]])
    apart = neighbour_graph.neighbour_graph(points, 1)
    assert connected_components(apart)[0] == 4
    joined, sizes = neighbour_graph.joined(points, apart)
    assert sizes == [2, 2, 2, 2]
    links = (joined - apart).tocoo()
    links.eliminate_zeros()
    assert {(i, j) for i, j in zip(links.row, links.col, strict=True) if i < j} == {(1, 2), (3, 6), (4, 7)}
    np.testing.assert_allclose(joined[1, 2], 9)
    np.testing.assert_allclose(joined[7, 4], np.hypot(18, 6))
    assert (joined != joined.T).nnz == 0


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 10**6))
def test_a_joined_graph_is_connected_by_the_least_length(n, k, seed):
    """The links weigh as much as those of a minimum spanning tree of all points in which the edges of the graph are free."""
    points = np.random.default_rng(seed).normal(size=(n, 2))
    apart = neighbour_graph.neighbour_graph(points, k)
    joined, sizes = neighbour_graph.joined(points, apart)
    assert sum(sizes) == n
    assert connected_components(joined)[0] == 1
    labels, paid = connected_components(apart)[1], 0.0
    pairs = sorted(itertools.combinations(range(n), 2), key=lambda p: np.linalg.norm(points[p[0]] - points[p[1]]))
    for i, j in pairs:  # Kruskal
        if labels[i] != labels[j]:
            paid += np.linalg.norm(points[i] - points[j])
            labels[labels == labels[j]] = labels[i]
    assert (joined.sum() - apart.sum()) / 2 == pytest.approx(paid)


def test_latents_that_nearly_coincide_stay_joined():
    """Their distance is lost in |a|^2 - 2ab + |b|^2, and an edge of length 0 is none."""
    points = np.float32(1000) + np.array([[0], [2**-13], [2**-12], [1], [2]], np.float32)
    distances = dijkstra(whole_graph(points, 1))
    np.testing.assert_allclose(distances, np.abs(points - points.T), rtol=1e-6)


# medoids


@pytest.mark.parametrize("seed", range(5))
def test_medoids_by_brute_force(seed):
    """One iteration from the same seeds, by all shortest paths within each cell."""
    points = np.random.default_rng(seed).normal(size=(40, 2))
    whole = whole_graph(points, 3)
    medoids = geodesic.seeds(whole, 5, np.random.default_rng(seed))
    every = dijkstra(whole)
    codes = every[medoids].argmin(0)
    expected = []
    for code in range(5):
        members = np.flatnonzero(codes == code)
        costs = (dijkstra(whole.toarray()[np.ix_(members, members)]) ** 2).sum(1)
        stays = costs[members == medoids[code]] == costs.min()  # of two members neither is the better one
        expected.append(medoids[code] if stays else members[costs.argmin()])
    found = geodesic.k_medoids(whole, medoids, 1)
    np.testing.assert_array_equal(found.medoids, expected)
    np.testing.assert_array_equal(found.cells.codes, every[expected].argmin(0))
    np.testing.assert_allclose(found.cells.distances, every[expected].min(0))


@pytest.mark.parametrize("seed", range(5))
def test_the_medoid_of_one_cell_is_the_best_of_all_nodes(seed):
    whole = whole_graph(np.random.default_rng(seed).normal(size=(30, 2)), 3)
    costs = (dijkstra(whole) ** 2).sum(1)
    found = geodesic.k_medoids(whole, np.array([7]), 9)
    assert found.medoids.tolist() == [costs.argmin()]
    np.testing.assert_allclose(found.costs, [costs[7], costs.min()])


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_never_rises_and_the_medoids_stop(seed):
    points = np.random.default_rng(seed).normal(size=(300, 3))
    whole = whole_graph(points, 5)
    found = geodesic.k_medoids(whole, geodesic.seeds(whole, 12, np.random.default_rng(seed)), 1000)
    assert 2 < len(found.costs) < 50
    assert (np.diff(found.costs) < 0).all()
    again = geodesic.k_medoids(whole, found.medoids, 1000)
    np.testing.assert_array_equal(again.medoids, found.medoids)
    for medoid, code in zip(found.medoids, range(12), strict=True):  # a member of its own cell
        assert found.cells.codes[medoid] == code
        assert found.cells.distances[medoid] == 0
    assert len(geodesic.k_medoids(whole, geodesic.seeds(whole, 12, np.random.default_rng(seed)), 2).costs) == 3


def test_on_a_grid_of_ties_the_medoids_stop_too():
    points = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2)
    whole = whole_graph(points, 4)
    for seed in range(5):
        found = geodesic.k_medoids(whole, geodesic.seeds(whole, 7, np.random.default_rng(seed)), 1000)
        assert len(found.costs) < 50
        assert (np.diff(found.costs) <= 1e-9).all()


def test_seeds_are_drawn_by_squared_graph_distance():
    """Nodes at 0, 1 and 3 of a line, second seed given the first: (d1^2, d2^2) in proportion."""
    whole = whole_graph(np.array([[0.0], [1.0], [3.0]]), 1)
    pairs = [tuple(geodesic.seeds(whole, 2, np.random.default_rng(seed))) for seed in range(3000)]
    for first, second, p in [(0, 2, 0.9), (0, 1, 0.1), (1, 2, 0.8), (2, 0, 9 / 13)]:
        assert pairs.count((first, second)) / 3000 == pytest.approx(p / 3, abs=0.03)
    assert sorted(geodesic.seeds(whole, 3, np.random.default_rng(0))) == [0, 1, 2]


# the geodesic quantizer


def test_geodesic_cells_follow_the_roll_where_kmeans_cells_cut_through_it(tiny):
    """10 codes on 1500 latents of a swiss roll: how far apart along it are two latents of one code?"""
    points, plane = swiss_roll(1500)
    z, spread = torch.from_numpy(points).float(), {}
    for module in (geodesic, kmeans):
        values = {"neighbours": 8} if module is geodesic else {}
        codes = chosen(fitted(tiny, module, z, codebook_size=10, latents=1500, iterations=50, **values), z)
        spread[module] = max(np.ptp(plane[codes == code, 0]) for code in range(10))
    assert spread[geodesic] < 30
    assert spread[kmeans] > 70


def test_geodesic_cells_do_not_mix_interleaved_arcs(tiny, capsys):
    """Two arcs are two components: named, joined by one link, and each code stays on one arc."""
    points, arc = make_moons(500, noise=0.05, random_state=0)
    z = torch.from_numpy(points).float()
    codes = chosen(fitted(tiny, geodesic, z, latents=500, neighbours=8), z)
    assert capsys.readouterr().out == (
        "geodesic: the 8-nearest-neighbour graph of 500 latents has 2 components (250, 250 nodes); "
        "joined by their shortest links\n"
    )
    assert len(np.unique(codes)) == 8
    assert all(len(np.unique(arc[codes == code])) == 1 for code in range(8))


def test_a_connected_graph_needs_no_word(tiny, capsys):
    fitted(tiny, geodesic, rows(200), latents=200, neighbours=10)
    assert capsys.readouterr().out == ""


def test_many_components_are_named_in_one_line(tiny, capsys):
    """Also fewer components than codes keep all their codes."""
    z = (torch.arange(12.0) * 100).repeat_interleave(3)[:, None] + torch.arange(3.0).repeat(12)[:, None]
    quantizer = fitted(tiny, geodesic, z, neighbours=2)
    assert "36 latents has 12 components (3, 3, 3, 3, 3, 3, 3, 3, ... nodes)" in capsys.readouterr().out
    assert len(np.unique(chosen(quantizer, z))) == 8


@pytest.mark.parametrize("n", [20, 64, 200])
def test_codes_are_nodes_and_nodes_have_the_codes_of_the_fit(tiny, n):
    z = rows(n)
    quantizer = fitted(tiny, geodesic, z)
    used = min(n, 64)
    nodes, codes = quantizer.nodes[:used], quantizer.node_codes[:used]
    assert len(nodes.unique(dim=0)) == used
    assert all((z == node).all(1).any() for node in nodes)
    assert quantizer.node_distances[used:].isinf().all()
    np.testing.assert_array_equal(chosen(quantizer, nodes), codes.numpy())
    assert chosen(quantizer, quantizer.codes).tolist() == list(range(8))
    whole = whole_graph(nodes.numpy(), 5)
    medoids = [int((nodes == code).all(1).nonzero()) for code in quantizer.codes]
    expected = geodesic.cells(whole, np.array(medoids))
    np.testing.assert_array_equal(codes.numpy(), expected.codes)
    np.testing.assert_allclose(quantizer.node_distances[:used].numpy(), expected.distances, rtol=1e-6)


def test_nodes_have_their_codes_also_where_two_medoids_are_equally_far(tiny):
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).reshape(-1, 2)
    quantizer = fitted(tiny, geodesic, grid / 3, neighbours=4)
    np.testing.assert_array_equal(chosen(quantizer, quantizer.nodes), quantizer.node_codes.numpy())


@pytest.mark.parametrize(("neighbours", "n", "chunk"), [(5, 64, 1 << 22), (1, 64, 70), (5, 30, 200), (90, 20, 1 << 22)])
def test_unseen_latents_get_the_code_of_a_node_put_in_their_place(tiny, monkeypatch, neighbours, n, chunk):
    """The graph with the latent inserted, shortest paths from every medoid; whatever is held in memory at once."""
    monkeypatch.setattr(codebook, "CHUNK", chunk)
    quantizer, unseen = fitted(tiny, geodesic, rows(n, 3), neighbours=neighbours), rows(60, 3, seed=9)
    nodes = quantizer.nodes[:n].numpy().astype(float)
    medoids = [int((quantizer.nodes[:n] == code).all(1).nonzero()) for code in quantizer.codes]
    plain, found = whole_graph(nodes, neighbours).toarray(), chosen(quantizer, unseen)
    for z, code in zip(unseen.numpy().astype(float), found, strict=True):
        lengths = np.linalg.norm(nodes - z, axis=1)
        edges = np.where(lengths <= np.sort(lengths)[: min(neighbours, n)][-1], lengths, 0)
        inserted = np.block([[plain, edges[:, None]], [edges[None], np.zeros((1, 1))]])
        distances = dijkstra(inserted, indices=medoids)[:, -1]
        assert distances[code] == pytest.approx(distances.min(), abs=1e-5)


def test_far_from_the_origin_the_codes_are_the_same(tiny):
    """|x|^2 - 2 z.x of latents at 4096 rounds by more than the nodes are apart; all values here are exact in float32."""
    z, unseen = (rows(64) * 256).round() / 256, (rows(60, seed=9) * 256).round() / 256
    near, far = fitted(tiny, geodesic, z), fitted(tiny, geodesic, z + 4096)
    torch.testing.assert_close(far.nodes, near.nodes + 4096, atol=0, rtol=0)
    np.testing.assert_array_equal(chosen(near, unseen), chosen(far, unseen + 4096))
