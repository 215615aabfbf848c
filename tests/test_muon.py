"""Muon against NumPy in float64, the singular value decomposition, and torch's; which parameters it takes; trainings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import labelled
from scipy.optimize import linprog
from test_training import training
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tessera.core import models
from tessera.core.params import Params
from tessera.core.space import CodeSpace
from tessera.networks.doubling import Doubling
from tessera.priors import pixelsnail
from tessera.training import muon
from tessera.training.loop import Task, fit
from tessera.training.muon import COEFFICIENTS, Muon, matrices, orthogonalised, precision

LR, DECAY = 0.02, 0.3
SPACE = CodeSpace(((2, 2), (4, 4)), (5, 8))


def nearest_to_1(low: float, high: float) -> tuple[np.ndarray, float]:
    """Coefficients of x, x^3 and x^5 whose sum is nearest to 1 on [low, high], and its distance: a linear program on a grid."""
    x = np.geomspace(low, high, 4001)
    powers, ones = np.stack([x, x**3, x**5], 1), np.ones(len(x))
    found = linprog(
        [0, 0, 0, 1],
        A_ub=np.block([[powers, -ones[:, None]], [-powers, -ones[:, None]]]),
        b_ub=np.concatenate([ones, -ones]),
        bounds=[(None, None)] * 3 + [(0, None)],
    )
    return found.x[:3], found.fun


def polar_express(x: np.ndarray) -> np.ndarray:
    """Three iterations of Amsel et al. 2025, of one matrix in float64."""
    x = x.astype(np.float64) / (1.02 * max(np.linalg.norm(x), 1e-7))
    for a, b, c in COEFFICIENTS:
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    return x


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# orthogonalisation


def test_each_polynomial_is_the_nearest_to_1_where_those_before_it_lead():
    """Amsel et al. 2025, theorem 4.1: so their composition is as near as any of three such polynomials."""
    low, high = 0.01, 1.0
    for coefficients in COEFFICIENTS:
        found, distance = nearest_to_1(low, high)
        assert coefficients == pytest.approx(found, abs=2e-3)
        low, high = 1 - distance, 1 + distance
    assert (low, high) == pytest.approx((0.73, 1.27), abs=0.005)


SHAPES = [(1, 1), (1, 7), (2, 2), (3, 8), (8, 3), (16, 48), (48, 16), (40, 41), (130, 150), (150, 130)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.3)])
def test_iterations_by_numpy(shape, dtype, near):
    """Three matrices at once, of different scales; errors relative to the norm of a matrix. Where one singular value is nearly the
    norm, bfloat16 changes what it is mapped to."""
    x = random(3, *shape) * torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None, None]
    found = orthogonalised(x, dtype)
    assert found.dtype == dtype
    for one, original in zip(found.double().numpy(), x.numpy(), strict=True):
        expected = polar_express(original)
        assert np.linalg.norm(one - expected) < near * np.linalg.norm(expected)


def test_iterations_in_float32_where_singular_values_are_far_apart():
    """From 1 to 1e-5: float32 holds the matrix, but not its square, of which most products are."""
    left, right = (np.linalg.qr(random(n, n, seed=n).numpy())[0] for n in (12, 30))
    x = left @ np.diag(np.logspace(0, -5, 12)) @ right[:12]
    found, expected = orthogonalised(torch.from_numpy(x).float()[None], torch.float32)[0].numpy(), polar_express(x)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(2, 2), (3, 8), (16, 48), (80, 40)])
def test_singular_vectors_stay_and_singular_values_come_near_1(shape):
    """The limit is U V^T; the iteration trades its last digits for speed."""
    x = random(*shape)
    u, _, vt = np.linalg.svd(x.numpy(), full_matrices=False)
    inside = u.T @ orthogonalised(x[None], torch.float64)[0].numpy() @ vt.T
    values = np.diagonal(inside)
    assert np.abs(inside - np.diag(values)).max() < 1e-9
    assert 0.72 < values.min() <= values.max() < 1.28


def test_no_gradient_no_update():
    assert orthogonalised(torch.zeros(2, 3, 4), torch.float32).count_nonzero() == 0


@pytest.mark.parametrize(
    ("dtype", "rows", "has", "expected"),
    [
        (torch.float32, 129, "amx_bf16", torch.bfloat16),
        (torch.float32, 129, "avx512_bf16", torch.bfloat16),
        (torch.float32, 129, "avx512_f", torch.float32),
        (torch.float32, 128, "amx_bf16", torch.float32),
        (torch.float64, 129, "amx_bf16", torch.float64),
        (torch.bfloat16, 2, "avx512_f", torch.bfloat16),
    ],
)
def test_precision_on_a_cpu(monkeypatch, dtype, rows, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    assert precision(torch.empty(1, rows, 200, dtype=dtype)) == expected


# which parameters


def taken(model: nn.Module) -> dict[str, tuple[int, ...]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[m.parameter]: tuple(m.view(m.parameter).shape) for m in matrices(model)}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(5, 3), {"weight": (1, 3, 5)}),
        (nn.Linear(3, 5, bias=False), {"weight": (1, 5, 3)}),
        (nn.Linear(5, 1), {}),  # a vector
        (nn.Conv2d(4, 6, 3), {"weight": (1, 6, 36)}),
        (nn.Conv2d(8, 6, 1).to(memory_format=torch.channels_last), {"weight": (1, 6, 8)}),
        (nn.Conv1d(2, 40, 3), {"weight": (1, 40, 6)}),
        (nn.Conv2d(4, 6, 3, groups=2), {"weight": (2, 3, 18)}),
        (nn.Conv2d(6, 6, 3, groups=6), {}),  # depthwise: vectors
        (nn.ConvTranspose2d(6, 4, 2), {"weight": (1, 6, 16)}),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), {"weight": (2, 3, 8)}),
        (Doubling(6, 3), {"weight": (1, 6, 48)}),
        (nn.GRU(4, 5), {"weight_ih_l0": (3, 5, 4), "weight_hh_l0": (3, 5, 5)}),
        (
            nn.LSTM(4, 5, proj_size=2),
            {"weight_ih_l0": (4, 5, 4), "weight_hh_l0": (4, 5, 2), "weight_hr_l0": (1, 2, 5)},
        ),
        (weight_norm(nn.Linear(5, 3)), {"parametrizations.weight.original1": (1, 3, 5)}),
        (weight_norm(nn.Conv2d(4, 6, 3, groups=2)), {"parametrizations.weight.original1": (2, 3, 18)}),
        (nn.Sequential(weight_norm(nn.Conv2d(4, 6, 3))), {"0.parametrizations.weight.original1": (1, 6, 36)}),
        (pixelsnail.Linear(5, 3), {"direction": (1, 3, 5)}),
        (nn.ModuleDict({"head": nn.Linear(4, 3), "headroom": nn.Linear(4, 3)}), {"headroom.weight": (1, 3, 4)}),
        (nn.Sequential(nn.ModuleDict({"heads": nn.ModuleList([nn.Linear(4, 3)])})), {}),
        (nn.Embedding(5, 3), {}),
        (nn.BatchNorm2d(4), {}),
        (nn.LayerNorm((4, 3)), {}),
        (nn.ParameterList([torch.randn(4, 3)]), {}),
    ],
)
def test_matrices_of_a_layer(layer, expected):
    assert taken(layer) == expected


LEFT_OUT = re.compile(r"(^|\.)(embeddings?|tables|earlier|positions|codes|rows|columns|grids|heads?|queries)\b")
LINEAR = "predictor.embedding.weight"  # of vectors: no table


def of_seam(raw: dict[str, Any], kind: str, name: str) -> nn.Module:
    if kind == "priors":
        return models.build(models.prior_recipe(Params(raw), SPACE, labelled(3), name))
    raw["quantizer" if kind == "quantizers" else "tokenizer"]["name"] = name
    return models.build(models.tokenizer_recipe(Params(raw), (3, 8, 8)))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("priors", n) for n in ("gated_pixelcnn", "masked", "pixelcnn", "pixelsnail", "rnn", "transformer")),
        *(("tokenizers", n) for n in ("prologue", "vae", "vqvae", "vqvae2")),
        *(("quantizers", n) for n in ("ema", "gradient", "residual", "simvq", "fsq")),
    ],
)
def test_tables_and_heads_stay_out_and_every_other_matrix_takes_part(raw, kind, name):
    if name == "vae":
        raw["quantizer"]["name"] = "kmeans"
    elif kind != "priors":
        raw["tokenizer"]["name"] = "vqvae"
        raw["quantizer"]["name"] = "ema"
    model = of_seam(raw, kind, name)
    found = taken(model)
    wide = {n for n, p in model.named_parameters() if p.dim() > 1 and min(len(p), p[0].numel()) > 1}
    assert {n for n in wide if n == LINEAR or not LEFT_OUT.search(n)} == set(found)
    assert len(found) > 2


# updates


class Reference:
    """Muon's update of one matrix, in NumPy."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.momentum = weight, np.zeros_like(weight)

    def update(self, gradient: np.ndarray, lr: float, decay: float) -> None:
        self.momentum = 0.95 * self.momentum + 0.05 * gradient
        new = polar_express(0.05 * gradient + 0.95 * self.momentum)
        self.weight = self.weight * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(new.shape)) * new


