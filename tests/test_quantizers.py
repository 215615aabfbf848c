"""What every quantizer promises, and the mathematics of each."""

from __future__ import annotations

import copy
import itertools
import os
import sys
from typing import Any
from unittest.mock import patch

import forked
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.codebooks import codebook
from tessera.core import seams
from tessera.core.errors import InputError, NonFiniteError
from tessera.quantizers import ema, gradient, residual, simvq

# the contract


def latents(dim: int, b: int = 6, h: int = 3, w: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(b, dim, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=seams.names("quantizers"))
def quantizer(request, tiny) -> nn.Module:
    """Each file of the seam, after a few steps of training, or fitted."""
    module = seams.plugin("quantizers", request.param)
    built = module.build(tiny(module.Config), None)
    if hasattr(built, "fit"):
        rows = torch.randn(120, built.dim, generator=torch.Generator().manual_seed(2))
        built.fit(rows, torch.Generator().manual_seed(0))
    for step in range(3):
        built.train()(latents(built.dim, seed=step + 2))
    return built


@pytest.mark.parametrize("name", seams.names("quantizers"))
def test_dim_is_what_the_tokenizer_asks_for_or_fixed_by_the_codebook(name, tiny):
    module = seams.plugin("quantizers", name)
    own = module.build(tiny(module.Config), None)
    try:
        asked = module.build(tiny(module.Config), own.dim + 1)
    except InputError:  # fixed
        assert module.build(tiny(module.Config), own.dim).dim == own.dim
        return
    assert asked.dim == own.dim + 1
    assert asked.codebooks[0].shape == (asked.codebook_sizes[0], own.dim + 1)


@pytest.mark.parametrize("name", seams.names("quantizers"))
def test_can_be_asked_without_memory(name, tiny):
    """`Params.post_hoc` builds the chosen quantizer to see whether it is fitted afterwards."""
    module = seams.plugin("quantizers", name)
    with torch.device("meta"):
        asked = module.build(tiny(module.Config), None)
    assert hasattr(asked, "fit") == hasattr(module.build(tiny(module.Config), None), "fit")


def test_which_are_fixed_and_which_are_fitted_afterwards(tiny):
    """Of those that come with tessera; others say it themselves."""
    for name in ("fsq", "lfq"):
        module = seams.plugin("quantizers", name)
        with pytest.raises(InputError, match=name):
            module.build(tiny(module.Config), module.build(tiny(module.Config), None).dim + 1)
    built = {name: seams.plugin("quantizers", name) for name in ("ema", "gradient", "kmeans", "geodesic")}
    fitted = [name for name, module in built.items() if hasattr(module.build(tiny(module.Config), None), "fit")]
    assert fitted == ["kmeans", "geodesic"]


@pytest.mark.parametrize("training", [True, False])
def test_shapes_and_types(quantizer, training):
    z = latents(quantizer.dim)
    out = quantizer.train(training)(z)
    assert out.z_q.shape == z.shape
    assert out.z_q.dtype == torch.float32
    assert out.codes.shape == (6, len(quantizer.codebook_sizes), 3, 2)
    assert out.codes.dtype == torch.int64
    for depth, size in enumerate(quantizer.codebook_sizes):
        assert 0 <= out.codes[:, depth].min() <= out.codes[:, depth].max() < size
    assert all(loss.shape == () and torch.isfinite(loss) for loss in out.losses.values())
    assert [book.shape for book in quantizer.codebooks] == [(size, quantizer.dim) for size in quantizer.codebook_sizes]


def test_codes_decode_to_the_very_vectors_of_the_forward_pass(quantizer):
    out = quantizer.eval()(latents(quantizer.dim))
    decoded = quantizer.decode(out.codes)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, out.z_q)


def test_every_code_can_be_decoded(quantizer):
    sizes = quantizer.codebook_sizes
    codes = torch.stack([torch.arange(max(sizes)) % size for size in sizes]).view(1, len(sizes), 1, -1)
    assert torch.isfinite(quantizer.eval().decode(codes)).all()


def test_quantizing_what_is_quantized_changes_nothing(quantizer):
    if len(quantizer.codebook_sizes) > 1 or type(quantizer).__name__ == "FSQ":
        pytest.skip("the nearest first code to a sum is another; FSQ bounds what is bounded already")
    first = quantizer.eval()(latents(quantizer.dim))
    again = quantizer(first.z_q)
    assert torch.equal(again.codes, first.codes)
    assert torch.equal(again.z_q, first.z_q)


def test_evaluation_is_deterministic_and_moves_nothing(quantizer):
    quantizer.eval()
    before = copy.deepcopy(quantizer.state_dict())
    first, second = quantizer(latents(quantizer.dim)), quantizer(latents(quantizer.dim))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.z_q, second.z_q)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_one_image_does_not_depend_on_its_batch(quantizer):
    z = latents(quantizer.dim)
    whole = quantizer.eval()(z)
    for i in range(len(z)):
        assert torch.equal(quantizer(z[i : i + 1]).codes, whole.codes[i : i + 1])
        assert torch.equal(quantizer(z[i : i + 1]).z_q, whole.z_q[i : i + 1])


def test_gradient_reaches_the_latents(quantizer):
    z = latents(quantizer.dim).requires_grad_()
    quantizer.train()(z).z_q.sum().backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad != 0).any(dim=1).all()


@pytest.mark.parametrize("training", [True, False])
def test_computes_in_float32_under_autocast(quantizer, training):
    """Half precision would choose other codes, and would move the statistics by nothing at all."""
    quantizer.train(training)
    other, z = copy.deepcopy(quantizer), latents(quantizer.dim, b=200)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = other(z)
    assert mixed.z_q.dtype == torch.float32
    assert torch.equal(mixed.codes, plain.codes)
    assert torch.equal(mixed.z_q, plain.z_q)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in quantizer.state_dict().items())


