"""autoregression/sampling and sequences against brute force."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import example, labelled
from torch import Tensor

from stages import samples
from tessera import sequences
from tessera.autoregression.sampling import CodeWalk, sample, sample_codes, truncate, walked
from tessera.core import seams
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace
from tessera.cuda_graphs import Replay

ALMOST_ONE = 1 - 2**-53  # the largest uniform there is


def truncated_by_hand(logits: list[float], sampling: Sampling) -> list[float]:
    """One row in plain Python, from the definition: order, keep k, add up until the nucleus is full."""
    scaled = [value / sampling.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda code: (-scaled[code], code))
    order = order[: sampling.top_k or None]
    weights = [math.exp(scaled[code]) for code in order]
    kept, reached = [], 0.0
    for code, weight in zip(order, weights, strict=True):
        if sampling.top_p < 1 and reached >= sampling.top_p:
            break
        kept.append(code)
        reached += weight / sum(weights)
    return [value if code in kept else -math.inf for code, value in enumerate(scaled)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 50])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.85, 1.0])
def test_truncate_is_what_the_definition_says(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[3, 2] = logits[3, 5] = logits[3].max()  # two equally likely codes
    logits[4] = 0.0  # all equally likely
    logits[5, :3] = -math.inf
    sampling = Sampling(temperature, top_k, top_p)
    expected = torch.tensor([truncated_by_hand(row, sampling) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(truncate(logits, sampling), expected, rtol=0, atol=0)


def test_of_many_equally_likely_codes_the_first_stay() -> None:
    kept = truncate(torch.zeros(1, 5000), Sampling(top_k=3)).isfinite()
    assert kept.nonzero()[:, 1].tolist() == [0, 1, 2]


def test_truncate_leaves_its_input_alone() -> None:
    logits = torch.randn(3, 5)
    before = logits.clone()
    truncate(logits, Sampling(0.7, 3, 0.5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(-1.0), Sampling(top_k=-1), Sampling(top_p=0.0), Sampling(top_p=1.1)]
)
def test_truncate_refuses_values_out_of_range(sampling: Sampling) -> None:
    with pytest.raises(InputError, match="temperature > 0"):
        truncate(torch.zeros(1, 4), sampling)


def test_draw_is_the_first_code_whose_cumulative_probability_exceeds_u() -> None:
    rng = np.random.default_rng(0)
    probabilities, uniforms = rng.dirichlet(np.ones(6), 500), rng.random(500)
    expected = [int(np.argmax(np.cumsum(row) > u)) for row, u in zip(probabilities, uniforms, strict=True)]
    codes = sample_codes(torch.from_numpy(probabilities).log(), torch.from_numpy(uniforms))
    assert codes.dtype == torch.int64
    assert codes.tolist() == expected


def test_draw_has_the_frequencies_of_its_probabilities() -> None:
    """Pearson's statistic over 7 degrees of freedom: above 24.3 once in 1000 right programs; the seed is fixed."""
    n, generator = 20_000, torch.Generator().manual_seed(1)
    logits = torch.randn(8, generator=generator)
    uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
    counts = torch.bincount(sample_codes(logits.expand(n, 8), uniforms), minlength=8).double()
    expected = logits.double().softmax(0) * n
    assert ((counts - expected) ** 2 / expected).sum() < 24.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_never_draws_a_code_of_probability_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    uniforms = torch.tensor([0.0, 2**-53, 0.1, 0.5, 0.9, 1 - 2**-24, ALMOST_ONE], dtype=torch.float64).repeat(300)
    logits = torch.randn(len(uniforms), 11, generator=generator).to(dtype)
    possible = torch.rand(logits.shape, generator=generator) < 0.3
    possible[:, 4] |= ~possible.any(1)
    codes = sample_codes(logits.masked_fill(~possible, -math.inf), uniforms)
    assert possible.gather(1, codes[:, None]).all()