def channels_last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)


def split(layer: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    return list(x.reshape(getattr(layer, "groups", 1), -1, math.prod(x.shape[1:])))


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (lambda: nn.Linear(5, 3), "weight", (4, 5)),
        (lambda: nn.Linear(3, 7), "weight", (4, 3)),
        (lambda: nn.Conv2d(4, 6, 3), "weight", (2, 4, 5, 5)),
        (lambda: channels_last(nn.Conv2d(4, 6, 3)), "weight", (2, 4, 5, 5)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight", (2, 4, 5, 5)),
        (lambda: channels_last(Doubling(4, 6)), "weight", (2, 4, 5, 5)),
        (lambda: weight_norm(nn.Conv2d(4, 6, 3)), "parametrizations.weight.original1", (2, 4, 5, 5)),
        (lambda: pixelsnail.Linear(5, 3), "direction", (4, 5)),
    ],
)
def test_updates_by_numpy(make, name, shape):
    """Four steps: the matrix by Muon, and the other parameters of its layer by AdamW."""
    torch.manual_seed(0)
    layer = make().double()
    others = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters() if n != name}
    matrix = layer.get_parameter(name)
    assert list(taken(layer)) == [name]
    references = [Reference(part) for part in split(layer, matrix.detach().numpy().copy())]
    ours, adamw = Muon(layer, LR, DECAY), torch.optim.AdamW(others.values(), LR, weight_decay=DECAY)
    before = matrix.detach().clone()
    for step in range(4):
        x = random(*shape, seed=step)
        layer.zero_grad()
        layer(x).sin().square().mean().backward()
        for reference, gradient in zip(references, split(layer, matrix.grad.numpy()), strict=True):
            reference.update(gradient, LR, DECAY)
        for other, value in others.items():
            value.grad = layer.get_parameter(other).grad.clone()
        ours.step()
        adamw.step()
    expected = np.concatenate([reference.weight for reference in references]).reshape(matrix.shape)
    np.testing.assert_allclose(matrix.detach().numpy(), expected, rtol=0, atol=1e-10)
    assert (matrix - before).abs().max() > 1e-3
    for other, value in others.items():
        torch.testing.assert_close(layer.get_parameter(other), value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [24, 150])
