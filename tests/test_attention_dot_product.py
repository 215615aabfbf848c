"""Scaled dot-product attention against its equation, in each precision."""

from __future__ import annotations

import pytest
import torch

from tessera.networks.dot_product import attended


def given(dtype: torch.dtype, kv_heads: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, 9, 6, dtype=dtype, requires_grad=True) for heads in (4, kv_heads, kv_heads)]


def by_the_equation(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1) & causal
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_equation(dtype, kv_heads, causal):
    q, k, v = given(dtype, kv_heads)
    found = attended(q, k, v, causal)
    assert found.dtype == dtype
    torch.testing.assert_close(found, by_the_equation(q, k, v, causal))


def test_under_autocast_it_and_its_gradient_are_those_of_float32():
    """But for the rounding of what comes in and goes out: bfloat16 inside would be some hundred times less exact."""
    inputs = [x.detach().bfloat16().requires_grad_() for x in given(torch.float32)]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        found = attended(*inputs, True)
    assert found.dtype == torch.bfloat16
    expected = by_the_equation(*exact, True)
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0.004)
    weights = torch.randn(found.shape).bfloat16()
    found.backward(weights)
    expected.backward(weights.float())
    for x, y in zip(inputs, exact, strict=True):
        torch.testing.assert_close(x.grad.float(), y.grad, rtol=0.01, atol=0.01)
