"""What every term of the tokenizer's objective promises, and the mathematics of each."""

from __future__ import annotations

import copy
import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import softmax
from scipy.stats import entropy
from skimage.metrics import structural_similarity
from torch import nn
from torch.nn import functional as F

from stages.tokenizer import Objective
from tessera.attention.causal import Block, CausalTransformer, Size, raster
from tessera.core import models, seams
from tessera.core.contracts import Output, Quantized
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.space import CodeSpace
from tessera.images import arrays
from tessera.levels import Level, levels_of
from tessera.losses import (
    bce,
    code_entropy,
    equivariance,
    joint_prior,
    l1,
    mse,
    perceptual,
    predictability,
    smoothness,
    ssim,
)

OF_IMAGES = ("bce", "l1", "mse", "perceptual", "ssim")  # terms that compare x with its reconstruction, and nothing else


@pytest.fixture
def tokenizer(raw) -> nn.Module:
    return models.build(models.tokenizer_recipe(Params(raw), (3, 8, 8)))


@pytest.fixture
def x(make_images) -> torch.Tensor:
    return arrays.to_model(make_images(6))


@pytest.fixture
def build(tiny, tiny_run, tokenizer):
    """`build(name, weight=2.0)`: a term on the tokenizer of params.yaml."""

    def build(name: str, **values) -> nn.Module:
        module = seams.plugin("losses", name)
        return module.build(tiny(module.Config, **values), tiny_run(), tokenizer)

    return build


@pytest.fixture(params=seams.names("losses"))
def name(request) -> str:
    return request.param


@pytest.fixture
def loss(name, build) -> nn.Module:
    return build(name)


def output_of(reconstruction=None, latents=(), quantized=()) -> Output:
    return Output(reconstruction, tuple(latents), tuple(quantized))


# the contract: every term


def test_loss_is_a_finite_number_whose_gradient_reaches_the_encoder(loss, tokenizer, x):
    value = loss(x, tokenizer(x))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    value.backward()
    first = next(tokenizer.encoder.parameters()).grad
    assert torch.isfinite(first).all()
    assert first.abs().sum() > 0


def test_own_weights_of_a_loss_are_trained_along(loss, tokenizer, x):
    loss(x, tokenizer(x)).backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_loss_is_finite_under_half_precision(loss, tokenizer, x):
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(x, tokenizer(x))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert all(p.grad is None or p.grad.isfinite().all() for p in tokenizer.parameters())


def test_loss_neither_saves_nor_trains_the_tokenizer_or_a_frozen_network(name, loss, tokenizer):
    """They would be saved twice, and moved, averaged and optimised twice."""
    theirs = {id(tensor) for tensor in [*tokenizer.parameters(), *tokenizer.buffers()]}
    assert not theirs & {id(tensor) for tensor in [*loss.parameters(), *loss.buffers()]}
    if name not in ("predictability", "joint_prior", "adversarial"):
        assert not loss.state_dict()


def test_evaluation_is_deterministic_and_changes_nothing(loss, tokenizer, x):
    loss.eval()
    tokenizer.eval()
    before = copy.deepcopy([tokenizer.state_dict(), loss.state_dict()])
    with torch.no_grad():
        values = [loss(x, tokenizer(x)) for _ in range(2)]
    assert torch.equal(*values)
    assert not tokenizer.training
    for old, module in zip(before, (tokenizer, loss), strict=True):
        assert all(torch.equal(old[key], value) for key, value in module.state_dict().items())


def test_training_is_reproducible_and_leaves_statistics_to_the_tokenizers_own_pass(loss, tokenizer, x):
    output = tokenizer.train()(x)
    before = copy.deepcopy(dict(tokenizer.named_buffers()))
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(loss.train()(x, output))
    assert torch.equal(*values)
    assert tokenizer.training
    assert all(torch.equal(before[key], value) for key, value in tokenizer.named_buffers())


def test_deep_copy_of_an_objective_is_one_of_its_own(name, loss, tokenizer, x):
    """As averaged weights are kept: the copied term must look at the copied tokenizer."""
    objective = Objective(tokenizer, {name: (1.0, loss)}).eval()
    copied = copy.deepcopy(objective)
    with torch.no_grad():
        expected = objective(x)[name]
        assert torch.equal(copied(x)[name], expected)
        for parameter in copied.parameters():
            parameter.add_(0.1)
        assert torch.equal(objective(x)[name], expected)
    assert all(other is copied.tokenizer for other in getattr(copied.terms[name], "_others", ()))


