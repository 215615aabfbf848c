"""What every image term promises, and the mathematics of each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tessera.core import images, models, seams
from tessera.core.contracts import Output
from tessera.core.params import Params
from tessera.losses import mse


@pytest.fixture(params=seams.names("losses"))
def name(request) -> str:
    return request.param


@pytest.fixture
def loss(name, tiny, tiny_run) -> nn.Module:
    module = seams.plugin("losses", name)
    return module.build(tiny(module.Config), tiny_run())


def outputs(raw, pixels) -> tuple[torch.Tensor, Output]:
    tokenizer = models.build(models.tokenizer_recipe(Params(raw), (3, 8, 8)))
    x = images.to_model(pixels)
    return x, tokenizer(x)


# the contract


def test_loss_is_a_finite_number_with_a_gradient_towards_the_reconstruction(loss, raw, make_images):
    x, output = outputs(raw, make_images(4))
    output.reconstruction.retain_grad()
    value = loss(x, output)
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    assert torch.isfinite(output.reconstruction.grad).all()
    assert output.reconstruction.grad.abs().sum() > 0


def test_loss_is_zero_and_least_for_a_perfect_reconstruction(loss, raw, make_images):
    x, output = outputs(raw, make_images(4))
    loss.eval()
    perfect = loss(x, output._replace(reconstruction=x))
    assert perfect.item() == pytest.approx(0, abs=1e-6)
    assert loss(x, output) > perfect


def test_loss_is_a_mean_over_the_batch(loss, raw, make_images):
    """A larger batch must not mean larger steps."""
    x, output = outputs(raw, make_images(6))
    loss.eval()
    single = [loss(x[i : i + 1], output._replace(reconstruction=output.reconstruction[i : i + 1])) for i in range(6)]
    torch.testing.assert_close(loss(x, output), torch.stack(single).mean())


def test_weight_is_left_to_the_objective(name, tiny, tiny_run, raw, make_images):
    module, run = seams.plugin("losses", name), tiny_run()
    x, output = outputs(raw, make_images(3))
    values = [module.build(tiny(module.Config, weight=weight), run).eval()(x, output) for weight in (1.0, 5.0)]
    assert torch.equal(*values)


# mse


def test_mse_by_hand():
    """Of the [-1, 1] pixels 0.5 and -1, decoded as 0 and 1: (0.25 + 4) / 2."""
    x = torch.tensor([0.5, -1.0]).view(1, 1, 1, 2)
    output = Output(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), (), ())
    assert mse.MSE()(x, output).item() == 2.125