def test_latents_of_half_precision_are_taken_as_they_are(quantizer):
    half = latents(quantizer.dim).bfloat16()
    quantizer.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(half)
    assert torch.equal(out.codes, quantizer(half.float()).codes)
    assert out.z_q.dtype == torch.float32


def test_state_is_all_there_is(quantizer, tiny):
    module = sys.modules[type(quantizer).__module__]
    torch.manual_seed(77)
    again = module.build(tiny(module.Config), None)
    again.load_state_dict(quantizer.state_dict())
    for training in (False, True):
        torch.manual_seed(0)
        first = quantizer.train(training)(latents(quantizer.dim))
        torch.manual_seed(0)
        second = again.train(training)(latents(quantizer.dim))
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.z_q, second.z_q)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in quantizer.state_dict().items())


# building blocks


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([1, 7, 64]))
def test_nearest_code_by_brute_force(n, k, d, seed, at_once):
    """However many latents are searched at once."""
    draws = np.random.default_rng(seed)
    z, codes = draws.normal(size=(n, d)).astype(np.float32), draws.normal(size=(k, d)).astype(np.float32)
    with patch.multiple(codebook, FEWEST=at_once, CACHED=1):
        found = codebook.nearest(torch.from_numpy(z), torch.from_numpy(codes)).numpy()
    distances = ((z[:, None].astype(np.float64) - codes) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(n), found], distances.min(1), atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 8, 40, 41])
@pytest.mark.parametrize("k", [1, 5, 64])
def test_of_equal_codes_the_lowest_index(n, k):
    """Scores of small whole numbers, many of them equal, in as many columns as threads share or not; and infinite ones."""
    draws = np.random.default_rng(n * k)
    scores = draws.integers(0, 3, size=(k, n)).astype(np.float32)
    scores[:, 0] = -np.inf
    found = codebook._first_maximum(torch.from_numpy(scores))
    assert found.tolist() == scores.argmax(0).tolist()


FAR = [  # offset of all latents, or of each channel in turn; their spread; their type; K; D; share of dead codes, at the origin
    ([100.0], 0.01, torch.float32, 256, 64, 0.0),
    ([-1000.0], 0.1, torch.float32, 64, 16, 0.0),
    ([0.0, 300.0, -7.0], 0.01, torch.float32, 512, 9, 0.0),
    ([1e4], 1.0, torch.float32, 1000, 32, 0.0),
    ([100.0], 1.0, torch.bfloat16, 128, 8, 0.0),
    ([100.0], 0.2, torch.float16, 128, 8, 0.0),
    ([100.0], 0.01, torch.float32, 256, 64, 0.4),
    ([0.0], 1.0, torch.float32, 256, 64, 0.0),
    ([1e5], 1.0, torch.float32, 1, 3, 0.0),
    ([1e-6], 1e-9, torch.float32, 64, 16, 0.0),
]


