"""The priors that any other must beat and that nothing trains: no knowledge at all, and counts after neighbours."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled
from pydantic import ValidationError
from torch import Tensor

from tessera.core import models
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Grids
from tessera.core.space import CodeSpace
from tessera.priors import ngram, uniform

GRIDS: Grids = ((2, 2), (4, 3), (4, 3))
SIZES = (3, 5, 2)
ALL = ["left", "above", "above_left", "above_right"]


def random_codes(count: int, grids: Grids = GRIDS, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randint(k, (count, h * w), generator=generator) for (h, w), k in zip(grids, sizes, strict=True)], 1
    )


# uniform


@pytest.mark.parametrize("classes", [0, 2])
def test_a_uniform_code_costs_log_k_whatever_the_codes_and_the_label(classes: int) -> None:
    prior = uniform.build(uniform.Config(), CodeSpace(GRIDS, SIZES), labelled(classes))
    codes, labels = random_codes(6), torch.tensor([0, 1, 2, 0, 1, 2])[:, None] if classes else None
    expected = -(4 * math.log(3) + 12 * math.log(5) + 12 * math.log(2))
    assert prior.log_prob(codes, labels).tolist() == pytest.approx([expected] * 6)
    prior.fit(codes, labels)
    assert prior.log_prob(codes, labels).tolist() == pytest.approx([expected] * 6)


def test_a_uniform_sample_has_every_code_equally_often() -> None:
    """7 codes, 7000 draws: Pearson's statistic over 6 degrees of freedom exceeds 22.5 once in 1000."""
    prior = uniform.build(uniform.Config(), CodeSpace(((7, 10),), (7,)), UNCONDITIONAL)
    counts = torch.bincount(prior.sample(100, torch.Generator().manual_seed(0)).flatten(), minlength=7)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 22.5


def test_a_uniform_prior_survives_its_file(tmp_path: Path) -> None:
    facts = {"grids": [[2, 2]], "codebook_sizes": [3], "conditions": []}
    recipe = models.Recipe("priors", "uniform", {}, facts)
    models.save(tmp_path, models.build(recipe), recipe, "")
    assert float(models.load(tmp_path).log_prob(torch.zeros(1, 4).long(), None)) == pytest.approx(-4 * math.log(3))


# n-gram


def fitted(
    codes: Tensor,
    labels: Tensor | None = None,
    grids: Grids = GRIDS,
    sizes: tuple[int, ...] = SIZES,
    classes: int = 0,
    **values: Any,
) -> ngram.NGram:
    config = ngram.Config.model_validate({"context": ["left", "above"], "strength": 2.0, "smoothing": 0.5, **values})
    prior = ngram.build(config, CodeSpace(grids, sizes), labelled(classes))
    prior.fit(codes, labels)
    return prior


def counted_by_hand(
    codes: Tensor, labels: Tensor | None, grids: Grids, sizes: tuple[int, ...], context: list[str]
) -> Callable[..., float]:
    """p(code | its context), from dictionaries and the module's formula, one position at a time."""
    moves = {"left": (0, -1), "above": (-1, 0), "above_left": (-1, -1), "above_right": (-1, 1)}
    starts = list(itertools.accumulate((h * w for h, w in grids), initial=0))

    def symbols(image: list[int], grid: int, y: int, x: int, label: int | None) -> tuple[Any, ...]:
        (height, width), found = grids[grid], []
        if grid:
            coarse_height, coarse_width = grids[grid - 1]
            above, left = int(y / height * coarse_height), int(x / width * coarse_width)
            found.append(image[starts[grid - 1] + above * coarse_width + left])
        for down, right in (moves[name] for name in context):
            inside = y + down >= 0 and 0 <= x + right < width
            found.append(image[starts[grid] + (y + down) * width + x + right] if inside else "outside")
        return (*found,) if label is None else (*found, f"label {label}")

    seen: dict[Any, Counter[int]] = defaultdict(Counter)
    everyone = [None] * len(codes) if labels is None else labels[:, 0].tolist()
    for image, label in zip(codes.tolist(), everyone, strict=True):
        for grid, (height, width) in enumerate(grids):
            for y, x in itertools.product(range(height), range(width)):
                given = symbols(image, grid, y, x, label)
                for length in range(len(given) + 1):
                    seen[grid, given[:length]][image[starts[grid] + y * width + x]] += 1

    def p(image: list[int], label: int | None, t: int, code: int, strength: float, smoothing: float) -> float:
        grid = sum(t >= start for start in starts[1:])
        given = symbols(image, grid, *divmod(t - starts[grid], grids[grid][1]), label)
        root = seen[grid, ()]
        value = (root[code] + smoothing) / (root.total() + smoothing * sizes[grid])
        for length in range(1, len(given) + 1):
            counts = seen[grid, given[:length]]
            value = (counts[code] + strength * value) / (counts.total() + strength)
        return value

    return p


