"""What every quantizer promises, and the mathematics of each."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tessera.core import seams
from tessera.core.errors import NonFiniteError
from tessera.nn import codebook
from tessera.quantizers import ema

# the contract


def latents(dim: int, b: int = 6, h: int = 3, w: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(b, dim, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=seams.names("quantizers"))
def quantizer(request, tiny) -> nn.Module:
    """Each file of the seam, after a few steps of training."""
    module = seams.plugin("quantizers", request.param)
    built = module.build(tiny(module.Config), None)
    for step in range(3):
        built.train()(latents(built.dim, seed=step + 2))
    return built


@pytest.mark.parametrize("name", seams.names("quantizers"))
def test_dim_is_what_the_tokenizer_asks_for_or_its_own(name, tiny):
    module = seams.plugin("quantizers", name)
    own = module.build(tiny(module.Config), None)
    asked = module.build(tiny(module.Config), own.dim + 1)
    assert asked.dim == own.dim + 1
    assert asked(latents(own.dim + 1)).z_q.shape[1] == own.dim + 1


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


@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([1, 7, 1 << 22])
)
def test_nearest_code_by_brute_force(n, k, d, seed, chunk):
    """Whatever is held in memory at once."""
    draws = np.random.default_rng(seed)
    z, codes = draws.normal(size=(n, d)).astype(np.float32), draws.normal(size=(k, d)).astype(np.float32)
    kept, codebook.CHUNK = codebook.CHUNK, chunk
    try:
        found = codebook.nearest(torch.from_numpy(z), torch.from_numpy(codes)).numpy()
    finally:
        codebook.CHUNK = kept
    distances = ((z[:, None].astype(np.float64) - codes) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(n), found], distances.min(1), atol=1e-5)


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
    assert torch.isfinite(codebook.ema_codes(torch.tensor([0.0, 5.0]), torch.zeros(2, 3))).all()


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
@pytest.mark.parametrize("n", [1, 3])
def test_fewer_latents_than_codes_give_codes_that_differ(how, n):
    """Copies of one latent would never part again."""
    codes = codebook.initial_codes(torch.randn(n, 4), 8, how)
    assert codes.shape == (8, 4)
    assert torch.isfinite(codes).all()
    if how == "latents":
        assert len(codes.unique(dim=0)) == 8


def test_initial_codes_by_kmeans_lie_nearer_than_latents():
    z = torch.randn(200, 4)

    def error(how: str) -> float:
        torch.manual_seed(3)
        codes = codebook.initial_codes(z, 16, how)
        return float((z - codes[codebook.nearest(z, codes)]).square().sum(1).mean())

    assert error("kmeans") < 0.95 * error("latents")
    assert error("latents") < error("normal")


def test_dead_codes_are_those_below_a_share_of_the_mean_use():
    assert codebook.dead(torch.tensor([10.0, 1.0, 0.9, 0.0, 8.1]), 0.25).tolist() == [False, False, True, True, False]
    assert not codebook.dead(torch.tensor([1.0, 0.0]), 0.0).any()


# ema


def built(tiny: Any, **values: Any) -> ema.EMA:
    return ema.build(tiny(ema.Config, **{"initialisation": "normal", "restart": "none", **values}), None)


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


def far_code(tiny: Any, restart: str) -> tuple[ema.EMA, torch.Tensor]:
    """Three codes among the latents, and one at 100 that none of them chooses."""
    quantizer = built(tiny, restart=restart, restart_below=0.2, decay=0.5, codebook_size=4, code_dim=2)
    quantizer.codes[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [100.0, 100.0]])
    quantizer.sums.copy_(quantizer.codes)
    return quantizer.train(), latents(2, b=10)


def test_dead_code_is_restarted_and_survives_the_next_step(tiny):
    """With its old statistics it would be back at its old place one step later."""
    quantizer, z = far_code(tiny, "dead")
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


def test_without_restart_a_dead_code_stays(tiny):
    quantizer, z = far_code(tiny, "none")
    for _ in range(8):
        quantizer(z)
    assert quantizer.codes[3].min() > 95
    assert codebook.dead(quantizer.counts, 0.2).tolist() == [False, False, False, True]


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


def test_normal_codes_do_not_wait_for_a_batch(tiny):
    quantizer = built(tiny, initialisation="normal", decay=0.999, codebook_size=8)
    quantizer.train()(latents(4) + 30)
    assert quantizer.codes.norm(dim=1).median() < 5


def test_initialisation_is_part_of_the_state(tiny):
    """A loaded codebook must not be thrown away at the next training step."""
    trained, loaded = built(tiny, initialisation="latents"), built(tiny, initialisation="latents")
    trained.train()(latents(4))
    loaded.load_state_dict(trained.state_dict())
    loaded.train()(latents(4, seed=9) + 50)
    assert (loaded.codes < 25).all(1).any()


def test_latents_that_are_not_finite_leave_the_codebook(tiny):
    quantizer, z = built(tiny).train(), latents(4)
    before = copy.deepcopy(quantizer.state_dict())
    z[0, 0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="the latents z are not finite"):
        quantizer(z)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


WORKER = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from safetensors.torch import save_file
from tessera.quantizers import ema

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
store = dist.FileStore(f"{folder}/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
values = dict(beta=0.25, codebook_size=6, code_dim=3, decay=0.8, restart_below=0.9)
found = {}
for initialisation, restart in (("normal", "none"), ("latents", "dead"), ("kmeans", "dead")):
    torch.manual_seed(0)
    quantizer = ema.build(ema.Config(initialisation=initialisation, restart=restart, **values), None).train()
    torch.manual_seed(rank)  # the draws of each rank are its own
    for step in range(4):
        z = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(step))
        quantizer(z[rank::2])
    found |= {f"{initialisation}/{name}": value for name, value in quantizer.state_dict().items()}
save_file(found, f"{folder}/{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_end_with_the_codebook_of_one(tiny, tmp_path):
    """Statistics are summed over ranks; first codes and restarts are rank 0's, so that the ranks never part."""
    from tessera.core.models import load_weights

    environment = {**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", WORKER, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
    ranks = [load_weights(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    torch.manual_seed(0)
    alone = built(tiny, codebook_size=6, code_dim=3, decay=0.8).train()
    for step in range(4):
        alone(torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(step)))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(ranks[0][f"normal/{name}"], value)
