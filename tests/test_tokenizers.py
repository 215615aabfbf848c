"""What every tokenizer promises, models as files, and what training and reconstruction report of a tokenizer."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example, labelled
from torch import nn
from torch.distributions import Normal

import tessera
from stages import reconstruction, samples
from stages import tokenizer as training
from tessera import scores, statistics
from tessera.core import files, models, seams
from tessera.core.contracts import Quantized
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.images import arrays
from tessera.networks import conv
from tessera.networks.doubling import Doubling
from tessera.tokenizers import pixels as intensities
from tessera.tokenizers import vae, vqvae, vqvae2
from tessera.training.loop import Fitted, fit
from tessera.training.settings import Training

SHAPES = {"square": (3, 8, 8), "wide": (3, 8, 16), "tall": (3, 16, 8), "grey": (1, 8, 8)}


def build(raw: dict[str, Any], name: str, shape: tuple[int, int, int] = (3, 8, 8)) -> tuple[nn.Module, models.Recipe]:
    """One that takes post-hoc quantizers gets `kmeans`, not fitted yet."""
    raw["tokenizer"]["name"] = name
    if takes_post_hoc(name):
        raw["quantizer"]["name"] = "kmeans"
    recipe = models.tokenizer_recipe(Params(raw), shape)
    return models.build(recipe), recipe


def takes_post_hoc(name: str) -> bool:
    """Where quantizer and tokenizer do not fit, the tokenizer's rule says so."""
    config = example(seams.plugin("tokenizers", name).Config)
    rule = getattr(config, "rule", lambda _: ())
    return any(line.startswith("quantizer.name") for line in rule(asked("ema")))


def asked(quantizer: str, image_size: int = 16, keep: str = "best") -> Params:
    """What a rule asks of the params."""
    tokenizer = {"tuning": {"training": {"epochs": 0}}, "keep": keep, "training": {"batch_size": 2}, "unquantized": 0.0}
    runtime = {"devices": 1, "nodes": 1}
    values = example(seams.plugin("quantizers", quantizer).Config).model_dump()
    return Params({"dataset": {"image_size": image_size}, "quantizer": {"name": quantizer, quantizer: values},
                   "tokenizer": tokenizer, "runtime": runtime})  # fmt: skip


def augmentation_of(raw: dict[str, Any]) -> Any:
    return Params(raw).section("tokenizer", training.Settings).augmentation


def ready(
    raw: dict[str, Any], name: str, train: Callable[..., Any], x: torch.Tensor, steps: int = 60
) -> tuple[nn.Module, models.Recipe]:
    """As the stage leaves it: trained for a moment, in eval mode; a post-hoc quantizer is fitted to the means of `x`."""
    tokenizer, recipe = build(raw, name, tuple(x.shape[1:]))
    if not list(tokenizer.parameters()):
        return tokenizer.eval(), recipe
    if not takes_post_hoc(name):
        return train(tokenizer, x, steps=steps), recipe
    continuous = train(models.build(recipe._replace(quantizer=None)), x, steps=steps)
    tokenizer.load_state_dict(continuous.state_dict(), strict=False)
    with torch.no_grad():
        fit_quantizer(tokenizer.eval(), x)
    return tokenizer, recipe


def fit_quantizer(tokenizer: nn.Module, x: torch.Tensor) -> None:
    (z,) = tokenizer.latents(x)
    tokenizer.quantizer.fit(z.permute(0, 2, 3, 1).flatten(0, 2), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[f"{name}-{kind}" for name in seams.names("tokenizers") for kind in SHAPES])
def _trained(request, _raw, make_images, train) -> nn.Module:
    name, _, kind = request.param.partition("-")
    channels, height, width = SHAPES[kind]
    torch.manual_seed(0)
    images = arrays.to_model(make_images(6, height, width, channels))
    return ready(copy.deepcopy(_raw), name, train, images, steps=20)[0]


@pytest.fixture
def tokenizer(_trained) -> nn.Module:
    """Each file of the seam at each shape, trained for a moment."""
    return copy.deepcopy(_trained)


@pytest.fixture
def weighted(tokenizer) -> nn.Module:
    if not list(tokenizer.parameters()):
        pytest.skip("a tokenizer without weights is not trained")
    return tokenizer


@pytest.fixture
def x(tokenizer, make_images) -> torch.Tensor:
    channels, height, width = tokenizer.image_shape
    return arrays.to_model(make_images(5, height, width, channels))


# the contract


def test_grids_fold_the_codes(tokenizer, x):
    codes = tokenizer.encode(x)
    assert codes.shape == (5, tokenizer.space.length)
    assert codes.dtype == torch.int64
    assert len(codes.unique()) > 2  # or the tests below would say little
    assert len(tokenizer.space.sizes) == len(tokenizer.space.grids) == len(tokenizer.codebooks)
    for grid, size in zip(tokenizer.space.split(codes.numpy()), tokenizer.space.sizes, strict=True):
        assert 0 <= grid.min() <= grid.max() < size
    assert [len(book) for book in tokenizer.codebooks] == list(tokenizer.space.sizes)


def test_output_has_one_entry_per_level(tokenizer, x):
    output = tokenizer(x)
    assert output.reconstruction.shape == x.shape
    assert len(output.latents) == len(output.quantized)
    assert [z.shape for z in output.latents] == [level.z_q.shape for level in output.quantized]
    depths = sum(level.codes.shape[1] for level in output.quantized)
    assert depths == len(tokenizer.space.grids)


def test_the_ways_through_the_tokenizer_meet(tokenizer, x):
    """x -> latents -> quantize -> decode_vectors is the forward pass, and codes alone give the same picture."""
    with torch.no_grad():
        output, codes = tokenizer(x), tokenizer.encode(x)
        quantized = tokenizer.quantize(tokenizer.latents(x))
        z_q = tuple(level.z_q for level in quantized)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(tokenizer.vectors(codes), z_q, strict=True))
        torch.testing.assert_close(tokenizer.decode_vectors(z_q), output.reconstruction)
        assert torch.equal(tokenizer.decode(codes), tokenizer.decode_vectors(tokenizer.vectors(codes)))
        torch.testing.assert_close(tokenizer.decode(codes), output.reconstruction)


def test_any_codes_can_be_decoded(tokenizer):
    draws = np.random.default_rng(0)
    sizes = zip(tokenizer.space.lengths, tokenizer.space.sizes, strict=True)
    codes = np.concatenate([draws.integers(0, k, (4, n)) for n, k in sizes], axis=1)
    decoded = tokenizer.decode(torch.from_numpy(codes))
    assert decoded.shape == (4, *tokenizer.image_shape)
    assert torch.isfinite(decoded).all()


def test_codes_of_another_length_are_refused(tokenizer):
    length = tokenizer.space.length
    with pytest.raises(ValueError, match=f"codes must have {length} columns"):
        tokenizer.decode(torch.zeros(2, length + 1, dtype=torch.int64))


def test_one_image_does_not_depend_on_its_batch(tokenizer, x):
    with torch.no_grad():
        whole = tokenizer(x)
        for i in range(len(x)):
            alone = tokenizer(x[i : i + 1])
            torch.testing.assert_close(alone.reconstruction, whole.reconstruction[i : i + 1])
            for one, all_of_them in zip(alone.quantized, whole.quantized, strict=True):
                assert torch.equal(one.codes, all_of_them.codes[i : i + 1])


