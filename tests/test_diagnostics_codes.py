"""What can be said of codes before a prior is trained: each formula against loops, closed forms and published figures."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera import statistics
from tessera.core import files
from tessera.core.run import SPLITS
from tessera.core.space import CodeSpace
from tessera.diagnostics import learnability, oracle, positions, semantics, transitions


def of_codes(codes: Any, grids: tuple, sizes: tuple[int, ...], seed: int = 0) -> Any:
    """What a diagnostic asks of a run; `codes` are those of every split, or of each."""
    by_split = codes if isinstance(codes, dict) else dict.fromkeys(SPLITS, codes)
    return SimpleNamespace(codes=by_split.__getitem__, space=CodeSpace(grids, sizes), params=SimpleNamespace(seed=seed))


def draw(shape: tuple[int, ...], k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, k, shape)


def board(n: int, h: int, w: int) -> np.ndarray:
    return np.tile((np.indices((h, w)).sum(0) % 2).reshape(-1), (n, 1))


def bits(counts: Any) -> float:
    """Entropy in bits of what is counted."""
    values = [n for n in counts if n]
    return -sum(n / sum(values) * math.log2(n / sum(values)) for n in values)


EVERY = {
    oracle: {},
    transitions: {"shown": 4},
    learnability: {},
    positions: {"fraction": 0.5},
}


@pytest.mark.parametrize("module", [oracle, transitions, learnability])
def test_one_code_an_image_has_no_neighbours(module):
    """Beside a grid that has: only that one is measured."""
    columns = np.concatenate([draw((6, 1), 3), draw((6, 4), 5)], axis=1)
    metrics = module.measure(module.Config(**EVERY[module]), of_codes(columns, ((1, 1), (2, 2)), (3, 5))).metrics
    assert metrics["grid_0"] == {"applies": 0}
    assert len(metrics["grid_1"]) >= 5
    alone = module.measure(module.Config(**EVERY[module]), of_codes(columns[:, :1], ((1, 1),), (3,)))
    assert alone.metrics == {"grid_0": {"applies": 0}}


@pytest.mark.parametrize("module", EVERY)
@pytest.mark.parametrize("grid", [(1, 4), (4, 1)])
def test_one_row_and_one_column(module, grid):
    """Has one of the two neighbours."""
    report = module.measure(module.Config(**EVERY[module]), of_codes(draw((6, 4), 3), (grid,), (3,)))
    assert all(math.isfinite(value) for part in report.metrics.values() for value in part.values())
    assert report.metrics["grid_0"].get("applies", 1) == 1


# oracle


def test_copying_by_loops():
    grid = draw((5, 3, 4), 3)
    both = [(n, y, x) for n in range(5) for y in range(1, 3) for x in range(1, 4)]
    left = [grid[n, y, x] == grid[n, y, x - 1] for n, y, x in both]
    above = [grid[n, y, x] == grid[n, y - 1, x] for n, y, x in both]
    found = statistics.copying(grid)
    assert found["left"] == pytest.approx(np.mean(left))
    assert found["above"] == pytest.approx(np.mean(above))
    assert found["better"] == max(found["left"], found["above"])
    assert found["either"] == pytest.approx(np.mean([a or b for a, b in zip(left, above, strict=True)]))


def test_copying_of_uniform_codes_is_chance():
    """1/K, and of two independent neighbours at least one is equal with probability 1 - (1 - 1/K)^2."""
    report = oracle.measure(oracle.Config(), of_codes(draw((2000, 25), 4), ((5, 5),), (4,)))
    found = report.metrics["grid_0"]
    assert found["left"] == pytest.approx(1 / 4, abs=0.01)
    assert found["above"] == pytest.approx(1 / 4, abs=0.01)
    assert found["either"] == pytest.approx(1 - (3 / 4) ** 2, abs=0.01)
    assert found["times_random"] == found["better"] * 4
    assert found["random"] == 1 / 4


@pytest.mark.parametrize(("codes", "right"), [(np.zeros((3, 9), int), 1), (board(3, 3, 3), 0)])
def test_copying_of_one_code_and_of_a_checkerboard(codes, right):
    found = statistics.copying(codes.reshape(3, 3, 3))
    assert found == {"left": right, "above": right, "better": right, "either": right}


def test_columns_are_copied_from_above_only():
    found = statistics.copying(np.tile(np.arange(4), (2, 3, 1)))
    assert found == {"left": 0, "above": 1, "better": 1, "either": 1}


def test_oracle_is_of_val_and_the_constant_is_of_train():
    codes = {"train": np.full((2, 4), 1), "val": np.array([[0, 0, 1, 1], [0, 0, 0, 0]]), "test": np.full((2, 4), 2)}
    report = oracle.measure(oracle.Config(), of_codes(codes, ((2, 2),), (3,)))
    assert report.metrics["grid_0"]["left"] == 1
    table = report.tables["accuracy"].set_index(["split", "predictor"])["accuracy"]
    assert table["val", "constant"] == 0.25
    assert table["test", "constant"] == 0
    assert table["val", "above"] == 0.5


# transitions


def test_entropies_given_by_loops():
    a, b = draw((60,), 5), draw((60,), 7, seed=1)
    a[a == 3] = 2  # a code that never occurs
    n, found = statistics.entropies_given(a, b, 7)
    for code in range(7):
        following = Counter(b[a == code].tolist())
        assert n[code] == sum(following.values())
        assert found[code] == pytest.approx(bits(following.values()))
    assert statistics.entropy_given(a, b, 7) == pytest.approx(
        bits(Counter(zip(a.tolist(), b.tolist(), strict=True)).values()) - bits(Counter(a.tolist()).values())
    )


def test_pairs_are_neighbours():
    grid = np.arange(6).reshape(1, 2, 3)
    found = {
        name: list(zip(a.tolist(), b.tolist(), strict=True))
        for name, (a, b) in statistics.neighbour_pairs(grid).items()
    }
    assert found == {"right": [(0, 1), (1, 2), (3, 4), (4, 5)], "lower": [(0, 3), (1, 4), (2, 5)]}


def test_transitions_of_train_are_averaged_over_directions():
    codes = {split: draw((8, 12), 4, seed) for seed, split in enumerate(SPLITS)}
    report = transitions.measure(transitions.Config(shown=4), of_codes(codes, ((3, 4),), (8,)))  # four never occur
    grid, means = codes["train"].reshape(8, 3, 4), []
    for dy, dx in ((0, 1), (1, 0)):
        places = itertools.product(range(8), range(3 - dy), range(4 - dx))
        pairs = [(grid[n, y, x], grid[n, y + dy, x + dx]) for n, y, x in places]
        rows = {a: [b for first, b in pairs if first == a] for a in range(4)}
        of_row = {a: bits(Counter(row).values()) for a, row in rows.items()}
        means.append((sum(len(rows[a]) * of_row[a] for a in rows) / len(pairs), np.mean(list(of_row.values()))))
    weighted, by_code = np.mean(means, axis=0)
    found = report.metrics["grid_0"]
    assert found["entropy_bits"] == pytest.approx(weighted)
    assert found["entropy_bits_by_code"] == pytest.approx(by_code)
    assert found["predictability"] == pytest.approx(1 - weighted / 3)
    assert found["predictability_by_code"] == pytest.approx(1 - by_code / 3)
    assert found["gain_bits"] == pytest.approx(3 * (found["predictability"] - found["predictability_shuffled"]))


def test_independent_codes_look_predictable_where_rows_are_sparse_and_the_shuffle_says_so():
    """4 examples a row of 64: the plug-in entropy is at most 2 of 6 bits, shuffled or not."""
    report = transitions.measure(transitions.Config(shown=4), of_codes(draw((128, 4), 64), ((2, 2),), (64,)))
    found = report.metrics["grid_0"]
    assert found["predictability"] > 0.6
    assert found["predictability_shuffled"] == pytest.approx(found["predictability"], abs=0.02)
    assert found["gain_bits"] == pytest.approx(0, abs=0.1)


def test_many_uniform_codes_are_not_predictable():
    report = transitions.measure(transitions.Config(shown=4), of_codes(draw((2000, 9), 4), ((3, 3),), (4,)))
    found = report.metrics["grid_0"]
    assert found["predictability"] == pytest.approx(0, abs=0.002)
    assert found["gain_bits"] == pytest.approx(0, abs=0.002)


def test_a_skewed_histogram_is_predictable_without_any_gain():
    codes = np.random.default_rng(0).choice(4, (2000, 9), p=[0.85, 0.05, 0.05, 0.05])
    found = transitions.measure(transitions.Config(shown=4), of_codes(codes, ((3, 3),), (4,))).metrics["grid_0"]
    assert found["predictability"] == pytest.approx(1 - bits([85, 5, 5, 5]) / 2, abs=0.02)
    assert found["gain_bits"] == pytest.approx(0, abs=0.002)


def test_a_checkerboard_is_certain_and_its_neighbour_says_one_bit():
    found = transitions.measure(transitions.Config(shown=4), of_codes(board(200, 4, 4), ((4, 4),), (2,))).metrics[
        "grid_0"
    ]
    assert found["entropy_bits"] == 0
    assert found["predictability"] == 1
    assert found["gain_bits"] == pytest.approx(1, abs=0.01)


def test_the_seed_alone_decides_the_shuffle():
    run = [of_codes(draw((9, 9), 4), ((3, 3),), (4,), seed) for seed in (0, 0, 1)]
    first, same, other = (transitions.measure(transitions.Config(shown=4), r).metrics["grid_0"] for r in run)
    assert first == same
    assert first["gain_bits"] != other["gain_bits"]
    assert first["entropy_bits"] == other["entropy_bits"]


def test_matrix_by_loops_most_frequent_first():
    a, b = np.array([2, 2, 2, 2, 0, 0, 0, 1, 1]), np.array([2, 2, 0, 1, 0, 1, 2, 1, 3])
    whole = transitions.matrix(a, b, 4, 9)
    order = [2, 0, 1, 3]
    for row, column in itertools.product(range(4), repeat=2):
        after = b[a == order[row]]
        assert whole[row, column] == (after == order[column]).sum() / max(len(after), 1)
    assert transitions.matrix(a, b, 4, 2).tolist() == whole[:2, :2].tolist()


def test_each_code_stands_with_its_likeliest_neighbour():
    codes = np.array([[0, 1, 1, 2], [0, 1, 3, 2], [0, 3, 3, 1]])
    table = transitions.measure(transitions.Config(shown=4), of_codes(codes, ((1, 4),), (5,))).tables["codes"]
    assert list(table["code"]) == [0, 1, 3]  # most frequent first; 2 stands at the end, and 4 never occurs
    assert list(table["count"]) == [3, 3, 3]
    first = table.iloc[0]
    assert (first["likeliest"], first["p"]) == (1, pytest.approx(2 / 3))
    assert first["entropy_bits"] == pytest.approx(bits([2, 1]))


def test_published_entropy_by_the_formula_is_39_percent_not_11():
    assert statistics.predictability(4.9, 256) == pytest.approx(0.39, abs=0.005)
    assert statistics.predictability(4.9 * 8 / 5.5, 256) == pytest.approx(0.11, abs=0.005)  # 1 - 4.9 / 5.5


# learnability


def test_published_score():
    """28.9, critical, with the report's predictability; 34.5, poor, with that of its own formula."""
    parts = {"rho": (0.34 + 0.32) / 2, "oracle": 0.34, "predictability": 0.11}
    assert learnability.learnability(parts) == pytest.approx(28.9)
    assert learnability.band(28.9) == 0
    corrected = learnability.learnability(parts | {"predictability": 0.39})
    assert corrected == pytest.approx(34.5)
    assert learnability.band(corrected) == 1