def far_away(offset, spread, dtype, k, d, dead, n=512) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of one image [1,D,1,n] and a codebook [K,D]."""
    draws = torch.Generator().manual_seed(0)
    place = torch.tensor(offset).repeat(-(-d // len(offset)))[:d]
    codes = place + spread * torch.randn(k, d, generator=draws)
    codes[torch.rand(k, generator=draws) < dead] *= 1e-3
    z = (place + spread * torch.randn(n, d, generator=draws)).to(dtype)
    return z.t()[None, :, None], codes


def assert_nearest(chosen: torch.Tensor, z: torch.Tensor, codes: torch.Tensor) -> None:
    """As near as in float64: where another code is chosen, it is as near but for rounding."""
    rows = z[0, :, 0].t().double().numpy()
    squares = ((rows[:, None] - codes.double().numpy()) ** 2).sum(-1)
    found = squares[np.arange(len(rows)), chosen.flatten().numpy()]
    np.testing.assert_allclose(found, squares.min(1), rtol=1e-5)


@pytest.mark.parametrize(("offset", "spread", "dtype", "k", "d", "dead"), FAR)
def test_far_from_the_origin_the_nearest_code_is_that_of_float64(offset, spread, dtype, k, d, dead):
    """z.e - |e|^2 / 2 of latents at 100 rounds in float32 by more than codes are apart: nearly every choice was another."""
    z, codes = far_away(offset, spread, dtype, k, d, dead)
    assert_nearest(codebook.nearest(codebook.to_rows(z), codes), z, codes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", ["ema", "gradient", "simvq", "residual", "kmeans"])
def test_far_from_the_origin_every_quantizer_finds_the_nearest_code(name, autocast, training, tiny):
    module = seams.plugin("quantizers", name)
    fields = {"codebook_size": 64, "code_dim": 16, "initialisation": "normal", "depth": 1, "distance": "euclidean"}
    config = tiny(module.Config, **{key: value for key, value in fields.items() if key in module.Config.model_fields})
    quantizer = module.build(config, None).train(training)
    z, codes = far_away([100.0, -30.0], 0.01, torch.float32, 64, 16, 0.0)
    with torch.no_grad():
        if name == "simvq":
            quantizer.coefficients.copy_(codes)
            quantizer.map.weight.copy_(torch.eye(16))
        else:
            (quantizer.depths[0] if name == "residual" else quantizer).codes.copy_(codes)
        if name == "kmeans":
            quantizer.fitted.fill_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert_nearest(quantizer(z).codes, z, codes)


@pytest.mark.parametrize(
    ("z", "codes", "first"),
    [
        ([0.0], [[-1.0], [1.0], [9.0]], 0),
        ([101.0], [[102.0], [100.0], [110.0]], 0),
        ([1e6], [[1e6 + 8], [1e6 + 2], [1e6 - 2], [3e6]], 1),
        ([0.5, 7.0], [[9.0, 9.0], [0.0, 7.0], [1.0, 7.0], [0.5, 7.5]], 1),
        ([-300.25, 4.0], [[-300.0, 4.0], [-300.5, 4.0]], 0),
        ([5.0], [[5.0], [5.0], [5.0]], 0),
    ],
)
def test_of_codes_at_equal_distance_the_first(z, codes, first):
    """Beside other latents too."""
    others, book = torch.tensor(codes).repeat(40, 1) + 3, torch.tensor(codes)
    for rows in (torch.tensor([z, z, z]), torch.cat([torch.tensor([z, z, z]), others])):
        assert codebook.nearest(rows, book)[:3].tolist() == [first] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_latents_that_are_not_numbers_leave_those_of_other_images_alone(value):
    z, codes = far_away([100.0], 0.01, torch.float32, 256, 64, 0.0)
    rows = codebook.to_rows(z)
    broken = rows.clone()
    broken[::3] = value
    whole = torch.arange(len(rows)) % 3 > 0
    assert torch.equal(codebook.nearest(broken, codes)[whole], codebook.nearest(rows, codes)[whole])


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
def test_a_gpu_which_is_asked_nothing_finds_the_same_codes(offset, monkeypatch):
    z, codes = offset + latents(64).permute(0, 2, 3, 1).flatten(0, 2), offset + torch.randn(9, 64)
    found = codebook.nearest(z, codes)
    monkeypatch.setattr(codebook, "readable", lambda tensor: False)
    assert torch.equal(codebook.nearest(z, codes), found)


def test_of_equal_code_vectors_the_nearest_is_the_first():
    z, codes = torch.randint(-9, 9, (300, 4)).float(), torch.randint(-9, 9, (7, 4)).float()  # sums of these are exact
    assert torch.equal(codebook.nearest(z, codes.repeat(3, 1)), codebook.nearest(z, codes))


def test_latents_that_are_not_numbers_get_codes_that_exist():
    found = codebook.nearest(torch.tensor([[np.nan, 0], [np.inf, 1], [1, 1]], dtype=torch.float32), torch.randn(5, 2))
    assert 0 <= found.min() <= found.max() < 5


def test_straight_through_is_z_q_forward_and_the_identity_backward():
    z, z_q = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    out = codebook.straight_through(z, z_q)
    assert torch.equal(out, z_q)
    weights = torch.randn(5, 3)
    (out * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    assert z_q.grad is None


def test_statistics_by_counting():
    z, codes = torch.randn(50, 3), torch.randint(0, 6, (50,))
    counts, sums = codebook.statistics(z, codes, 7)
    for k in range(7):
        assert counts[k] == (codes == k).sum()
        torch.testing.assert_close(sums[k], z[codes == k].sum(0))


def test_code_vectors_from_statistics_by_hand():
    """(N + e) / (sum N + K e) sum N, with e = 0.5: counts 0, 2 and 6 become 0.42, 2.11 and 5.47."""
    sums = torch.tensor([[0.3], [2.0], [12.0]])
    found = codebook.ema_codes(torch.tensor([0.0, 2.0, 6.0]), sums, epsilon=0.5)
    torch.testing.assert_close(found, sums / (torch.tensor([[0.5], [2.5], [6.5]]) / 9.5 * 8))


def test_a_code_that_nobody_chooses_stays_finite():
    assert torch.isfinite(codebook.ema_codes(torch.tensor([0.0, 5.0]), torch.zeros(2, 3), 1e-5)).all()


def test_kmeans_by_lloyds_algorithm():
    """An emptied cluster keeps its centre: here one starts far from every point."""
    draws = np.random.default_rng(0)
    z, centres = draws.normal(size=(60, 2)), np.vstack([draws.normal(size=(4, 2)), [[50.0, 50.0]]])
    found = codebook.kmeans(torch.tensor(z, dtype=torch.float32), torch.tensor(centres, dtype=torch.float32), 10)
    for _ in range(10):
        chosen = ((z[:, None] - centres) ** 2).sum(-1).argmin(1)
        centres = np.array([z[chosen == k].mean(0) if (chosen == k).any() else centres[k] for k in range(5)])
    np.testing.assert_allclose(found.numpy(), centres, atol=1e-4)
    assert found[4].tolist() == [50, 50]


def test_initial_codes_from_latents_are_distinct_rows_of_them():
    z = torch.randn(30, 4)
    codes = codebook.initial_codes(z, 10, "latents")
    rows = [int((z == code).all(1).nonzero()) for code in codes]
    assert len(set(rows)) == 10


@pytest.mark.parametrize("how", ["latents", "kmeans"])
@pytest.mark.parametrize(
    "z", [torch.randn(1, 4), torch.randn(3, 4), torch.randn(1, 1), torch.ones(3, 2), torch.zeros(1, 1)]
)
def test_fewer_latents_than_codes_give_codes_that_differ(how, z):
    """Copies of one latent would never part again."""
    codes = codebook.initial_codes(z, 8, how)
    assert codes.shape == (8, z.shape[1])
    assert torch.isfinite(codes).all()
    if how == "latents":
        assert len(codes.unique(dim=0)) == 8


def crowded(n: int, d: int, share: float, offset: float, spread: float) -> torch.Tensor:
    """Latents of which a share are equal, mixed among the others."""
    draws = torch.Generator().manual_seed(0)
    z = offset + spread * torch.randn(n, d, generator=draws)
    z[torch.randperm(n, generator=draws)[: round(share * n)]] = offset
    return z


CROWDED = [  # latents, D, share of equal ones, offset, spread, K
    (1024, 8, 0.6, 0.7, 1.0, 256),
    (1024, 8, 0.75, 0.0, 1.0, 256),
    (4096, 3, 0.99, 5.0, 1.0, 64),
    (300, 4, 0.9, 100.0, 0.01, 64),
    (300, 4, 1.0, 100.0, 0.0, 64),
    (40, 1, 0.5, 1e4, 1e-2, 128),
    (64, 2, 0.0, 0.0, 1e-30, 64),
    (50, 1, 1.0, 0.0, 0.0, 512),
]


@pytest.mark.parametrize("how", ["latents", "kmeans"])
@pytest.mark.parametrize(("n", "d", "share", "offset", "spread", "k"), CROWDED)
def test_first_codes_differ_however_many_latents_are_equal(n, d, share, offset, spread, k, how):
    """60 % of the latents equal once left 110 of 256 codes that differ."""
    z = crowded(n, d, share, offset, spread)
    torch.manual_seed(0)
    codes = codebook.initial_codes(z, k, how)
    assert codes.shape == (k, d)
    assert len(codes.unique(dim=0)) == k
    if how == "latents":
        differing = min(k, len(z.unique(dim=0)))
        on_latents = (codes[:, None] == z[None]).all(2).any(1)
        assert on_latents.sum() == differing
        assert on_latents[:differing].all()
    torch.manual_seed(0)
    assert torch.equal(codebook.initial_codes(z, k, how), codes)


def test_zero_has_one_sign():
    z = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert codebook.repeats(z).tolist() == [False, True, False, True]


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_repeats_by_comparing_rows(n, d, seed, dtype):
    rows = torch.randint(-1, 2, (n, d), generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = [any(torch.equal(rows[i], rows[j]) for j in range(i)) for i in range(n)]
    assert codebook.repeats(rows).tolist() == expected


def test_latents_beyond_float32_end_the_search_for_codes_that_differ():
    """No endless loop; the loss will tell."""
    assert codebook.parted(torch.full((3, 2), torch.inf)).shape == (3, 2)


@pytest.mark.parametrize(
    ("n", "d", "share", "offset", "spread", "k"), [row for row in CROWDED if row[0] > 64 and row[2] < 1]
)
@pytest.mark.parametrize(("name", "distance"), [("ema", "euclidean"), ("ema", "cosine"), ("gradient", "cosine"),
                                                ("gradient", "euclidean"), ("residual", None)])  # fmt: skip
@pytest.mark.parametrize("restart", ["dead", "error"])
def test_restarts_on_equal_latents_give_no_code_twice(n, d, share, offset, spread, k, name, distance, restart, tiny):
    """Every code but one starts far away, and dies: those that are put on latents get one each."""
    module = seams.plugin("quantizers", name)
    fields = {"codebook_size": k, "code_dim": d, "initialisation": "normal", "depth": 1, "distance": distance,
              "restart": restart, "restart_below": 0.1, "decay": 0.5, "smoothing": 0.0}  # fmt: skip
    config = tiny(module.Config, **{key: value for key, value in fields.items() if key in module.Config.model_fields})
    quantizer = module.build(config, None).train()
    z = crowded(n, d, share, offset, spread).t()[None, :, None]
    for _ in range(25):
        quantizer(z)
    (book,) = quantizer.codebooks
    assert len(book.unique(dim=0)) == k


def test_initial_codes_by_kmeans_lie_nearer_than_latents_and_those_nearer_than_random_ones():
    z = torch.randn(200, 4)

    def error(codes: torch.Tensor) -> float:
        return float((z - codes[codebook.nearest(z, codes)]).square().sum(1).mean())

    found = {}
    for how in ("latents", "kmeans"):
        torch.manual_seed(3)
        found[how] = error(codebook.initial_codes(z, 16, how))
    assert found["kmeans"] < 0.95 * found["latents"]
    assert found["latents"] < error(codebook.random_codes(16, 4, "normal"))


def test_dead_codes_are_those_below_a_share_of_the_mean_use():
    assert codebook.dead(torch.tensor([10.0, 1.0, 0.9, 0.0, 8.1]), 0.25).tolist() == [False, False, True, True, False]
    assert not codebook.dead(torch.tensor([1.0, 0.0]), 0.0).any()


# ema


def built(tiny: Any, **values: Any) -> ema.EMA:
    plain = {"initialisation": "normal", "restart": "none", "estimator": "straight_through"}
    return ema.build(tiny(ema.Config, **plain | values), None)


def test_ema_by_numpy(tiny):
    """Van den Oord et al. 2017, eq. 6-8, with Laplace smoothing of the counts."""
    quantizer, decay, epsilon = built(tiny, decay=0.7, codebook_size=5, code_dim=3), 0.7, 1e-5
    codes = quantizer.codes.numpy().astype(np.float64)
    counts, sums = np.ones(5), codes.copy()
    for step in range(6):
        z = latents(3, seed=step)
        quantizer.train()(z)
        rows = z.permute(0, 2, 3, 1).reshape(-1, 3).numpy().astype(np.float64)
        chosen = ((rows[:, None] - codes) ** 2).sum(-1).argmin(1)
        onehot = np.eye(5)[chosen]
        counts = decay * counts + (1 - decay) * onehot.sum(0)
        sums = decay * sums + (1 - decay) * onehot.T @ rows
        total = counts.sum()
        codes = sums / ((counts + epsilon) / (total + 5 * epsilon) * total)[:, None]
        np.testing.assert_allclose(quantizer.codes.numpy(), codes, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(quantizer.counts.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(quantizer.sums.numpy(), sums, rtol=1e-4, atol=1e-5)


def test_batch_is_quantized_with_the_codebook_as_it_stood(tiny):
    quantizer = built(tiny, decay=0.0)
    before, z = quantizer.codes.clone(), latents(4)
    out = quantizer.train()(z)
    assert not torch.equal(quantizer.codes, before)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.equal(out.codes.flatten(), torch.cdist(rows, before).argmin(1))
    assert torch.equal(out.z_q.permute(0, 2, 3, 1).reshape(-1, 4), before[out.codes.flatten()])


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_commitment_in_closed_form(tiny, beta):
    """beta mean (z - e)^2, whose gradient is 2 beta (z - e) / n; the codebook gets none."""
    quantizer = built(tiny, beta=beta).eval()
    z = latents(4).requires_grad_()
    out = quantizer(z)
    out.losses["commitment"].backward()
    torch.testing.assert_close(z.grad, 2 * beta * (z.detach() - out.z_q.detach()) / z.numel())
    torch.testing.assert_close(out.losses["commitment"].detach(), beta * (z - out.z_q).square().mean().detach())
    assert not list(quantizer.parameters())


def far_code(tiny: Any, restart: str, **values: float) -> tuple[ema.EMA, torch.Tensor]:
    """Three codes among the latents, and one at 100 that none of them chooses."""
    given = {"restart": restart, "restart_below": 0.2, "decay": 0.5, "codebook_size": 4, "code_dim": 2, **values}
    quantizer = built(tiny, **given)
    quantizer.codes[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [100.0, 100.0]])
    quantizer.sums.copy_(quantizer.codes)
    return quantizer.train(), latents(2, b=10)


@pytest.mark.parametrize("restart", ["dead", "error"])
def test_dead_code_is_restarted_and_survives_the_next_step(restart, tiny):
    """With its old statistics it would be back at its old place one step later."""
    quantizer, z = far_code(tiny, restart)
    for _ in range(20):
        quantizer(z)
        if quantizer.codes.abs().max() < 50:
            break
    rows = z.permute(0, 2, 3, 1).reshape(-1, 2)
    restarted = quantizer.codes[3].clone()
    assert (rows == restarted).all(1).any()  # on a latent of the batch
    assert quantizer.counts[3] == pytest.approx(quantizer.counts[:3].mean().item(), rel=0.35)
    torch.testing.assert_close(quantizer.sums[3], restarted * quantizer.counts[3])
    for _ in range(3):
        out = quantizer(z)
        assert quantizer.codes.abs().max() < 5
    assert (out.codes == 3).any()
    assert not codebook.dead(quantizer.counts, 0.2).any()


def test_rows_are_chosen_in_proportion_to_their_weights():
    fractions, weights = torch.arange(1000) / 1000, torch.tensor([0.0, 1.0, 0.0, 3.0, 6.0, 0.0])
    assert codebook.by_weight(fractions, weights).bincount(minlength=6).tolist() == [0, 100, 0, 300, 600, 0]
    assert codebook.by_weight(fractions, torch.zeros(6)).tolist() == [0] * 1000
    assert codebook.by_weight(torch.tensor([1 - 2.0**-24]), 1e30 * weights).tolist() == [4]


@pytest.mark.parametrize(("restart", "found"), [("dead", 0), ("error", 20)])
def test_a_restart_by_error_finds_the_one_latent_that_is_far_from_all_codes(restart, found, tiny):
    """Of 400 latents 399 are where a code is; one that is chosen evenly is nearly always among them, and nothing moves."""
    times = 0
    for seed in range(20):
        torch.manual_seed(seed)
        quantizer, _ = far_code(tiny, restart, smoothing=0.0)
        quantizer.counts.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
        rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).repeat(133, 1)
        quantizer(torch.cat([rows, torch.tensor([[0.0, -9.0]])]).t()[None, :, None])
        times += quantizer.codes[3].tolist() == [0.0, -9.0]
    assert abs(times - found) <= 1


def test_without_restart_a_dead_code_stays(tiny):
    quantizer, z = far_code(tiny, "none")
    for _ in range(8):
        quantizer(z)
    assert quantizer.codes[3].min() > 95
    assert codebook.dead(quantizer.counts, 0.2).tolist() == [False, False, False, True]


@pytest.mark.parametrize(("smoothing", "steps"), [(0.0, 2000), (1e-5, 30)])
def test_without_restart_and_smoothing_a_dead_code_stays_for_ever(tiny, smoothing, steps):
    """By eq. 8 its count and its sum shrink alike, until both underflow; smoothing lets it slide to the origin, once its
    count is under epsilon, and latents take it up again."""
    quantizer, z = far_code(tiny, "none", smoothing=smoothing, decay=0.7)
    for _ in range(steps):
        quantizer(z)
    assert quantizer.codes.isfinite().all()
    assert quantizer.counts[3] < 1e-3
    if smoothing:
        assert 5 < quantizer.codes[3].max() < 95
        for _ in range(30):
            quantizer(z)
        assert quantizer.counts[3] > 0.1
    else:
        assert quantizer.codes[3].min() > 95


@pytest.mark.parametrize("how", ["latents", "kmeans"])
def test_first_codes_come_from_the_first_training_batch(tiny, how):
    """Not from a batch that is only evaluated, and once."""
    quantizer = built(tiny, initialisation=how, decay=0.999)
    random, z = quantizer.codes.clone(), latents(4, b=40) + 30
    quantizer.eval()(z)
    assert torch.equal(quantizer.codes, random)
    quantizer.train()(z)
    assert (quantizer.codes - 30).abs().max() < 6
    assert quantizer.counts.sum() == pytest.approx(40 * 6, rel=1e-3)
    quantizer(-z)
    assert (quantizer.codes - 30).abs().max() < 6


@pytest.mark.parametrize("how", ["normal", "uniform"])
def test_random_codes_do_not_wait_for_a_batch(tiny, how):
    quantizer = built(tiny, initialisation=how, decay=0.999, codebook_size=8)
    quantizer.train()(latents(4) + 30)
    assert quantizer.codes.norm(dim=1).median() < 5


@pytest.mark.parametrize("module", [ema, gradient])
def test_uniform_codes_fill_the_cube_of_side_two_over_k(tiny, module):
    config = tiny(module.Config, initialisation="uniform", codebook_size=50, code_dim=40, distance="euclidean")
    codes = module.build(config, None).codes
    assert codes.shape == (50, 40)
    assert 0.98 / 50 < codes.abs().max() <= 1 / 50
    assert codes.std().item() == pytest.approx(1 / 50 / 3**0.5, rel=0.05)
    assert codes.mean().abs() < 0.02 / 50


def test_initialisation_is_part_of_the_state(tiny):
    """A loaded codebook must not be thrown away at the next training step."""
    trained, loaded = built(tiny, initialisation="latents"), built(tiny, initialisation="latents")
    trained.train()(latents(4))
    loaded.load_state_dict(trained.state_dict())
    loaded.train()(latents(4, seed=9) + 50)
    assert (loaded.codes < 25).all(1).any()


@pytest.mark.parametrize("restart", ["none", "dead", "error"])
def test_latents_that_are_not_finite_leave_the_codebook_and_show_in_the_loss(tiny, restart):
    """`fit` stops at such a loss before anything is updated."""
    quantizer, z = built(tiny, restart=restart, restart_below=0.9).train(), latents(4)
    quantizer(z)
    before = copy.deepcopy(quantizer.state_dict())
    z[0, 0, 0, 0] = float("inf")
    assert not torch.isfinite(quantizer(z).losses["commitment"])
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_first_codes_are_not_taken_from_latents_that_are_not_finite(tiny):
    quantizer, z = built(tiny, initialisation="latents").train(), latents(4)
    z[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the latents z are not finite"):
        quantizer(z)
    assert not quantizer.initialised


@pytest.mark.parametrize("restart", ["dead", "error"])
def test_where_no_code_is_dead_a_step_draws_and_ends_as_one_that_looks_for_none(restart, tiny, monkeypatch):
    results = []
    for asked in (True, False):
        monkeypatch.setattr(codebook, "readable", lambda tensor, asked=asked: asked)
        torch.manual_seed(0)
        quantizer = built(tiny, restart=restart, restart_below=0.0).train()
        for step in range(3):
            quantizer(latents(4, seed=step))
        results.append([*quantizer.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_codebook_error_is_reported_and_not_trained_on(tiny):
    quantizer, z = built(tiny, beta=0.5).eval(), latents(4).requires_grad_()
    out = quantizer(z)
    assert set(out.losses) == {"commitment"}
    assert not out.reported["codebook_error"].requires_grad
    assert out.reported["codebook_error"] == pytest.approx(out.losses["commitment"].item() / 0.5)


def test_cosine_distance_by_brute_force(tiny):
    """The code of the largest cosine; z_q is a unit vector, and so stays every code while the codebook moves."""
    quantizer = built(tiny, distance="cosine", restart="dead", restart_below=0.5, codebook_size=6).train()
    for step in range(5):
        quantizer(3 * latents(4, seed=step))
    torch.testing.assert_close(quantizer.codes.norm(dim=1), torch.ones(6))
    z = latents(4)
    out = quantizer.eval()(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 1, 4)
    assert torch.equal(out.codes.flatten(), torch.cosine_similarity(rows, quantizer.codes, dim=2).argmax(1))
    assert torch.equal(quantizer(7 * z).codes, out.codes)
    torch.testing.assert_close(out.z_q.norm(dim=1), torch.ones(6, 3, 2))


class NeverAsks(TorchDispatchMode):
    """Fails where Python is told a value of a tensor, for which a device would have to finish all its work."""

    ASKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.ASKS, f"{name} waits for the device"
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("name", "restart"),
    [(name, "dead") for name in ("ema", "gradient", "residual", "simvq", "fsq", "lfq")] + [("ema", "error")],
)
def test_no_training_step_but_the_first_waits_for_the_device(name, restart, tiny, monkeypatch):
    """Restarts included: every code is dead here in every step."""
    monkeypatch.setattr(codebook, "readable", lambda tensor: False)  # as on a device
    module = seams.plugin("quantizers", name)
    fields = {"restart_below": 0.99, "restart": restart}
    config = tiny(module.Config, **{key: value for key, value in fields.items() if key in module.Config.model_fields})
    quantizer = module.build(config, None).train()
    quantizer(latents(quantizer.dim))
    quantizer(latents(quantizer.dim))
    with NeverAsks():
        out = quantizer(latents(quantizer.dim).requires_grad_())
        (out.z_q.sum() + sum(out.losses.values())).backward()
    with pytest.raises(AssertionError, match="waits for the device"), NeverAsks():
        bool(out.z_q.sum() > 0)


# the rotation estimator


def rotated(z: torch.Tensor, z_q: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = z.clone().requires_grad_()
    out = codebook.rotation(z, z_q)
    out.backward(g)
    return out.detach(), z.grad


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a, b, dim=1)


def test_rotation_is_the_code_vector_forward():
    z, z_q = torch.randn(2, 20, 5)
    assert torch.equal(rotated(z, z_q, torch.ones(20, 5))[0], z_q)


def test_rotation_scales_the_gradient_and_keeps_its_angle():
    """Fifty et al. 2024: the gradient at z has |z_q| / |z| times the norm of that at z_q, and makes with z the angle that
    the one at z_q makes with z_q."""
    z, z_q, g = torch.randn(3, 40, 5).double()
    _, found = rotated(z, z_q, g)
    torch.testing.assert_close(found.norm(dim=1), g.norm(dim=1) * z_q.norm(dim=1) / z.norm(dim=1))
    torch.testing.assert_close(angle(found, z), angle(g, z_q))


def test_rotation_by_the_matrix_of_the_paper():
    """lambda (I - 2 r r^T + 2 q u^T), transposed, for unit u of z, q of z_q, r of u + q, taken as constants."""
    z, z_q, g = torch.randn(3, 20, 6).double()
    _, found = rotated(z, z_q, g)
    for i in range(20):
        u, q = z[i] / z[i].norm(), z_q[i] / z_q[i].norm()
        r = (u + q) / (u + q).norm()
        turn = torch.eye(6).double() - 2 * torch.outer(r, r) + 2 * torch.outer(q, u)
        scale = z_q[i].norm() / z[i].norm()
        torch.testing.assert_close(turn @ z[i] * scale, z_q[i])
        torch.testing.assert_close(found[i], scale * turn.T @ g[i])


def test_rotation_is_defined_everywhere():
    """Where z vanishes, z_q vanishes, or both are opposite, the gradient is handed on as it is."""
    z = torch.tensor([[0.0, 0, 0], [1, 2, 3], [1, 2, 3], [1e-30, 0, 0]])
    z_q = torch.tensor([[1.0, 2, 3], [0, 0, 0], [-2, -4, -6], [1e-30, 0, 0]])
    g = torch.randn(4, 3)
    out, found = rotated(z, z_q, g)
    assert torch.equal(out, z_q)
    assert torch.equal(found, g)


def test_rotation_agrees_with_vector_quantize_pytorch():
    """The peer's own function on the same tensors, and a whole quantizer of it with our codebook."""
    from vector_quantize_pytorch import VectorQuantize
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    z, z_q, g = torch.randn(3, 50, 8)
    _, found = rotated(z, z_q, g)
    theirs = z.clone().requires_grad_()
    rotate_to(theirs, z_q).backward(g)
    torch.testing.assert_close(found, theirs.grad, rtol=1e-4, atol=1e-5)

    peer = VectorQuantize(dim=8, codebook_size=16, accept_image_fmap=True, rotation_trick=True).eval()
    config = ema.Config(
        beta=0.25, codebook_size=16, code_dim=8, estimator="rotation", distance="euclidean", decay=0.99, smoothing=1e-5,
        initialisation="normal", restart="none", restart_below=0.0,
    )  # fmt: skip
    ours = ema.build(config, None).eval()
    ours.codes.copy_(peer.codebook)
    latent = latents(8)
    peer_z_q, peer_codes, _ = peer(latent)
    out = ours(latent)
    assert torch.equal(out.codes[:, 0], peer_codes)
    torch.testing.assert_close(out.z_q, peer_z_q)