def test_evaluation_is_deterministic_and_moves_nothing(tokenizer, x):
    before = copy.deepcopy(tokenizer.state_dict())
    with torch.no_grad():
        first, second = tokenizer(x), tokenizer(x)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_gradient_reaches_every_weight_through_the_quantizer(weighted, x):
    """Of the reconstruction alone: without the straight-through estimator the encoder would get none. Global codes, which no
    reconstruction reads, have a term of their own, which also reaches their branch through the quantizer."""
    output = weighted.train()(x)
    own = [level.losses["prologue"] for level in output.quantized[:1] if weighted.space.global_grids]
    (output.reconstruction.square().mean() + sum(own)).backward()
    without = [name for name, parameter in weighted.named_parameters() if parameter.grad is None]
    assert not without
    assert all(torch.isfinite(parameter.grad).all() for parameter in weighted.parameters())
    first = next(parameter for name, parameter in weighted.named_parameters() if name.startswith("encoder"))
    assert first.grad.abs().sum() > 0


def test_gradient_reaches_the_image(tokenizer, x):
    x = x.requires_grad_()
    tokenizer(x).reconstruction.square().mean().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.flatten(1).abs().sum(1).min() > 0


def test_half_precision_changes_no_type_of_the_contract(tokenizer, x):
    """Codes, losses and what is quantized are as in float32; z_q is a code vector to the last bit."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = tokenizer(x)
        codes = tokenizer.space.join(level.codes for level in output.quantized)
        assert all(torch.equal(z, q.z_q) for z, q in zip(tokenizer.vectors(codes), output.quantized, strict=True))
    assert codes.dtype == torch.int64
    assert all(level.z_q.dtype == torch.float32 for level in output.quantized)
    assert all(loss.dtype == torch.float32 for level in output.quantized for loss in level.losses.values())
    assert torch.isfinite(output.reconstruction).all()


def test_weights_lie_channels_last(weighted):
    """As images arrive: convolutions are faster on them, and nothing is copied between layouts."""
    kernels = [parameter for parameter in weighted.parameters() if parameter.dim() == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", seams.names("tokenizers"))
def test_training_lowers_the_loss(raw, runtime, make_images, name):
    tokenizer, recipe = build(raw, name)
    if not list(tokenizer.parameters()):
        pytest.skip("a tokenizer without weights is not trained")
    if takes_post_hoc(name):
        tokenizer = models.build(recipe._replace(quantizer=None))
    mse = seams.plugin("losses", "mse")
    objective = training.Objective(tokenizer, {"mse": (1.0, mse.MSE())})
    section = Params(raw).section("tokenizer", training.Settings)
    section = section.model_copy(
        update={"training": Training(**raw["tokenizer"]["training"] | {"epochs": 16, "lr": 0.01})}
    )
    data = training.Data({"train": make_images(16), "val": make_images(6)}, section.augmentation, 4, "cpu")
    history = fit(training.task(objective, data, section), section.training, 0, runtime).history
    assert history[-1]["val_mse"] < 0.5 * history[0]["val_mse"]


# vqvae, and the convolutions that it shares


def make_ema(tiny: Callable[..., Any], **values: Any) -> Callable[..., nn.Module]:
    ema = seams.plugin("quantizers", "ema")
    return lambda dim=None: ema.build(tiny(ema.Config, **values), dim)


@pytest.mark.parametrize("downsampling", [2, 4, 8, 16, 32])
def test_grid_of_each_downsampling(tiny, downsampling):
    config = tiny(vqvae.Config, downsampling=downsampling)
    tokenizer = vqvae.build(config, (3, 32, 64), make_ema(tiny)).eval()
    assert tokenizer.space.grids == ((32 // downsampling, 64 // downsampling),)
    x = torch.rand(2, 3, 32, 64)
    assert tokenizer.latents(x)[0].shape[2:] == tokenizer.space.grids[0]
    assert tokenizer(x).reconstruction.shape == x.shape


@pytest.mark.parametrize("kind", ["batch", "group", "none"])
def test_normalisations(tiny, kind):
    """Group norm takes the most groups that divide the channels, 8 at most, of two channels at least."""
    layer = conv.normalisation(kind, 12)
    expected = {"batch": conv.BatchNorm, "group": nn.GroupNorm, "none": nn.Identity}[kind]
    assert type(layer) is expected
    assert kind != "group" or layer.num_groups == 6
    assert conv.normalisation("group", 7).num_groups == 1
    assert conv.normalisation("group", 8).num_groups == 4
    assert conv.normalisation("group", 1).num_groups == 1
    assert conv.normalisation("group", 16).num_groups == 8


@pytest.mark.parametrize("batches", [1, 2, 5, 40])
def test_running_statistics_of_few_batches_are_those_of_the_batches(batches):
    """Their mean, weighted by how long ago they were; nothing of the 0 and 1 they began with."""
    layer, draws = conv.BatchNorm(3), torch.randn(batches, 4, 3, 2, 2) * 5 + 7
    for x in draws:
        layer.train()(x)
    weights = 0.9 ** torch.arange(batches - 1, -1, -1.0)[:, None]
    mean = (weights * draws.mean((1, 3, 4))).sum(0) / weights.sum()
    variance = (weights * draws.transpose(1, 2).flatten(2).var(2)).sum(0) / weights.sum()
    x = torch.randn(2, 3, 5, 5)
    expected = (x - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
    torch.testing.assert_close(layer.eval()(x), expected)


@pytest.mark.parametrize("batches", [0, 1000])
def test_running_statistics_of_none_or_many_batches_are_torchs_own(batches):
    ours, theirs, x = conv.BatchNorm(3), nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    for layer in (ours, theirs):
        for _ in range(batches):
            layer.train()(x + 1)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 3, 1, 1), False), ((2, 3, 1, 1), True), ((1, 3, 1, 2), True), ((1, 3, 4, 4), True)]
)
def test_one_value_has_no_variance(shape, fits):
    layer, x = conv.BatchNorm(3), torch.randn(shape)
    layer.eval()(x)
    layer.train()
    if fits:
        layer(x)
    else:
        with pytest.raises(InputError, match="needs two values of a channel, got one image"):
            layer(x)


def test_residual_block_adds_its_branch():
    block = conv.ResidualBlock(4, 2, "none", 0.0)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block(x), x + block.branch(x))
    block.branch[-1].weight.data.zero_()
    block.branch[-1].bias.data.zero_()
    assert torch.equal(block(x), x)


def test_dropout_is_active_in_training_only(tiny):
    block = conv.ResidualBlock(4, 4, "none", 0.5)
    x = torch.randn(2, 4, 3, 3)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize(("activation", "expected"), [("silu", nn.SiLU), ("relu", nn.ReLU)])
def test_activation_of_residual_blocks(activation, expected):
    block = conv.ResidualBlock(4, 2, "none", 0.0, activation)
    assert [type(block.branch[place]) for place in (1, 4)] == [expected] * 2


def convolutions(module: nn.Module) -> list[tuple[str, int, int, int, int]]:
    """(kind, channels in, channels out, kernel, stride) in order."""
    return [
        ("up" if isinstance(layer, nn.ConvTranspose2d) else "conv", layer.in_channels, layer.out_channels,
         layer.kernel_size[0], layer.stride[0])
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [5, 3, 1])  # features, and images, which are put together another way
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 1, 5)])
def test_doubling_is_the_transposed_convolution_forward_and_back(shape, channels, layout):
    """Values and all three gradients against torch's own layer; the slopes against finite differences as well."""
    ours = Doubling(3, channels).double().to(memory_format=layout)
    plain = nn.ConvTranspose2d(3, channels, 4, stride=2, padding=1).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    y, expected = ours(x), plain(x)
    assert y.shape == (shape[0], channels, 2 * shape[2], 2 * shape[3])
    torch.testing.assert_close(y, expected)
    slope = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, *ours.parameters()), slope)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, *plain.parameters()), slope))
    assert torch.autograd.gradcheck(ours, (x,))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("channels", [5, 3])
