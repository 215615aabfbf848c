"""The quantizers without a codebook: finite scalar (fsq) and lookup-free (lfq). `test_quantizers.py` has what every
quantizer promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vector_quantize_pytorch import FSQ, LFQ

from tessera.core.errors import InputError
from tessera.quantizers import fsq, lfq

LEVELS = [[4, 3], [2], [3], [2, 2, 5], [7, 2, 4], [8, 6, 5], [5, 8, 3, 4]]


def latents(dim: int, n: int = 50, scale: float = 1.0, seed: int = 1) -> torch.Tensor:
    return scale * torch.randn(n, dim, 2, 3, generator=torch.Generator().manual_seed(seed))


def as_latents(rows: Any) -> torch.Tensor:
    """[N,D] as N images of one latent."""
    return torch.as_tensor(rows, dtype=torch.float32)[:, :, None, None]


def of_levels(tiny: Any, levels: list[int]) -> fsq.FSQ:
    return fsq.build(tiny(fsq.Config, levels=levels), None)


def of_size(tiny: Any, size: int, **values: Any) -> lfq.LFQ:
    return lfq.build(tiny(lfq.Config, codebook_size=size, **values), None)


@pytest.fixture(params=["fsq", "lfq"])
def large(request, tiny) -> Any:
    """Many codes: boundaries between them are near."""
    return of_levels(tiny, [1000, 40, 5]) if request.param == "fsq" else of_size(tiny, 1 << 12)


# both


def test_codes_are_those_of_float32_under_bfloat16_autocast(large):
    z = latents(large.dim, n=500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = large(z)
    plain = large(z)
    assert torch.equal(mixed.codes, plain.codes)
    assert mixed.z_q.dtype == torch.float32
    assert all(torch.equal(loss, plain.losses[name]) for name, loss in mixed.losses.items())


def test_state_is_empty(large):
    assert not large.state_dict()
    assert not list(large.parameters())


def test_decoded_codes_are_the_code_vectors_in_their_order(large):
    codes = torch.randint(large.codebook_sizes[0], (3, 1, 4, 5))
    expected = large.codebooks[0][codes[:, 0]].permute(0, 3, 1, 2)
    assert torch.equal(large.decode(codes), expected)


def test_latents_that_are_not_numbers_have_codes_and_show_in_what_is_minimised(large):
    """fsq has no loss of z: z_q must tell."""
    z = latents(large.dim)
    z[0, 0, 0, 0] = float("nan")
    out = large(z)
    assert out.z_q[0, 0, 0, 0].isnan() or all(loss.isnan() for loss in out.losses.values())
    assert 0 <= out.codes.min() <= out.codes.max() < large.codebook_sizes[0]


def test_latents_of_another_dimension_are_bad_input(tiny):
    with pytest.raises(
        InputError, match=r"^quantizer.fsq.levels: must have one entry .* 3 channels .* got 2 .*; give 3"
    ):
        fsq.build(tiny(fsq.Config), 3)
    with pytest.raises(InputError, match=r"^quantizer.codebook_size: must be 2\^4 .* 4 channels .* got 8; give 16, or"):
        lfq.build(tiny(lfq.Config), 4)
    with pytest.raises(
        InputError, match=r"must be 2\^17 .* got 8; choose another quantizer.name$"
    ):  # more than it may have
        lfq.build(tiny(lfq.Config), 17)
    assert fsq.build(tiny(fsq.Config), 2).dim == 2
    assert lfq.build(tiny(lfq.Config), 3).dim == 3


@pytest.mark.parametrize(("module", "values"), [(fsq, {"levels": []}), (lfq, {})])
def test_a_size_that_other_quantizers_may_have_is_refused_only_where_it_is_used(module, values, tiny):
    """params.yaml is validated with the sections of all alternatives, and codebook_size belongs to all of them."""
    config = tiny(module.Config, codebook_size=300, **values)
    (problem,) = config.rule(None)
    with pytest.raises(InputError) as raised:
        module.build(config, None)
    assert str(raised.value) == problem


# fsq


def bound(z: np.ndarray, levels: list[int]) -> np.ndarray:
    """[...,D] in float64, before rounding."""
    n = np.array(levels)
    half, offset = (n - 1) * 1.001 / 2, np.where(n % 2, 0, 0.5)
    return np.tanh(z + np.where(n > 2, np.arctanh(offset / half), 0)) * half - offset


def pre_image(whole: np.ndarray, levels: list[int]) -> np.ndarray:
    """[...,D] whose bounded value is `whole`."""
    n = np.array(levels)
    half, offset = (n - 1) * 1.001 / 2, np.where(n % 2, 0, 0.5)
    return np.arctanh((whole + offset) / half) - np.where(n > 2, np.arctanh(offset / half), 0)


def whole_numbers(levels: list[int]) -> np.ndarray:
    """[K,D] in the order of codes, the first channel changing fastest."""
    grid = np.meshgrid(*[np.arange(n) - n // 2 for n in reversed(levels)], indexing="ij")
    return np.stack([axis.ravel() for axis in reversed(grid)], axis=1)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_codes_are_a_bijection(levels, tiny):
    quantizer, k = of_levels(tiny, levels), math.prod(levels)
    (book,) = quantizer.codebooks
    assert len(book.unique(dim=0)) == k == quantizer.codebook_sizes[0]
    out = quantizer(as_latents(pre_image(whole_numbers(levels), levels)))
    assert out.codes.flatten().tolist() == list(range(k))
    assert torch.equal(out.z_q.flatten(1), book)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_values_by_numpy(levels, tiny):
    z = latents(len(levels), scale=1.5)
    rows = z.permute(0, 2, 3, 1).numpy().astype(np.float64)
    whole = np.round(bound(rows, levels))
    out = of_levels(tiny, levels)(z)
    np.testing.assert_allclose(out.z_q.permute(0, 2, 3, 1), whole / (np.array(levels) // 2), rtol=1e-6)
    digits = np.moveaxis(whole + np.array(levels) // 2, -1, 0).astype(int)
    np.testing.assert_array_equal(out.codes[:, 0], np.ravel_multi_index(tuple(digits[::-1]), levels[::-1]))


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_gradient_is_that_of_the_bound(levels, tiny):
    """half (1 - tanh^2) / centre: the rounding alone is passed straight through."""
    z = latents(len(levels)).requires_grad_()
    weights = torch.randn_like(z)
    (of_levels(tiny, levels)(z).z_q * weights).sum().backward()
    n = np.array(levels)
    half, offset = (n - 1) * 1.001 / 2, np.where(n % 2, 0, 0.5)
    flat = np.tanh(z.detach().permute(0, 2, 3, 1).numpy() + np.where(n > 2, np.arctanh(offset / half), 0))
    expected = half * (1 - flat**2) / (n // 2) * weights.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(z.grad.permute(0, 2, 3, 1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 255, 999, 1000])
def test_fsq_reaches_all_levels_and_no_other(n, tiny):
    """Even numbers of levels have one more below 0 than above; however large z is, it meets the outermost one."""
    centre = n // 2
    grid = np.concatenate([np.arctanh(np.linspace(-0.9999, 0.9999, 20001)), [-1e30, -50, 50, 1e30, -np.inf, np.inf]])
    out = of_levels(tiny, [n])(as_latents(grid[:, None]))
    assert out.codes.unique().tolist() == list(range(n))
    np.testing.assert_allclose(out.z_q.unique(), (np.arange(n) - centre) / centre, rtol=1e-6)
    assert out.codes.flatten()[-6:].tolist() == [0, 0, n - 1, n - 1, 0, n - 1]


@pytest.mark.parametrize("n", [3, 4, 5, 8, 1000])
def test_fsq_zero_is_the_level_zero_and_in_its_middle(n, tiny):
    """So an encoder that starts near 0 starts far from every boundary."""
    z = torch.zeros(1, 1, 1, 1, requires_grad=True)
    quantizer = of_levels(tiny, [n])
    assert quantizer(z).z_q.item() == 0
    assert bound(np.zeros(1), [n]) == pytest.approx(0, abs=1e-12)
    near = 0.4 / (n / 2)
    assert not quantizer(as_latents([[-near], [near]])).z_q.any()


def test_fsq_two_levels_part_at_zero_where_the_gradient_is_largest(tiny):
    z = as_latents([[-3.0], [-0.01], [0.0], [0.01], [3.0]]).requires_grad_()
    out = of_levels(tiny, [2])(z)
    assert out.z_q.flatten().tolist() == [-1, -1, 0, 0, 0]
    out.z_q.sum().backward()
    assert z.grad.argmax() == 2
    assert z.grad[2].item() == pytest.approx(0.5, rel=1e-2)


def test_fsq_first_channel_is_the_lowest_digit(tiny):
    (book,) = of_levels(tiny, [4, 3]).codebooks
    assert book[:6].tolist() == [[-1, -1], [-0.5, -1], [0, -1], [0.5, -1], [-1, 0], [-0.5, 0]]


@pytest.mark.parametrize("levels", [[3], [4, 3], [8, 6, 5], [7, 5, 5, 5, 5]])
def test_fsq_agrees_with_the_library(levels, tiny):
    z = latents(len(levels), n=200)
    z_q, codes = FSQ(levels)(z)
    out = of_levels(tiny, levels)(z)
    torch.testing.assert_close(out.z_q, z_q)
    assert torch.equal(out.codes[:, 0], codes.long())


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        (256, [8, 6, 5]),
        (1024, [8, 5, 5, 5]),
        (4096, [7, 5, 5, 5, 5]),
        (16384, [8, 8, 8, 6, 5]),
        (65536, [8, 8, 8, 5, 5, 5]),
    ],
)
def test_fsq_levels_of_the_papers_table(size, levels, tiny):
    quantizer = fsq.build(tiny(fsq.Config, codebook_size=size, levels=[]), None)
    assert quantizer.levels.flatten().tolist() == levels
    assert quantizer.dim == len(levels)
    assert quantizer.codebook_sizes == (math.prod(levels),)


def test_fsq_levels_that_are_given_hold_whatever_the_size(tiny):
    config = tiny(fsq.Config, codebook_size=256, levels=[3, 3])
    assert fsq.build(config, None).codebook_sizes == (9,)
    assert not list(tiny(fsq.Config, codebook_size=300, levels=[3, 3]).rule(None))


def test_fsq_size_outside_the_table_names_the_sizes_and_the_remedy(tiny):
    with pytest.raises(
        ValueError, match=r"one of 256, 1024, 4096, 16384, 65536 .* got 300; give quantizer.fsq.levels$"
    ):
        fsq.build(tiny(fsq.Config, codebook_size=300, levels=[]), None)


@pytest.mark.parametrize("levels", [[1, 5], [1001], [4, 2.0]])
def test_fsq_refuses_what_is_no_number_of_levels(levels, tiny):
    with pytest.raises(ValidationError, match="levels"):
        tiny(fsq.Config, levels=levels)


def test_fsq_refuses_more_codes_than_can_be_counted(tiny):
    assert tiny(fsq.Config, levels=[1 << 5] * 4)
    with pytest.raises(ValidationError, match="product of at most 1048576, got 2097152: give fewer"):
        tiny(fsq.Config, levels=[1 << 5] * 4 + [2])


def test_fsq_has_no_losses(tiny):
    out = of_levels(tiny, [4, 3]).train()(latents(2))
    assert out.losses == {}
    assert out.reported == {}


# lfq


def brute_force(z: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """z [N,D] float64 -> mean entropy and entropy of the mean of a softmax over all corners of the cube."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * z.shape[1])
    corners = corners.view(-1, z.shape[1])  # cartesian_prod of one is flat
    p = torch.softmax(-(z[:, None] - corners).square().sum(-1) / temperature, dim=1)
    return torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()


