"""Clipped density and clipped coverage (`tessera.features.clipped`): closed cases, calibration, noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from tessera.core.errors import InputError
from tessera.features.clipped import Clipped, clipped, collapsed, coverage, directions, expected_coverage, others
from tessera.features.neighbours import distances, radii

LINE = np.array([[0.0], [1.0], [3.0], [7.0]])  # distances to the nearest other: 1, 1, 2, 4; their median is 1.5


def gaussian(n: int, f: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, f))


def alone(n: int) -> np.ndarray:
    """Every image is its own family."""
    return np.array([f"family {index}" for index in range(n)])


def precision(real: np.ndarray, fake: np.ndarray, k: int) -> float:
    """Fraction of the fake points that lie in some real point's ball (Kynkäänniemi et al. 2019, eq. 3)."""
    return float((distances(fake, real) <= radii(real, k)).any(1).mean())


def mixture(good: int, bad: int, seed: int) -> np.ndarray:
    return np.concatenate([gaussian(good, seed=seed), 50 + gaussian(bad, seed=seed + 100)])


# closed cases


def test_density_by_hand():
    """k = 1. Radii are clipped to 1, 1, 1.5, 1.5. The samples lie in 2, 1, 0 and 0 balls, clipped to 1: mean 1/2. The real points
    lie in 1, 1, 0 and 0 balls of others: mean 1/2. That of 7 reaches to 11, and to the sample at 9.5, before it is clipped."""
    fake = np.array([[0.5], [4.5], [9.5], [20.0]])
    assert clipped(LINE, fake, alone(4), 1).density == 1
    assert clipped(LINE, fake[1:], alone(4), 1).density == pytest.approx((1 / 3) / (1 / 2))


def test_coverage_by_hand():
    """k = 1: the balls of 0, 1, 3 and 7 have radii 1, 1, 2 and 4. Samples at 0.5 and 4.5 lie in those of 0, 1, 3 and 7: all are
    covered. Of 2 samples none lies in a ball with probability E (1 - u)^2 = 3/5, u the smallest of 3 uniform numbers."""
    fake = np.array([[0.5], [4.5]])
    assert expected_coverage(3, 2, 1) == pytest.approx([0, 1 / 4, 2 / 5])
    assert clipped(LINE, fake, alone(4), 1).coverage == 1  # 1 is more than two good samples give
    # one sample, in the balls of 0 and 1: half is covered, which more than two good ones give; far away: none is
    assert clipped(LINE, np.array([[0.5], [90.0]]), alone(4), 1).coverage == 1
    assert clipped(LINE, np.array([[90.0], [91.0]]), alone(4), 1).coverage == 0
    # of the ball of 7 alone: 1/4, what one good sample of two gives
    assert clipped(LINE, np.array([[9.5], [90.0]]), alone(4), 1).coverage == pytest.approx(1 / 2)


@pytest.mark.parametrize(("n", "k"), [(12, 1), (12, 3), (40, 5)])
def test_expected_coverage_is_the_mean_of_min(n, k):
    """By the probabilities of all numbers of samples in a ball, and by chance."""
    m = 20
    number = np.arange(m + 1)
    expected = (np.minimum(number, k) * scipy.stats.betabinom.pmf(number, m, k, n - k)).sum() / k
    curve = expected_coverage(n - 1, m, k)
    assert curve[-1] == pytest.approx(expected)
    assert (np.diff(curve) > 0).all()
    generator = np.random.default_rng(0)
    reach = np.sort(generator.random((20000, n - 1)), axis=1)[:, k - 1]
    found = np.minimum(generator.binomial(m, reach), k).mean() / k
    assert found == pytest.approx(curve[-1], abs=0.01)


