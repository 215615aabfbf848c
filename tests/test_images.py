"""The two conversions between stored and modelled images, augmentation, batches, and sheets of pictures."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera import augmentation
from tessera.augmentation import Augmentation
from tessera.core.seeding import generator
from tessera.images import arrays as conversions
from tessera.images import pictures


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "augment")


def random_images(n: int, c: int = 3, h: int = 5, w: int = 7) -> torch.Tensor:
    return torch.rand(n, c, h, w) * 2 - 1


# conversions


@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_value_comes_back(channels):
    pixels = np.arange(256, dtype=np.uint8).repeat(channels).reshape(1, 16, 16, channels)
    np.testing.assert_array_equal(conversions.to_pixels(conversions.to_model(pixels)), pixels)


def test_black_is_minus_1_and_white_is_1():
    x = conversions.to_model(np.array([[[[0, 255, 51]]]], np.uint8))
    assert x.shape == (1, 3, 1, 1)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_read_only_pixels_give_no_warning_and_are_left_alone():
    """Arrays of the artefacts are mapped read-only; torch warns of such, in the log of every stage."""
    pixels = np.full((2, 3, 3, 1), 7, np.uint8)
    pixels.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            conversions.to_model(pixels).fill_(0)
    finally:
        torch.set_warn_always(before)
    assert (pixels == 7).all()


def test_axes_go_where_they_belong():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    x = conversions.to_model(pixels)
    for n, row, column, channel in np.ndindex(pixels.shape):
        assert x[n, channel, row, column] == pixels[n, row, column, channel] / np.float32(127.5) - 1


@given(st.floats(-3, 3, width=32))
def test_pixels_are_the_nearest_value_clipped(value):
    nearest = min(range(256), key=lambda grey: abs(grey / 127.5 - 1 - value))
    pixel = int(conversions.to_pixels(torch.full((1, 1, 1, 1), value)).item())
    assert abs(pixel / 127.5 - 1 - value) <= abs(nearest / 127.5 - 1 - value) + 1e-6


def test_pixels_of_half_precision_and_of_what_has_a_gradient():
    x = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    assert conversions.to_pixels(x).item() == 128  # 127.5, halves to even


# batches


@given(st.integers(0, 40), st.integers(1, 50))
def test_batches_cover_everything_once_in_order(n, size):
    slices = list(conversions.batches(n, size))
    assert [i for where in slices for i in range(n)[where]] == list(range(n))
    assert all(0 < where.stop - where.start <= size for where in slices)


@given(st.integers(1, 200), st.integers(1, 200))
def test_evenly_spread_indices(n, count):
    chosen = conversions.evenly(n, count)
    assert len(chosen) == min(n, count)
    assert chosen[0] == 0
    assert count == 1 or chosen[-1] == n - 1
    steps = np.diff(chosen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_map_batches_does_not_depend_on_the_batch_size(images, size):
    found = np.zeros(len(images))
    for where, result in conversions.map_batches(lambda x: x.mean((1, 2, 3)), images, size):
        assert not result.requires_grad
        found[where] = result.numpy()
    np.testing.assert_allclose(found, images.mean((1, 2, 3)) / 127.5 - 1, atol=1e-6)


def test_map_batches_computes_no_gradients(images):
    weight = torch.ones(1, requires_grad=True)
    for _, result in conversions.map_batches(lambda x: x * weight, images, 5):
        assert not result.requires_grad


# augmentation


def test_no_augmentation_is_the_identity():
    x = random_images(4)
    assert torch.equal(augmentation.augment(x, 0.0, 0, draws()), x)


def test_flip_with_probability_1_is_the_mirror():
    x = random_images(4)
    flipped = augmentation.augment(x, 1.0, 0, draws())
    for column in range(7):
        assert torch.equal(flipped[..., column], x[..., 6 - column])


def test_flip_is_drawn_for_each_image_with_its_probability():
    x = random_images(2000, 1, 1, 2)
    flipped = (augmentation.augment(x, 0.25, 0, draws()) != x).flatten(1).any(1)
    assert 0.22 < flipped.float().mean() < 0.28


def test_shift_by_brute_force():
    """Every image is one of the (2 s + 1)^2 shifts of itself, white comes in, and all shifts occur."""
    shift, n, h, w = 2, 300, 5, 7
    x = random_images(n, 3, h, w)
    moved, seen = augmentation.augment(x, 0.0, shift, draws()), set()
    for before, after in zip(x, moved, strict=True):
        matches = []
        for dy in range(-shift, shift + 1):
            for dx in range(-shift, shift + 1):
                expected = torch.ones_like(before)
                for row in range(max(0, dy), min(h, h + dy)):
                    for column in range(max(0, dx), min(w, w + dx)):
                        expected[:, row, column] = before[:, row - dy, column - dx]
                if torch.equal(expected, after):
                    matches.append((dy, dx))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == (2 * shift + 1) ** 2


def test_augmentation_depends_on_its_generator_alone():
    x = random_images(8)
    torch.manual_seed(1)
    first = augmentation.augment(x, 0.5, 2, draws(3))
    torch.manual_seed(2)
    assert torch.equal(augmentation.augment(x, 0.5, 2, draws(3)), first)
    assert not torch.equal(augmentation.augment(x, 0.5, 2, draws(4)), first)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_shape_and_channels_together(channels):
    """Three equal channels stay equal. In memory the channels come last, on which convolutions are faster."""
    x = random_images(6, 1).repeat(1, channels, 1, 1)
    changed = augmentation.augment(x, 0.5, 1, draws())
    assert changed.shape == x.shape
    assert torch.equal(changed, changed[:, :1].expand_as(changed))
    assert changed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_recolouring_puts_the_channels_of_some_images_in_another_order(probability):
    """All 6 orders are as likely; the old one is among them."""
    x = random_images(3000, 3, 1, 1)
    changed = augmentation.recolour(x, probability, draws())
    assert torch.equal(changed.sort(dim=1).values, x.sort(dim=1).values)
    orders, counts = changed.argsort(1).flatten(1).eq(x.argsort(1).flatten(1)).all(1).unique(return_counts=True)
    assert orders.tolist() == [False, True]
    assert abs(counts[0] / 3000 - probability * 5 / 6) < 0.03
    seen = {tuple(x[i].flatten().tolist().index(v) for v in changed[i].flatten().tolist()) for i in range(3000)}
    assert len(seen) == 6


def test_recolouring_moves_whole_channels_and_keeps_white():
    x = random_images(20)
    x[:, :, 0, 0] = 1
    changed = augmentation.recolour(x, 1.0, draws())
    assert (changed[:, :, 0, 0] == 1).all()
    for before, after in zip(x, changed, strict=True):
        assert all(any(torch.equal(channel, old) for old in before) for channel in after)


def test_recolouring_leaves_grey_images_and_probability_0():
    grey, colour = random_images(4, 1), random_images(4)
    assert torch.equal(augmentation.recolour(grey, 1.0, draws()), grey)
    assert torch.equal(augmentation.recolour(colour, 0.0, draws()), colour)


def test_rescaling_is_about_the_centre_and_lets_white_in():
    """Within 1/1.5 and 1.5 times; a disc stays centred, its area changes by the square of the factor."""
    rows, columns = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    disc = torch.where(rows**2 + columns**2 <= 64, -1.0, 1.0).expand(200, 3, 33, 33)
    ink = (1 - augmentation.rescale(disc, 0.5, draws())) / 2
    area = ink.sum((1, 2, 3)) / ((1 - disc[:1]) / 2).sum()
    assert 1 / 1.5**2 * 0.95 < area.min() < 0.6
    assert 1.7 < area.max() < 1.5**2 * 1.05
    assert abs(area.log().mean()) < 0.1, "as often smaller as larger"
    centre = (ink[:, 0] * rows).sum((1, 2)) / ink[:, 0].sum((1, 2))
    assert centre.abs().max() < 1e-3
    assert augmentation.rescale(torch.ones(20, 3, 8, 8), 0.5, draws()).eq(1).all(), "white stays white at the edges"


def test_a_weak_augmentation_is_a_part_of_a_strong_one(tiny):
    x, how = random_images(500), tiny(Augmentation, flip=1.0, shift=2, scale=0.0, recolour=0.0)
    assert torch.equal(augmentation.augmented(x, how, draws(), strength=0.0), x)
    half = augmentation.augmented(x, how, draws(), strength=0.5)
    assert torch.equal(half, augmentation.augment(x, 0.5, 1, draws()))


def test_augmented_does_all_that_is_asked_for(tiny):
    x = random_images(4)
    draw = draws()
    scaled = augmentation.rescale(augmentation.augment(x, 1.0, 2, draw), 0.3, draw)
    by_hand = augmentation.recolour(scaled, 1.0, draw)
    how = tiny(Augmentation, flip=1.0, shift=2, scale=0.3, recolour=1.0)
    assert torch.equal(augmentation.augmented(x, how, draws()), by_hand)
    nothing = tiny(Augmentation, flip=0.0, shift=0, scale=0.0, recolour=0.0)
    assert torch.equal(augmentation.augmented(x, nothing, draws()), x)


# sheets


def test_sheet_places_every_image():
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    sheet = pictures.sheet(images, columns=2, gap=4)
    assert sheet.shape == (3 * 68 + 4, 2 * 68 + 4, 3)
    covered = np.zeros(sheet.shape[:2], bool)
    for index, image in enumerate(images):
        top, left = 4 + (index // 2) * 68, 4 + (index % 2) * 68
        np.testing.assert_array_equal(sheet[top : top + 64, left : left + 64], image)
        covered[top : top + 64, left : left + 64] = True
    assert (sheet[~covered] == 255).all()


def test_small_images_are_enlarged_pixel_by_pixel():
    image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    sheet = pictures.sheet(image, columns=1, gap=0)
    assert sheet.shape == (64, 64, 1)
    np.testing.assert_array_equal(sheet[::32, ::32, 0], [[0, 1], [2, 3]])
    assert set(np.unique(sheet[:32, :32])) == {0}


def test_pairs_stand_one_above_the_other_also_in_a_row_that_is_not_full():
    above = np.arange(10, 13, dtype=np.uint8).repeat(64 * 64).reshape(3, 64, 64, 1)
    sheet = pictures.rows_of_pairs(above, above + 10, columns=2)
    np.testing.assert_array_equal(sheet[4::68, 4::68, 0], [[10, 11], [20, 21], [12, 255], [22, 255]])
