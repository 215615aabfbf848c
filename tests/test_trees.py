"""core/trees: nested values by dotted names."""

from __future__ import annotations

import pytest

from tessera.core import trees

TREE = {"seed": 1, "prior": {"name": "rnn", "training": {"lr": 0.5}}, "train": {}}


def test_leaves_stand_in_the_order_of_the_tree() -> None:
    assert list(trees.leaves(TREE)) == [("seed", 1), ("prior.name", "rnn"), ("prior.training.lr", 0.5), ("train", {})]
    assert list(trees.leaves({"a": 2}, "file:")) == [("file:a", 2)]
    assert list(trees.numbers({"val": {"mse": 2.0}, "train": {}})) == [("val.mse", 2.0)]


def test_a_value_is_found_by_each_name_that_leaves_have() -> None:
    assert all(trees.value(TREE, name) == value for name, value in trees.leaves(TREE))
    assert trees.value(TREE, "prior.training") == {"lr": 0.5}


@pytest.mark.parametrize("name", ["none", "prior.none", "seed.none", "prior.training.lr.none"])
def test_a_value_that_is_not_there(name: str) -> None:
    assert trees.value(TREE, name, None) is None
    with pytest.raises(KeyError, match=name):
        trees.value(TREE, name)