def test_weight_is_left_to_the_objective(name, build, tokenizer, x):
    values = []
    for weight in (1.0, 5.0):
        torch.manual_seed(0)
        values.append(build(name, weight=weight).eval()(x, tokenizer.eval()(x)))
    assert torch.equal(*values)


def test_negative_weight_is_refused(name, tiny):
    with pytest.raises(ValidationError):
        tiny(seams.plugin("losses", name).Config, weight=-1.0)


def test_build_leaves_the_tokenizer_as_it_was(name, build, tokenizer):
    tokenizer.train()
    before = copy.deepcopy(tokenizer.state_dict())
    build(name)
    assert tokenizer.training
    assert all(torch.equal(before[key], value) for key, value in tokenizer.state_dict().items())


# the contract: image terms


@pytest.mark.parametrize("name", OF_IMAGES)
def test_image_term_has_a_gradient_towards_the_reconstruction(name, build, x):
    reconstruction = (0.5 * x).requires_grad_()
    build(name)(x, output_of(reconstruction)).backward()
    assert torch.isfinite(reconstruction.grad).all()
    assert reconstruction.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OF_IMAGES)
def test_image_term_is_least_for_a_perfect_reconstruction(name, build, tokenizer, x):
    loss = build(name).eval()
    perfect = loss(x, output_of(x))
    if name != "bce":  # which leaves the entropy of the intensities
        assert perfect.item() == pytest.approx(0, abs=1e-6)
    for worse in (tokenizer.eval()(x).reconstruction, 0.9 * x, x.flip(3), x.roll(1, 0)):
        assert loss(x, output_of(worse)) > perfect


@pytest.mark.parametrize("name", [*OF_IMAGES, "smoothness", "predictability", "joint_prior", "equivariance"])
def test_loss_is_a_mean_over_the_batch(name, build, tokenizer, x):
    """A larger batch must not mean larger steps. Not of code_entropy: the entropy of a mean is not a mean."""
    loss = build(name).eval()
    tokenizer.eval()
    single = [loss(row, tokenizer(row)) for row in x.split(1)]
    torch.testing.assert_close(loss(x, tokenizer(x)), torch.stack(single).mean())


# image terms by hand


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (mse.MSE(), (0.5**2 + 2**2) / 2),
        (l1.L1(), (0.5 + 2) / 2),
        (bce.BCE(), (-0.75 * math.log(0.5) - 0.25 * math.log(0.5) + 100) / 2),  # torch bounds -log 0 by 100
    ],
)
def test_image_term_by_hand(loss, expected):
    """Of the [-1, 1] pixels 0.5 and -1, decoded as 0 and 1."""
    x = torch.tensor([0.5, -1.0]).view(1, 1, 1, 2)
    reconstruction = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert loss(x, output_of(reconstruction)).item() == pytest.approx(expected, rel=1e-6)


def test_bce_of_grey_that_is_decoded_as_grey_is_one_bit():
    grey = torch.zeros(2, 3, 4, 4)
    assert bce.BCE()(grey, output_of(grey)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("weight", "values", "lines"), [
    (0.5, {"output": "linear"}, 1), (0.5, {"output": "tanh"}, 0), (0.5, {}, 0), (0.0, {"output": "linear"}, 0),
])  # fmt: skip
def test_bce_needs_a_decoder_that_stays_within_the_range(tiny, weight, values, lines):
    params = SimpleNamespace(config=lambda _: SimpleNamespace(**values), value=lambda _: "vqvae")
    found = list(tiny(bce.Config, weight=weight).rule(params))
    assert len(found) == lines
    if lines:
        assert found[0].startswith("losses.bce.weight: must be 0 where tokenizer.vqvae.output is 'linear'")
        assert found[0].endswith("got 0.5; set tokenizer.vqvae.output to tanh")