@pytest.mark.parametrize("size", [2, 4, 8, 512])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_lfq_codes_are_a_bijection(size, scale, tiny):
    quantizer = of_size(tiny, size)
    (book,) = quantizer.codebooks
    assert len(book.unique(dim=0)) == size
    assert book.abs().eq(1).all()
    out = quantizer(as_latents(book * scale))
    assert out.codes.flatten().tolist() == list(range(size))
    assert torch.equal(out.z_q.flatten(1), book)


def test_lfq_channel_d_is_the_bit_of_value_2_to_the_d(tiny):
    z = as_latents([[-0.1, -2, -3], [0.1, -2, -3], [-0.1, 2, -3], [-0.1, -2, 3], [5, -1, 1]])
    assert of_size(tiny, 8)(z).codes.flatten().tolist() == [0, 1, 2, 4, 5]


def test_lfq_zero_is_a_code(tiny):
    out = of_size(tiny, 4)(as_latents([[0.0, -0.0]]))
    assert out.z_q.flatten().tolist() == [1, 1]
    assert out.codes.item() == 3


def test_lfq_gradient_is_straight_through(tiny):
    z = latents(3).requires_grad_()
    weights = torch.randn_like(z)
    (of_size(tiny, 8)(z).z_q * weights).sum().backward()
    assert torch.equal(z.grad, weights)


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_lfq_commitment_in_closed_form(beta, tiny):
    """beta mean (|z| - 1)^2, whose gradient draws z to its corner."""
    z = latents(3).requires_grad_()
    loss = of_size(tiny, 8, beta=beta)(z).losses["commitment"]
    loss.backward()
    plain = z.detach()
    torch.testing.assert_close(loss.detach(), beta * (plain.abs() - 1).square().mean())
    torch.testing.assert_close(z.grad, 2 * beta * (plain - plain.sign()) / z.numel())


