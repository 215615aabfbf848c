"""priors/masked and nn/masking against enumeration: of all masks, all orders, all sequences."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import labelled
from torch import Tensor, nn

from stages.infiller import Objective
from tessera.attention import masking
from tessera.autoregression.sampling import truncate
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Grids, Sampling
from tessera.core.space import CodeSpace
from tessera.priors import masked as plugin

GRIDS: Grids = ((1, 2), (2, 1))  # T = 4
SIZES = (3, 2)
EVERY = torch.tensor(list(itertools.product(range(3), range(3), range(2), range(2))))  # all 36 sequences


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks_of(length: int) -> Tensor:
    """All 2^T - 1 masks that hide something."""
    return torch.tensor(list(itertools.product([False, True], repeat=length))[1:])


@pytest.fixture
def build(tiny: Callable[..., Any]) -> Callable[..., nn.Module]:
    """`build(classes=0, grids=GRIDS, sizes=SIZES, **values)`: in float64 and eval mode, with blocks so strong that codes
    depend on each other."""

    def built(classes: int = 0, grids: Grids = GRIDS, sizes: tuple[int, ...] = SIZES, **values: Any) -> nn.Module:
        prior = plugin.build(tiny(plugin.Config, **values), CodeSpace(grids, sizes), labelled(classes)).double().eval()
        with torch.no_grad():
            for name, weights in prior.named_parameters():
                weights.mul_(4 if "blocks" in name else 2 if "heads" in name or "norm" in name else 0.5)
        return prior

    return built


# by enumeration


def conditionals(prior: nn.Module, codes: Tensor, hidden: Tensor, sampling: Sampling = Sampling()) -> Tensor:  # noqa: B008
    """log p(code t | codes that are not hidden) [B,T], one mask [T] for all."""
    with torch.no_grad():
        logits = prior.logits(codes, None, hidden.expand(len(codes), -1))
    truncated = [truncate(grid.flatten(0, 1), sampling).view(grid.shape).log_softmax(2) for grid in logits]
    columns = [column for grid in truncated for column in grid.unbind(1)]
    return torch.stack([column.gather(1, codes[:, t, None])[:, 0] for t, column in enumerate(columns)], 1)


def bound(prior: nn.Module, codes: Tensor) -> Tensor:
    """The bound over all masks: E over k, then over the masks of k codes, of T/k times the sum over the hidden."""
    length, total = codes.shape[1], torch.zeros(len(codes), dtype=torch.float64)
    for hidden in masks_of(length):
        k = int(hidden.sum())
        weight = 1 / length / math.comb(length, k)
        total += weight * length / k * conditionals(prior, codes, hidden)[:, hidden].sum(1)
    return total


def blocks_of(order: tuple[int, ...], steps: int) -> list[tuple[int, ...]]:
    """An order cut into equal steps."""
    size = len(order) // steps
    return [order[start : start + size] for start in range(0, len(order), size)]


def log_probs_by_order(
    prior: nn.Module,
    codes: Tensor,
    free: tuple[int, ...] = (0, 1, 2, 3),
    steps: int = 4,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> Tensor:
    """log p(codes at the free places | the others) [orders,B], for each order of them: blocks of codes, each drawn without
    seeing the others of its block."""
    given = functools.cache(
        lambda hidden: conditionals(prior, codes, torch.tensor([t in hidden for t in range(4)]), sampling)
    )
    found = []
    for order in itertools.permutations(free):
        hidden, total = frozenset(free), torch.zeros(len(codes), dtype=torch.float64)
        for block in blocks_of(order, steps):
            total = total + given(hidden)[:, list(block)].sum(1)
            hidden -= set(block)
        found.append(total)
    return torch.stack(found)


def pearson(samples: Tensor, probabilities: Tensor) -> float:
    """Of the 36 cells; those hardly ever expected are thrown together."""
    cells = (samples[:, None] == EVERY[None]).all(2).double()
    assert bool((cells.sum(1) == 1).all()), "a code out of range"
    counts, expected = cells.sum(0), probabilities * len(samples)
    impossible = expected == 0
    assert not counts[impossible].any()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare & ~impossible].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare & ~impossible].sum()[None]])
    return float(((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum())


def test_the_bound_is_the_mean_over_orders_and_never_beats_the_exact_likelihood(
    build: Callable[..., nn.Module],
) -> None:
    """log p(x) = log of the mean over orders of products of conditionals; the bound is the mean of their logs."""
    prior = build()
    by_order = log_probs_by_order(prior, EVERY)
    exact, lower = by_order.exp().mean(0), bound(prior, EVERY)
    assert float(exact.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(lower, by_order.mean(0))
    assert bool((lower < exact.log()).all())
    assert float((exact.log() - lower).max()) > 0.1, "the toy is to tell the two apart"


def test_the_likelihood_converges_to_the_bound_and_the_accuracy_to_its_mean(build: Callable[..., nn.Module]) -> None:
    prior = build(bound_draws=3000)
    with torch.no_grad():
        found = prior.likelihood(EVERY, None)
    torch.testing.assert_close(found.log_prob, bound(prior, EVERY), rtol=0.05, atol=0)
    expected = torch.zeros(36, dtype=torch.float64)
    for hidden in masks_of(4):
        right = torch.cat([grid.argmax(2) for grid in prior.logits(EVERY, None, hidden.expand(36, -1))], 1) == EVERY
        expected += right[:, hidden].double().mean(1) / 4 / math.comb(4, int(hidden.sum()))
    torch.testing.assert_close(found.accuracy, expected, rtol=0, atol=0.02)


def test_the_masks_of_the_bound_are_decided_by_the_codes_alone(build: Callable[..., nn.Module]) -> None:
    """Images that share their masks would share their luck. In a batch turned round, each image has its own again."""
    prior = build(classes=2, bound_draws=1)
    labels = (torch.arange(36) % 2)[:, None]
    with torch.no_grad():
        found = prior.log_prob(EVERY, labels)
        torch.testing.assert_close(prior.log_prob(EVERY.flip(0), labels.flip(0)), found.flip(0))
        hidden = prior._masks(EVERY)[:, 0]
    assert len(torch.unique(hidden, dim=0)) > 10


def test_the_training_loss_is_an_unbiased_estimate_of_the_bound(build: Callable[..., nn.Module]) -> None:
    prior = build(dropout=0.0).train()
    exact = bound(prior, EVERY)
    for x in (0, 17, 35):
        loss = prior.losses(EVERY[x].expand(20_000, -1), None)["nll"]
        assert float(loss.detach()) == pytest.approx(-float(exact[x]) / 4, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 2)], ids=str)
def test_samples_have_the_probabilities_of_random_orders(
    build: Callable[..., nn.Module], steps: int, sampling: Sampling
) -> None:
    """Pearson's statistic over at most 35 degrees of freedom exceeds 66.6 once in 1000. With 4 steps or more this is the
    model's own distribution, of which the likelihood is a bound."""
    prior = build(steps=steps)
    expected = log_probs_by_order(prior, EVERY, steps=min(steps, 4), sampling=sampling).exp().mean(0)
    assert pearson(prior.sample(4000, generator(1), sampling), expected) < 66.6
    if steps < 4:
        another = log_probs_by_order(prior, EVERY, sampling=sampling).exp().mean(0)
        assert pearson(prior.sample(4000, generator(1), sampling), another) > 66.6, "fewer steps draw otherwise"