def test_doubling_under_autocast(channels):
    """bfloat16 throughout, and float32 gradients, as torch's layer gives them."""
    ours, x = Doubling(3, channels), torch.randn(2, 3, 4, 4, requires_grad=True)
    plain = nn.ConvTranspose2d(3, channels, 4, stride=2, padding=1)
    plain.load_state_dict(ours.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = ours(x), plain(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-7)
    slope = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, *ours.parameters()), slope)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    theirs = torch.autograd.grad(expected, (x, *plain.parameters()), slope)
    torch.testing.assert_close(gradients, theirs, rtol=2**-6, atol=2**-5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(x), y)


def test_doubling_with_frozen_weights():
    layer, x = Doubling(3, 5).requires_grad_(False), torch.randn(2, 3, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape


PUBLISHED = {"downsampling": 4, "channels": 128, "outer_channels": 64, "convolutions": 1, "blocks": 2,
             "block_channels": 32, "activation": "relu", "dropout": 0.0, "output": "tanh"}  # fmt: skip


def test_published_architecture_by_params_alone(tiny):
    tokenizer = vqvae.build(tiny(vqvae.Config, **PUBLISHED), (3, 32, 32), make_ema(tiny, code_dim=64))
    block = [("conv", 128, 32, 3, 1), ("conv", 32, 128, 1, 1)]
    assert convolutions(tokenizer.encoder) == [
        ("conv", 3, 64, 4, 2), ("conv", 64, 128, 4, 2), ("conv", 128, 128, 3, 1), *block, *block, ("conv", 128, 64, 1, 1)
    ]  # fmt: skip
    assert convolutions(tokenizer.decoder) == [
        ("conv", 64, 128, 3, 1), *block, *block, ("up", 128, 64, 4, 2), ("up", 64, 3, 4, 2)
    ]  # fmt: skip
    kinds = [type(layer) for layer in tokenizer.modules()]
    assert nn.SiLU not in kinds
    assert kinds[-1] is conv.Tanh
    before = [type(layer) for layer in tokenizer.encoder[:7]]
    assert before == [nn.Conv2d, conv.BatchNorm, nn.ReLU, nn.Conv2d, conv.BatchNorm, nn.ReLU, nn.Conv2d]


def test_further_convolutions_stand_in_the_encoder_only(tiny):
    plain, more = (vqvae.build(tiny(vqvae.Config, convolutions=count), (3, 8, 8), make_ema(tiny)) for count in (0, 2))
    before, after = convolutions(plain.encoder), convolutions(more.encoder)
    assert after == [*before[:2], *[("conv", 8, 8, 3, 1)] * 2, *before[2:]]
    assert convolutions(more.decoder) == convolutions(plain.decoder)


def test_residual_blocks_at_finer_resolutions_stand_before_each_halving_and_doubling_but_the_first(tiny):
    size = {"downsampling": 4, "channels": 8, "outer_channels": 6, "blocks": 0}
    tokenizer = vqvae.build(tiny(vqvae.Config, outer_blocks=2, **size), (3, 16, 16), make_ema(tiny))
    blocks, dim = [("conv", 6, 6, 3, 1), ("conv", 6, 6, 1, 1)] * 2, tokenizer.quantizer.dim
    assert convolutions(tokenizer.encoder) == [
        ("conv", 3, 6, 4, 2), *blocks, ("conv", 6, 8, 4, 2), ("conv", 8, dim, 1, 1)
    ]  # fmt: skip
    assert convolutions(tokenizer.decoder) == [("conv", dim, 8, 3, 1), ("up", 8, 6, 4, 2), *blocks, ("up", 6, 3, 4, 2)]


def test_attention_by_numpy():
    torch.manual_seed(0)
    layer, x = conv.SelfAttention(6, 4, 2, "none").double(), torch.randn(3, 6, 2, 4, dtype=torch.float64)
    assert torch.equal(layer(x), x)  # nothing is added at the start
    nn.init.normal_(layer.out.weight)
    rows = x.flatten(2).mT.numpy()  # [3,8,6]
    weight, bias = layer.qkv.weight.detach().numpy(), layer.qkv.bias.detach().numpy()
    q, k, v = np.split(rows @ weight.T + bias, 3, axis=2)
    heads = []
    for own in (slice(0, 2), slice(2, 4)):
        scores = np.exp(q[..., own] @ k[..., own].swapaxes(1, 2) / math.sqrt(2))
        heads.append(scores / scores.sum(2, keepdims=True) @ v[..., own])
    added = np.concatenate(heads, axis=2) @ layer.out.weight.detach().numpy().T
    expected = x + torch.from_numpy(added).mT.unflatten(2, (2, 4))
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", ["vqvae", "vqvae2", "vae"])
def test_attention_stands_after_the_residual_blocks(tiny, name):
    config = tiny(seams.plugin("tokenizers", name).Config, attention=2, channels=8, block_channels=4, blocks=1)
    kinds = [type(layer) for layer in conv.encoder(config, 3, 4)]
    assert kinds[kinds.index(conv.ResidualBlock) + 1] is conv.SelfAttention
    kinds = [type(layer) for layer in conv.decoder(config, 3, 4)]
    assert kinds[:3] == [nn.Conv2d, conv.ResidualBlock, conv.SelfAttention]


def test_heads_must_divide_the_channels(tiny):
    (line,) = tiny(vqvae.Config, attention=3, block_channels=8).rule(asked("ema", image_size=8))
    assert line == "tokenizer.vqvae.attention: must divide block_channels 8, got 3; 1 does"


def test_activation_and_output_change_no_weight(tiny):
    """What has no weights draws none: runs that differ in it start from the same point."""
    states = []
    for values in ({}, {"activation": "relu", "output": "tanh"}):
        torch.manual_seed(0)
        states.append(vqvae.build(tiny(vqvae.Config, **values), (3, 8, 8), make_ema(tiny)).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_tanh_keeps_the_decoder_within_the_range_of_images(tiny):
    tokenizer = vqvae.build(tiny(vqvae.Config, output="tanh"), (3, 8, 8), make_ema(tiny)).eval()
    z = 100 * torch.randn(4, tokenizer.quantizer.dim, 2, 2)
    assert tokenizer.decode_vectors((z,)).abs().max() <= 1
    linear = vqvae.build(tiny(vqvae.Config, output="linear"), (3, 8, 8), make_ema(tiny)).eval()
    assert linear.decode_vectors((z,)).abs().max() > 1


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_tokenizers_trained_through_their_quantizer_refuse_post_hoc_ones(tiny, name):
    config = tiny(seams.plugin("tokenizers", name).Config)
    assert list(config.rule(asked("ema"))) == []
    assert list(config.rule(asked("geodesic"))) == [
        f"quantizer.name: must be one that is trained with the tokenizer under tokenizer.name {name}, got 'geodesic', "
        "which is fitted to a finished autoencoder; choose tokenizer.name vae"
    ]


@pytest.mark.parametrize("name", ["vqvae", "vqvae2", "vae"])
def test_downsampling_must_divide_the_image(tiny, name):
    config = tiny(seams.plugin("tokenizers", name).Config, downsampling=4)
    assert list(config.rule(asked("kmeans" if name == "vae" else "ema", image_size=10))) == [
        f"tokenizer.{name}.downsampling: must divide dataset.image_size 10, got 4; the nearest sizes are 8 and 12"
    ]


def test_an_image_smaller_than_a_code_has_one_nearest_size(tiny):
    (line,) = tiny(vqvae.Config, downsampling=32).rule(asked("ema", image_size=20))
    assert line.endswith("got 32; the nearest size is 32")


def test_tanh_has_a_gradient_in_half_precision_where_it_has_one_in_float32():
    """tanh of bfloat16 is exactly 1 from 3.5 on, and binary cross entropy of a wrong pixel then teaches nothing."""
    x = torch.tensor([4.0, 6.0], dtype=torch.bfloat16).view(1, 1, 1, 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv.Tanh()(x)
    assert y.dtype == torch.float32
    assert (y < 1).all()
    y.sum().backward()
    assert (x.grad > 0).all()
    assert conv.Tanh()(torch.ones(1, 1, 1, 1, dtype=torch.float64)).dtype == torch.float64


def test_channels_from_the_image_inwards():
    assert conv.widths(2, 128, 32) == [128]
    assert conv.widths(8, 128, 32) == [32, 32, 128]


# vqvae2


@pytest.fixture
def two_levels(tiny, make_images) -> nn.Module:
    """16x16 images, 4x4 bottom codes, 2x2 top codes; codebooks from latents."""
    tokenizer = vqvae2.build(tiny(vqvae2.Config, dropout=0.0), (3, 16, 16), make_ema(tiny))
    tokenizer(arrays.to_model(make_images(6, 16, 16)))
    return tokenizer.eval()


@pytest.mark.parametrize(
    ("size", "downsampling", "top_downsampling", "grids"),
    [(32, 4, 2, ((4, 4), (8, 8))), (32, 2, 2, ((8, 8), (16, 16))), (32, 2, 4, ((4, 4), (16, 16)))],
)
def test_grids_of_two_levels(tiny, size, downsampling, top_downsampling, grids):
    config = tiny(vqvae2.Config, downsampling=downsampling, top_downsampling=top_downsampling)
    tokenizer = vqvae2.build(config, (3, size, size), make_ema(tiny)).eval()
    assert tokenizer.space.grids == grids
    x = torch.rand(2, 3, size, size)
    output = tokenizer(x)
    assert tuple(z.shape[2:] for z in output.latents) == grids
    assert tokenizer.encode(x).shape[1] == sum(h * w for h, w in grids)
    assert output.reconstruction.shape == x.shape


def test_two_levels_of_two_depths(tiny, make_images):
    """Level by level, then depth by depth."""
    residual = seams.plugin("quantizers", "residual")
    config = tiny(residual.Config, depth=2)
    tokenizer = vqvae2.build(tiny(vqvae2.Config), (3, 16, 16), lambda dim=None: residual.build(config, dim))
    x = arrays.to_model(make_images(6, 16, 16))
    tokenizer(x)
    tokenizer.eval()
    assert tokenizer.space.grids == ((2, 2), (2, 2), (4, 4), (4, 4))
    assert len(tokenizer.codebooks) == len(tokenizer.space.sizes) == 4
    output, codes = tokenizer(x), tokenizer.encode(x)
    assert [level.codes.shape for level in output.quantized] == [(6, 2, 2, 2), (6, 2, 4, 4)]
    depths = [depth.flatten(1) for level in output.quantized for depth in level.codes.unbind(1)]
    assert torch.equal(codes, torch.cat(depths, dim=1))
    torch.testing.assert_close(tokenizer.decode(codes), output.reconstruction)


def test_bottom_is_encoded_given_the_quantized_top(two_levels, make_images):
    x = arrays.to_model(make_images(4, 16, 16))
    with torch.no_grad():
        top, bottom = two_levels.latents(x)
        two_levels.quantizers[0].codes.add_(3.0)
        moved_top, moved_bottom = two_levels.latents(x)
    assert torch.equal(top, moved_top)
    assert (bottom - moved_bottom).flatten(1).abs().amax(1).min() > 1e-3


def test_bottom_latents_train_the_top_encoder(two_levels, make_images):
    output = two_levels.train()(arrays.to_model(make_images(4, 16, 16)))
    output.latents[1].square().sum().backward()
    for part in (two_levels.encoder, two_levels.top_encoder, two_levels.top_decoder):
        assert all(parameter.grad is not None for parameter in part.parameters())
    assert two_levels.top_encoder[-1].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in two_levels.decoder.parameters())


def test_levels_have_codebooks_of_their_own(two_levels):
    top, bottom = two_levels.quantizers
    assert top is not bottom
    assert not {id(tensor) for tensor in top.buffers()} & {id(tensor) for tensor in bottom.buffers()}
    assert not torch.equal(*two_levels.codebooks)


@pytest.mark.parametrize("level", [0, 1])
def test_each_level_matters_to_the_decoder(two_levels, level):
    """Two images exchange the codes of one level."""
    torch.manual_seed(0)
    codes = torch.randint(8, (2, 20))
    own = slice(0, 4) if level == 0 else slice(4, 20)
    swapped = codes.clone()
    swapped[:, own] = codes.flip(0)[:, own]
    with torch.no_grad():
        before, after = two_levels.decode(codes), two_levels.decode(swapped)
    assert (before - after).flatten(1).abs().amax(1).min() > 1e-3
    assert not torch.allclose(before.flip(0), after)


def test_training_quantizes_each_level_once(two_levels, make_images):
    """Statistics of an EMA codebook move once a step."""
    seen = []
    for quantizer in two_levels.quantizers:
        quantizer.register_forward_hook(lambda *_, quantizer=quantizer: seen.append(id(quantizer)))
    two_levels.train()(arrays.to_model(make_images(4, 16, 16)))
    assert seen == [id(quantizer) for quantizer in two_levels.quantizers]


def test_losses_of_both_levels_are_minimised(two_levels, make_images):
    x = arrays.to_model(make_images(4, 16, 16))
    top, bottom = two_levels(x).quantized
    losses = training.Objective(two_levels, {})(x)
    torch.testing.assert_close(losses["commitment"], top.losses["commitment"] + bottom.losses["commitment"])


def test_top_downsampling_must_divide_the_bottom_grid(tiny):
    config = tiny(vqvae2.Config, downsampling=4, top_downsampling=4)
    assert list(config.rule(asked("ema", image_size=16))) == []
    assert list(config.rule(asked("ema", image_size=24))) == [
        "tokenizer.vqvae2.top_downsampling: must divide the bottom grid's 6 codes a side (dataset.image_size 24 / "
        "downsampling 4), got 4"
    ]


# vae


class Drawn(nn.Module):
    """A post-hoc quantizer: its code vectors are some of the latents."""

    codebook_sizes = (5,)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("codes", torch.zeros(5, dim))

    @property
    def codebooks(self) -> tuple[torch.Tensor]:
        return (self.codes,)

    def fit(self, latents: torch.Tensor, generator: torch.Generator) -> None:
        self.codes.copy_(latents[torch.randperm(len(latents), generator=generator)[:5]])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.codes[codes[:, 0]].permute(0, 3, 1, 2)

    def forward(self, z: torch.Tensor) -> Quantized:
        codes = torch.cdist(z.permute(0, 2, 3, 1).flatten(1, 2), self.codes).argmin(2).view(len(z), 1, *z.shape[2:])
        return Quantized(self.decode(codes) + (z - z.detach()), codes, {"own": z.sum() * 0 + 2})


@pytest.fixture(params=["spatial", "vector"])
def latent(request) -> str:
    return request.param


def make_vae(tiny: Callable[..., Any], latent: str = "spatial", **values: Any) -> vae.VAE:
    return vae.build(tiny(vae.Config, latent=latent, dropout=0.0, **values), (3, 8, 8))


def test_vae_without_a_quantizer_has_no_codes(tiny, latent, make_images):
    tokenizer, x = make_vae(tiny, latent), arrays.to_model(make_images(3))
    assert tokenizer.space.grids == tokenizer.space.sizes == tokenizer.codebooks == ()
    height, width = {"spatial": (2, 2), "vector": (1, 1)}[latent]
    for training_mode in (True, False):
        output = tokenizer.train(training_mode)(x)
        (level,), (mean,) = output.quantized, output.latents
        assert mean.shape == level.z_q.shape == (3, 4, height, width)
        assert level.codes.shape == (3, 0, height, width)
        assert level.codes.dtype == torch.int64
        assert set(level.losses) == {"kl"}
        assert output.reconstruction.shape == x.shape
        assert torch.equal(output.reconstruction, tokenizer.decode_vectors((level.z_q,)))
    codes = tokenizer.encode(x)
    assert codes.shape == (3, 0)
    assert codes.dtype == torch.int64
    with pytest.raises(ValueError, match="built without a quantizer"):
        tokenizer.decode(codes)


def test_vae_decodes_the_mean_in_evaluation(tiny, latent, make_images):
    tokenizer, x = make_vae(tiny, latent).eval(), arrays.to_model(make_images(3))
    output = tokenizer(x)
    assert torch.equal(output.quantized[0].z_q, output.latents[0])
    assert torch.equal(output.reconstruction, tokenizer.decode_vectors(tokenizer.latents(x)))
    assert torch.equal(tokenizer(x).reconstruction, output.reconstruction)


def test_vae_decodes_draws_of_the_posterior_in_training(tiny, monkeypatch):
    """Mean 3 and standard deviation 0.5, by 20000 draws, from torch's global generator."""
    tokenizer = make_vae(tiny).train()
    mean, log_variance = torch.full((1250, 4, 2, 2), 3.0), torch.full((1250, 4, 2, 2), 2 * math.log(0.5))
    monkeypatch.setattr(tokenizer, "posterior", lambda x: (mean, log_variance))
    torch.manual_seed(1)
    output = tokenizer(torch.zeros(1250, 3, 8, 8))
    z = output.quantized[0].z_q
    assert output.latents[0] is mean
    assert z.mean().item() == pytest.approx(3, abs=0.02)
    assert z.std().item() == pytest.approx(0.5, abs=0.02)
    torch.manual_seed(1)
    torch.testing.assert_close(z, mean + 0.5 * torch.randn_like(mean))


def test_reparameterised_gradient_reaches_the_variance(tiny, latent, make_images):
    """Of the reconstruction alone, and only where draws are decoded."""
    tokenizer, x = make_vae(tiny, latent), arrays.to_model(make_images(4))
    last = [layer for layer in tokenizer.encoder if isinstance(layer, nn.Conv2d | nn.Linear)][-1]
    tokenizer.train()(x).reconstruction.square().mean().backward()
    assert last.bias.grad[4:].abs().min() > 0
    last.bias.grad = None
    tokenizer.eval()(x).reconstruction.square().mean().backward()
    assert last.bias.grad[:4].abs().min() > 0
    assert last.bias.grad[4:].abs().max() == 0


def test_divergence_in_closed_form():
    """Of N(1, 4) from N(0, 1): (1 + 4 - 1 - ln 4) / 2 nats per latent; 0 for N(0, 1) itself."""
    ones = torch.ones(3, 2, 2, 2)
    expected = 8 * 0.5 * (4 - math.log(4))
    assert vae.divergence(ones, ones * math.log(4)).item() == pytest.approx(expected, rel=1e-6)
    assert vae.divergence(0 * ones, 0 * ones).item() == 0


def test_divergence_by_monte_carlo():
    mean, log_variance = torch.randn(1, 3, 1, 1), torch.randn(1, 3, 1, 1)
    q, p = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    z = q.sample((200_000,))
    estimate = (q.log_prob(z) - p.log_prob(z)).sum((1, 2, 3, 4)).mean()
    torch.testing.assert_close(vae.divergence(mean, log_variance), estimate, rtol=0.01, atol=0.01)


def test_gradient_of_the_divergence():
    """Towards N(0, I): mean / B, and (variance - 1) / 2B."""
    mean = torch.randn(5, 3, 2, 2, requires_grad=True)
    log_variance = torch.randn(5, 3, 2, 2, requires_grad=True)
    vae.divergence(mean, log_variance).backward()
    torch.testing.assert_close(mean.grad, mean.detach() / 5)
    torch.testing.assert_close(log_variance.grad, (log_variance.detach().exp() - 1) / 10)


@pytest.mark.parametrize("training_mode", [True, False])
def test_kl_is_in_nats_per_value_of_the_image(tiny, latent, make_images, training_mode):
    tokenizer, x = make_vae(tiny, latent, kl_weight=0.25).train(training_mode), arrays.to_model(make_images(4))
    kl = tokenizer(x).quantized[0].losses["kl"]
    mean, log_variance = tokenizer.posterior(x)
    by_hand = sum(
        0.5 * (m * m + math.exp(v) - 1 - v)
        for m, v in zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True)
    )
    assert kl.item() == pytest.approx(0.25 * by_hand / 4 / (3 * 8 * 8), rel=1e-4)
    assert kl > 0


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_extreme_variances_stay_finite(tiny, make_images, extreme):
    tokenizer, x = make_vae(tiny).train(), arrays.to_model(make_images(4))
    tokenizer.encoder[-1].bias.data[4:] = extreme
    output = tokenizer(x)
    assert torch.isfinite(output.quantized[0].losses["kl"])
    assert torch.isfinite(output.reconstruction).all()


def test_quantizer_changes_no_other_weight(tiny, latent):
    config = tiny(vae.Config, latent=latent)
    torch.manual_seed(0)
    alone = vae.build(config, (3, 8, 8))
    torch.manual_seed(0)
    fitted = vae.build(config, (3, 8, 8), Drawn)
    assert fitted.quantizer.dim == config.latent_dim
    own = {name for name in fitted.state_dict() if name.startswith("quantizer.")}
    assert own == {"quantizer.codes"}
    assert fitted.state_dict().keys() - own == alone.state_dict().keys()
    assert all(torch.equal(fitted.state_dict()[name], value) for name, value in alone.state_dict().items())


@pytest.mark.parametrize("training_mode", [True, False])
def test_fitted_quantizer_takes_the_place_of_the_draw(tiny, latent, make_images, training_mode):
    x = arrays.to_model(make_images(6))
    tokenizer = vae.build(tiny(vae.Config, latent=latent, dropout=0.0), (3, 8, 8), Drawn).train(training_mode)
    with torch.no_grad():
        fit_quantizer(tokenizer, x)
        output = tokenizer(x)
    (level,) = output.quantized
    assert tokenizer.space.grids == ({"spatial": (2, 2), "vector": (1, 1)}[latent],)
    assert level.codes.shape == (6, 1, *tokenizer.space.grids[0])
    assert {tuple(z.tolist()) for z in level.z_q.permute(0, 2, 3, 1).flatten(0, 2)} <= {
        tuple(code.tolist()) for code in tokenizer.codebooks[0]
    }
    assert level.losses["own"] == 2
    torch.testing.assert_close(
        level.losses["kl"], tokenizer.kl_weight * vae.divergence(*tokenizer.posterior(x)) / (3 * 8 * 8)
    )
    if not training_mode:
        assert torch.equal(tokenizer.encode(x), level.codes.flatten(1))
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x)), output.reconstruction)


