"""Formulas on codes and pictures against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tessera import scores, statistics
from tessera.images.arrays import to_model

CODES = hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=6), elements=st.integers(0, 4))


# codes


@given(CODES)
def test_frequencies_by_counting(codes):
    p = statistics.frequencies(codes, 7)
    flat = codes.reshape(-1).tolist()
    assert p.tolist() == [flat.count(k) / len(flat) for k in range(7)]


@pytest.mark.parametrize("k", [1, 2, 256])
def test_perplexity_of_uniform_codes_is_k(k):
    p = statistics.frequencies(np.arange(3 * k) % k, k)
    assert statistics.perplexity(p) == pytest.approx(k)
    assert statistics.entropy_bits(p) == pytest.approx(math.log2(k))
    assert statistics.usage(p) == 1


def test_perplexity_of_constant_codes_is_1():
    p = statistics.frequencies(np.full(9, 3), 8)
    assert statistics.perplexity(p) == 1
    assert statistics.entropy_bits(p) == 0
    assert statistics.usage(p) == 1 / 8


def test_entropy_of_known_shares():
    """1/2, 1/4, 1/8, 1/8: 1.75 bits."""
    assert statistics.entropy_bits(np.array([0.5, 0.25, 0.125, 0.125, 0.0])) == 1.75


@given(CODES)
def test_perplexity_lies_between_1_and_the_codes_used(codes):
    p = statistics.frequencies(codes, 5)
    assert 1 - 1e-9 <= statistics.perplexity(p) <= statistics.usage(p) * 5 + 1e-9


# pictures


def test_mse_by_brute_force():
    draws = np.random.default_rng(0)
    a, b = draws.integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    expected = [
        sum((int(p) - int(q)) ** 2 for p, q in zip(x.reshape(-1), y.reshape(-1), strict=True)) / x.size / 255**2
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(scores.mse(a, b), expected, rtol=1e-6)


def test_mse_of_8_bit_values_does_not_wrap():
    assert scores.mse(np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2, 2, 1), 255, np.uint8)) == 1


def test_psnr_in_closed_form():
    np.testing.assert_allclose(scores.psnr_db(np.array([1.0, 0.1, 0.01, 1e-4])), [0, 10, 20, 40])
    assert scores.psnr_db(0.0) == 100


def test_psnr_of_one_grey_level():
    """20 log10(255) = 48.1308 dB, the figure of every textbook."""
    a = np.full((1, 8, 8, 3), 100, np.uint8)
    assert scores.psnr_db(scores.mse(a, a + 1))[0] == pytest.approx(48.1308, abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 8, 8, 1), (2, 4, 6, 3)])
def test_ssim_of_an_image_with_itself_is_1(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_allclose(scores.ssim(images, images), 1)


def test_ssim_is_symmetric_and_falls_with_noise():
    draws = np.random.default_rng(0)
    a = np.broadcast_to(np.linspace(40, 200, 16).astype(np.uint8)[:, None, None], (16, 16, 3))[None]
    noisy = [(a + draws.integers(-n, n + 1, a.shape)).astype(np.uint8) for n in (5, 20, 40)]
    values = [scores.ssim(a, b)[0] for b in noisy]
    assert 1 > values[0] > values[1] > values[2]
    assert scores.ssim(noisy[0], a)[0] == pytest.approx(values[0])


@pytest.mark.parametrize("measure", [scores.ssim, scores.ssim_gaussian])
@pytest.mark.parametrize("side", [4, 8, 11, 16])
def test_ssim_of_two_constant_images_in_closed_form(measure, side):
    """Without variance only the luminance term is left: (2 a b + C1) / (a^2 + b^2 + C1), C1 = (0.01 * 255)^2."""
    a, b, c1 = 50.0, 100.0, (0.01 * 255) ** 2
    found = measure(np.full((1, side, side, 1), 50, np.uint8), np.full((1, side, side, 1), 100, np.uint8))[0]
    assert found == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-5)


def damaged(n: int, height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images, and the same with ever more noise, the first with none."""
    draws = np.random.default_rng(0)
    waves = np.sin(np.arange(height)[:, None, None] / 3 + np.arange(width)[:, None] / 5 + np.arange(channels))
    a = np.stack([127 + 100 * waves] * n)
    noise = draws.normal(size=a.shape) * np.linspace(0, 60, n)[:, None, None, None]
    return a.astype(np.uint8), (a + noise).clip(0, 255).astype(np.uint8)


