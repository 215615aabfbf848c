"""networks.linear: the same as torch's, output and gradients, in every shape and precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tessera.networks.linear import Linear, linear


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape", [(7,), (1, 1, 1, 7), (3, 4, 5, 7), (2, 0, 7), (16, 4, 8, 7), (600, 1, 7), (17, 31, 7)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_output_and_gradients_are_those_of_torch(shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = normal(*shape), normal(5, 7, seed=1), normal(5, seed=2) if biased else None
    inputs = [value.requires_grad_() for value in (x, weight, bias) if value is not None]
    made, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(made, expected)
    weights = normal(*expected.shape, seed=3)
    found, wanted = (torch.autograd.grad((y * weights).sum(), inputs) for y in (made, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_rows_are_convolved_by_onednn_and_few_are_not(threads: int) -> None:
    """With a batch of one torch itself would convolve by something slower than its product of matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape, convolved in (((16, 4, 8, 7), True), ((15, 64, 7), False), ((16, 31, 7), False), ((512, 7), False)):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                linear(normal(*shape), normal(5, 7, seed=1))
            assert ("aten::mkldnn_convolution" in {event.name for event in profile.events()}) == convolved, shape
            assert not any("thnn" in event.name or "slow_conv" in event.name for event in profile.events())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [3, 160])
def test_memory_need_not_be_contiguous(batch: int) -> None:
    x, weight = normal(batch, 7, 4).mT, normal(7, 5, seed=1).T
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torch_s_own(dtype: torch.dtype) -> None:
    x, weight = normal(3, 4, 7).to(dtype), normal(5, 7, seed=1).to(dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_autocast_reaches_it() -> None:
    layer, x = Linear(7, 5), normal(3, 4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_a_layer_has_the_parameters_of_torch_s() -> None:
    layer, torchs = Linear(7, 5), torch.nn.Linear(7, 5)
    layer.load_state_dict(torchs.state_dict())
    x = normal(2, 7)
    torch.testing.assert_close(layer(x), torchs(x))