def test_vae_samples_without_codes(tiny, latent):
    tokenizer = make_vae(tiny, latent).eval()
    first, second, other = (tokenizer.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (5, 3, 8, 8)
    assert not first.requires_grad
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)
    state = torch.get_rng_state()
    tokenizer.sample(5, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_vae_samples_are_decoded_standard_normal_latents(tiny, latent, monkeypatch):
    tokenizer, seen = make_vae(tiny, latent).eval(), []
    monkeypatch.setattr(tokenizer, "decode_vectors", lambda z: seen.append(z) or z[0])
    tokenizer.sample(4000, torch.Generator().manual_seed(0))
    ((z,),) = seen
    assert z.shape == (4000, *tokenizer.latent_shape)
    assert z.mean().item() == pytest.approx(0, abs=0.03)
    assert z.std().item() == pytest.approx(1, abs=0.03)


def test_vae_refuses_quantizers_trained_with_the_tokenizer(tiny):
    config = tiny(vae.Config)
    assert list(config.rule(asked("kmeans"))) == []
    assert list(config.rule(asked("ema"))) == [
        "quantizer.name: must be fitted to a finished autoencoder (it has fit) under tokenizer.name vae, got 'ema'; "
        "choose kmeans or geodesic"
    ]
    assert list(config.rule(asked("kmeans", keep="best_usage"))) == [
        "tokenizer.keep: must be best or last under tokenizer.name vae, whose codes are found after training, got 'best_usage'"
    ]


# pixels


def identity(levels: int, shape: tuple[int, int, int] = (3, 8, 8)) -> nn.Module:
    return intensities.build(intensities.Config(levels=levels), shape, make_quantizer=None).eval()


def test_256_levels_keep_every_8_bit_image():
    everything = np.random.default_rng(0).permutation(np.arange(3 * 256, dtype=np.int64) % 256).astype(np.uint8)
    pixels = everything.reshape(4, 8, 8, 3)
    tokenizer = identity(256)
    codes = tokenizer.encode(arrays.to_model(pixels))
    np.testing.assert_array_equal(codes.view(4, 3, 8, 8).permute(0, 2, 3, 1).numpy(), pixels)
    np.testing.assert_array_equal(arrays.to_pixels(tokenizer.decode(codes)), pixels)


def test_2_levels_are_black_and_white():
    pixels = np.array([0, 60, 127, 128, 200, 255], np.uint8).reshape(1, 2, 3, 1)
    tokenizer = identity(2, (1, 2, 3))
    codes = tokenizer.encode(arrays.to_model(pixels))
    assert codes.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert arrays.to_pixels(tokenizer.decode(codes)).flatten().tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("levels", [2, 3, 16, 17, 255, 256])
def test_level_i_is_the_value_of_the_formula(levels):
    tokenizer = identity(levels, (1, 1, levels))
    codes = torch.arange(levels)[None]
    values = tokenizer.decode(codes)
    assert values.flatten().tolist() == pytest.approx([-1 + 2 * i / (levels - 1) for i in range(levels)], abs=1e-7)
    assert (values.min(), values.max()) == (-1, 1)
    assert torch.equal(tokenizer.encode(values), codes)
    half = 0.49 * 2 / (levels - 1)  # what is less than half a level away; beyond the ends, any distance
    assert torch.equal(tokenizer.encode(values + half), codes)
    assert torch.equal(tokenizer.encode(values - half), codes)
    ends = torch.linspace(-3, 3, levels).view(1, 1, 1, levels)
    assert tokenizer.encode(ends)[0, [0, -1]].tolist() == [0, levels - 1]


def test_colour_channels_are_depths_of_one_level_red_first():
    tokenizer = identity(256)
    pixels = np.zeros((1, 8, 8, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    assert tokenizer.space.grids == ((8, 8),) * 3
    assert tokenizer.space.sizes == (256,) * 3
    assert [book.shape for book in tokenizer.codebooks] == [(256, 1)] * 3
    codes = tokenizer.encode(arrays.to_model(pixels))
    assert codes.shape == (1, 192)
    assert [part.unique().tolist() for part in codes.split(64, dim=1)] == [[10], [20], [30]]
    assert tokenizer(arrays.to_model(pixels)).quantized[0].codes.shape == (1, 3, 8, 8)


def test_pixels_hand_the_gradient_on_unchanged():
    x = torch.rand(2, 3, 8, 8).requires_grad_()
    weights = torch.randn(2, 3, 8, 8)
    (identity(4)(x).reconstruction * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_pixels_have_nothing_to_train_and_nothing_to_save():
    tokenizer = identity(4)
    assert list(tokenizer.parameters()) == []
    assert tokenizer.state_dict() == {}
    assert tokenizer(torch.rand(1, 3, 8, 8)).quantized[0].losses == {}


def test_model_without_weights_is_a_file_all_the_same(raw, workspace):
    tokenizer, recipe = build(raw, "pixels")
    models.save(Path("model"), tokenizer, recipe, "")
    assert models.load_weights(Path("model") / models.WEIGHTS) == {}
    models.save_weights(Path("model") / models.WEIGHTS, {"surplus": torch.zeros(1)})
    with pytest.raises(InputError, match="surplus is not part of the model"):
        tessera.load("model")


# models as files


@pytest.fixture(params=seams.names("tokenizers"))
def saved(request, raw, workspace, make_images, train) -> tuple[Path, nn.Module]:
    tokenizer, recipe = ready(raw, request.param, train, arrays.to_model(make_images(6)), steps=20)
    models.save(Path("artifacts/tokenizer"), tokenizer, recipe, "a card")
    return Path("artifacts/tokenizer"), tokenizer


def test_saved_model_gives_the_same_output(saved, make_images):
    folder, tokenizer = saved
    x = arrays.to_model(make_images(4))
    loaded = models.load(folder)
    assert not loaded.training
    assert torch.equal(loaded.encode(x), tokenizer.encode(x))
    assert torch.equal(loaded(x).reconstruction, tokenizer(x).reconstruction)
    assert loaded.space == tokenizer.space


def test_model_loads_from_anywhere_without_params(saved, tmp_path_factory, monkeypatch, make_images):
    folder, tokenizer = saved
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    codes = tokenizer.encode(arrays.to_model(make_images(2)))
    assert torch.equal(tessera.load("model").decode(codes), tokenizer.decode(codes))


def test_saving_twice_gives_the_same_bytes(saved, raw):
    folder, tokenizer = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    models.save(folder, tokenizer, models.read_recipe(folder), "a card")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert set(before) == {"model.safetensors", "recipe.json", "README.md"}


def test_missing_surplus_and_misshapen_weights_are_all_named(saved):
    folder, tokenizer = saved
    state = models.load_weights(folder / models.WEIGHTS)
    if not tokenizer.state_dict():
        pytest.skip("nothing can be missing from a model without weights")
    missing, misshapen = list(state)[:2]
    shape = tuple(state[misshapen].shape)
    del state[missing]
    state[misshapen] = torch.zeros(*shape, 2)
    state["surplus"] = torch.zeros(1)
    models.save_weights(folder / models.WEIGHTS, state)
    with pytest.raises(InputError, match=r"model\.safetensors does not fit .*recipe\.json") as caught:
        models.load(folder)
    message = str(caught.value)
    assert f"{missing} is missing" in message
    assert f"{misshapen} has shape {(*shape, 2)}, want {shape}" in message
    assert "surplus is not part of the model" in message


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_weights_cut_short_are_named(saved, kept):
    path = saved[0] / models.WEIGHTS
    if kept >= path.stat().st_size:
        pytest.skip("the file of a model without weights is shorter")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is not a whole safetensors file .* run `dvc repro`"):
        models.load(saved[0])


def test_missing_model_says_how_to_get_it(workspace):
    with pytest.raises(InputError, match=r"recipe\.json: there is no such file; run `dvc repro` or `dvc pull`"):
        tessera.load("artifacts/tokenizer")


@pytest.mark.parametrize("change", [{"quantizer": 3}, {"extra": 1}])
def test_broken_recipe_is_named(saved, change):
    path = saved[0] / models.RECIPE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"recipe\.json is no recipe of a model"):
        models.load(saved[0])


def test_recipe_of_a_plug_in_that_is_gone(saved):
    path = saved[0] / models.RECIPE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "vqgan"}))
    with pytest.raises(InputError, match=r"tokenizers/vqgan cannot be built: no 'vqgan' in src/tessera/tokenizers/"):
        models.load(saved[0])