def test_bands_begin_at_30_50_and_70():
    assert list(learnability.BANDS) == ["critical", "poor", "fair", "good"]
    assert [learnability.band(score) for score in (0, 29.9, 30, 49.9, 50, 69.9, 70, 100)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_learnability_is_made_of_the_other_diagnostics():
    from tessera.diagnostics import autocorrelation

    codes = {split: np.minimum(draw((9, 12), 4, seed), 2) for seed, split in enumerate(SPLITS)}
    run = of_codes(codes, ((3, 4),), (4,))
    found = learnability.measure(learnability.Config(), run).metrics["grid_0"]
    near = autocorrelation.measure(autocorrelation.Config(distance=1), run).metrics["grid_0"]
    assert found["rho"] == (near["horizontal"] + near["vertical"]) / 2
    assert found["oracle"] == oracle.measure(oracle.Config(), run).metrics["grid_0"]["better"]
    told = transitions.measure(transitions.Config(shown=4), run).metrics["grid_0"]["predictability"]
    assert found["predictability"] == pytest.approx(told)
    assert found["score"] == pytest.approx(50 * found["rho"] + 30 * found["oracle"] + 20 * told)


@pytest.mark.parametrize(("codes", "score", "floor"), [(np.zeros((9, 16), int), 100, 100), (board(9, 4, 4), 20, 40)])
def test_learnability_of_one_code_and_of_a_checkerboard(codes, score, floor):
    """A collapsed codebook scores 100, as its histogram does; a checkerboard is certain, and no neighbour is equal."""
    report = learnability.measure(learnability.Config(), of_codes(codes, ((4, 4),), (2,)))
    assert report.metrics["grid_0"]["score"] == pytest.approx(score)
    assert report.metrics["grid_0"]["independent"] == pytest.approx(floor)
    assert report.tables["parts"]["points"].sum() == pytest.approx(score)
    assert set(report.tables["parts"]["band"]) == {"good" if score == 100 else "critical"}


# positions


def test_prefixes_by_loops():
    codes = draw((30, 5), 3)
    given, distinct, named = positions.prefixes(codes)
    for t in range(5):
        prefixes = Counter(map(tuple, codes[:, : t + 1].tolist()))
        shorter = Counter(map(tuple, codes[:, :t].tolist()))
        assert distinct[t] == len(prefixes) / 30
        assert named[t] == sum(n == 1 for n in prefixes.values()) / 30
        rest = [bits([n for p, n in prefixes.items() if p[:t] == short]) for short in shorter]
        assert given[t] == pytest.approx(np.average(rest, weights=list(shorter.values())))


def test_bits_given_the_prefix_add_up_to_the_identity_of_an_image():
    """However many codes follow: 16 different images are 4 bits."""
    codes = np.concatenate([np.indices((2, 2, 2, 2)).reshape(4, -1).T, draw((16, 12), 50)], axis=1)
    report = positions.measure(positions.Config(fraction=0.99), of_codes(codes, ((4, 4),), (50,)))
    table = report.tables["positions"]
    assert list(table["given_prefix_bits"]) == pytest.approx([1] * 4 + [0] * 12)
    assert report.metrics["grid_0"]["given_prefix_bits"] == pytest.approx(4 / 16)
    assert report.metrics["sequence"]["identity_bits"] == 4
    assert report.metrics["sequence"]["named_after"] == 4
    assert report.metrics["sequence"]["named"] == 1
    assert list(table["entropy_bits"][:4]) == pytest.approx([1] * 4)
    assert table["entropy_bits"][5] == pytest.approx(bits(Counter(codes[:, 5].tolist()).values()))


def test_copies_of_one_image_are_never_named():
    """Each code occurs once in it: 2 bits a code, so that 8 different images would need 2."""
    run = of_codes(np.tile([3, 1, 0, 2], (8, 1)), ((2, 2),), (8,))
    found = positions.measure(positions.Config(fraction=0.5), run).metrics
    assert found["sequence"] == {"identity_bits": 3, "cliff": 1, "cliff_effective": 2, "named": 0}
    assert found["grid_0"]["given_prefix_bits"] == found["grid_0"]["entropy_bits"] == 0


def test_share_of_named_images():
    """Of 8 images 6 are told apart by the first code, and two are copies of one another."""
    codes = np.array([[n, 0] for n in (0, 1, 2, 3, 4, 5, 6, 6)])
    found = [
        positions.measure(positions.Config(fraction=share), of_codes(codes, ((1, 2),), (8,))).metrics["sequence"]
        for share in (0.75, 0.8)
    ]
    assert found[0]["named_after"] == 1
    assert "named_after" not in found[1]
    assert found[0]["named"] == 0.75


@pytest.mark.parametrize(("n", "k"), [(2, 2), (27, 3), (243, 3), (244, 3), (1000, 10), (1001, 10), (2920, 256)])
def test_cliff_is_the_bound_of_the_paper(n, k):
    """The least t with K^t >= N, in integers."""
    least = next(t for t in itertools.count(1) if k**t >= n)
    assert positions.enough(np.full(64, math.log2(k)), math.log2(n)) == least


def test_cliff_of_imagenet_is_two_codes():
    """arXiv 2605.06207: 2 of 256 positions at K = 16384."""
    assert positions.enough(np.full(256, math.log2(16384)), math.log2(1281167)) == 2


def test_cliff_of_too_few_codes_is_none():
    assert positions.enough(np.full(3, 1.0), 3.1) is None
    assert positions.enough(np.zeros(3), 3.1) is None


def test_effective_cliff_counts_the_codes_that_are_used():
    """8 images: one code of 16, or three of the 2 that occur. Over two grids, of different codebooks."""
    used = np.indices((2, 2, 2)).reshape(3, -1).T
    found = positions.measure(positions.Config(fraction=0.99), of_codes(used, ((1, 3),), (16,))).metrics["sequence"]
    assert (found["cliff"], found["cliff_effective"], found["named_after"]) == (1, 3, 3)
    found = positions.measure(positions.Config(fraction=0.99), of_codes(used, ((1, 1), (1, 2)), (2, 4))).metrics
    assert found["sequence"]["cliff"] == 2
    assert list(found) == ["grid_0", "grid_1", "sequence"]


def test_back_off_by_loops():
    """Witten and Bell, with dictionaries."""
    train, val, k = draw((6, 3, 3), 3), draw((4, 3, 3), 4, seed=1), 4

    def context(image: np.ndarray, y: int, x: int) -> tuple[int, int]:
        return (int(image[y, x - 1]) if x else k), (int(image[y - 1, x]) if y else k)

    seen = [((*context(im, y, x),), int(im[y, x])) for im in train for y in range(3) for x in range(3)]

    def p(c: int, known: tuple[int, ...]) -> float:
        after = [code for whole, code in seen if whole[: len(known)] == known]
        kinds = len(set(after)) or 1
        shorter = p(c, known[:-1]) if known else 1 / k
        return (after.count(c) + kinds * shorter) / (len(after) + kinds)

    found = positions.backed_off(train, val, k)
    for n, y, x in itertools.product(range(4), range(3), range(3)):
        assert found[n, y, x] == pytest.approx(p(int(val[n, y, x]), context(val[n], y, x)))


def test_back_off_is_a_distribution():
    """Over the K codes that can stand at the last place, whatever stands before, seen or not."""
    train = draw((6, 2, 2), 3)
    for before in itertools.product(range(4), repeat=3):
        val = np.array([[*before, code] for code in range(4)]).reshape(4, 2, 2)
        assert positions.backed_off(train, val, 4)[:, 1, 1].sum() == pytest.approx(1)


def test_neighbours_are_judged_on_unseen_images():
    """Uniform codes: 2 bits each, whatever is known. Prefixes of the training images tell nothing of that."""
    codes = {split: draw((1000, 9), 4, seed) for seed, split in enumerate(SPLITS)}
    found = positions.measure(positions.Config(fraction=0.99), of_codes(codes, ((3, 3),), (4,))).metrics["grid_0"]
    assert 2 <= found["given_neighbours_bits"] < 2.05
    assert found["given_prefix_bits"] < 1.2


def test_neighbours_tell_a_checkerboard():
    """Either board is certain once its first code is known."""
    codes = np.concatenate([board(500, 3, 3), 1 - board(500, 3, 3)])
    table = positions.measure(positions.Config(fraction=1.0), of_codes(codes, ((3, 3),), (2,))).tables["positions"]
    assert table["given_neighbours_bits"][4:].max() < 0.02
    assert list(table["entropy_bits"]) == pytest.approx([1] * 9)


# semantics


def test_label_bits_by_loops():
    codes, labels = draw((20, 3), 4), draw((20,), 3, seed=1)
    pairs = [(labels[n], codes[n, t]) for n in range(20) for t in range(3)]
    both, label, code = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    brute = sum(n / 60 * math.log2(n * 60 / label[a] / code[b]) for (a, b), n in both.items())
    assert semantics.label_bits(codes, labels, 4) == pytest.approx(brute)


def test_label_bits_of_own_codes_are_the_entropy_of_the_label():
    labels = np.array([0, 0, 1, 2])
    assert semantics.label_bits(np.repeat(labels[:, None] + 5, 4, 1), labels, 9) == pytest.approx(1.5)
    assert semantics.label_bits(np.tile([1, 2, 3], (4, 1)), labels, 9) == pytest.approx(0)


def test_shared_codes_by_loops():
    a, b = draw((5, 8), 3), draw((6, 8), 3, seed=1)
    same = semantics.shared(semantics.at_places(a, 3), semantics.at_places(b, 3))
    anywhere = semantics.shared(semantics.occurrences(a), semantics.occurrences(b))
    for i, j in itertools.product(range(5), range(6)):
        assert same[i, j] == (a[i] == b[j]).sum()
        assert anywhere[i, j] == sum((Counter(a[i].tolist()) & Counter(b[j].tolist())).values())


def test_nearest_that_tie_count_alike(monkeypatch):
    own, others = np.array([[0, 1], [2, 3], [9, 9]]), np.array([[0, 1], [0, 1], [2, 5], [0, 7]])
    labels, other_labels = np.array([1, 0, 1]), np.array([1, 0, 0, 1])
    places = semantics.at_places(own, 10), semantics.at_places(others, 10)
    assert semantics.same_label(*places, labels, other_labels).tolist() == [0.5, 1, 0.5]
    monkeypatch.setattr(semantics, "BLOCK", 2)
    assert semantics.same_label(*places, labels, other_labels).tolist() == [0.5, 1, 0.5]


def test_labels_are_shuffled_among_families():
    labels, families = np.array([0, 0, 0, 1, 2, 2]), np.array(["a", "a", "a", "b", "c", "c"])
    found = {tuple(shuffled.tolist()) for shuffled in semantics._shuffles(labels, families, 100, seed=0)}
    assert found == {(x, x, x, y, z, z) for x, y, z in itertools.permutations(range(3))}


@pytest.fixture
def labelled(tiny_run):
    """A run whose two classes have codes of their own, and validation images that are copies of training images."""
    run = tiny_run("semantics")
    labels = {split: run.labels(split) for split in ("train", "val")}
    codes = {split: 4 * own[:, None] + draw((len(own), 4), 4) for split, own in labels.items()}
    codes["val"][-1] = codes["train"][np.flatnonzero(labels["train"] == labels["val"][-1])[1]]
    codes["test"] = codes["val"][:5]
    for split in SPLITS:
        files.save_array(run.folder("codes") / f"{split}.npy", codes[split])
    files.write_json(run.folder("codes") / "facts.json", {"grids": ((2, 2),), "codebook_sizes": (8,)})
    return run, codes, labels


def test_classes_with_codes_of_their_own(labelled):
    run, _, labels = labelled
    report = semantics.measure(semantics.Config(permutations=20, shown=3, nearest=2), run)
    found = report.metrics["grid_0"]
    counts = np.bincount(labels["train"])
    assert found["label_bits"] == pytest.approx(bits(counts))
    assert found["label_bits_shuffled"] < 0.6 * found["label_bits"]
    assert found["anywhere"] == 1
    by_hand = [(labels["train"] == label).mean() for label in labels["val"]]
    assert found["chance"] == pytest.approx(np.mean(by_hand))
    table = report.tables["classes"]
    assert table["images"].sum() == len(labels["val"])
    assert set(table["label"]) == {run.label_names[label] for label in labels["val"]}


def test_nearest_are_shown_beside_their_image(labelled):
    """The last validation image has the codes of a training image, which stands beside it."""
    run, codes, _ = labelled
    sheet = semantics.measure(semantics.Config(permutations=1, shown=3, nearest=2), run).pictures["nearest"]
    assert sheet.shape == (3 * 68 + 4, 4 * 68 + 4, 3)
    twin = next(n for n, own in enumerate(codes["train"]) if (own == codes["val"][-1]).all())
    last = sheet[2 * 68 + 4 :]
    assert (last[:64, 4:68][::8, ::8] == run.images("val")[-1]).all()
    assert (last[:64, 2 * 68 + 4 : 3 * 68][::8, ::8] == run.images("train")[twin]).all()


def test_of_large_sets_images_evenly_spread_are_compared(labelled, monkeypatch):
    """Neighbours of the first and the last of `val` among five of `train`; what is counted is counted over all."""
    run, codes, _ = labelled
    config = semantics.Config(permutations=1, shown=2, nearest=5)
    whole = semantics.measure(config, run)
    monkeypatch.setattr(semantics, "COMPARED", {"val": 2, "train": 5})
    some = semantics.measure(config, run)
    assert some.tables["classes"]["images"].sum() == 2
    assert some.metrics["grid_0"]["label_bits"] == whole.metrics["grid_0"]["label_bits"]
    known = np.linspace(0, len(codes["train"]) - 1, 5).astype(int)
    shown = [some.pictures["nearest"][4:68, 68 * place + 4 : 68 * (place + 1)][::8, ::8] for place in range(2, 7)]
    same = (codes["train"][known] == codes["val"][0]).sum(axis=1)
    wanted = run.images("train")[known[np.argsort(-same, kind="stable")]]
    assert all((one == other).all() for one, other in zip(shown, wanted, strict=True))


def test_without_labels_there_is_nothing_to_say():
    report = semantics.measure(semantics.Config(permutations=1, shown=1, nearest=1), SimpleNamespace(label_names=()))
    assert report.metrics == {"applies": 0}