def intensities(side: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    a = draws.uniform(size=(2, 3, side, side))
    return a, np.clip(a + 0.2 * draws.normal(size=a.shape), 0, 1)


def ssim_of(a: np.ndarray, b: np.ndarray) -> float:
    x, r = (torch.tensor(2 * image - 1, dtype=torch.float32) for image in (a, b))
    return ssim.SSIM()(x, output_of(r)).item()


@pytest.mark.parametrize("side", [11, 16])
def test_ssim_agrees_with_scikit_image(side):
    """Where its whole window lies within the image; at the edge it mirrors the image."""
    a, b = intensities(side)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pairs = zip(a.reshape(-1, side, side), b.reshape(-1, side, side), strict=True)
    maps = [structural_similarity(p, q, full=True, **options)[1][5:-5, 5:-5] for p, q in pairs]
    assert ssim_of(a, b) == pytest.approx(1 - np.mean(maps), abs=1e-5)


@pytest.mark.parametrize(("side", "window"), [(10, 9), (8, 7), (4, 3)])
def test_ssim_of_small_images_has_the_largest_odd_window(side, window):
    """Eq. 13 of the paper, written out."""
    a, b = intensities(side)
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(values, (window, window), axis=(2, 3))
        return (windows * weights).sum((-2, -1))

    p, q = mean(a), mean(b)
    variances, covariance = mean(a * a) - p * p + mean(b * b) - q * q, mean(a * b) - p * q
    expected = (2 * p * q + 1e-4) * (2 * covariance + 9e-4) / ((p * p + q * q + 1e-4) * (variances + 9e-4))
    assert ssim_of(a, b) == pytest.approx(1 - expected.mean(), abs=1e-5)


# perceptual


class Stack(nn.Module):
    """A network of features whose maps are the image, and twice the image halved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def maps(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.dropout(x), 2 * self.scale * F.avg_pool2d(x, 2)


def pixels(*columns: tuple[float, ...]) -> torch.Tensor:
    """[1,C,2,2], both rows alike."""
    return torch.tensor(columns).t()[None, :, None].expand(1, -1, 2, -1).clone()


def test_perceptual_by_hand():
    """Two channels. First map: one column at right angles (2), one in the same direction (0). Second map: (1, 1)
    and (1.5, 0) after halving and doubling, |(1/sqrt 2, 1/sqrt 2) - (1, 0)|^2 = 2 - sqrt 2."""
    x, r = pixels((0.0, 1.0), (1.0, 0.0)), pixels((1.0, 0.0), (0.5, 0.0))
    expected = ((2 + 0) / 2 + 2 - math.sqrt(2)) / 2
    assert perceptual.Perceptual(Stack())(x, output_of(r)).item() == pytest.approx(expected, rel=1e-5)


def test_perceptual_reads_the_network_of_its_section_and_leaves_it_frozen(tiny):
    network = Stack().train()
    run = SimpleNamespace(perceptual=lambda: network)  # and nothing of the one that scores
    loss = perceptual.build(tiny(perceptual.Config), run, None).train()
    r = pixels((1.0, 0.5), (0.5, 0.0)).requires_grad_()
    loss(pixels((0.0, 1.0), (1.0, 0.0)), output_of(r)).backward()
    assert r.grad.abs().sum() > 0
    assert not network.training
    assert network.scale.grad is None
    assert not list(loss.parameters())


def test_perceptual_gradient_is_finite_where_nothing_is_active():
    r = torch.zeros(1, 2, 2, 2, requires_grad=True)
    perceptual.Perceptual(Stack())(pixels((0.0, 1.0), (1.0, 0.0)), output_of(r)).backward()
    assert torch.isfinite(r.grad).all()


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, torch.Tensor]:
    """Keys and shapes as in torchvision's file, up to relu4_3, and a key of the classifier, which is to be ignored."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in vgg16(weights=None, init_weights=False).state_dict().items()}
    draws = torch.Generator().manual_seed(0)
    kept = {key: shape for key, shape in shapes.items() if key.startswith("features.") and int(key.split(".")[1]) < 23}
    state = {k: torch.randn(s, generator=draws) * (2 / math.prod(s[1:])) ** 0.5 for k, s in kept.items()}
    return state | {"classifier.6.bias": torch.zeros(1000)}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_vgg_weights_are_read_from_a_file(suffix, vgg_state, tiny, tmp_path):
    file = tmp_path / f"vgg16.{suffix}"
    if suffix == "pth":
        torch.save(vgg_state, file)
    else:
        models.save_weights(file, vgg_state)
    own = {"weights": str(file), "weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:10]}
    loss = perceptual.build(tiny(perceptual.Config, **own), None, SimpleNamespace(image_shape=(1, 16, 16)))
    (network,) = loss._frozen
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    maps = network.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    by_hand = ((x + 1) / 2).expand(-1, 3, -1, -1).sub(mean).div(std)
    for layer in (0, 2):  # relu1_2
        weight, bias = vgg_state[f"features.{layer}.weight"], vgg_state[f"features.{layer}.bias"]
        by_hand = F.conv2d(by_hand, weight, bias, padding=1).relu()
    torch.testing.assert_close(maps[0], by_hand)
    assert loss(x, output_of(x)).item() == pytest.approx(0, abs=1e-6)
    r = x.flip(3).requires_grad_()
    value = loss(x, output_of(r))
    value.backward()
    assert value > 0
    assert r.grad.isfinite().all()
    assert r.grad.abs().sum() > 0
    assert not loss.state_dict()
    assert all(not p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("kind", ["missing", "garbage.pth", "garbage.safetensors", "list", "keys", "shape"])
def test_vgg_weights_that_are_none_are_refused(kind, tmp_path):
    file = tmp_path / (kind if "." in kind else f"{kind}.pth")
    if kind.startswith("garbage"):
        file.write_bytes(b"no weights")
    elif kind != "missing":
        first = {"features.0.weight": torch.zeros(64, 3, 3, 5)}
        torch.save({"list": [1], "keys": {"conv.weight": torch.zeros(1)}, "shape": first}[kind], file)
    digest = hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()
    with pytest.raises(InputError, match=r"losses\.perceptual\.weights: must be .*got .*Get https://"):
        perceptual.VGG16(str(file), digest)


def test_vgg_weights_are_pinned_by_content(vgg_state, tmp_path):
    """They are no dependency of the stage: another file at the same path must not pass for the first."""
    models.save_weights(tmp_path / "vgg16.safetensors", vgg_state)
    with pytest.raises(
        InputError, match=r"must have a SHA-256 that begins with weights_sha256 397923af, got .*Get https://"
    ):
        perceptual.VGG16(str(tmp_path / "vgg16.safetensors"), "397923af")


def test_vgg_refuses_images_that_it_would_halve_away(tiny):
    config = tiny(perceptual.Config, weights="vgg16.pth")
    with pytest.raises(InputError, match=r"dataset\.image_size is under 8, got 4"):
        perceptual.build(config, None, SimpleNamespace(image_shape=(3, 4, 4)))


# smoothness


def test_smoothness_by_hand():
    """One image [[0, 3], [0, 3]] and 4 in a second channel below on the left: distances 3 to the right above, 5 below;
    4 down on the left, 0 on the right. A second image is flat, a second level has steps of 1 in the first image."""
    z = torch.zeros(2, 2, 2, 2)
    z[0, 0, :, 1], z[0, 1, 1, 0] = 3, 4
    fine = torch.zeros(2, 1, 1, 3)
    fine[0, 0, 0] = torch.tensor([0.0, 1.0, 2.0])
    x = torch.zeros(2, 3, 8, 8)
    assert smoothness.Smoothness(0)(x, output_of(latents=[z])).item() == (3 + 5 + 4 + 0) / 2
    assert smoothness.Smoothness(0)(x, output_of(latents=[z, fine])).item() == (12 + 2) / 2


def test_smoothness_has_a_finite_gradient_where_neighbours_are_equal():
    z = torch.zeros(1, 2, 3, 3)
    z[:, :, 2] = 1
    z.requires_grad_()
    smoothness.Smoothness(0)(z, output_of(latents=[z])).backward()
    assert torch.isfinite(z.grad).all()
    torch.testing.assert_close(z.grad[0, 0], torch.tensor([0.0, -1, 1])[:, None].expand(3, 3) / math.sqrt(2))


# toy tokenizers


class Toy(nn.Module):
    """Latents are the image divided by `ramp` over its columns, one level for each of `pools` (average pooling, coarse
    first), each with codebooks of `sizes`; the finest is decoded. Perfect always, equivariant without a ramp."""

    def __init__(self, side=(4, 4), pools=(1,), sizes=((2,),), ramp=False, book_dim=2) -> None:
        super().__init__()
        self.image_shape, self.pools, self.sizes, self.ramp = (2, *side), pools, sizes, ramp
        grids = [(side[0] // pool, side[1] // pool) for pool, level in zip(pools, sizes, strict=False) for _ in level]
        self.space = CodeSpace(tuple(grids), tuple(size for level in sizes for size in level)[: len(grids)])
        books = [torch.arange(float(k))[:, None].expand(k, book_dim) + i for i, k in enumerate(self.space.sizes)]
        self.books = nn.ParameterList(nn.Parameter(book.clone()) for book in books)

    @property
    def codebooks(self):
        return tuple(self.books)

    def columns(self, x):
        return torch.arange(1.0, x.shape[3] + 1) if self.ramp else torch.ones(x.shape[3])

    def latents(self, x):
        return tuple(F.avg_pool2d(x / self.columns(x), pool) for pool in self.pools)

    def quantize(self, latents):
        codes = [z.new_zeros(len(z), len(sizes), *z.shape[2:]).long() for z, sizes in zip(latents, self.sizes)]  # noqa: B905
        return tuple(Quantized(z, c, {}) for z, c in zip(latents, codes, strict=True))

    def decode_vectors(self, z_q):
        return z_q[-1] * self.columns(z_q[-1])

    def forward(self, x):
        latents = self.latents(x)
        return Output(self.decode_vectors(latents), latents, self.quantize(latents))


def test_levels_of_a_tokenizer():
    toy = Toy(side=(4, 8), pools=(2, 1), sizes=((5, 6), (7,))).train()
    assert levels_of(toy) == ((2, 2, 4, 0, 2), (2, 4, 8, 2, 1))
    assert toy.training


def test_levels_of_params_yamls_tokenizer(tokenizer):
    (level,) = levels_of(tokenizer)
    assert (level.height, level.width) == tokenizer.space.grids[0]
    assert level.depth == len(tokenizer.space.sizes)


# equivariance


@pytest.fixture
def equivariant(tiny):
    def equivariant(toy: nn.Module, smallest: float = 0.25) -> nn.Module:
        return equivariance.build(tiny(equivariance.Config, smallest=smallest), None, toy)

    return equivariant


@pytest.mark.parametrize("training", [True, False])
def test_equivariance_is_zero_for_an_equivariant_tokenizer_only(equivariant, training):
    x = torch.rand(3, 2, 8, 8) * 2 - 1
    for toy, is_zero in [(Toy((8, 8)), True), (Toy((8, 8), sizes=((),)), True), (Toy((8, 8), ramp=True), False)]:
        loss = equivariant(toy).train(training)
        output = toy(x)
        torch.testing.assert_close(output.reconstruction, x)  # the reconstruction is perfect in each case
        values = [loss(x, output).item() for _ in range(20)]
        assert (max(values) < 1e-10) == is_zero
        assert (len(set(values)) > 1) == (training and not is_zero)


def test_equivariance_by_hand(equivariant):
    """x = [[1, 2], [3, 4]] / 4 with columns 1 and 2 is z = [[1, 1], [3, 2]] / 4. Turned, z = [[1, 2], [1, 3]] / 4 decodes
    to [[1, 4], [1, 6]] / 4 in place of [[2, 4], [1, 3]] / 4; halved, to 7/16 in place of 10/16."""
    x = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]) / 4).expand(1, 2, 2, 2)
    toy = Toy((2, 2), ramp=True)
    expected = ((1 + 9) / 4 / 16 + (3 / 16) ** 2) / 2
    assert equivariant(toy).eval()(x, toy(x)).item() == pytest.approx(expected)


@pytest.mark.parametrize(("toy", "turns", "scales"), [
    (Toy((8, 8)), 3, [2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8]),
    (Toy((8, 8), pools=(4, 2), sizes=((2,), (2,))), 3, [1 / 2]),
    (Toy((4, 6)), 0, [1 / 2]),
    (Toy((3, 3)), 3, [1 / 3, 2 / 3]),
])  # fmt: skip
def test_transformations_leave_whole_grids(equivariant, toy, turns, scales):
    families = equivariant(toy).families
    drawable = [tau for family in families for tau in family]
    found = [tau.numerator / tau.denominator for tau in drawable if isinstance(tau, equivariance.Scale)]
    assert found == scales
    assert len(drawable) - len(found) == turns
    x = torch.zeros(1, *toy.image_shape)
    for tau in drawable:
        assert [tau(z).shape for z in toy.latents(x)] == [z.shape for z in toy.latents(tau(x))]


def test_transformations_are_drawn_with_equal_probability(equivariant):
    loss = equivariant(Toy((8, 8)))
    drawn = [loss.sampled() for _ in range(600)]
    assert set(drawn) == {tau for family in loss.families for tau in family}
    turned = sum(isinstance(tau, equivariance.Turn) for tau in drawn)
    assert abs(turned - 300) < 4 * math.sqrt(600 / 4)


def test_equivariance_refuses_a_latent_without_a_grid(equivariant):
    with pytest.raises(InputError, match=r"losses\.equivariance\.weight: must be 0 .*grids 1x1"):
        equivariant(Toy((4, 4), pools=(4,)))
    with pytest.raises(InputError, match="turned or scaled"):
        equivariant(Toy((4, 5)))


@pytest.mark.parametrize("smallest", [0.0, 1.0])
def test_smallest_scale_lies_between(tiny, smallest):
    with pytest.raises(ValidationError):
        tiny(equivariance.Config, smallest=smallest)


# code_entropy


class Books(nn.Module):
    def __init__(self, *books: torch.Tensor) -> None:
        super().__init__()
        self.codebooks = books


def entropy_term(config, z, *books, starts=(0,)):
    return code_entropy.CodeEntropy(config, Books(*books), starts)(z[0], output_of(latents=z))


@pytest.mark.parametrize("diversity", [0.0, 1.0, 0.5])
def test_code_entropy_in_closed_form(tiny, diversity):
    config = tiny(code_entropy.Config, diversity=diversity)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    between = torch.zeros(2, 2, 3, 3)  # as far from each of the four codes: log 4, and so is the mean
    assert entropy_term(config, [between], corners).item() == pytest.approx((1 - diversity) * math.log(4), abs=1e-6)
    at_all = 50 * corners.t().view(1, 2, 2, 2)  # one latent at each code
    assert entropy_term(config, [at_all], 50 * corners).item() == pytest.approx(-diversity * math.log(4), abs=1e-6)
    at_one = torch.full((1, 2, 2, 2), 50.0)  # collapse
    assert entropy_term(config, [at_one], 50 * corners).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (100.0, 1.0), (-3000.0, 1.0), (1000.0, 0.1), (5.0, 0.01)])
