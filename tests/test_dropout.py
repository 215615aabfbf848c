"""Dropout: how much is left, its scale, the layout in memory, gradients."""

from __future__ import annotations

import pytest
import torch

from tessera.networks.dropout import dropped


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.5, 0.95])
def test_entries_are_dropped_with_their_probability_and_the_others_scaled(probability):
    torch.manual_seed(0)
    found = dropped(torch.ones(301, 1001), probability)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / (1 - probability))]
    assert (found == 0).float().mean().item() == pytest.approx(probability, abs=0.004)  # four standard errors


def test_entries_are_dropped_independently():
    """Four of them come from one random number: neighbours up to eight apart are uncorrelated."""
    torch.manual_seed(0)
    kept = (dropped(torch.ones(400_000), 0.5) > 0).double() - 0.5
    for apart in range(1, 9):
        assert (kept[apart:] * kept[:-apart]).mean().abs() < 4 * 0.25 / len(kept) ** 0.5


@pytest.mark.parametrize("x", [
    torch.ones(2, 3, 5), torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.ones(7, 9).T, torch.ones(1),
    torch.ones(0, 3), torch.ones(4, 4, dtype=torch.bfloat16), torch.ones(2, 1).expand(2, 6),
])  # fmt: skip
def test_shape_and_type_stay_and_the_seed_decides(x):
    torch.manual_seed(3)
    found = dropped(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropped(x, 0.5), found)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)


def test_a_gradient_reaches_what_is_left():
    torch.manual_seed(0)
    x = torch.ones(50, 50, requires_grad=True)
    found = dropped(x, 0.3)
    found.sum().backward()
    assert torch.equal(x.grad, found.detach())


def test_no_dropout_changes_nothing():
    x = torch.randn(3, 4)
    assert dropped(x, 0.0) is x