def test_model_that_differs_from_params_is_refused_by_name(tiny_run):
    run = tiny_run()
    assert run.tokenizer().image_shape == (3, 8, 8)
    run.params.raw["quantizer"]["beta"] = 0.125
    message = (
        r"artifacts/tokenizer does not fit params.yaml: quantizer\.beta is .* in the model, 0\.125 in params\.yaml"
    )
    with pytest.raises(InputError, match=message + r"\. Run `dvc repro tokenizer`"):
        tiny_run().tokenizer()


def test_other_differences_from_params_are_named_too(tiny_run):
    run = tiny_run()
    run.params.raw["tokenizer"]["vqvae"]["channels"] = 9
    with pytest.raises(InputError, match=r"channels is \d+ in the model, 9 in params\.yaml"):
        tiny_run().tokenizer()
    recipe = models.read_recipe(run.folder("prior"))
    models.save(run.folder("prior"), nn.Identity(), recipe._replace(name="other"), "")
    with pytest.raises(InputError, match=r"artifacts/prior does not fit .* name is 'other' in the model"):
        tiny_run().prior()
    files.save_array(run.folder("dataset") / "train.npy", np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"image_shape is \[3, 8, 8\] in the model, \[3, 16, 16\] in params\.yaml"):
        tiny_run().scorer()


