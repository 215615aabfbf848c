"""The adversarial term: each side is trained by its own part, at known lengths, from a known step on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import example
from test_training import SETTINGS, Stopping
from torch import nn

from stages import tokenizer as stage
from tessera.core import models, seams
from tessera.core.contracts import Output
from tessera.core.params import Params
from tessera.core.seeding import seed_globally
from tessera.images.arrays import to_model
from tessera.losses import adversarial, mse
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch
from tessera.training.loop import fit
from tessera.training.muon import matrices


def term(channels: int = 3, **values: Any) -> adversarial.Adversarial:
    return adversarial.Adversarial(example(adversarial.Config, **values), channels)


def output_of(reconstruction: torch.Tensor) -> Output:
    return Output(reconstruction, (), ())


class Linear(nn.Module):
    """A discriminator of two patches, the sums of w times the left and of w times the right column of [B,1,1,2]."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x


def test_by_hand():
    """Hinge loss and generator's value by NumPy; D's gradient is that of the hinge loss alone; that of the reconstruction points to
    where the mean logit of its image rises, (1, 1) / sqrt 2 for w > 0, as long as that of the squared error."""
    loss = term(1)
    loss.discriminator = Linear(0.5)
    x = torch.tensor([[1.0, -3.0], [0.5, 1.0]]).view(2, 1, 1, 2)
    r = torch.tensor([[0.2, 1.0], [0.5, -4.0]]).view(2, 1, 1, 2).requires_grad_()
    value = loss(x, output_of(r))
    value.backward()
    real, fake = 0.5 * x.numpy(), 0.5 * r.detach().numpy()
    hinge = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
    assert value.item() == pytest.approx(hinge - fake.mean(), rel=1e-6)
    of_w = -(x.numpy() * (real < 1)).sum() / 4 + (r.detach().numpy() * (fake > -1)).sum() / 4
    assert loss.discriminator.w.grad.item() == pytest.approx(of_w, rel=1e-6)
    lengths = 2 * np.sqrt(((r - x).detach().numpy() ** 2).sum((1, 2, 3))) / 4
    np.testing.assert_allclose(
        r.grad.numpy(), -lengths[:, None, None, None] * np.full((2, 1, 1, 2), 0.5**0.5), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["spectral", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_side_is_trained_by_its_own_part(kind, channels):
    """D gets the gradients of its hinge loss, as if there were no generator; at the reconstruction there is a gradient as long as
    that of the squared error, and the same whatever the hinge loss is."""
    loss = term(channels, normalisation=kind, layers=2)
    x, r = torch.rand(4, channels, 16, 16) * 2 - 1, (torch.rand(4, channels, 16, 16) * 2 - 1).requires_grad_()
    alone = copy.deepcopy(loss)
    loss(x, output_of(r)).backward()
    real, fake = alone.discriminator(torch.cat([x, r.detach()])).chunk(2)
    ((1 - real).relu().mean() + (1 + fake).relu().mean()).backward()
    for own, wanted in zip(loss.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad)
    error = (r.detach() - x).requires_grad_()
    error.square().mean().backward()
    torch.testing.assert_close(r.grad.flatten(1).norm(dim=1), error.grad.flatten(1).norm(dim=1), rtol=1e-3, atol=0)


def test_a_step_of_the_generator_raises_the_discriminators_logits():
    loss = term().eval()
    x, r = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8).requires_grad_()
    loss.train()(x, output_of(r)).backward()
    with torch.no_grad():
        before, after = (
            loss.discriminator(image).mean((1, 2, 3)) for image in (r, r - 0.1 * r.grad / r.grad.abs().max())
        )
    assert (after > before).all()


def test_the_discriminator_learns_to_tell_blurred_images(make_images):
    x = to_model(make_images(12))
    blurred = nn.functional.avg_pool2d(x, 3, 1, 1)
    loss = term(channels=3, normalisation="spectral")
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss(x, output_of(blurred)).backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = (loss.discriminator(images).mean((1, 2, 3)) for images in (x, blurred))
    assert (real > fake).float().mean() > 0.9


def test_a_perfect_reconstruction_has_no_gradient():
    x = torch.rand(2, 3, 8, 8)
    r = x.clone().requires_grad_()
    term()(x, output_of(r)).backward()
    assert r.grad.abs().max() == 0


def test_the_gradient_of_an_image_depends_on_no_other():
    """So ranks, each with a part of the batch, together have the gradients of one process: those of the parts in the mean."""
    loss = term()
    x, r = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8).requires_grad_()
    loss(x, output_of(r)).backward()
    whole, of_weights = r.grad, [parameter.grad.clone() for parameter in loss.parameters()]
    r.grad = None
    loss.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (loss(x[part], output_of(r[part])) / 2).backward()
    torch.testing.assert_close(r.grad, whole)
    for parameter, wanted in zip(loss.parameters(), of_weights, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 8), (3, 4)])
def test_patches_of_an_image(layers, side):
    assert term(1, layers=layers).discriminator(torch.zeros(2, 1, 32, 32)).shape == (2, 1, side, side)


def test_spectral_normalisation_by_singular_values():
    """After some training passes the largest one is 1, whatever the weights; evaluation moves nothing."""
    layer = adversarial.Convolution(3, 5, 4, 2, spectral=True)
    nn.init.normal_(layer.weight, std=3)
    with torch.no_grad():
        for _ in range(100):
            layer(torch.zeros(1, 3, 4, 4))
        before = layer.left.clone()
        largest = np.linalg.svd(layer.eval().normalised().flatten(1).numpy(), compute_uv=False)[0]
    assert largest == pytest.approx(1, rel=1e-3)
    assert torch.equal(layer.left, before)