@pytest.mark.parametrize("context", [["left", "above"], ["above_right"], ALL, ALL[::-1]], ids="-".join)
@pytest.mark.parametrize("classes", [0, 3])
def test_an_ngram_is_what_dictionaries_count(context: list[str], classes: int) -> None:
    """On images of the fit and others, with labels seen and unseen (2), and with none (3)."""
    train, new = random_codes(20), random_codes(6, seed=1)
    labels = (torch.arange(20) % 2)[:, None] if classes else None
    prior = fitted(train, labels, classes=classes, context=context, strength=0.7, smoothing=0.3)
    by_hand = counted_by_hand(train, labels, GRIDS, SIZES, context)
    images = torch.cat([train[:2], new])
    asked = torch.tensor([0, 1, 0, 1, 2, 2, 3, 3])[:, None] if classes else None
    logits = prior.logits(images, asked)
    rows = [row for grid in logits for row in grid.unbind(1)]
    for index, image in enumerate(images.tolist()):
        label = None if asked is None or asked[index] == 3 else int(asked[index])
        for t, row in enumerate(rows):
            expected = [by_hand(image, label, t, code, 0.7, 0.3) for code in range(row.shape[1])]
            assert row[index].exp().tolist() == pytest.approx(expected, rel=1e-12)
    for grid in logits:
        torch.testing.assert_close(grid.exp().sum(2), torch.ones(8, grid.shape[1], dtype=torch.float64))


def test_without_strength_seen_codes_cost_their_conditional_entropy() -> None:
    """Maximum likelihood: over the codes of its fit, H(code, left, above) - H(left, above), from counted triples."""
    codes = random_codes(40, ((4, 4),), (3,))
    prior = fitted(codes, grids=((4, 4),), sizes=(3,), strength=1e-9)
    grid = torch.full((40, 5, 5), 3)
    grid[:, 1:, 1:] = codes.view(40, 4, 4)
    triples = torch.stack([grid[:, 1:, :-1], grid[:, :-1, 1:], grid[:, 1:, 1:]], -1).view(-1, 3).tolist()

    def entropy(events: list[tuple[int, ...]]) -> float:
        return -sum(n / len(events) * math.log(n / len(events)) for n in Counter(events).values())

    expected = entropy([tuple(triple) for triple in triples]) - entropy([tuple(triple[:2]) for triple in triples])
    assert float(prior.losses(codes, None)["nll"]) == pytest.approx(expected, rel=1e-6)


def test_a_large_codebook_neither_overflows_nor_makes_large_tables() -> None:
    """With 40000 codes, four neighbours and the code make a number of 76 bits; seen contexts are at most 1 per code."""
    grids, sizes = ((3, 3), (2, 2)), (40000, 40000)
    codes = random_codes(3, grids, sizes)
    codes[1, :6] = codes[0, :6]
    codes[2, :4] = codes[0, :4]
    prior = fitted(codes, None, grids, sizes, context=ALL)
    by_hand = counted_by_hand(codes, None, grids, sizes, ALL)
    log_p = torch.cat([grid.log_softmax(2) for grid in prior.logits(codes, None)], 1)
    for index, t in itertools.product(range(3), range(13)):
        image = codes[index].tolist()
        expected = by_hand(image, None, t, image[t], 2.0, 0.5)
        assert float(log_p[index, t, image[t]].exp()) == pytest.approx(expected, rel=1e-9)
    assert max(len(buffer) for buffer in prior.buffers()) <= 27