def by_the_paper(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Salvy et al. 2026, by loops: density normalised by the real points, and coverage before its calibration."""
    far = [[math.dist(a, b) for b in real] for a in real]
    reach = [sorted(row)[k] for row in far]  # the 0-th is the point itself
    median = float(np.median(reach))
    balls = [min(radius, median) for radius in reach]
    density = np.mean(
        [min(sum(math.dist(r, f) <= ball for r, ball in zip(real, balls, strict=True)) / k, 1) for f in fake]
    )
    ideal = np.mean([
        min(sum(far[i][j] <= balls[i] for i in range(len(real)) if i != j) / k, 1) for j in range(len(real))
    ])  # fmt: skip
    covered = np.mean(
        [min(sum(math.dist(r, f) < radius for f in fake) / k, 1) for r, radius in zip(real, reach, strict=True)]
    )
    return min(density / ideal, 1), covered


@pytest.mark.parametrize("k", [1, 4])
def test_of_single_images_it_is_what_the_paper_says(k):
    real, fake = gaussian(30, 3), gaussian(25, 3, seed=1) + 0.7
    density, covered = by_the_paper(real, fake, k)
    found = clipped(real, fake, alone(30), k)
    assert found.density == pytest.approx(density)
    curve = expected_coverage(29, 25, k)
    assert found.coverage == pytest.approx(np.interp(covered, curve, np.arange(26) / 25))


# calibration


@pytest.mark.parametrize("good", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_value_is_the_fraction_of_good_samples(good):
    n = 200
    found = [
        clipped(gaussian(n, seed=s), mixture(round(good * n), n - round(good * n), s + 50), alone(n), 5)
        for s in range(6)
    ]
    assert np.mean(found, 0) == pytest.approx([good, good], abs=0.07)


def test_the_value_does_not_depend_on_the_numbers():
    real = gaussian(150)
    for m in (60, 600):
        assert clipped(real, mixture(m // 2, m // 2, 1), alone(150), 5) == pytest.approx([0.5, 0.5], abs=0.15)


def test_a_real_outlier_does_not_make_junk_good():
    """Its ball reaches over everything: precision is 1."""
    real = np.concatenate([gaussian(60), [[40.0, 0, 0, 0, 0, 0]]])
    junk = gaussian(60, seed=1) + np.array([20.0, 0, 0, 0, 0, 0])
    assert precision(real, junk, 5) == 1
    found = clipped(real, junk, alone(61), 5)
    assert found.density == 0
    assert found.coverage < 0.05


def test_samples_in_one_dense_place_do_not_make_up_for_others():
    """Half of them lie in twelve balls each, k = 5: the density were 1.2 without clipping."""
    real = gaussian(60)
    crowd = np.concatenate([np.zeros((30, 6)), 90 + gaussian(30)])
    assert (np.linalg.norm(real, axis=1) <= radii(real, 5)).sum() == 12
    found = clipped(real, crowd, alone(60), 5)
    assert found.density < 0.9
    assert found.coverage < 0.6


# families


def variants(seed: int, count: int = 20, each: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(count, 6)).repeat(each, 0)
    return points + 0.01 * generator.normal(size=points.shape), alone(count).repeat(each)


def test_variants_of_one_image_do_not_shrink_the_balls():
    """Other real images of the same kind: by single images nearly none is good, by families nearly all are."""
    (real, families), (other, _) = variants(0), variants(1)
    apart, together = clipped(real, other, alone(len(real)), 5), clipped(real, other, families, 5)
    assert max(apart) < 0.05
    assert together.density > 0.7
    assert together.coverage > 0.25
    noise = 30 + gaussian(60)
    assert clipped(real, noise, families, 5) == (0, 0)


def test_families_are_what_is_left_out():
    families = np.array(list("aabccc"))
    assert others(families).tolist() == [4, 4, 5, 3, 3, 3]
    points = np.array([[0.0], [0.1], [1.0], [3.0], [3.1], [3.2]])
    # the ball of 0 reaches to 1, not to 0.1: a sample at -0.9 lies in it
    assert clipped(points, np.array([[-0.9]]), families, 1).coverage > 0


def test_other_real_images_reach_one_where_each_is_alone_and_less_in_families():
    """Of 30 families 10 variants each, and of as many images without families; the mean over pairs of sets."""
    found = {}
    for each in (1, 10):
        sets = [variants(seed, 300 // each, each) for seed in range(6)]
        found[each] = np.mean([clipped(sets[i][0], sets[i + 1][0], sets[i][1], 5) for i in (0, 2, 4)], 0)
    assert found[1] == pytest.approx([1, 1], abs=0.06)
    assert found[10][1] < 0.7


# directions


def test_noise_has_nothing_in_common_with_images_whose_precision_is_high():
    """Features are strong where a network recognises something, and weak for noise: it lies near the origin, and so nearer to
    images than these to one another. Precision takes all of it for real."""
    image, weak = np.repeat([10.0, 0.1], [30, 10]), np.repeat([0.1, 0.5], [30, 10])
    real, other = (np.abs(gaussian(200, 40, seed)) ** 3 * image for seed in (0, 1))
    noise = (1 + 0.1 * gaussian(200, 40, 2)) * weak
    assert precision(real, noise, 5) > 0.95
    assert clipped(real, noise, alone(200), 5).density > 0.9
    assert clipped(directions(real), directions(noise), alone(200), 5).density == 0
    assert coverage(real, noise, alone(200), 5) < 0.02
    assert coverage(real, other, alone(200), 5) > 0.75


def test_directions_have_length_one_and_the_origin_stays():
    found = directions(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-9]]))
    assert found == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, -1]]))


# collapse


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_one_image_for_everything_is_no_good_sample(rounding):
    """All distances are 0, within the rounding of a forward pass: every sample would lie in every ball."""
    image = np.abs(gaussian(1, 40))
    real, fake = (image * (1 + rounding * gaussian(30, 40, seed)) for seed in (0, 1))
    assert coverage(real, fake, alone(30), 5) == coverage(0 * real, 0 * fake, alone(30), 5) == 0
    assert collapsed(directions(real), alone(30), 5)
    few = np.concatenate([real[:10], gaussian(20, 40)])  # a third of the images are one
    assert not collapsed(directions(few), alone(30), 5)
    assert coverage(few, few, alone(30), 5) > 0


# order, and what cannot be measured


def test_the_order_of_images_does_not_matter():
    (real, families), fake = variants(0), gaussian(50, seed=3)
    generator = np.random.default_rng(0)
    first, second = generator.permutation(len(real)), generator.permutation(50)
    assert coverage(real[first], fake[second], families[first], 5) == pytest.approx(coverage(real, fake, families, 5))


def test_too_few_images_have_no_coverage():
    real, families = variants(0, count=3, each=2)
    assert math.isnan(coverage(real, gaussian(9), families, 5))  # 4 of other families
    assert math.isnan(coverage(real, gaussian(4), families, 4))
    assert 0 <= coverage(real, gaussian(5), families, 4) <= 1
    for wrong in (
        (real, gaussian(9), families, 5),
        (real, gaussian(0), families, 2),
        (real[:0], gaussian(3), families[:0], 1),
    ):
        with pytest.raises(InputError, match="of other families"):
            clipped(*wrong)
    assert isinstance(clipped(real, gaussian(1), families, 4), Clipped)