@pytest.mark.parametrize("stage", ["tokenizer", "scorer"])
def test_card_says_how_to_load_this_very_folder(tiny_run, stage):
    run = tiny_run()
    folder = run.folder(stage)
    run.save_model(stage, models.load(folder), models.read_recipe(folder), {"epoch": 1})
    text = (folder / "README.md").read_text()
    (named,) = re.findall(r'tessera\.load\("(.+)"\)', text)
    assert tessera.load(named).state_dict().keys() == models.load_weights(folder / models.WEIGHTS).keys()


def test_card_says_by_what_a_small_set_was_trained_instead(tiny_run):
    run = tiny_run()
    folder = run.folder("tokenizer")
    notes = ("tokenizer.training.batch_size: 4 instead of 32, since the train split has 40 images",)
    run.save_model("tokenizer", models.load(folder), models.read_recipe(folder), {"epoch": 1}, notes=notes)
    assert f"## Params\n\n- {notes[0]}\n\n```yaml" in (folder / "README.md").read_text()


def test_weights_of_a_view_and_of_channels_last_are_stored_plainly(tmp_path):
    """safetensors refuses tensors that share memory or are not contiguous."""
    base = torch.arange(24.0).view(1, 2, 3, 4)
    state = {"a": base, "b": base[:, :1], "c": base.contiguous(memory_format=torch.channels_last)}
    models.save_weights(tmp_path / "w.safetensors", state)
    loaded = models.load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_card_is_the_same_twice_and_shows_params_and_metrics(raw):
    _, recipe = build(raw, "vqvae")
    metrics = {"epoch": 3, "val": {"perplexity": 12.345678, "usage": 0.5}}
    cards = {models.card("artifacts/tokenizer", recipe, {"quantizer": raw["quantizer"]}, metrics) for _ in range(2)}
    assert len(cards) == 1
    text = cards.pop()
    assert text.startswith("---\nlibrary_name: tessera\n")
    assert "| val.perplexity | 12.346 |" in text
    assert f"codebook_size: {raw['quantizer']['codebook_size']}" in text
    assert 'tessera.load("artifacts/tokenizer")' in text
    assert str(Path.cwd()) not in text