@pytest.mark.parametrize("name", ["ema", "gradient", "simvq", "residual"])
def test_estimators_differ_in_the_gradient_only(name, tiny):
    module, z, found = seams.plugin("quantizers", name), latents(4), {}
    for estimator in ("straight_through", "rotation"):
        torch.manual_seed(0)
        quantizer = module.build(tiny(module.Config, estimator=estimator, initialisation="normal")
                                 if name != "simvq" else tiny(module.Config, estimator=estimator), None)  # fmt: skip
        latent = z.clone().requires_grad_()
        out = quantizer.eval()(latent)
        (out.z_q * latents(4, seed=5)).sum().backward()
        found[estimator] = (out.z_q.detach(), latent.grad)
    assert torch.equal(found["rotation"][0], found["straight_through"][0])
    torch.testing.assert_close(found["straight_through"][1], latents(4, seed=5))
    assert not torch.allclose(found["rotation"][1], found["straight_through"][1])


@pytest.mark.parametrize("restart", ["dead", "error"])
@pytest.mark.parametrize("name", ["ema", "gradient"])
def test_restart_works_under_rotation(name, restart, tiny):
    module = seams.plugin("quantizers", name)
    values = {"restart": restart, "restart_below": 0.2, "decay": 0.5, "initialisation": "normal"}
    quantizer = module.build(tiny(module.Config, estimator="rotation", **values), None).train()
    with torch.no_grad():
        quantizer.codes[3] = 100
        if name == "ema":
            quantizer.sums.copy_(quantizer.codes)
    for step in range(20):
        out = quantizer(latents(4, seed=step).requires_grad_())
        (out.z_q.sum() + sum(out.losses.values())).backward()
    assert quantizer.codes.abs().max() < 5