def test_the_discriminator_learns_alone_for_start_steps_also_where_it_was_resumed():
    x, r = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8).requires_grad_()
    loss = term(start=3)
    for _ in range(2):
        loss(x, output_of(r)).backward()
    resumed = term(start=3)
    resumed.load_state_dict(loss.state_dict())
    resumed(x, output_of(r)).backward()
    assert r.grad is None
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in resumed.named_parameters() if "weight" in name)
    resumed(x, output_of(r)).backward()
    assert r.grad.abs().sum() > 0


def test_evaluation_counts_nothing_and_is_0():
    x, loss = torch.rand(2, 3, 8, 8), term(start=1).eval()
    with torch.no_grad():
        assert loss(x, output_of(0.5 * x)).item() == 0
    assert loss.batches == 0


def test_muon_moves_the_matrices_of_its_convolutions():
    loss = term(layers=2, normalisation="spectral")
    names = {id(parameter): name for name, parameter in loss.named_parameters()}
    found = [names[id(matrix.parameter)] for matrix in matrices(loss)]
    assert found == ["discriminator.features.0.weight", "discriminator.features.2.weight"]


@pytest.mark.parametrize("keep", ["best", "best_usage"])
def test_the_last_epoch_must_be_kept(raw, keep):
    config = example(adversarial.Config)
    raw["tokenizer"]["keep"] = keep
    (line,) = config.rule(Params(raw))
    assert line.startswith("tokenizer.keep: must be last where losses.adversarial.weight is above 0, got")
    raw["tokenizer"]["keep"] = "last"
    assert list(config.rule(Params(raw))) == []
    assert list(example(adversarial.Config, weight=0.0).rule(Params(raw | {"tokenizer": {"keep": keep}}))) == []


def test_an_image_has_pixels_left_after_all_halvings(raw):
    raw["tokenizer"]["keep"] = "last"
    assert list(example(adversarial.Config, layers=3).rule(Params(raw))) == []
    (line,) = example(adversarial.Config, layers=4).rule(Params(raw))
    assert line.startswith("losses.adversarial.layers: must be at most 3 for dataset.image_size 8, got 4")


# training with it

CASES = {
    "muon": ({"tokenizer.training.optimizer": "muon", "losses.adversarial.normalisation": "spectral"}),
    "bf16 and tanh": ({"tokenizer.training.precision": "bf16", "tokenizer.vqvae.output": "tanh"}),
    "two levels": ({"tokenizer.name": "vqvae2", "quantizer.name": "residual"}),
    "averaged weights": ({"tokenizer.training.weight_ema": 0.5}),
}


def trained(raw: dict[str, Any], pixels: np.ndarray, runtime: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    seed_globally(0, "tests")
    params = Params(raw)
    tokenizer = models.build(models.tokenizer_recipe(params, (3, 8, 8)))
    loss = seams.plugin("losses", "adversarial").build(params.config("losses", "adversarial"), None, tokenizer)
    objective = stage.Objective(tokenizer, {"mse": (1.0, mse.MSE()), "adversarial": (0.5, loss)})
    section = params.section("tokenizer", stage.Settings)
    data = stage.Data({"train": pixels[:12], "val": pixels[12:]}, section.augmentation, 4, "cpu")
    fitted = fit(stage.task(objective, data, section), section.training, 0, runtime)
    return objective.state_dict(), fitted.history


@pytest.mark.parametrize("case", CASES)
def test_interrupted_after_every_few_steps_it_ends_with_the_same_bits(case, raw, workspace, make_images):
    """3 epochs of 3 steps; the discriminator learns alone in 4."""
    raw["tokenizer"]["keep"] = "last"
    raw["tokenizer"]["training"] |= {"epochs": 3, "lr": 0.01}
    raw["losses"]["adversarial"] |= {"weight": 0.5, "start": 4}
    for name, value in CASES[case].items():
        section, *places, last = name.split(".")
        values = raw[section]
        for place in places:
            values = values[place]
        values[last] = value
    pixels = make_images(16)
    state, history = trained(raw, pixels, Runtime(SETTINGS))
    for _ in range(4):
        with pytest.raises(Interrupted), Scratch("tokenizer", "abc", 2) as scratch:
            trained(raw, pixels, Stopping(scratch, 2))
    with Scratch("tokenizer", "abc", 2) as scratch:
        again, rows = trained(raw, pixels, Runtime(SETTINGS, scratch))
    assert [name for name in state if not torch.equal(state[name], again[name])] == []
    assert rows == history
    assert state["terms.adversarial.batches"] == 9
    assert all(row["train_adversarial"] != 0 for row in rows)
    assert all(row["val_adversarial"] == 0 for row in rows)
    assert all(row["val_total"] == pytest.approx(sum(row[f"val_{n}"] for n in ("mse", "commitment"))) for row in rows)


def test_term_names_no_layer_of_the_tokenizer():
    """It is built for any tokenizer, from the channels of its images alone."""
    loss = adversarial.build(example(adversarial.Config), None, SimpleNamespace(image_shape=(1, 8, 8)))
    assert loss(torch.rand(2, 1, 8, 8), output_of(torch.rand(2, 1, 8, 8))).isfinite()