def test_known_codes_stay_and_the_others_are_drawn_given_them(build: Callable[..., nn.Module]) -> None:
    """Known at once: nothing in half of the images, the first and the last code in the other half."""
    prior, n = build(), 4000
    known, mask = torch.full((2 * n, 4), -1), torch.zeros(2 * n, 4, dtype=torch.bool)
    known[n:, [0, 3]], mask[n:, [0, 3]] = torch.tensor([2, 1]), True
    samples = prior.sample(2 * n, generator(2), known=known, known_mask=mask)
    assert torch.equal(samples[mask], known[mask])
    assert pearson(samples[:n], log_probs_by_order(prior, EVERY).exp().mean(0)) < 66.6
    fits = ((EVERY[:, 0] == 2) & (EVERY[:, 3] == 1)).double()
    given = fits * log_probs_by_order(prior, EVERY, free=(1, 2), steps=2).exp().mean(0)
    assert float(given.sum()) == pytest.approx(1)
    assert pearson(samples[n:], given) < 66.6


# the network


@pytest.mark.parametrize("classes", [0, 2])
def test_a_hidden_code_is_not_seen_and_a_known_one_is_seen_everywhere(tiny: Callable[..., Any], classes: int) -> None:
    prior = plugin.build(tiny(plugin.Config), CodeSpace(((2, 2), (2, 3)), (3, 5)), labelled(classes)).double().eval()
    labels = torch.tensor([[1]]) if classes else None
    codes, hidden = torch.ones(1, 10, dtype=torch.int64), torch.zeros(1, 10, dtype=torch.bool)
    hidden[0, [1, 7]] = True
    before = torch.cat([grid.flatten(1) for grid in prior.logits(codes, labels, hidden)], 1)
    for t in range(10):
        changed = codes.clone()
        changed[0, t] = -1 if hidden[0, t] else 2
        after = torch.cat([grid.flatten(1) for grid in prior.logits(changed, labels, hidden)], 1)
        assert bool((after != before).all()) != bool(hidden[0, t])
    assert [tuple(grid.shape) for grid in prior.logits(codes, labels, hidden)] == [(1, 4, 3), (1, 6, 5)]
    with pytest.raises(ValueError, match="10 columns"):
        prior.logits(codes[:, 1:], labels, hidden)