# gradient


def test_gradient_of_the_codebook_in_closed_form(tiny):
    """Of the codebook term alone: 2 w (e - mean of its latents) n_e / n; the reconstruction gives it none."""
    quantizer = gradient.build(tiny(gradient.Config, initialisation="normal", codebook_weight=3.0), None).eval()
    z = latents(4)
    out = quantizer(z)
    (out.z_q.sum() + sum(out.losses.values())).backward()
    rows, chosen = z.permute(0, 2, 3, 1).reshape(-1, 4), out.codes.flatten()
    for k in range(8):
        expected = 6 * (quantizer.codes[k] - rows[chosen == k]).sum(0) / rows.numel()
        torch.testing.assert_close(quantizer.codes.grad[k], expected.detach())


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_gradient_codebook_approaches_the_latents(tiny, distance):
    quantizer = gradient.build(tiny(gradient.Config, distance=distance, restart="none"), None).train()
    z = 2 + latents(4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(80):
        out = quantizer(z)
        optimizer.zero_grad()
        sum(out.losses.values()).backward()
        optimizer.step()
        errors.append(out.reported["codebook_error"].item())
    assert errors[-1] < 0.8 * errors[0]


def test_commitment_only_leaves_the_codebook(tiny):
    quantizer = gradient.build(tiny(gradient.Config, codebook_weight=0.0, restart="none"), None).train()
    out = quantizer(latents(4).requires_grad_())
    assert set(out.losses) == {"commitment"}
    assert out.reported["codebook_error"] > 0
    assert not [parameter for parameter in quantizer.parameters() if parameter.requires_grad]


# simvq


def test_simvq_moves_every_code_at_once(tiny):
    """Zhu et al. 2024: the map is trained, so codes that nobody chose move too."""
    quantizer = simvq.build(tiny(simvq.Config, codebook_size=64), None).train()
    before, coefficients = quantizer.codebooks[0].detach().clone(), quantizer.coefficients.clone()
    z = latents(4, b=1)
    out = quantizer(z)
    sum(out.losses.values()).backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.5).step()
    unused = torch.tensor([k not in out.codes for k in range(64)])
    assert unused.sum() > 50
    assert (quantizer.codebooks[0] != before).any(1)[unused].all()
    assert torch.equal(quantizer.coefficients, coefficients)