@given(st.integers(1, 9), st.integers(1, 20), st.floats(0.1, 20), st.floats(0, 4), st.integers(0, 10**6))
def test_lfq_entropies_by_brute_force(dim, n, temperature, scale, seed):
    """Value and gradient, against a softmax over all codes in float64."""
    z = torch.from_numpy(scale * np.random.default_rng(seed).normal(size=(n, dim)))
    exact, single = z.clone().requires_grad_(), z.float().requires_grad_()
    for expected, found in zip(brute_force(exact, temperature), lfq.entropies(single, temperature), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
        (wanted,) = torch.autograd.grad(expected, exact, retain_graph=True)
        (got,) = torch.autograd.grad(found, single, retain_graph=True)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4)


def test_lfq_entropy_term_weighs_both_entropies(tiny):
    """weight (E[H] - diversity H[E])."""
    z = latents(5)
    each, mean = brute_force(z.permute(0, 2, 3, 1).reshape(-1, 5).double(), 0.7)
    quantizer = of_size(tiny, 32, entropy_weight=0.3, diversity=0.6, temperature=0.7)
    for training in (True, False):
        found = quantizer.train(training)(z).losses["entropy"]
        assert found.item() == pytest.approx(0.3 * (each - 0.6 * mean).item(), rel=1e-4)