def test_updates_are_those_of_torch_by_its_polynomials(monkeypatch, rows):
    """torch's are in bfloat16, and so are ours of the greater matrix where the CPU is fast at it."""
    monkeypatch.setattr(muon, "COEFFICIENTS", ((3.4445, -4.7750, 2.0315),) * 5)
    monkeypatch.setattr(muon, "MARGIN", 1.0)
    layer = nn.Linear(200, rows, bias=False)
    theirs, before = (layer.weight.detach().clone().requires_grad_() for _ in range(2))
    optimizers = [
        Muon(layer, LR, DECAY),
        torch.optim.Muon([theirs], LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(3):
        layer.weight.grad = random(rows, 200, seed=step).float()
        theirs.grad = layer.weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (layer.weight - theirs).norm() < 0.04 * (theirs - before).norm()


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (200, 50)])
def test_an_update_has_the_size_of_adamws(shape):
    """arXiv 2502.16982, sec. 2.2: 0.2 to 0.4 learning rates, root mean square, whatever the shape."""
    layer = nn.Linear(*shape, bias=False)
    layer.weight.data.zero_()
    layer.weight.grad = random(*shape[::-1]).float()
    Muon(layer, LR, 0.0).step()
    assert 0.15 < layer.weight.square().mean().sqrt() / LR < 0.25


def test_what_is_frozen_or_not_used_stays():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Muon(model, LR, DECAY)
    model[0](random(5, 4).float()).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"0.weight", "0.bias"}