def test_simvq_codebook_is_the_mapped_coefficients(tiny):
    quantizer = simvq.build(tiny(simvq.Config), None)
    torch.testing.assert_close(quantizer.codebooks[0], quantizer.coefficients @ quantizer.map.weight.T)


# residual


def test_residual_error_falls_with_depth(tiny):
    z, errors = latents(4, b=60), []
    for depth in (1, 2, 3, 4):
        torch.manual_seed(0)
        quantizer = residual.build(tiny(residual.Config, depth=depth, decay=0.5, initialisation="kmeans"), None).train()
        for _ in range(10):
            quantizer(z)
        errors.append((quantizer.eval()(z).z_q - z).square().mean().item())
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))


def test_residual_by_brute_force(tiny):
    """Lee et al. 2022: each depth takes the code nearest to what the depths before it left."""
    quantizer = residual.build(tiny(residual.Config, depth=3, initialisation="normal", beta=0.5), None).eval()
    z = latents(4)
    out = quantizer(z)
    left, total, error = z.permute(0, 2, 3, 1).reshape(-1, 4), 0, 0
    for depth, book in enumerate(quantizer.codebooks):
        chosen = torch.cdist(left, book).argmin(1)
        assert torch.equal(out.codes[:, depth].flatten(), chosen)
        left, total = left - book[chosen], total + book[chosen]
        error += left.square().mean()
    torch.testing.assert_close(out.z_q.permute(0, 2, 3, 1).reshape(-1, 4), total)
    torch.testing.assert_close(out.losses["commitment"], 0.5 * error)