def test_positions_of_all_grids_differ(build: Callable[..., nn.Module]) -> None:
    """With everything hidden nothing but the position tells one prediction from another."""
    prior = build(grids=((2, 2), (2, 2)), sizes=(3, 3))
    logits = torch.cat(prior.logits(torch.zeros(1, 8, dtype=torch.int64), None, torch.ones(1, 8, dtype=torch.bool)), 1)
    assert len(torch.unique(logits[0].round(decimals=6), dim=0)) == 8


def test_every_parameter_is_trained(build: Callable[..., nn.Module]) -> None:
    prior = build(classes=2, dropout=0.0).train()
    prior.losses(EVERY, (torch.arange(36) % 3)[:, None])["nll"].backward()
    assert not [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]


def test_masks_and_dropout_are_random_in_training_losses_only(build: Callable[..., nn.Module]) -> None:
    for dropout in (0.0, 0.5):
        prior = build(dropout=dropout)
        quiet = prior.losses(EVERY, None)["nll"]
        prior.train()
        assert prior.losses(EVERY, None)["nll"] != prior.losses(EVERY, None)["nll"]
        assert torch.equal(prior.eval().losses(EVERY, None)["nll"], quiet)
    losses = []
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)  # the same masks
        losses.append(build(dropout=dropout).train().losses(EVERY, None)["nll"])
    assert losses[0] != losses[1]


def test_it_learns_a_rule_in_both_directions(tiny: Callable[..., Any]) -> None:
    """The second grid is the first one upside down: of each pair the code known earlier tells the other, so that half of the
    log 3 nats a code are left, in whatever order."""
    config = tiny(plugin.Config, channels=16, layers=1, heads=2, dropout=0.0, steps=8)
    prior, draws = plugin.build(config, CodeSpace(((2, 2), (2, 2)), (3, 3)), labelled(0)).train(), generator()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(120):
        first = torch.randint(3, (64, 2, 2), generator=draws)
        codes = torch.cat([first.flatten(1), first.flip(1).flatten(1)], 1)
        optimizer.zero_grad()
        prior.losses(codes, None)["nll"].backward()
        optimizer.step()
    nll = -float(bound(prior.eval(), codes).mean()) / 8
    assert math.log(3) / 2 - 0.005 < nll < math.log(3) / 2 + 0.03
    samples = prior.sample(200, generator())
    assert float((samples[:, :4] == samples[:, [6, 7, 4, 5]]).double().mean()) > 0.97


# masks and steps


def test_masks_are_uniform_in_number_and_place() -> None:
    """Pearson's statistic of the 15 masks of 4 codes, over 14 degrees of freedom, exceeds 36.1 once in 1000."""
    draws, n = generator(3), 12_000
    found = torch.cat(
        [masking.masks(torch.rand((), generator=draws), torch.rand(1, 4, generator=draws)) for _ in range(n)]
    )
    every = masks_of(4)
    counts = (found[:, None] == every[None]).all(2).sum(0)
    expected = torch.tensor([n / 4 / math.comb(4, int(hidden.sum())) for hidden in every])
    assert float(((counts - expected) ** 2 / expected).sum()) < 36.1