def test_code_entropy_by_scipy(tiny, offset, spread):
    """Also far from the origin, where distances by products of matrices round by more than they differ."""
    config = tiny(code_entropy.Config, temperature=0.7 * spread**2, diversity=0.3)
    draws = torch.Generator().manual_seed(0)
    z, book = (offset + spread * torch.randn(*shape, generator=draws) for shape in ((2, 3, 4, 5), (6, 3)))
    rows = z.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    squares = ((rows[:, None] - book.double().numpy()) ** 2).sum(2)
    p = softmax(-squares / config.temperature, axis=1)
    expected = entropy(p, axis=1).mean() - 0.3 * entropy(p.mean(0))
    assert entropy_term(config, [z], book).item() == pytest.approx(expected, rel=1e-4)


def test_code_entropy_has_a_gradient_in_latents_only_and_finite_where_codes_are_out_of_reach(tiny):
    config = tiny(code_entropy.Config, temperature=1e-3)
    z, book = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    far = torch.cat([book, torch.full((1, 3), 1e3)])
    entropy_term(config, [z], far).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0
    assert book.grad is None


def test_code_entropy_reads_the_first_depth_of_each_level(tiny):
    toy = Toy((4, 4), pools=(2, 1), sizes=((3, 4), (5,)))
    loss = code_entropy.build(tiny(code_entropy.Config), None, toy)
    assert loss.starts == (0, 2)
    x = torch.rand(2, 2, 4, 4)
    coarse, fine = toy.latents(x)
    expected = [entropy_term(loss, [coarse], toy.books[0]), entropy_term(loss, [fine], toy.books[2])]
    torch.testing.assert_close(loss(x, toy(x)), torch.stack(expected).mean())


