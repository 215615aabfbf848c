"""The recogniser that sees pixels: stripes and colours, chance, reconstructions, order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import example

from tessera.core.errors import InputError
from tessera.evaluation.words.pixel_recognition import Config, Drawings, PixelRecogniser, shifted

SIDE = 16
CLASSES = ("across", "down", "flat")


def drawings(each: int, seed: int, noise: int = 40) -> Drawings:
    """Stripes across, stripes down, or none, of equal mean: no mean over the image tells them apart. Reconstructions are paler."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(CLASSES, each)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = {"across": rows % 2, "down": columns % 2, "flat": np.full((SIDE, SIDE), 0.5)}
    base = np.stack([128 + 60 * (waves[name] - 0.5) for name in classes])[..., None]
    noisy = base + rng.normal(0, noise, (len(classes), SIDE, SIDE, 3))
    paler = 128 + (base - 128) / 2 + rng.normal(0, noise / 2, (len(classes), SIDE, SIDE, 3))
    return Drawings(
        *(each.clip(0, 255).astype(np.uint8) for each in (noisy, paler)), classes, np.full(len(classes), "")
    )


def recogniser(train: Drawings, held_out: Drawings, seed: int = 0, **values: Any) -> PixelRecogniser:
    return PixelRecogniser(train, held_out, example(Config, **values), seed, "cpu")


def test_it_tells_line_from_line_in_drawings_and_in_reconstructions() -> None:
    found, test = recogniser(drawings(30, 1), drawings(10, 2)), drawings(50, 3)
    assert list(found.classes) == list(CLASSES)
    assert found.accuracy > 0.9
    for pixels in (test.originals, test.reconstructions):
        assert (found(pixels, test.by) == test.classes).mean() == pytest.approx(found.accuracy, abs=0.08)
        places = found.places(pixels, test.by, test.classes)
        assert ((places == 1) == (found(pixels, test.by) == test.classes)).all()
        assert places.min() >= 1
        assert places.max() <= len(CLASSES)


def test_who_drew_it_decides_what_is_dark() -> None:
    rng = np.random.default_rng(0)
    makers, dark = rng.choice(["left", "right"], (2, 90))
    classes = np.where(makers == dark, "one", "other")  # what is dark to one maker is light to the other
    grey = np.where(dark == "left", 60, 190)[:, None, None, None] + rng.normal(0, 5, (90, SIDE, SIDE, 3))
    pixels = grey.clip(0, 255).astype(np.uint8)
    told, untold = Drawings(pixels, pixels, classes, makers), Drawings(pixels, pixels, classes, np.full(90, ""))
    assert recogniser(told, told, epochs=20).accuracy > 0.95
    assert recogniser(untold, untold, epochs=20).accuracy < 0.7
    found = recogniser(told, told, epochs=1)
    assert (found(pixels[:4], np.full(4, "unknown")) == found(pixels[:4], np.full(4, "left"))).all()


def test_at_chance_where_classes_are_shuffled() -> None:
    train, test, rng = drawings(30, 1), drawings(200, 3), np.random.default_rng(0)
    found = recogniser(train._replace(classes=rng.permutation(train.classes)), drawings(5, 2))
    wanted = rng.permutation(test.classes)
    assert (found.places(test.originals, test.by, wanted) == 1).mean() == pytest.approx(
        1 / 3, abs=0.08
    )  # of 600: four deviations


def test_the_seed_decides_and_nothing_else() -> None:
    train, held_out, test = drawings(5, 1), drawings(5, 2), drawings(5, 3)
    first, again, other = (
        recogniser(train, held_out, seed, epochs=2)._scores(test.originals, test.by) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_held_out_images_of_a_known_class_there_is_no_accuracy() -> None:
    held_out = drawings(2, 2)
    found = recogniser(drawings(5, 1), held_out._replace(classes=np.full(6, "other")), epochs=1)
    assert np.isnan(found.accuracy)


def test_one_class_and_unknown_ones_are_named() -> None:
    one = drawings(5, 1)
    with pytest.raises(InputError, match="needs images of two classes, got those of 1"):
        recogniser(one._replace(classes=np.full(15, "flat")), one)
    found = recogniser(one, one, epochs=1)
    with pytest.raises(InputError, match="has seen no image of 'oval'; it knows 3 classes"):
        found.places(one.originals[:1], one.by[:1], np.array(["oval"]))
    assert len(found.places(one.originals[:0], one.by[:0], np.zeros(0, str))) == 0


def test_images_are_moved_and_what_enters_repeats_the_edge() -> None:
    pixels = np.arange(2 * 3 * 4).reshape(2, 3, 4, 1).astype(np.uint8)
    moved = shifted(pixels, np.array([[1, 0], [0, -2]]))
    np.testing.assert_array_equal(moved[0, :, :, 0], [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(moved[1, :, :, 0], [[14, 15, 15, 15], [18, 19, 19, 19], [22, 23, 23, 23]])
