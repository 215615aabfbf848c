"""Every way from one image to another: where it begins and ends, and what lies between."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example
from kinds import KINDS, LEVELS, apart, run_of

from tessera import scores
from tessera.extensions import interpolation
from tessera.extensions.interpolation import paths
from tessera.extensions.interpolation.roads import learned, shortest
from tessera.images import arrays

MODES = ["index", "embedding", "latent", "slerp", "hierarchical", "prior", "learned"]
CONFIG = example(interpolation.Config)


@pytest.fixture
def run(raw, tiny_run, runtime):
    """`run("vqvae2")`: on the tiny data set, with a tokenizer of that kind."""
    raw["extensions"]["interpolation"] = CONFIG.model_dump()
    tiny_run()
    return lambda kind="vqvae": run_of(kind, raw, runtime, "interpolation")


def ways(run, rows=None):
    """Tokenizer, two test images as `Ends`, and the ways that it has."""
    tokenizer = run.tokenizer()
    with torch.no_grad():
        ends = interpolation.loaded(CONFIG, run, tokenizer, [("test", row) for row in rows or apart(run)])
        return tokenizer, ends, interpolation.available(CONFIG, run, tokenizer)[0]


def spread(*values: float) -> torch.Tensor:
    return torch.tensor(values)


# ends


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_way_goes_from_one_reconstruction_to_the_other(run, kind):
    tokenizer, ends, walks = ways(run(kind))
    assert set(walks) == set(MODES) - ({"hierarchical"} if kind not in LEVELS else set())
    expected = arrays.to_pixels(tokenizer.decode(ends.codes)).astype(int)
    for mode, walk in walks.items():
        frames = arrays.to_pixels(walk(tokenizer, ends, torch.linspace(0, 1, 4)))
        assert frames.shape == (4, 8, 8, 3), mode
        assert abs(frames[[0, -1]].astype(int) - expected).max() <= 1, mode  # rounding of 8-bit values


@torch.no_grad()
def test_an_image_to_itself_stays(run):
    """But for `learned`, which visits the nearest training image."""
    tokenizer, ends, walks = ways(run("vqvae2"), rows=(0, 0))
    for mode in set(walks) - {"learned"}:
        frames = walks[mode](tokenizer, ends, torch.linspace(0, 1, 4))
        assert abs(arrays.to_pixels(frames).astype(int) - arrays.to_pixels(frames[:1])).max() <= 1, mode


# between


@torch.no_grad()
def test_index_rounds_indices(run):
    tokenizer, ends, _ = ways(run())
    ends = ends._replace(codes=torch.stack([torch.zeros(16, dtype=int), torch.full((16,), 7)]))
    frames = paths.index(tokenizer, ends, spread(0, 0.2, 0.8, 1))
    for frame, code in zip(frames, (0, 1, 6, 7), strict=True):
        torch.testing.assert_close(frame, tokenizer.decode(torch.full((1, 16), code))[0])


@torch.no_grad()
def test_embedding_and_latent_are_blends_the_one_before_and_the_other_after_the_choice(run):
    tokenizer, ends, _ = ways(run())
    (z,), (vectors,) = ends.z, tokenizer.vectors(ends.codes)
    shares = (0, 0.25, 0.5, 1)
    blends = (
        paths.embedding(tokenizer, ends, spread(*shares)),
        paths.latent(tokenizer, ends, spread(*shares)),
    )
    for row, share in enumerate(shares):
        plain = (1 - share) * vectors[:1] + share * vectors[1:]
        chosen = tokenizer.quantize(((1 - share) * z[:1] + share * z[1:],))[0].z_q
        for frames, expected in zip(blends, (plain, chosen), strict=True):
            torch.testing.assert_close(frames[row], tokenizer.decode_vectors((expected,))[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(*blends)


def test_spherical_turns_at_constant_speed_while_the_length_changes_linearly():
    a, b = torch.randn(2, 1, 5, 3, 4).double()
    share = torch.linspace(0, 1, 7)
    path = paths.spherical(a, 4 * b, share[:, None, None, None])
    torch.testing.assert_close(path[[0, -1]], torch.cat([a, 4 * b]))
    whole = torch.cosine_similarity(a, b).acos()
    for earlier, later in itertools.pairwise(path):
        torch.testing.assert_close(
            torch.cosine_similarity(earlier, later, 0).acos()[None], whole / 6, rtol=1e-6, atol=1e-6
        )
    sizes = torch.cat([a, 4 * b]).norm(dim=1)
    for size, part in zip(path.norm(dim=1), share, strict=True):
        torch.testing.assert_close(size, torch.lerp(*sizes, part))


def test_spherical_by_hand():
    """A quarter turn, halfway; and where there is no one great circle the straight line: equal, opposite, zero."""
    halfway = torch.full((1, 1, 1, 1), 0.5)
    for first, last, expected in [
        ([1.0, 0.0], [0.0, 3.0], [math.sqrt(2), math.sqrt(2)]),
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]),
        ([1.0, 0.0], [-3.0, 0.0], [-1.0, 0.0]),
        ([0.0, 0.0], [2.0, 4.0], [1.0, 2.0]),
    ]:
        found = paths.spherical(*(torch.tensor(v).view(1, 2, 1, 1) for v in (first, last)), halfway)
        torch.testing.assert_close(found.flatten(), torch.tensor(expected))


@torch.no_grad()
def test_hierarchical_moves_coarse_codes_first(run):
    """Of two levels: at a quarter of the way half of the top, at the middle all of it, then the bottom."""
    tokenizer, ends, _ = ways(run("vqvae2"))
    frames = paths.hierarchical(tokenizer, ends, spread(0.25, 0.5, 0.75))
    for frame, parts in zip(frames, ((0.5, 0), (1, 0), (1, 0.5)), strict=True):
        z = tuple(torch.lerp(level[:1], level[1:], part) for level, part in zip(ends.z, parts, strict=True))
        torch.testing.assert_close(frame, paths.decoded(tokenizer, z)[0], rtol=1e-4, atol=1e-4)


class Told:
    """A prior that expects `code` everywhere, by so many nats."""

    def __init__(self, code: int, nats: float, exact: bool = True) -> None:
        self.code, self.nats, self.exact, self.order = code, nats, exact, range(16)

    def walk(self, n, conditions):
        self.conditions, self.seen = conditions, []
        while True:
            logits = torch.zeros(n, 8)
            logits[:, self.code] = self.nats
            self.seen.append((yield logits))

    def sample(self, n, generator, conditions=None, known=None, known_mask=None):
        self.conditions, self.kept = conditions, known_mask
        return torch.where(known_mask, known, self.code)


def walked(tokenizer, ends, frames: int, prior: Told, freedom: float = 0.5) -> torch.Tensor:
    share = torch.linspace(0, 1, frames)
    return paths.refined(tokenizer, ends, share, prior=prior, rng=None, freedom=freedom)


@torch.no_grad()
def test_prior_chooses_between_what_is_likely_and_what_is_near_the_blend(run):
    """The choices of every step by hand; the prior is told each, and at the ends it has no say."""
    tokenizer, ends, _ = ways(run())
    (book,), prior = tokenizer.codebooks, Told(2, 20.0)
    frames = walked(tokenizer, ends, 4, prior)
    expected = torch.zeros(4, 16, dtype=torch.int64)
    for frame, t in np.ndindex(4, 16):
        share, (first, last) = frame / 3, book[ends.codes[:, t]].double()
        blend = (1 - share) * first + share * last
        radius = float(min((blend - first).norm(), (blend - last).norm()))
        distances = (book.double() - blend).norm(dim=1).numpy()
        if radius < 1e-9:
            expected[frame, t] = int(ends.codes[int(share > 0.5), t])
        else:
            expected[frame, t] = int(np.argmax(20.0 * (np.arange(8) == 2) - (distances / radius) ** 2 / (2 * 0.5**2)))
    torch.testing.assert_close(frames, tokenizer.decode(expected))
    assert torch.equal(torch.stack(prior.seen, 1), expected[:, :15])
    between = expected[1:3, (ends.codes[0] != ends.codes[1]) & (ends.codes != 2).all(0)]
    assert 0 < (between == 2).double().mean() < 1


@torch.no_grad()
def test_freedom_lets_the_prior_go_farther(run):
    """With hardly any it takes the nearest code, with all of it the likeliest; where both images agree, never another one."""
    tokenizer, ends, _ = ways(run())
    (book,), (first, last) = tokenizer.codebooks, ends.codes[:, :15]
    nearest = torch.cdist(torch.lerp(*book[ends.codes[:, :15]], 1 / 3), book).argmin(1)
    for freedom, expected in ((1e-3, nearest), (1e6, torch.full_like(nearest, 2))):
        prior = Told(2, 1.0)
        walked(tokenizer, ends, 4, prior, freedom)
        assert torch.equal(torch.stack(prior.seen, 1)[1], torch.where(first == last, first, expected))


@torch.no_grad()
def test_a_prior_without_an_order_draws_what_neither_image_has(run):
    tokenizer, ends, _ = ways(run())
    z, share = 10 * torch.randn(2, 4, 4, 4), torch.linspace(0, 1, 5)
    ends = ends._replace(z=(z,), codes=tokenizer.quantize((z,))[0].codes.flatten(1))  # far apart: others lie between
    blends = tokenizer.quantize(paths.blended(ends.z, share))[0].codes.flatten(1)
    kept = (blends == ends.codes[0]) | (blends == ends.codes[1])
    assert kept[[0, -1]].all()
    assert not kept.all()
    prior = Told(2, 0.0, exact=False)
    torch.testing.assert_close(walked(tokenizer, ends, 5, prior), tokenizer.decode(torch.where(kept, blends, 2)))
    assert torch.equal(prior.kept, kept)


@pytest.mark.parametrize("exact", [True, False])
@torch.no_grad()
def test_a_conditional_prior_is_given_the_label_of_the_nearer_image(raw, run, exact):
    raw["prior"]["conditions"]["label"] = 0.1
    current = run()
    tokenizer, ends, _ = ways(current, rows=(0, 3))
    prior = Told(0, 1.0, exact)
    walked(tokenizer, ends, 4, prior)
    first, last = (current.labels("test")[row] for row in (0, 3))
    assert first != last
    assert prior.conditions.tolist() == [[first], [first], [last], [last]]


def test_a_conditional_prior_goes_all_the_way(raw, run):
    raw["prior"]["conditions"]["label"] = 0.1
    assert "smoothness" in run().measure("extensions").metrics["modes"]["prior"]


# along the training images


@torch.no_grad()
def test_learned_visits_edges_only_and_there_is_no_shorter_way(run):
    """All paths of few points, by brute force."""
    current = run()
    roads = interpolation.training_roads(CONFIG.model_copy(update={"neighbours": 2}), current, current.tokenizer())
    edges = roads.edges.toarray()
    assert 5 < len(edges) <= 12
    least = np.where(edges > 0, edges, np.inf)
    np.fill_diagonal(least, 0)
    for over in range(len(edges)):  # Floyd & Warshall
        least = np.minimum(least, least[:, [over]] + least[[over]])
    longest = 0
    for first, last in itertools.product(range(len(edges)), repeat=2):
        path = shortest(roads.edges, first, last)
        assert (path[0], path[-1]) == (first, last)
        steps = [edges[a, b] for a, b in itertools.pairwise(path)]
        assert all(step > 0 for step in steps)
        assert sum(steps) == pytest.approx(least[first, last])
        longest = max(longest, len(path))
    assert longest > 2


@torch.no_grad()
def test_points_are_training_images_and_keep_their_distances(run):
    current = run()
    tokenizer = current.tokenizer()
    roads = interpolation.training_roads(CONFIG, current, tokenizer)
    codes = torch.from_numpy(np.array(current.codes("train"))).long()[roads.rows]
    assert len(codes.unique(dim=0)) == len(roads.points)
    vectors = tokenizer.vectors(codes)[0].flatten(1)
    np.testing.assert_allclose(
        torch.cdist(vectors, vectors), np.linalg.norm(roads.points[:, None] - roads.points, axis=2), atol=1e-3
    )
    np.testing.assert_allclose(roads.place(codes.numpy()), roads.points, atol=1e-4)


@torch.no_grad()
def test_learned_frames_lie_on_the_path_at_equal_steps(run):
    tokenizer, ends, walks = ways(run())
    roads = walks["learned"].keywords["roads"]
    seen = []

    class Spy:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def quantize(self, z):
            seen.append(z[0])
            return tokenizer.quantize(z)

    learned(Spy(), ends, torch.linspace(0, 1, 9), roads=roads)
    (frames,) = seen
    starts = [int(np.linalg.norm(roads.points - place, axis=1).argmin()) for place in roads.place(ends.codes.numpy())]
    visited = roads.rows[shortest(roads.edges, *starts)]
    (between,) = tokenizer.latents(arrays.to_model(roads.pixels[visited]))
    stops = torch.cat([ends.z[0][:1], between, ends.z[0][1:]]).flatten(1).double()
    lengths = stops.diff(dim=0).norm(dim=1)
    total = float(lengths.sum())
    for frame, way in zip(frames.flatten(1).double(), np.linspace(0, total, 9), strict=True):
        stretch = 0
        while stretch + 1 < len(lengths) and way > float(lengths[stretch]):
            way -= float(lengths[stretch])
            stretch += 1
        part = way / max(float(lengths[stretch]), 1e-12)
        torch.testing.assert_close(frame, torch.lerp(stops[stretch], stops[stretch + 1], part), rtol=1e-3, atol=1e-3)


def test_learned_needs_more_than_one_code_map(run, capsys):
    current = run()
    np.save("artifacts/codes/train.npy", np.zeros_like(current.codes("train")))
    report = interpolation.measure(CONFIG, current)
    assert report.metrics["modes"]["learned"] == {"applies": 0}
    assert "learned does not apply: all training images have the same codes" in capsys.readouterr().out


# pairs and report


def test_report_by_hand(run):
    """`latent` stands at the top: the mean over the drawn pairs, and their roughest step."""
    current = run()
    report = current.measure("extensions")
    table = report.tables["pairs"]
    assert list(table["mode"].unique()) == [mode for mode in MODES if mode != "hierarchical"]
    assert report.metrics["modes"]["hierarchical"] == {"applies": 0}
    assert list(report.tables["modes"]["why_not"] != "") == [mode == "hierarchical" for mode in MODES]
    names = [(split, name) for split in ("train", "val", "test") for name in current.table(split)["name"]]
    rows = table[table["mode"] == "latent"]
    assert list(rows["origin"]) == ["named", "drawn", "drawn"]
    assert (rows["first"].iloc[0], rows["last"].iloc[0]) == ("picture 1", "picture 20")
    smoothest, roughest = [], []
    for pair in rows.itertuples():
        assert pair.first != pair.last
        places = [(split, list(current.table(split)["name"]).index(name)) for split, name in names if name in pair[3:5]]
        places = places if pair.first == current.table(places[0][0])["name"][places[0][1]] else places[::-1]
        tokenizer = current.tokenizer()
        with torch.no_grad():
            ends = interpolation.loaded(CONFIG, current, tokenizer, places)
            frames = arrays.to_pixels(paths.latent(tokenizer, ends, torch.linspace(0, 1, 3)))
        steps = [scores.ssim(a[None], b[None])[0] for a, b in itertools.pairwise(frames)]
        assert pair.smoothness == pytest.approx(np.mean(steps))
        if pair.origin == "drawn":
            smoothest.append(np.mean(steps))
            roughest.append(min(steps))
    latent = report.metrics["modes"]["latent"]
    assert report.metrics["smoothness"] == latent["smoothness"] == pytest.approx(np.mean(smoothest))
    assert report.metrics["smoothness_min"] == latent["smoothness_min"] == pytest.approx(min(roughest))
    assert latent["smoothness_named"] == rows["smoothness"].iloc[0]


def test_pairs_are_drawn_from_the_test_images_by_the_seed(run):
    current, config = run(), CONFIG.model_copy(update={"pairs": 6})
    pairs = list(interpolation.sampled(config, current))
    assert pairs == list(interpolation.sampled(config, current))
    assert all(first != last and first[0] == last[0] == "test" for first, last in pairs)
    current.params.raw["seed"] = 1
    assert pairs != list(interpolation.sampled(config, current))


def test_named_pairs_may_span_splits_and_those_that_are_missing_are_named(run, capsys):
    config = CONFIG.model_copy(update={"named": ["picture 20/picture 1", "picture 1/yeti"]})
    assert list(interpolation.named(config, run())) == [(("test", 2), ("train", 1))]
    assert "no pair 'picture 1/yeti'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "pair", "found"),
    [
        (["a", "b"], "a/b", ("a", "b")),
        (["cats/1.png", "dogs/2.png"], "cats/1.png/dogs/2.png", ("cats/1.png", "dogs/2.png")),
        (["noto/red heart", "twemoji/red heart"], "noto/red heart/twemoji/red heart", ("noto/red heart", "twemoji/red heart")),
        (["1.png", "a/b/c.png"], "a/b/c.png/1.png", ("a/b/c.png", "1.png")),
        (["a", "b/c", "a/b", "c"], "a/b//c", ("a/b", "c")),
        (["a", "b/c", "a/b", "c"], "a//b/c", ("a", "b/c")),
        (["a", "b/c", "a/b", "c"], "a/b/c", None),
        (["x/y", "z"], "x/y/w", None),
    ],
)  # fmt: skip
def test_names_of_a_pair_may_hold_slashes(names, pair, found, run, capsys):
    current = run()
    table = pd.read_csv("artifacts/dataset/table.csv", dtype={"name": str})
    table.loc[: len(names) - 1, "name"] = names
    table.to_csv("artifacts/dataset/table.csv", index=False)
    pairs = list(interpolation.named(CONFIG.model_copy(update={"named": [pair]}), current))
    read = [tuple(current.table(split)["name"][row] for split, row in places) for places in pairs]
    assert read == ([found] if found else [])
    said = capsys.readouterr().out
    assert found or ("a//b/c or a/b//c" in said if pair == "a/b/c" else f"no pair {pair!r}" in said)


@pytest.mark.parametrize("pair", ["a/b", "cats/1.png/dogs/2.png", "noto/red heart/twemoji/star", "a//b/c"])
def test_names_with_slashes_are_valid_params(pair):
    values = {**CONFIG.model_dump(), "named": [pair]}
    assert interpolation.Config.model_validate(values).named == [pair]


def test_only_the_modes_asked_for_are_walked(run):
    report = interpolation.measure(CONFIG.model_copy(update={"modes": ["slerp", "hierarchical"]}), run())
    assert set(report.metrics) == {"modes"}
    assert set(report.tables["pairs"]["mode"]) == {"slerp"}
    report = interpolation.measure(CONFIG.model_copy(update={"modes": ["hierarchical"]}), run())
    assert report.metrics == {"modes": {"hierarchical": {"applies": 0}}}
    assert report.pictures == {}


def test_picture_has_a_block_for_each_pair_and_names_its_rows():
    table = pd.DataFrame(itertools.product("abc", ["index", "latent"]), columns=["first", "mode"]).assign(last="z")
    strips = [np.full((4, 8, 8, 1), shade, np.uint8) for shade in (0, 50, 100, 150, 200, 250)]
    figure = interpolation.picture(table, strips)
    assert [axis.get_title() for axis in figure.axes] == ["a to z", "b to z", "c to z"]
    first, second, third = (axis.get_position() for axis in figure.axes)
    assert (first.y0, first.x0) == (second.y0, third.x0)
    assert 0 <= third.y1 < first.y0 < first.y1 <= 1
    assert 0 < first.x1 < second.x0 < second.x1 <= 1
    for axis, (upper, lower) in zip(figure.axes, ((0, 50), (100, 150), (200, 250)), strict=True):
        assert [label.get_text() for label in axis.get_yticklabels()] == ["index", "latent"]
        sheet = axis.images[0].get_array()
        assert sheet.shape == (2 * 68 + 4, 4 * 68 + 4)
        assert [sheet[int(tick)][4] for tick in axis.get_yticks()] == [upper, lower]


def test_global_generators_decide_nothing(run):
    reports = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        reports.append(run("vqvae2").measure("extensions"))
    assert reports[0].metrics == reports[1].metrics
    assert reports[0].tables["pairs"].equals(reports[1].tables["pairs"])