def test_lfq_agrees_with_the_library(tiny):
    """Whose first channel is the highest bit, and whose logarithms stop at 1e-5: where no probability is that small."""
    z = latents(4, scale=0.5)
    library = LFQ(dim=4, entropy_loss_weight=1.0, diversity_gamma=0.8).train()
    (z_q, codes, term), parts = library(z.flip(1), inv_temperature=1 / 4, return_loss_breakdown=True)
    out = of_size(tiny, 16, entropy_weight=1.0, diversity=0.8, temperature=4.0).train()(z)
    torch.testing.assert_close(out.z_q, z_q.flip(1))
    assert torch.equal(out.codes[:, 0], codes.long())
    torch.testing.assert_close(out.losses["entropy"], term, rtol=1e-4, atol=1e-5)
    each, mean = lfq.entropies(z.permute(0, 2, 3, 1).reshape(-1, 4), 4.0)
    torch.testing.assert_close(each, parts.per_sample_entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean, parts.batch_entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 8, 1024])
def test_lfq_entropies_of_undecided_latents_are_log_k(size):
    each, mean = lfq.entropies(torch.zeros(7, size.bit_length() - 1), 1.0)
    assert each.item() == pytest.approx(math.log(size), rel=1e-5)
    assert mean.item() == pytest.approx(math.log(size), rel=1e-5)


