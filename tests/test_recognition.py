"""Recognisers: the better head on validation images, places of classes, chance."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.core.errors import InputError
from tessera.evaluation.words.recognition import CENTROID, HEADS, LINEAR, Examples, Recogniser

CLASSES, DIM = 6, 20


def of_classes(each: int, seed: int, spread: float = 0.3) -> Examples:
    """Images around a mean of each class; equal means whatever the seed."""
    means = np.random.default_rng(0).normal(size=(CLASSES, DIM))
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(CLASSES), each)
    return Examples(means[classes] + rng.normal(0, spread, (len(classes), DIM)), np.array([f"c{c}" for c in classes]))


def recogniser(train: Examples, held_out: Examples, penalty: float = 1.0) -> Recogniser:
    return Recogniser(train, held_out, DIM, penalty, 200)


def test_classes_that_lie_apart_are_recognised_by_both_heads() -> None:
    found = recogniser(of_classes(5, 1), of_classes(5, 2))
    test = of_classes(20, 3)
    assert found.accuracy == dict.fromkeys(HEADS, 1.0)
    assert found.head == LINEAR  # on a tie
    assert (found(test.features) == test.classes).all()
    assert (found.places(test.features, test.classes) == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_at_chance_where_names_are_shuffled(seed: int) -> None:
    train, test = of_classes(20, 1), of_classes(200, 3)
    rng = np.random.default_rng(seed)
    shuffled = train._replace(classes=rng.permutation(train.classes))
    found = recogniser(shuffled, of_classes(20, 2)._replace(classes=rng.permutation(of_classes(20, 2).classes)))
    wanted = rng.permutation(test.classes)
    places = found.places(test.features, wanted)
    assert (places == 1).mean() == pytest.approx(1 / CLASSES, abs=0.04)  # of 1200: nearly four standard deviations
    assert (places <= 5).mean() == pytest.approx(5 / CLASSES, abs=0.04)
    assert places.mean() == pytest.approx((CLASSES + 1) / 2, abs=0.2)


def test_the_head_that_is_better_on_validation_is_kept() -> None:
    """Logistic regression prefers a class that is most of the training images, nearest means do not."""
    few, many = of_classes(3, 1, 1.0), of_classes(100, 5, 1.0)
    largest = many.classes == "c0"
    train = Examples(
        np.concatenate([few.features, many.features[largest]]), np.concatenate([few.classes, many.classes[largest]])
    )
    found = recogniser(train, of_classes(20, 2, 1.0), penalty=1e-4)
    assert found.accuracy[CENTROID] > found.accuracy[LINEAR] + 0.1
    assert found.head == CENTROID
    test = of_classes(50, 3, 1.0)
    assert (found(test.features) == test.classes).mean() == pytest.approx(found.accuracy[CENTROID], abs=0.1)
    of_largest = of_classes(100, 6, 1.0)
    alone = Examples(*(each[of_largest.classes == "c0"] for each in of_largest))
    assert recogniser(train, alone, penalty=1e-4).head == LINEAR


def test_the_first_head_without_validation_images_of_a_known_class() -> None:
    train = of_classes(4, 1)
    for held_out in (Examples(train.features[:0], train.classes[:0]), train._replace(classes=np.full(24, "other"))):
        found = recogniser(train, held_out)
        assert found.head == LINEAR
        assert np.isnan([*found.accuracy.values()]).all()


def test_the_order_of_images_changes_rounding_alone() -> None:
    train, held_out, test = of_classes(5, 1, 1.0), of_classes(5, 2, 1.0), of_classes(20, 3, 1.0)
    order = np.random.default_rng(0).permutation(len(train.classes))
    other = Examples(train.features[order], train.classes[order])
    a, b = recogniser(train, held_out), recogniser(other, held_out)
    assert (a.places(test.features, test.classes) == b.places(test.features, test.classes)).mean() > 0.99
    assert a.head == b.head


def test_equally_likely_classes_count_against_the_wanted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recogniser(of_classes(5, 1), of_classes(5, 2))
    for scores, place in (([0, 0, 0, 0, 0, 0], 6), ([3, 2, 2, 1, 0, 4], 4), ([3, 9, 2, 1, 0, 4], 1)):
        monkeypatch.setattr(found, "_scores", lambda features, head, scores=scores: np.array([scores]))
        assert found.places(np.zeros((1, DIM)), np.array(["c1"])).tolist() == [place]


def test_two_classes() -> None:
    train, test = of_classes(5, 1), of_classes(5, 3)
    two, held = np.isin(train.classes, ["c0", "c1"]), np.isin(test.classes, ["c0", "c1"])
    found = recogniser(Examples(*(each[two] for each in train)), Examples(*(each[held] for each in test)))
    assert (found.places(test.features[held], test.classes[held]) == 1).all()


def test_one_class_and_an_unknown_one_are_refused() -> None:
    train = of_classes(5, 1)
    with pytest.raises(InputError, match="needs images of two classes, got those of 1"):
        recogniser(train._replace(classes=np.full(len(train.classes), "c")), train)
    with pytest.raises(InputError, match="no image of 'c9'"):
        recogniser(train, train).places(train.features[:1], np.array(["c9"]))