@pytest.mark.parametrize("toy", [Toy(sizes=((),)), Toy(book_dim=3)])
def test_code_entropy_refuses_levels_without_a_codebook_of_their_dimension(tiny, toy):
    with pytest.raises(InputError, match=r"losses\.code_entropy\.weight: must be 0 .*got 1\.0 with 2 channels"):
        code_entropy.build(tiny(code_entropy.Config), None, toy)


# the causal network


def test_causal_output_depends_on_earlier_inputs_only():
    network = CausalTransformer(3, 5, length=6, size=Size(channels=8, layers=2, heads=2))
    x = torch.randn(2, 6, 3, requires_grad=True)
    out = network(x)
    assert out.shape == (2, 6, 5)
    for t in range(6):
        (grad,) = torch.autograd.grad(out[:, t].square().sum(), x, retain_graph=True)
        assert (grad[:, t:] == 0).all()
        assert (grad[:, :t].abs().sum((0, 2)) > 0).all()
    assert network(x[:, :1]).shape == (2, 1, 5)


def test_block_agrees_with_torchs_encoder_layer():
    block = Block(8, heads=2)
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    attention = layer.self_attn
    pairs = [
        (attention.in_proj_weight, block.qkv.weight),
        (attention.in_proj_bias, block.qkv.bias),
        (attention.out_proj.weight, block.out.weight),
        (attention.out_proj.bias, block.out.bias),
        *zip(layer.linear1.parameters(), block.mlp[0].parameters(), strict=True),
        *zip(layer.linear2.parameters(), block.mlp[2].parameters(), strict=True),
    ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    x = torch.randn(2, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(block(x), layer(x, src_mask=mask, is_causal=True))


def test_raster_is_the_order_of_codes():
    z = torch.arange(6.0).view(1, 1, 2, 3)
    assert raster(z)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("module", [predictability, joint_prior])
def test_heads_divide_channels(tiny, module):
    with pytest.raises(ValidationError, match="heads must divide channels 8, got 3"):
        tiny(module.Config, heads=3)


def minimised(value, parameters, steps=60, lr=0.02) -> list[float]:
    optimizer, found = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(steps):
        loss = value()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


# predictability


def test_predictability_by_hand(tiny):
    """A head of zeros predicts zeros: the mean square of the latents, mean over the levels."""
    toy = Toy((4, 4), pools=(2, 1), sizes=((), ()))
    loss = predictability.build(tiny(predictability.Config), None, toy)
    for network in loss.networks:
        nn.init.zeros_(network.head.weight)
        nn.init.zeros_(network.head.bias)
    x = torch.randn(3, 2, 4, 4)
    coarse, fine = toy.latents(x)
    torch.testing.assert_close(loss(x, toy(x)), (coarse.square().mean() + fine.square().mean()) / 2)


def test_predictability_falls_where_a_latent_tells_the_next():
    """Constant along the sequence: nothing but the first stays unknown. Independent latents stay as they are."""
    constant, independent = torch.randn(64, 2, 1, 1).expand(-1, -1, 4, 4), torch.randn(64, 2, 4, 4)
    config, level = predictability.Config(weight=1.0, channels=16, layers=1, heads=2), Level(2, 4, 4, 0, 0)
    ends = {}
    for name, z in {"constant": constant, "independent": independent}.items():
        loss = predictability.Predictability(config, (level,))
        ends[name] = minimised(lambda loss=loss, z=z: loss(z, output_of(latents=[z])), loss.parameters())[-1]
    assert ends["constant"] < 0.25
    assert ends["independent"] > 0.6


def test_predictability_moves_the_predicted_and_what_predicts_it(tiny):
    loss = predictability.Predictability(tiny(predictability.Config), (Level(2, 1, 2, 0, 0),))
    z = torch.randn(1, 2, 1, 2, requires_grad=True)
    loss(z, output_of(latents=[z])).backward()
    network = loss.networks[0]
    target = (z[0, :, 0, 1] - network(raster(z))[0, 1]).detach() * 2 / 4  # of the squared error's mean over 2 x 2
    torch.testing.assert_close(z.grad[0, :, 0, 1], target)  # the last one is only predicted
    first = (z[0, :, 0, 0] - network(raster(z))[0, 0]).detach() * 2 / 4
    assert not torch.allclose(z.grad[0, :, 0, 0], first)  # the first one predicts, too


# joint_prior


def test_joint_prior_starts_at_log_k_where_its_head_is_zero(tiny):
    """Mean over the codes of all levels and depths: 4 positions with 3 and with 4 codes, 16 with 5."""
    toy = Toy((4, 4), pools=(2, 1), sizes=((3, 4), (5,)))
    loss = joint_prior.build(tiny(joint_prior.Config), None, toy)
    for network in loss.networks:
        nn.init.zeros_(network.head.weight)
        nn.init.zeros_(network.head.bias)
    x = torch.rand(3, 2, 4, 4)
    expected = (4 * math.log(3) + 4 * math.log(4) + 16 * math.log(5)) / 24
    assert loss(x, toy(x)).item() == pytest.approx(expected, rel=1e-6)


def test_joint_prior_learns_codes_that_follow_from_those_before():
    """Code = 1 + the code before, modulo 4, from a start of 0: near 0 nats. Drawn codes: not below log 4."""
    fixed = (torch.arange(16) % 4).view(1, 1, 4, 4).expand(64, -1, -1, -1)
    drawn = torch.randint(4, (64, 1, 4, 4))
    config, level = joint_prior.Config(weight=1.0, channels=16, layers=1, heads=2), Level(4, 4, 4, 0, 1)
    ends = {}
    for name, codes in {"fixed": fixed, "drawn": drawn}.items():
        loss = joint_prior.JointPrior(config, (level,), (4,))
        z_q = F.one_hot(codes[:, 0], 4).permute(0, 3, 1, 2).float()
        output = output_of(quantized=[Quantized(z_q, codes, {})])
        ends[name] = minimised(lambda loss=loss, z=z_q, output=output: loss(z, output), loss.parameters(), 50)[-1]
    assert ends["fixed"] < 0.1
    assert ends["drawn"] > 1.0


def test_joint_prior_refuses_training_without_codes(tiny):
    with pytest.raises(InputError, match=r"losses\.joint_prior\.weight: must be 0 .*got 1\.0"):
        joint_prior.build(tiny(joint_prior.Config), None, Toy(sizes=((),)))


@pytest.mark.parametrize("name", ["joint_prior", "code_entropy"])
@pytest.mark.parametrize(("weight", "post_hoc", "lines"), [(0.5, True, 1), (0.5, False, 0), (0.0, True, 0)])
def test_terms_on_codes_exclude_quantizers_that_are_fitted_afterwards(tiny, name, weight, post_hoc, lines):
    values = {"quantizer.name": "kmeans", "tokenizer.unquantized": 0.0}
    params = SimpleNamespace(post_hoc=post_hoc, value=values.get, config=lambda _: None)
    found = list(tiny(seams.plugin("losses", name).Config, weight=weight).rule(params))
    assert len(found) == lines
    assert all(line.startswith(f"losses.{name}.weight: must be 0") and "got 0.5" in line for line in found)


@pytest.mark.parametrize("name", ["code_entropy", "smoothness", "predictability"])
def test_terms_in_units_of_the_latents_exclude_codes_that_are_blind_to_their_length(name, raw):
    raw["losses"][name]["weight"] = 0.5
    config = Params(raw).config("losses", name)
    assert list(config.rule(Params(raw))) == []
    raw["quantizer"]["distance"] = "cosine"
    (line,) = config.rule(Params(raw))
    assert line.startswith(f"losses.{name}.weight: must be 0 with quantizer.distance cosine")
    assert "got 0.5; set quantizer.distance to euclidean" in line
    raw["quantizer"]["name"] = "lfq"  # which reads no distance
    assert list(config.rule(Params(raw))) == []


def test_code_entropy_excludes_fsq_whose_codes_lie_elsewhere(raw):
    raw["losses"]["code_entropy"]["weight"] = 0.5
    raw["quantizer"]["name"] = "fsq"
    (line,) = Params(raw).config("losses", "code_entropy").rule(Params(raw))
    assert "must be 0 with quantizer.name fsq" in line


def test_smoothness_excludes_latents_without_neighbours(raw):
    raw["losses"]["smoothness"]["weight"] = 0.5
    raw["tokenizer"]["name"], raw["quantizer"]["name"], raw["tokenizer"]["vae"]["latent"] = "vae", "kmeans", "vector"
    (line,) = Params(raw).config("losses", "smoothness").rule(Params(raw))
    assert "where a latent has no neighbours (tokenizer.vae.latent vector), got 0.5" in line