@pytest.mark.parametrize("size", [2, 8, 1024])
def test_lfq_entropies_of_decided_latents_are_those_of_the_use_of_codes(size, tiny):
    """0 each; of the mean log K where each code is used once, and 0 where one code is."""
    (book,) = of_size(tiny, size).codebooks
    each, mean = lfq.entropies(20 * book, 1.0)
    assert each.item() == pytest.approx(0, abs=1e-5)
    assert mean.item() == pytest.approx(math.log(size), rel=1e-5)
    each, mean = lfq.entropies(20 * book[:1].expand(50, -1), 1.0)
    assert each.item() == pytest.approx(0, abs=1e-5)
    assert mean.item() == pytest.approx(0, abs=1e-5)


def test_lfq_entropy_term_is_lowest_for_decided_latents_that_use_all_codes(tiny):
    quantizer = of_size(tiny, 8)
    (book,) = quantizer.codebooks

    def term(rows: torch.Tensor) -> float:
        return quantizer(as_latents(rows)).losses["entropy"].item()

    ideal = term(5 * book)
    assert ideal == pytest.approx(-0.1 * math.log(8), rel=1e-3)
    assert ideal < term(5 * book[:4].repeat(2, 1)) < term(5 * book[:1].repeat(8, 1))  # half of the codes, one code
    assert ideal < term(0.1 * book)  # all codes, undecided


def test_lfq_descending_the_entropy_term_spreads_latents_over_the_codes(tiny):
    """All start at one corner. The sign convention in one: the other sign would keep them there."""
    z = (1 + 0.1 * latents(3, n=20)).requires_grad_()
    quantizer = of_size(tiny, 8, beta=0.0, entropy_weight=1.0, temperature=4.0)
    assert len(quantizer(z).codes.unique()) == 1
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(z).losses["entropy"].backward()
        optimizer.step()
    assert len(quantizer(z).codes.unique()) == 8


@pytest.mark.parametrize("size", [2, 1 << 16])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
def test_lfq_entropy_term_and_gradient_are_finite_where_probabilities_underflow(size, scale, tiny):
    quantizer = of_size(tiny, size, temperature=0.01)
    z = latents(quantizer.dim, n=2, scale=scale).requires_grad_()
    loss = quantizer(z).losses["entropy"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_lfq_entropy_of_weight_0_is_neither_computed_nor_listed(tiny, monkeypatch):
    monkeypatch.setattr(lfq, "entropies", None)
    assert set(of_size(tiny, 8, entropy_weight=0.0)(latents(3)).losses) == {"commitment"}


def test_lfq_terms_are_commitment_and_entropy(tiny):
    assert set(of_size(tiny, 8)(latents(3)).losses) == {"commitment", "entropy"}


@pytest.mark.parametrize("size", [2, 8, 65536])
def test_lfq_has_one_channel_for_each_bit(size, tiny):
    quantizer = of_size(tiny, size)
    assert 2**quantizer.dim == size
    assert quantizer.codebook_sizes == (size,)
    assert quantizer.codebooks[0].shape == (size, quantizer.dim)


@pytest.mark.parametrize(
    ("size", "near"), [(3, "2 or 4"), (300, "256 or 512"), (65537, "65536"), (1 << 17, "65536"), (1 << 20, "65536")]
)
def test_lfq_size_that_is_no_power_of_two_or_too_large_names_the_nearest(size, near, tiny):
    with pytest.raises(ValueError, match=f"must be a power of two, at most 65536, .* got {size}; give {near}$"):
        of_size(tiny, size)


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"beta": -0.1}, {"entropy_weight": -0.1}, {"diversity": -0.1}]
)
def test_lfq_refuses_values_out_of_bounds(values, tiny):
    with pytest.raises(ValidationError, match=next(iter(values))):
        tiny(lfq.Config, **values)