# what training reports


@pytest.fixture
def objective(raw) -> training.Objective:
    tokenizer, _ = build(raw, "vqvae")
    return training.Objective(tokenizer, {"mse": (0.5, seams.plugin("losses", "mse").MSE())})


def test_objective_sums_weighted_image_terms_and_the_quantizers_own(objective, make_images):
    x = arrays.to_model(make_images(4))
    objective.eval()
    losses, output = objective(x), objective.tokenizer(x)
    assert set(losses) == {"mse", "commitment"}
    torch.testing.assert_close(losses["mse"], 0.5 * (output.reconstruction - x).square().mean())
    torch.testing.assert_close(losses["commitment"], output.quantized[0].losses["commitment"])


def test_terms_of_weight_0_are_not_built(tiny_run, monkeypatch):
    run = tiny_run()
    tokenizer = models.build(models.tokenizer_recipe(run.params, run.image_shape))
    assert list(training.loss_terms(run, tokenizer)) == ["mse"]
    run.params.raw["losses"]["l1"]["weight"] = 0.5
    assert list(training.loss_terms(run, tokenizer)) == ["mse", "l1"]
    for values in run.params.raw["losses"].values():
        values["weight"] = 0.0
    monkeypatch.setattr(seams.plugin("losses", "mse"), "build", None)
    assert training.loss_terms(run, tokenizer) == {}


def test_validation_row_by_hand(objective, raw, make_images, train):
    """Means over all images, whatever the batches; perplexity and usage over the codes of all of them."""
    pixels = {"train": make_images(9), "val": make_images(7)}
    data = training.Data(pixels, augmentation_of(raw), 3, "cpu")
    train(objective.tokenizer, arrays.to_model(pixels["train"]))
    with torch.no_grad():
        row = training._evaluate(objective, data)
        x = arrays.to_model(pixels["val"])
        output = objective.tokenizer(x)
        decoded = arrays.to_pixels(output.reconstruction)
        losses = objective(x)
    error = scores.mse(decoded, pixels["val"]).mean()
    shares = statistics.frequencies(output.quantized[0].codes.numpy(), objective.tokenizer.space.sizes[0])
    expected = {
        "val_mse": float(losses["mse"]),
        "val_total": float(sum(losses.values())),
        "val_mse_pixels": error,
        "val_psnr_db": -10 * np.log10(error),
        "val_ssim": scores.ssim(decoded, pixels["val"]).mean(),
        "val_perplexity": statistics.perplexity(shares),
        "val_usage": statistics.usage(shares),
    }
    assert expected["val_perplexity"] > 2
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5), name
    assert {"train_perplexity", "train_psnr_db"} <= set(row)
    assert all(type(value) is float for value in row.values())


def test_as_many_training_as_validation_images_are_looked_at(raw, make_images):
    """Perplexity over fewer images is lower."""
    data = training.Data(
        {"train": make_images(20), "val": make_images(6)},
        augmentation_of(raw),
        4,
        "cpu",
    )
    assert {split: len(pixels) for split, pixels in data.looked_at.items()} == {"train": 6, "val": 6}


def test_snapshots_become_pictures_and_weights(objective, raw, runtime, workspace, make_images):
    raw["tokenizer"] |= {"snapshot_epochs": [0, 2], "keep_every": 1}
    section = Params(raw).section("tokenizer", training.Settings)
    data = training.Data({"train": make_images(8), "val": make_images(6)}, section.augmentation, 4, "cpu")
    fitted = fit(training.task(objective, data, section), section.training, 0, runtime)
    training.write_snapshots(fitted, data)
    folder = Path("artifacts/tokenizer")
    books = models.load_weights(folder / "snapshots.safetensors")
    assert set(books) == {"0/codebook_0", "2/codebook_0"}
    weights = models.load_weights(folder / "epochs" / "0002.safetensors")
    assert weights.keys() == objective.tokenizer.state_dict().keys()
    assert sorted(path.name for path in (folder / "epochs").iterdir()) == ["0001.safetensors", "0002.safetensors"]
    assert sorted(path.name for path in Path("plots/tokenizer").iterdir()) == ["codebook.png", "reconstructions.png"]