def test_logits_while_sampling_are_those_of_the_whole_images() -> None:
    codes, labels = random_codes(20), (torch.arange(20) % 2)[:, None]
    prior = fitted(codes, labels, classes=2, context=ALL)
    images, asked = random_codes(4, seed=3), torch.tensor([[0], [1], [2], [2]])
    steps = prior.walk(4, asked)
    seen = [next(steps)] + [steps.send(images[:, t]) for t in range(images.shape[1] - 1)]
    rows = [row for grid in prior.logits(images, asked) for row in grid.unbind(1)]
    assert all(torch.equal(one, other) for one, other in zip(seen, rows, strict=True))


def test_no_label_and_a_label_never_seen_say_what_an_unconditional_fit_says() -> None:
    codes, new = random_codes(20), random_codes(6, seed=1)
    conditional, plain = fitted(codes, (torch.arange(20) % 2)[:, None], classes=3), fitted(codes)
    for label in (2, 3):
        assert torch.equal(conditional.log_prob(new, torch.full((6, 1), label)), plain.log_prob(new, None))
    assert not torch.equal(conditional.log_prob(new, torch.zeros(6, 1).long()), plain.log_prob(new, None))


def test_images_without_a_label_count_for_all_and_for_no_label_of_their_own() -> None:
    codes, labels = random_codes(20), (torch.arange(20) % 2)[:, None]
    labels[10:] = 2
    prior, new = fitted(codes, labels, classes=2), random_codes(6, seed=1)
    assert torch.equal(prior.log_prob(new, torch.full((6, 1), 2)), fitted(codes).log_prob(new, None))


def test_an_ngram_that_counted_nothing_is_uniform() -> None:
    config = ngram.Config(context=["left"], strength=1.0, smoothing=0.1)
    prior = ngram.build(config, CodeSpace(GRIDS, SIZES), UNCONDITIONAL)
    expected = -(4 * math.log(3) + 12 * math.log(5) + 12 * math.log(2))
    assert prior.log_prob(random_codes(2), None).tolist() == pytest.approx([expected] * 2)


def test_tables_load_into_a_fresh_module_and_into_one_of_another_fit(tmp_path: Path) -> None:
    prior, codes = fitted(random_codes(20)), random_codes(5, seed=1)
    models.save_weights(tmp_path / "weights", prior.state_dict())
    state = models.load_weights(tmp_path / "weights")
    for other in (ngram.build(prior.config, prior.space, UNCONDITIONAL), fitted(random_codes(3, seed=2))):
        other.load_state_dict(state)
        assert torch.equal(other.log_prob(codes, None), prior.log_prob(codes, None))
    prior.fit(random_codes(3, seed=2), None)  # a fit starts anew, and its tables are shared with nobody
    assert not torch.equal(other.log_prob(codes, None), prior.log_prob(codes, None))
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.log_prob(codes, None), prior.log_prob(codes, None))


def test_a_state_without_a_table_is_refused() -> None:
    prior = fitted(random_codes(5))
    state = prior.state_dict()
    del state["tables.0.1.counts"]
    with pytest.raises(RuntimeError, match=r"tables\.0\.1\.counts"):
        prior.load_state_dict(state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": []}, "at least 1"),
        ({"context": ["left", "above", "left"]}, "once"),
        ({"context": ["below"]}, "'left', 'above'"),
        ({"strength": 0.0}, "greater than 0"),
        ({"smoothing": 0.0}, "greater than 0"),
    ],
)
def test_a_context_is_of_earlier_neighbours_each_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        fitted(random_codes(2), **values)