def test_numbers_of_hidden_codes_cover_all_in_every_batch() -> None:
    """12 masks of 6 codes: each number twice. 3 masks: one number from each third. Never 7, however a share is rounded."""
    keys = torch.rand(12, 6, generator=generator())
    for offset in (0.01, 0.3, 0.99):  # off the edges of parts, where rounding may decide
        hidden = masking.masks(torch.tensor(offset), keys).sum(1)
        assert sorted(hidden.tolist()) == [k for k in range(1, 7) for _ in (0, 1)]
    for offset, expected in ((0.01, [1, 3, 5]), (0.3, [2, 4, 6]), (0.7, [5, 1, 3]), (0.99, [6, 2, 4])):
        assert masking.masks(torch.tensor(offset), keys[:3]).sum(1).tolist() == expected
    assert int(masking.masks(torch.tensor(1 - 2**-24), keys).sum(1).max()) == 6


def test_no_row_of_a_batch_hides_more_than_another() -> None:
    """Rows may stand in the order of the data set, as with several ranks: an image must not always be nearly whole."""
    draws, keys = generator(5), torch.rand(8, 16, generator=generator())
    hidden = sum(masking.masks(torch.rand((), generator=draws), keys).sum(1) for _ in range(2000)) / 2000
    assert float((hidden - 8.5).abs().max()) < 0.5  # the standard error is 0.1


@pytest.mark.parametrize("alone", [True, False], ids=["prior", "infiller"])
def test_training_hides_as_much_of_every_row(alone: bool, tiny: Callable[..., Any]) -> None:
    """The numbers that training draws, not only what is made of them: without the offset the first row hides 1 of 8 codes."""
    space, codes, found, draws = CodeSpace(((2, 4),), (3,)), torch.zeros(4, 8, dtype=torch.int64), [], generator(7)
    model = plugin.build(tiny(plugin.Config), space=space, conditioning=UNCONDITIONAL).train()
    model.network.register_forward_pre_hook(lambda _, given: found.append(given[2].sum(1)))
    with torch.no_grad():
        for _ in range(1000):
            if alone:
                model.losses(codes, None)
            else:
                Objective(model)(codes, None, torch.rand(4, 9, generator=draws))
    hidden = torch.stack(found).double().mean(0)
    assert float((hidden - 4.5).abs().max()) < 0.4  # the standard error is 0.07


@pytest.mark.parametrize("decoding", ["random", "confidence"])
def test_every_step_reveals_something_and_the_last_one_all(decoding: masking.Decoding) -> None:
    unknown = torch.arange(0, 70)
    for steps in (1, 2, 3, 7, 49, 64, 69, 100):
        left = [unknown] + [masking.left(unknown, step, steps, decoding) for step in range(1, steps + 1)]
        falls = torch.stack(left).diff(dim=0).neg()
        assert not left[-1].any()
        assert bool((falls > 0)[torch.stack(left[:-1]) > 0].all())
        assert bool((falls <= 1)[:, unknown <= steps].all()), "as many steps as codes: one at a time"
        if decoding == "random":
            assert bool((falls.amax(0) - falls.amin(0) <= 1)[unknown >= steps].all())


def test_confidence_reveals_by_the_cosine() -> None:
    left = [int(masking.left(torch.tensor([64]), step, 8, "confidence")) for step in range(1, 9)]
    assert left == [math.floor(64 * math.cos(math.pi / 16 * step) + 1e-9) for step in range(1, 9)]