SHAPES = [(5, 32, 32, 3), (3, 11, 11, 3), (3, 64, 64, 3), (4, 12, 40, 1), (2, 28, 28, 1), (70, 16, 16, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_both_ssim_by_scikit_image(shape):
    from skimage.metrics import structural_similarity

    a, b = damaged(*shape)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for found, options in ((scores.ssim(a, b), {}), (scores.ssim_gaussian(a, b), gaussian)):
        expected = [
            structural_similarity(x, y, channel_axis=-1, data_range=255, **options) for x, y in zip(a, b, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert abs(scores.ssim(a, b) - scores.ssim_gaussian(a, b)).max() > 1e-3  # they are two measures


@pytest.mark.parametrize(
    ("height", "width", "window"), [(4, 4, 3), (8, 8, 7), (10, 32, 9), (11, 32, 11), (5, 8, 5), (40, 40, 11)]
)
def test_gaussian_ssim_by_brute_force(height, width, window):
    """Eq. 13 and section III.C at each place of the window; a small image has the largest odd one that fits."""
    a, b = damaged(3, height, width, 3)
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = (np.lib.stride_tricks.sliding_window_view(v.astype(float), (window, window), axis=(1, 2)) for v in (a, b))

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * weights).sum((-2, -1))

    mx, my, c1, c2 = mean(x), mean(y), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance, variances = mean(x * y) - mx * my, mean(x * x) - mx**2 + mean(y * y) - my**2
    similar = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (variances + c2))
    np.testing.assert_allclose(scores.ssim_gaussian(a, b), similar.mean((1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_ssim_by_pytorch_msssim_and_the_loss(shape):
    import torch
    from pytorch_msssim import SSIM

    a, b = damaged(*shape)
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() for v in (a, b))
    expected = SSIM(data_range=255, size_average=False, channel=shape[-1])(x, y)
    np.testing.assert_allclose(scores.ssim_gaussian(a, b), expected, atol=1e-4)


def test_psnr_of_the_mean_error_is_at_most_the_mean_of_the_images_own():
    a, b = damaged(5, 16, 16, 3)
    error = scores.mse(a[1:], b[1:])
    assert scores.psnr_db(error.mean()) < scores.psnr_db(error).mean()


@given(st.lists(st.tuples(st.floats(-10, 10), st.sampled_from("abcd")), min_size=1, max_size=12))
def test_by_family_by_brute_force(rows):
    values, families = zip(*rows, strict=True)
    means = [np.mean([v for v, f in rows if f == family]) for family in set(families)]
    assert scores.by_family(np.array(values), list(families)) == pytest.approx(np.mean(means), abs=1e-9)


# grids


@given(hnp.arrays(np.int64, (2, 4, 5), elements=st.integers(0, 2)), st.integers(0, 5), st.integers(0, 6))
def test_neighbours_equal_by_brute_force(grid, dy, dx):
    pairs = [
        grid[n, row, column] == grid[n, row + dy, column + dx]
        for n in range(2)
        for row in range(4 - dy)
        for column in range(5 - dx)
    ]
    found = statistics.neighbours_equal(grid, dy, dx)
    assert math.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))


def test_squared_errors_have_two_units():
    """Of one pair of pixels: as images from 0 to 1, and as models see them, from -1 to 1."""
    pair = np.array([[[[51]]], [[[204]]]], np.uint8)
    error = scores.mse(pair[:1], pair[1:])[0]
    seen = to_model(pair).double().flatten()
    assert scores.symmetric(error) == pytest.approx(float((seen[0] - seen[1]) ** 2), rel=1e-5)
    assert scores.unit(scores.symmetric(error)) == error
