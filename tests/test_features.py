"""KID over all pairs, two-sample tests and groups, and the stage that writes features."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import stages.features
from tessera import groups, sets, two_sample
from tessera.core.errors import InputError
from tessera.evaluation import frechet
from tessera.features import kernel
from tessera.runtime.validation import problems


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def singles(n: int, name: str = "a") -> np.ndarray:
    return np.array([f"{name}{i}" for i in range(n)])


# KID


def by_loops(a, b, related):
    """The unbiased estimate (Binkowski et al. 2018), pair by pair."""
    k = lambda x, y: (float(x @ y) / len(x) + 1) ** 3  # noqa: E731
    own = [k(x, y) for x, y in itertools.permutations(a, 2)]
    other = [k(x, y) for x, y in itertools.permutations(b, 2)]
    between = [k(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not related[i][j]]
    return np.mean(own) + np.mean(other) - 2 * np.mean(between)


def test_kid_is_the_mean_over_all_pairs_that_count():
    a, b = rng().normal(size=(5, 3)), rng().normal(1, 1, size=(4, 3))
    related = rng().random((5, 4)) < 0.3
    found = kernel.estimate(
        kernel.pairs(a, b, (singles(5), singles(4, "b")), related), np.ones((1, 5)), np.ones((1, 4))
    )
    assert found == pytest.approx([by_loops(a, b, related)])


def test_kid_is_unbiased_and_its_interval_holds_it():
    """Of sets of one distribution, the mean over many estimates is 0, and the interval holds 0 in about 95 of 100."""
    generator, values, held = rng(), [], 0
    for _ in range(200):
        a, b = generator.normal(size=(30, 4)), generator.normal(size=(30, 4))
        found = kernel.kid(a, b, (singles(30), singles(30, "b")), 200, generator)
        values.append(found.value)
        held += found.low <= 0 <= found.high
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    assert min(values) < 0
    assert 0.88 <= held / 200 <= 1


def test_kid_has_torch_fidelitys_value():
    from torch import from_numpy
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    a, b = rng().normal(size=(40, 6)), rng().normal(0.5, 1, size=(40, 6))
    # one subset of everything
    theirs = kid_features_to_metric(from_numpy(a), from_numpy(b), kid_subsets=1, kid_subset_size=40,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0,
        rng_seed=0, verbose=False)[KEY_METRIC_KID_MEAN]  # fmt: skip
    ours = kernel.kid(a, b, (singles(40), singles(40, "b")), 10, rng())
    assert ours.value == pytest.approx(theirs)


def test_resampled_families_do_not_move_the_estimate():
    """Pairs of a family with its own copy would: variants of one image are alike."""
    generator = rng()
    a, b = (generator.normal(size=(20, 3)).repeat(5, 0) + 0.01 * generator.normal(size=(100, 3)) for _ in range(2))
    families = (singles(20).repeat(5), singles(20, "b").repeat(5))
    found = kernel.pairs(a, b, families)
    (value,) = kernel.estimate(found, np.ones((1, 100)), np.ones((1, 100)))
    values = kernel.estimate(found, *(kernel.resampled(of, 4000, generator) for of in families))
    assert abs(values.mean() - value) < 0.2 * values.std()


def test_families_are_resampled_whole_and_in_any_order():
    families = np.array(["x", "y", "x", "z"])
    counts = kernel.resampled(families, 50, rng())
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    order = np.array([3, 1, 0, 2])
    np.testing.assert_array_equal(kernel.resampled(families[order], 50, rng()), counts[:, order])


def test_one_large_family_widens_the_interval():
    generator = rng()
    a, b = (generator.normal(shift, 1, size=(4, 3)).repeat(10, 0) for shift in (0, 0.5))  # 10 variants of 4 images
    apart = kernel.kid(a, b, (singles(40), singles(40, "b")), 400, rng())
    few = kernel.kid(a, b, (np.repeat(singles(4), 10), np.repeat(singles(4, "b"), 10)), 400, rng())
    assert few.value == pytest.approx(apart.value, rel=1e-9)  # matrix products may round by where their arrays lie
    assert few.high - few.low > apart.high - apart.low


@pytest.mark.parametrize(("n", "m", "related"), [(1, 5, None), (5, 1, None), (2, 3, np.ones((2, 3), bool))])
def test_kid_of_no_pairs_is_refused(n, m, related):
    with pytest.raises(InputError, match="KID needs"):
        kernel.pairs(np.zeros((n, 2)), np.zeros((m, 2)), (singles(n), singles(m, "b")), related)


def test_families_of_both_sets_are_resampled_together():
    """Reconstructions and their originals: nothing differs between them but what is lost in each, however families are chosen."""
    points = rng().normal(size=(40, 3)) * np.repeat([1.0, 5.0], 20)[:, None]
    same, two = np.repeat(singles(8), 5), np.repeat(singles(8, "b"), 5)
    itself = np.eye(40, dtype=bool)
    together = kernel.kid(points, points, (same, same), 300, rng(), itself)
    apart = kernel.kid(points, points, (same, two), 300, rng(), itself)
    assert together.value == pytest.approx(apart.value, abs=1e-9)
    assert together.high - together.low < 0.1 * (apart.high - apart.low)


def test_only_the_families_of_both_sets_are_resampled_together(monkeypatch):
    given, estimate = [], kernel.estimate
    monkeypatch.setattr(kernel, "estimate", lambda pairs, *weights: given.append(weights) or estimate(pairs, *weights))
    first, second = np.array(list("aabbccdd")), np.array(list("xdyaax"))
    kernel.kid(rng().normal(size=(8, 3)), rng().normal(size=(6, 3)), (first, second), 50, rng())
    ours, theirs = given[-1]
    for family in "ad":
        counts = ours[:, first == family][:, :1]
        assert counts.std() > 0
        assert (theirs[:, second == family] == counts).all()
    assert (theirs[:, second == "x"][:, 0] != ours[:, 0]).any()
    assert (theirs[:, second == "x"][:, 0] == theirs[:, second == "x"][:, 1]).all()


def test_an_image_is_no_pair_with_its_reconstruction():
    points = 3 * rng().normal(size=(40, 3))
    families = (singles(40), singles(40))
    assert kernel.kid(points, points, families, 20, rng()).value < -1
    assert kernel.kid(points, points, families, 20, rng(), np.eye(40, dtype=bool)).value == pytest.approx(0)


@pytest.mark.parametrize(
    ("others", "said"), [([1.0, 2.9], "nothing"), ([1.0, 3.1], "something"), ([0.9, 2.0], "something")]
)
def test_an_interval_that_holds_all_others_says_nothing(others, said):
    assert frechet.says(kernel.Interval(2.0, 1.0, 3.0), others) == said


def test_kid_is_named_after_the_features():
    assert [kernel.name(distance) for distance in ("fid", "fd_classifier")] == ["kid", "kid_classifier"]


# sets of equal numbers


def chosen(members, count, controls=("baseline",), sets_of=("test", "reconstruction", "samples")):
    run = SimpleNamespace(groups=members.__getitem__, params=SimpleNamespace(seed=0))
    return sets.equal(run, "coverage", count, sets_of, controls)


def in_groups(people, rest):
    """Indices of as many images of each of two groups, in turn."""
    return {"all": np.arange(people + rest), "people": np.arange(people), "rest": np.arange(people, people + rest)}


def test_sets_of_a_group_are_equal_and_of_its_images(capsys):
    members = {
        "test": in_groups(9, 7),
        "reconstruction": in_groups(9, 7),
        "samples": in_groups(5, 30),
        "baseline": in_groups(2, 33),
    }
    found = chosen(members, 12)
    assert {group: {name: len(images) for name, images in of.items()} for group, of in found.items()} == {
        "all": dict.fromkeys(members, 12),
        "people": {"test": 5, "reconstruction": 5, "samples": 5},
        "rest": dict.fromkeys(members, 7),
    }
    for group, of in found.items():
        for name, images in of.items():
            assert set(images) <= set(members[name][group])
            assert len(set(images)) == len(images)
        np.testing.assert_array_equal(of["reconstruction"], of["test"])
    np.testing.assert_array_equal(chosen(members, 12)["all"]["samples"], found["all"]["samples"])
    assert capsys.readouterr().out == ""
    chosen(members, 20)
    assert "evaluation.coverage.count: 16 instead of 20" in capsys.readouterr().out


# two-sample tests


def told_apart(shift, n=120, m=120):
    a, b = rng().normal(size=(n, 5)), np.random.default_rng(1).normal(shift, 1, size=(m, 5))
    return two_sample.accuracy(*two_sample.cross_fitted(a, b, (singles(n), singles(m, "b")), 0.01, 5))


def test_equal_distributions_are_not_told_apart_and_disjoint_ones_are():
    equal, disjoint = told_apart(0.0), told_apart(20.0)
    assert equal.low <= 0.5 <= equal.high
    assert disjoint.value == 1
    assert 0.98 < disjoint.low < 1


def test_a_larger_set_is_no_advantage():
    assert abs(told_apart(0.0, 300, 60).value - 0.5) < 0.1


def test_variants_of_an_image_are_not_recognised():
    """Twins on both sides of a fold would be: here each family has two equal images, one distribution."""
    points = rng().normal(size=(60, 40))
    a, b = points[:30].repeat(2, 0), points[30:].repeat(2, 0)
    families = (singles(30).repeat(2), singles(30, "b").repeat(2))
    grouped = two_sample.accuracy(*two_sample.cross_fitted(a, b, families, 10.0, 5))
    loose = two_sample.accuracy(*two_sample.cross_fitted(a, b, (singles(60), singles(60, "b")), 10.0, 5))
    assert abs(grouped.value - 0.5) < 0.2
    assert loose.value > 0.8


def test_folds_hold_whole_families_and_everything_once():
    families = np.array(list("aaaabbccdefghij"))
    sets = np.arange(len(families)) % 2
    held = [fold for _, fold in two_sample.split(families, sets, 3)]
    assert (np.sum(held, 0) == 1).all()
    assert all(len(np.unique(fold[families == family])) == 1 for fold in held for family in families)
    assert max(fold.sum() for fold in held) <= 6
    for train, fold in two_sample.split(families, sets, 3):
        assert not fold[train].any()


def test_no_fold_holds_a_whole_set():
    """Else the classifier of the other folds has seen one set alone."""
    families = np.array(["r1"] * 28 + ["r2"] * 2 + ["t1"] * 15 + ["t2"] * 15)
    sets = np.repeat([1, 0], 30)
    for train, fold in two_sample.split(families, sets, 2):
        assert len(np.unique(sets[train])) == len(np.unique(sets[fold])) == 2


def test_the_order_of_images_does_not_matter():
    a, b = rng().normal(size=(30, 4)), rng().normal(0.5, 1, size=(30, 4))
    first = two_sample.cross_fitted(a, b, (singles(30), singles(30, "b")), 0.1, 5)
    order = rng().permutation(30)
    second = two_sample.cross_fitted(a[order], b, (singles(30)[order], singles(30, "b")), 0.1, 5)
    np.testing.assert_allclose(second[0], first[0][order], atol=1e-4)
    np.testing.assert_allclose(second[1], first[1], atol=1e-4)


def test_too_few_families_are_refused():
    with pytest.raises(InputError, match="5 folds needs as many families in each set, got 2"):
        two_sample.cross_fitted(np.zeros((4, 2)), np.zeros((9, 2)), (np.array(list("aabb")), singles(9)), 0.1, 5)


# groups


@pytest.mark.parametrize(
    ("labels", "names", "of"),
    [
        (("Flags", "People & Body", "Food"), ["people", "rest"], [1, 0, 1]),
        (("flag", "person-role", "hands"), ["people", "rest"], [1, 0, 0]),
        (("cat", "dog"), ["cat", "dog"], [0, 1]),  # no pattern matches: each label
        (("A b", "a-b", "all", "rest", "!"), ["a_b_0", "a_b_1", "all_2", "rest_3", "label"], [0, 1, 2, 3, 4]),
        (("person-role",), ["people"], [0]),
        (("A b", "a-b", "a b 0"), ["a_b_0_0", "a_b_1", "a_b_0"], [0, 1, 2]),
    ],
)
def test_groups_of_labels(labels, names, of):
    found, index = groups.of_labels(labels, {"people": ["People & Body", "person*", "hands"]})
    assert (found, index.tolist()) == (names, of)


def test_groups_are_predicted_from_features():
    truth = np.arange(80) % 2
    x = rng().normal(size=(80, 3)) + 8 * truth[:, None]
    assign = groups.Assigner(x[:60], truth[:60])
    assert (assign(x[60:]) == truth[60:]).all()
    assert (groups.Assigner(x, np.full(80, 3))(x) == 3).all()  # one group: nothing to learn


# the sheet of groups


def test_the_sheet_has_samples_of_each_group_beside_real_images():
    """Samples are 0 to 79, images of the test split 100 to 139; even ones are people. All samples of a block are the first."""
    samples, real = (np.arange(first, last, dtype=np.uint8) for first, last in ((0, 100), (100, 140)))
    run = SimpleNamespace(
        groups=lambda of: (
            {"all": np.arange(100 if of == "samples" else 40)}
            | {name: np.arange(at, 100 if of == "samples" else 40, 2) for at, name in enumerate(("people", "rest"))}
        ),
        samples=lambda: np.tile(samples[:, None, None, None], (1, 8, 8, 3)),
        images=lambda split, of: np.tile(real[:, None, None, None], (1, 8, 8, 3)),
    )
    axes = stages.features.picture(run).axes
    assert [axis.get_title() for axis in axes] == [
        f"{name}: {what}"
        for name in ("people", "rest")
        for what in ("samples, the first", "test images through the tokenizer")
    ]
    for axis, numbers in zip(
        axes, (range(0, 80, 2), range(100, 140, 2), range(1, 80, 2), range(101, 140, 2)), strict=True
    ):
        centres = axis.get_images()[0].get_array()[36::68, 36::68, 0].ravel()
        shown = [number for number in centres if number != 255]
        assert shown == list(numbers)


def test_without_groups_the_sheet_has_one_row():
    run = SimpleNamespace(
        groups=lambda of: {"all": np.arange(3)},
        samples=lambda: np.zeros((3, 8, 8, 1), np.uint8),
        images=lambda split, of: np.zeros((3, 8, 8, 1), np.uint8),
    )
    assert len(stages.features.picture(run).axes) == 2


def test_a_data_set_without_vendors_has_none_to_compare_with(raw):
    raw["features"]["vendor"] = "noto"
    (line,) = problems(raw)
    assert line.startswith(
        "features.vendor: must be empty while dataset.name is noto, which knows no vendors, got 'noto'"
    )
    raw["dataset"]["name"] = "emoji"
    assert not [line for line in problems(raw) if line.startswith("features.vendor")]