def test_no_snapshot_epochs_still_leave_the_originals(objective, raw, runtime, workspace, make_images):
    """The folder is a declared output, so it must be there."""
    data = training.Data(
        {"train": make_images(8), "val": make_images(6)},
        augmentation_of(raw),
        4,
        "cpu",
    )
    training.write_snapshots(Fitted([], 1, {}), data)
    assert [path.name for path in Path("plots/tokenizer").iterdir()] == ["reconstructions.png"]


def test_metrics_are_those_of_the_kept_epoch():
    def row(epoch: int) -> dict[str, float]:
        names = [f"{split}_{name}" for split in ("val", "train") for name in ("total", "usage", "perplexity")]
        return {"epoch": epoch, **{name: epoch + i / 10 for i, name in enumerate(names)}}

    found = training.metrics(Fitted([row(2), row(4)], 2, {}), None, None)
    assert found["epoch"] == 2
    assert found["val"] == {"total": 2.0, "usage": 2.1, "perplexity": 2.2}


# reconstruction


@pytest.mark.parametrize("batch_size", [2, 100])
def test_reconstruction_scores_by_hand(saved, make_images, batch_size):
    _, tokenizer = saved
    pixels = make_images(5)
    table = reconstruction.decoded(tokenizer, pixels, Path("artifacts/reconstruction/test.npy"), batch_size, "cpu")
    with torch.no_grad():
        x = arrays.to_model(pixels)
        quantized = arrays.to_pixels(tokenizer.decode(tokenizer.encode(x)))
        continuous = arrays.to_pixels(tokenizer.decode_vectors(tokenizer.latents(x)))
    np.testing.assert_array_equal(files.load_array(Path("artifacts/reconstruction/test.npy")), quantized)
    error = ((quantized / 127.5 - pixels / 127.5) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(table["mse"], error, rtol=1e-5)
    np.testing.assert_allclose(table["psnr_db"], 10 * np.log10(4 / error), rtol=1e-5)
    np.testing.assert_allclose(
        table["mse_from_z"], ((continuous / 127.5 - pixels / 127.5) ** 2).mean((1, 2, 3)), rtol=1e-5
    )
    np.testing.assert_allclose(table["ssim"], scores.ssim(quantized, pixels))
    np.testing.assert_allclose(table["ssim_gaussian"], scores.ssim_gaussian(quantized, pixels))


def test_reconstruction_metrics_in_closed_form():
    """Two images of one family at 0.04, one of another at 0.4: means 0.16 over images and 0.22 over families."""
    table = pd.DataFrame(
        {
            "mse": [0.04, 0.04, 0.4],
            "psnr_db": [20.0, 20.0, 10.0],
            "ssim": [0.9, 0.9, 0.6],
            "ssim_gaussian": [0.8, 0.8, 0.5],
            "mse_from_z": [0.004] * 3,
            "family": ["a", "a", "b"],
        }
    )
    val = table.assign(mse=[0.004] * 3, ssim=[0.3] * 3)
    splits = reconstruction.summary({"val": val, "test": table})
    assert list(splits["split"]) == ["val", "test"]
    assert list(splits["psnr_db_per_image"]) == pytest.approx([50 / 3] * 2)
    found = reconstruction.metrics(splits)
    assert found["val"] == pytest.approx(
        {"mse": 0.004, "psnr_db": 30, "psnr_db_per_image": 50 / 3, "ssim": 0.3, "ssim_gaussian": 0.7}
    )
    found = found["test"]
    assert found["mse"] == pytest.approx(0.16)
    assert found["psnr_db"] == pytest.approx(10 * np.log10(4 / 0.16))
    assert found["ssim"] == pytest.approx(0.8)
    assert found["psnr_db_from_z"] == pytest.approx(30)
    assert found["by_family"]["psnr_db"] == pytest.approx(10 * np.log10(4 / 0.22))
    assert found["by_family"]["ssim"] == pytest.approx(0.75)
    assert found["psnr_db_per_image"] == pytest.approx(50 / 3)
    assert found["ssim_gaussian"] == pytest.approx(0.7)
    assert found["by_family"]["psnr_db_per_image"] == pytest.approx(15)
    assert found["by_family"]["ssim_gaussian"] == pytest.approx(0.65)


def test_reconstruction_picture_shows_each_family_once(make_images):
    pixels = make_images(6)
    table = pd.DataFrame({"family": ["a", "a", "b", "c", "c", "c"]})
    sheet = reconstruction.picture(pixels, pixels, table)
    expected = pixels[[0, 2, 3]].repeat(8, 1).repeat(8, 2)
    for column, image in enumerate(expected):
        left = 4 + 68 * column
        np.testing.assert_array_equal(sheet[4:68, left : left + 64], image)
        np.testing.assert_array_equal(sheet[72:136, left : left + 64], image)


# samples


def test_samples_are_decoded_codes_of_the_prior(tiny_run):
    run = tiny_run()
    tokenizer, drawn = run.tokenizer(), samples.sample_set("samples", run.prior(), run.tokenizer(), run)
    count = run.params.value("samples.count")
    assert drawn.codes.shape == (count, run.codes("train").shape[1])
    assert drawn.conditions is None  # of an unconditional prior
    expected = arrays.to_pixels(tokenizer.decode(torch.from_numpy(drawn.codes).long()))
    assert abs(drawn.images.astype(int) - expected).max() <= 1
    assert samples.picture(drawn.images).dtype == np.uint8


def test_samples_depend_on_the_seed_and_their_name_alone(tiny_run):
    run = tiny_run()
    prior = samples.baseline(run)
    first = samples.sample_set("samples", prior, run.tokenizer(), run).codes
    torch.rand(5)
    np.testing.assert_array_equal(samples.sample_set("samples", prior, run.tokenizer(), run).codes, first)
    assert (samples.sample_set("baseline", prior, run.tokenizer(), run).codes != first).any()
    assert (first[:2] != first[2:]).any()  # each batch has a stream of its own


def test_labels_are_drawn_as_often_as_they_occur(tiny_run):
    """A prior that answers with the label itself."""

    class Echo(nn.Module):
        conditioning = labelled(2)

        def sample(self, n: int, generator: torch.Generator, sampling: Any, conditions: torch.Tensor) -> torch.Tensor:
            return conditions.expand(n, length)

    run = tiny_run()
    length = run.codes("train").shape[1]
    run.params.raw["samples"] |= {"count": 300, "batch_size": 70}
    drawn = samples.sample_set("samples", Echo(), run.tokenizer(), run)
    assert drawn.conditions.shape == (300, 1)
    assert (drawn.codes == drawn.conditions).all()
    assert abs(drawn.conditions.mean() - run.labels("train").mean()) < 0.1


# models of older versions


@pytest.mark.parametrize(("seam", "name"), models.ADDED)
def test_a_stored_model_may_lack_the_values_that_were_added_since(seam, name, workspace):
    """It is what it was, and loads."""
    config = seams.plugin(seam, name).Config
    added = models.ADDED[seam, name]
    assert added.keys() <= config.model_fields.keys()
    today = {**example(config).model_dump(), **added}
    files.write_json(
        Path("old/recipe.json"),
        {"seam": seam, "name": name, "config": {key: today[key] for key in today if key not in added},
         "arguments": {}, "quantizer": None},
    )  # fmt: skip
    assert models.read_recipe(Path("old")).config == today
    files.write_json(
        Path("new/recipe.json"),
        {"seam": seam, "name": name, "config": today | dict.fromkeys(added, 2), "arguments": {}, "quantizer": None},
    )
    assert models.read_recipe(Path("new")).config == today | dict.fromkeys(added, 2), "a value that is there stays"