@pytest.mark.parametrize("model", [nn.Linear(3, 2, bias=False), nn.LayerNorm(3)])
def test_models_of_matrices_alone_or_of_none(model):
    before = next(model.parameters()).detach().clone()
    optimizer = Muon(model, LR, DECAY)
    model(random(5, 3).float()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(next(model.parameters()), before)


def test_a_weight_in_an_order_that_has_no_view_is_refused():
    """Its update would move a copy."""
    layer = nn.Conv2d(4, 6, 3)
    layer.weight = nn.Parameter(torch.randn(4, 6, 3, 3).transpose(0, 1))
    with pytest.raises(ValueError, match=r"weight.*\[6, 4, 3, 3\].*contiguous or channels_last"):
        Muon(layer, LR, 0.0)


@pytest.mark.parametrize("name", ["pixelcnn", "gated_pixelcnn", "pixelsnail"])
def test_priors_stay_causal(raw, name):
    """Where a mask hides a weight, the weight may move, but has no effect."""
    torch.manual_seed(0)
    prior = of_seam(raw, "priors", name)
    optimizer = Muon(prior, 0.05, 0.0)
    codes, labels = torch.randint(5, (4, 20)), torch.zeros(4, 1, dtype=torch.long)
    for _ in range(3):
        optimizer.zero_grad()
        sum(prior.losses(codes, labels, 0.0).values()).backward()
        optimizer.step()
    prior.eval()
    changed = codes.clone()
    changed[:, -1] = 4 - changed[:, -1]
    with torch.no_grad():
        before, after = (prior.predict(c, labels, 0.0)[-1] for c in (codes, changed))
    torch.testing.assert_close(before, after, rtol=0, atol=0 if name != "pixelsnail" else 1e-6)


# whole trainings


class Student(nn.Module):
    """Learns a random linear map by least squares, through a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.net.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"error": (self.net(x) - x @ TEACHER).square().mean()}


TEACHER, X = random(8, 4).float(), random(64, 8, seed=2).float()


def task(student: nn.Module) -> Task:
    def evaluate(objective: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> dict[str, float]:
        return {"val": objective(X)["error"].item()}

    return Task("prior", student, len(X), lambda i, generator, done: (X[i],), evaluate, lambda row: row["epoch"])


def test_warm_up_averaging_and_clipping_make_a_short_training_no_worse(runtime):
    """Of 120 steps, against the same without: by no more than a hundredth of the loss before training."""

    def last(**values: Any) -> float:
        given = {"optimizer": "muon", "batch_size": 8, "epochs": 15, "lr": 0.05, "schedule": "linear"}
        return fit(task(Student()), training(**given | values), 0, runtime).history[-1]["val"]

    untrained, plain = Student()(X)["error"].item(), last()
    assert plain < 0.05 * untrained
    for change in ({"warmup_steps": 12}, {"weight_ema": 0.9}, {"clip_norm": 1.0}, {"schedule": "cosine"}):
        assert last(**change) < plain + 0.01 * untrained, change


def test_gradients_are_clipped_before_they_enter_the_momentum(runtime):
    """Through `fit`, by NumPy: a warm-up of 3 steps, decay, and clipping that binds."""
    student = nn.Linear(8, 4, bias=False).double()
    student.weight.data.zero_()
    batches: list[torch.Tensor] = []

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if self.training:
                batches.append(x)
            return {"error": (self.student(x.double()) - x.double() @ TEACHER.double()).square().mean()}

    given = training(optimizer="muon", batch_size=8, epochs=4, lr=0.1, clip_norm=3.0, weight_decay=0.3, warmup_steps=3)
    fit(task(Objective()), given, 0, runtime)
    reference, teacher = Reference(np.zeros((4, 8))), TEACHER.double().numpy()
    clipped = 0
    for step, batch in enumerate(batch.double().numpy() for batch in batches):
        error = batch @ reference.weight.T - batch @ teacher
        gradient = 2 * error.T @ batch / error.size
        scale = min(1.0, 3.0 / np.linalg.norm(gradient))
        clipped += scale < 1
        reference.update(scale * gradient, 0.1 * min(1, (step + 1) / 3), 0.3)
    assert 0 < clipped < len(batches) == 32
    np.testing.assert_allclose(student.weight.detach().numpy(), reference.weight, atol=1e-5)