def test_one_depth_is_plain_vector_quantization(tiny):
    torch.manual_seed(0)
    one = residual.build(tiny(residual.Config, depth=1, restart="none"), None).train()
    torch.manual_seed(0)
    plain = ema.build(tiny(ema.Config, restart="none"), None).train()
    for step in range(3):
        torch.manual_seed(step)
        first = one(latents(4, seed=step))
        torch.manual_seed(step)
        second = plain(latents(4, seed=step))
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.losses["commitment"], second.losses["commitment"])
    assert torch.equal(one.codebooks[0], plain.codebooks[0])


# several processes


WORKER = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from safetensors.torch import save_file
from tessera.codebooks import codebook
from tessera.quantizers import ema

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
store = dist.FileStore(f"{folder}/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
values = dict(beta=0.25, codebook_size=6, code_dim=3, decay=0.8, restart_below=0.9, estimator="rotation", distance="euclidean",
              smoothing=1e-5)
found = {}
for initialisation, restart in (("normal", "none"), ("latents", "dead"), ("kmeans", "dead"), ("uniform", "error")):
    torch.manual_seed(0)
    quantizer = ema.build(ema.Config(initialisation=initialisation, restart=restart, **values), None).train()
    torch.manual_seed(rank)  # the draws of each rank are its own
    for step in range(4):
        z = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(step))
        quantizer(z[rank::2])
    found |= {f"{initialisation}/{name}": value for name, value in quantizer.state_dict().items()}
rows = torch.arange(24.0).view(2, 12, 1)[rank].clamp(max=14)  # 0 to 14, the last ten times on the second rank
weights = torch.arange(20.0).view(2, 10)[rank] % 7
found["by_weight"] = codebook.by_weight(torch.arange(97) / 97, weights)
found["crowded"] = codebook.initial_codes(rows, 15, "latents")
save_file(found, f"{folder}/{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_end_with_the_codebook_of_one(tiny, tmp_path):
    """Statistics are summed over ranks; first codes and restarts are rank 0's, so that the ranks never part."""
    from tessera.core.models import load_weights

    environment = {**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    forked.ended(*(forked.start("-c", WORKER, str(rank), str(tmp_path), **environment) for rank in (0, 1)), timeout=100)
    ranks = [load_weights(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    assert sorted(ranks[0]["crowded"].flatten().tolist()) == list(range(15))
    assert torch.equal(ranks[0]["by_weight"], codebook.by_weight(torch.arange(97) / 97, torch.arange(20.0) % 7))
    torch.manual_seed(0)
    alone = built(tiny, codebook_size=6, code_dim=3, decay=0.8).train()
    for step in range(4):
        alone(torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(step)))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(ranks[0][f"normal/{name}"], value)