@pytest.mark.parametrize("decoding", ["random", "confidence"])
def test_a_sample_costs_as_many_passes_as_steps(build: Callable[..., nn.Module], decoding: str) -> None:
    prior, passes = build(grids=((3, 3),), sizes=(4,), steps=5, decoding=decoding), []
    prior.network.register_forward_hook(lambda *_: passes.append(1))
    prior.sample(3, generator())
    assert len(passes) == 5
    known, mask = torch.zeros(3, 9, dtype=torch.int64), torch.ones(3, 9, dtype=torch.bool)
    for unknown, expected in (((), 0), ((4,), 1), ((0, 4, 8), 3)):
        passes.clear()
        mask[0, list(unknown)] = False
        prior.sample(3, generator(), known=known, known_mask=mask)
        assert len(passes) == expected


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize(
    ("heat", "sampling"), [(0.0, Sampling()), (2.0, Sampling(0.8, 2, 0.9, {"label": 3.0}))], ids=str
)
def test_decoding_by_confidence_is_that_of_maskgit(
    build: Callable[..., nn.Module], classes: int, heat: float, sampling: Sampling
) -> None:
    """Image by image in NumPy, from the same random numbers, in 3 steps; some codes are known."""
    if not classes:
        sampling = sampling._replace(guidance={})
    grids, sizes, n = ((2, 2), (2, 3)), (3, 5), 6
    prior = build(classes, grids, sizes, steps=3, decoding="confidence", choice_temperature=heat)
    known, labels = torch.ones(n, 10, dtype=torch.int64), (torch.arange(n) % 2)[:, None] if classes else None
    mask = torch.rand(n, 10, generator=generator(8)) < 0.2
    draws = generator(7)
    codes, hidden, start = known.numpy().copy(), ~mask.numpy(), (~mask).sum(1).tolist()
    for step in (1, 2, 3):
        uniforms, noise = torch.rand(2, n, 10, generator=draws, dtype=torch.float64).numpy()
        given = torch.from_numpy(codes), torch.from_numpy(hidden)
        with torch.no_grad():
            logits = prior.logits(given[0], labels, given[1])
            if sampling.guidance:
                none = prior.logits(given[0], torch.full((n, 1), 2), given[1])
                logits = [b + sampling.guidance["label"] * (a - b) for a, b in zip(logits, none, strict=True)]
        for image in range(n):
            places = np.flatnonzero(hidden[image])
            rows = [grid[image, t] for grid in logits for t in range(grid.shape[1])]
            candidates, scores = {}, {}
            for t in places:
                cumulative = truncate(rows[t][None], sampling)[0].softmax(0).numpy().cumsum()
                candidates[t] = int((cumulative > uniforms[image, t] * cumulative[-1]).argmax())
                gumbel = -math.log(-math.log(noise[image, t]))
                scores[t] = float(rows[t].log_softmax(0)[candidates[t]]) + heat * (1 - step / 3) * gumbel
            stay = min(math.floor(start[image] * math.cos(math.pi / 2 * step / 3) + 1e-9), max(start[image] - step, 0))
            for t in sorted(places, key=lambda t: -scores[t])[: len(places) - stay]:
                codes[image, t], hidden[image, t] = candidates[t], False
    known[~mask] = -1  # must never be looked at
    got = prior.sample(n, generator(7), sampling, labels, known, mask)
    assert got.tolist() == codes.tolist()


def test_the_most_confident_of_the_likeliest_codes_leave_nothing_to_chance(build: Callable[..., nn.Module]) -> None:
    prior = build(grids=((2, 2), (2, 3)), sizes=(3, 5), steps=3, decoding="confidence", choice_temperature=0.0)
    samples = torch.cat([prior.sample(3, generator(seed), Sampling(top_k=1)) for seed in range(3)])
    assert len(torch.unique(samples, dim=0)) == 1
    assert len(torch.unique(prior.sample(9, generator()), dim=0)) > 1


def test_guidance_goes_from_no_label_through_the_label_and_beyond(build: Callable[..., nn.Module]) -> None:
    """1 and 0 are single passes: the same codes as with that label alone."""
    prior, sizes, labels = build(classes=2), [], torch.tensor([[0], [1]]).repeat(50, 1)
    prior.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    none = prior.sample(100, generator(), conditions=torch.full_like(labels, 2))
    given = prior.sample(100, generator(), conditions=labels)
    assert torch.equal(prior.sample(100, generator(), Sampling(guidance={"label": 0.0}), labels), none)
    assert set(sizes) == {100}
    assert not torch.equal(given, none)
    near = [prior.sample(100, generator(), Sampling(guidance={"label": w}), labels) for w in (1e-12, 1 - 1e-12)]
    assert set(sizes[-4:]) == {200}
    assert torch.equal(near[0], none)
    assert torch.equal(near[1], given)