def test_draw_holds_where_a_device_adds_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parallel running sum may step up, by rounding, at a code of probability 0; here by enough to aim at."""
    exact = torch.Tensor.cumsum
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: exact(self, dim) + 0.01 * (self == 0))
    logits = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64).log()
    assert sample_codes(logits, torch.tensor([0.505], dtype=torch.float64)).item() == 2


def test_draw_reaches_the_last_code_where_the_sum_falls_short_of_one() -> None:
    logits = torch.full((1, 10), 0.1, dtype=torch.float64).log()
    assert float(logits.softmax(-1).cumsum(-1)[0, -1]) < 1, "the case this test is about"
    assert sample_codes(logits, torch.tensor([ALMOST_ONE], dtype=torch.float64)).item() == 9
    assert sample_codes(logits, torch.tensor([0.0], dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("row", [[math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]])
def test_draw_refuses_what_is_no_distribution(row: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        sample_codes(torch.tensor([[0.0, 0.0], row]), torch.tensor([0.5, 0.5], dtype=torch.float64))


class Scripted(torch.nn.Module):
    """A prior of 2x2 codes of which only the logits of its walk matter."""

    space, conditioning, order = CodeSpace(((2, 2),), (3,)), UNCONDITIONAL, range(4)

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", logits)

    def walk(self, n: int, conditions: None) -> CodeWalk:
        for row in self.rows:
            yield row.expand(n, -1)


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_walk_is_refused_wherever_its_logits_are_no_distribution(at: int) -> None:
    logits = torch.zeros(4, 3)
    prior = Scripted(logits)
    assert sample(prior, prior.walk, 2, torch.Generator(), Sampling()).shape == (2, 4)
    logits[at, 1] = math.nan
    with pytest.raises(ValueError, match="finite"):
        sample(prior, prior.walk, 2, torch.Generator(), Sampling())


def test_only_walks_on_a_gpu_are_captured() -> None:
    with pytest.raises(InputError, match="on a CUDA device are captured, and this prior is on cpu"):
        Replay(Scripted(torch.zeros(4, 3)), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph")
def test_a_captured_walk_draws_what_sample_draws() -> None:
    prior = Scripted(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).cuda()
    replay = Replay(prior, 50)
    for seed in (0, 1):
        plain = sample(prior, prior.walk, 50, torch.Generator().manual_seed(seed), Sampling())
        assert torch.equal(replay.sample(torch.Generator().manual_seed(seed)), plain)
    prior.rows[2] = math.nan
    with pytest.raises(ValueError, match="finite"):
        replay.sample(torch.Generator())


class Walked:
    """`Replay` without the capture: the walk that it captures, on a CPU."""

    made: ClassVar[list[int]] = []

    def __init__(self, prior: Any, n: int, sampling: Sampling) -> None:
        self.prior, self.shape, self.sampling = prior, (n, prior.space.length), sampling
        self.made.append(n)

    @torch.no_grad()
    def sample(self, generator: torch.Generator, conditions: Tensor | None = None) -> Tensor:
        uniforms = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        return walked(self.prior, self.prior.walk, uniforms, self.sampling, conditions, None, None)[0]


@pytest.mark.parametrize(
    ("name", "device", "count", "captured"),
    [
        ("gated_pixelcnn", "cuda", 13, [4]),
        ("pixelsnail", "cuda", 12, [4]),
        ("gated_pixelcnn", "cuda", 11, []),  # two whole batches do not pay for the capture
        ("ngram", "cuda", 13, []),
        ("masked", "cuda", 13, []),
        ("gated_pixelcnn", "cpu", 13, []),
    ],
)
def test_the_stage_replays_a_captured_walk_on_a_gpu_where_it_can_and_draws_the_same_codes(
    name: str, device: str, count: int, captured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "Replay", Walked)
    monkeypatch.setattr(Walked, "made", [])
    module = seams.plugin("priors", name)
    prior = module.build(example(module.Config), CodeSpace(((2, 2), (3, 2)), (3, 5)), labelled(2)).eval()
    if hasattr(prior, "fit"):
        prior.fit(torch.randint(3, (9, 10)), (torch.arange(9) % 2)[:, None])
    own = samples.Settings.model_construct(count=count, batch_size=4)
    sampling = Sampling(temperature=0.9, top_k=4, guidance={"label": 2.0})
    sample = samples.sampler(prior, sampling, torch.device(device), own)
    assert Walked.made == captured
    for index, n in enumerate([4, 4, 1]):
        labels = (torch.arange(n) % 2)[:, None]
        found = sample(n, torch.Generator().manual_seed(index), conditions=labels)
        assert torch.equal(found, prior.sample(n, torch.Generator().manual_seed(index), sampling, conditions=labels))


def test_likelihoods_and_accuracy_of_per_grid_logits_are_the_sums_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = [torch.randn(4, 2, 3, generator=generator), torch.randn(4, 3, 5, generator=generator)]
    codes = torch.cat([torch.randint(3, (4, 2), generator=generator), torch.randint(5, (4, 3), generator=generator)], 1)
    by_hand, right = np.zeros((4, 5)), 0
    for image in range(4):
        for t in range(5):
            row = (logits[0][image, t] if t < 2 else logits[1][image, t - 2]).double().numpy()
            by_hand[image, t] = row[codes[image, t]] - np.log(np.exp(row).sum())
            right += int(np.argmax(row) == codes[image, t])
    np.testing.assert_allclose(sequences.code_log_prob(logits, codes), by_hand, rtol=1e-5)
    np.testing.assert_allclose(sequences.log_prob(logits, codes), by_hand.sum(1), rtol=1e-5)
    np.testing.assert_allclose(sequences.nll(logits, codes), -by_hand.mean(), rtol=1e-5)
    assert float(sequences.right(logits, codes).mean()) == pytest.approx(right / 20)
