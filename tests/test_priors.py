"""The contract of priors, over every file of the seam; then what each one promises beyond it."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import labelled
from torch import Tensor, nn

from tessera.autoregression import sampling as draws
from tessera.autoregression.condition import resized
from tessera.autoregression.sampling import naive_sample, truncate
from tessera.core import seams
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Grids, Sampling
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace
from tessera.priors import gated_pixelcnn, histogram
from tessera.priors.gated_pixelcnn import GatedLayer, GatedNetwork

PRIORS = seams.names("priors")
ONE: tuple[Grids, tuple[int, ...]] = (((4, 3),), (5,))
TWO: tuple[Grids, tuple[int, ...]] = (((2, 2), (4, 3)), (3, 5))
DEPTHS: tuple[Grids, tuple[int, ...]] = (((3, 2), (3, 2)), (3, 5))
SHAPES = pytest.mark.parametrize(("grids", "sizes"), [ONE, TWO, DEPTHS], ids=["one_grid", "two_grids", "two_depths"])
CLASSES = pytest.mark.parametrize("classes", [0, 2], ids=["unconditional", "two_classes"])
EVERY = pytest.mark.parametrize("name", PRIORS)
BLIND = ("histogram", "uniform")  # whatever came before, the next code has the same probabilities


def plug_in(name: str) -> tuple[Any, dict[str, Any]]:
    """A file of the seam, and the examples of its fields."""
    module = seams.plugin("priors", name)
    return module, {field: info.examples[0] for field, info in module.Config.model_fields.items()}


def _is_exact(name: str) -> bool:
    module, examples = plug_in(name)
    return module.build(module.Config.model_validate(examples), CodeSpace(((1, 1),), (2,)), UNCONDITIONAL).exact


EXACT = pytest.mark.parametrize("name", [name for name in PRIORS if _is_exact(name)])


def random_codes(count: int, grids: Grids, sizes: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randint(k, (count, h * w), generator=generator) for (h, w), k in zip(grids, sizes, strict=True)], 1
    )


def random_labels(count: int, classes: int) -> Tensor | None:
    return (torch.arange(count) % classes)[:, None] if classes else None


def tiny(name: str, grids: Grids, sizes: tuple[int, ...], classes: int, seed: int = 0, **values: Any) -> nn.Module:
    """A prior from the examples of its fields, in eval mode and float64; one that can be fitted is, to random codes."""
    module, examples = plug_in(name)
    torch.manual_seed(seed)
    prior = module.build(
        module.Config.model_validate({**examples, **values}), CodeSpace(grids, sizes), labelled(classes)
    )
    if hasattr(prior, "fit"):
        prior.fit(random_codes(7, grids, sizes, seed), random_labels(7, classes))
    return prior.double().eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the contract


@EVERY
@SHAPES
@CLASSES
def test_shapes_types_and_ranges(name: str, grids: Grids, sizes: tuple[int, ...], classes: int) -> None:
    prior, codes, labels = tiny(name, grids, sizes, classes), random_codes(6, grids, sizes), random_labels(6, classes)
    assert (prior.space, prior.conditioning) == (CodeSpace(grids, sizes), labelled(classes))
    if prior.exact:
        logits = prior.logits(codes, labels)
        assert [tuple(grid.shape) for grid in logits] == [(6, h * w, k) for (h, w), k in zip(grids, sizes, strict=True)]
        right = torch.cat([grid.argmax(2) for grid in logits], dim=1) == codes
        torch.testing.assert_close(
            prior.likelihood(codes, labels).accuracy.double(), right.double().mean(1), rtol=1e-6, atol=0
        )
    log_prob, accuracy = prior.likelihood(codes, labels)
    assert log_prob.shape == accuracy.shape == (6,)
    assert bool((log_prob < 0).all())
    assert bool(((accuracy >= 0) & (accuracy <= 1)).all())
    assert torch.equal(prior.log_prob(codes, labels), log_prob)
    losses = prior.losses(codes, labels)
    assert all(term.shape == () for term in losses.values())
    torch.testing.assert_close(losses["nll"], -log_prob.mean() / codes.shape[1])
    samples = prior.sample(6, generator(), conditions=labels)
    assert samples.dtype == torch.int64
    assert samples.shape == codes.shape
    for part, size in zip(prior.space.split(samples), sizes, strict=True):
        assert set(part.flatten().tolist()) <= set(range(size))


@EVERY
@CLASSES
def test_the_generator_alone_decides_a_sample(name: str, classes: int) -> None:
    prior, labels = tiny(name, *TWO, classes), random_labels(4, classes)
    samples = prior.sample(4, generator(1), conditions=labels)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(prior.sample(4, generator(1), conditions=labels), samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(prior.sample(4, generator(2), conditions=labels), samples)


@EVERY
def test_nothing_but_training_changes_a_prior(name: str) -> None:
    """Eval mode is deterministic and writes no buffer; `log_prob`, `sample` are so in training mode too."""
    prior, codes = tiny(name, *TWO, 0), random_codes(4, *TWO)
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    losses, log_prob = prior.losses(codes, None)["nll"], prior.log_prob(codes, None)
    samples = prior.sample(4, generator())
    assert torch.equal(prior.losses(codes, None)["nll"], losses)
    prior.train()
    assert torch.equal(prior.log_prob(codes, None), log_prob)
    assert torch.equal(prior.sample(4, generator()), samples)
    after = prior.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@EVERY
@CLASSES
def test_an_image_does_not_see_its_batch(name: str, classes: int) -> None:
    prior, codes, labels = tiny(name, *TWO, classes), random_codes(5, *TWO), random_labels(5, classes)
    together = prior.log_prob(codes, labels)
    alone = [prior.log_prob(codes[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-12, atol=0)


@EVERY
@CLASSES
def test_a_state_dict_is_the_whole_prior(name: str, classes: int) -> None:
    prior, other = tiny(name, *TWO, classes), tiny(name, *TWO, classes, seed=1)
    codes, labels = random_codes(5, *TWO), random_labels(5, classes)
    assert name == "uniform" or not torch.equal(other.log_prob(codes, labels), prior.log_prob(codes, labels))
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.log_prob(codes, labels), prior.log_prob(codes, labels))
    assert torch.equal(other.sample(3, generator(), conditions=random_labels(3, classes)),
                       prior.sample(3, generator(), conditions=random_labels(3, classes)))  # fmt: skip


@EXACT
@CLASSES
@pytest.mark.parametrize(
    ("grids", "sizes"), [(((2, 2),), (3,)), (((1, 2), (2, 2)), (2, 2)), (((1, 2), (2, 2)), (3, 2))]
)
def test_probabilities_of_all_sequences_sum_to_one(
    name: str, grids: Grids, sizes: tuple[int, ...], classes: int
) -> None:
    per_code = [k for (h, w), k in zip(grids, sizes, strict=True) for _ in range(h * w)]
    every = torch.tensor(list(itertools.product(*map(range, per_code))))
    prior = tiny(name, grids, sizes, classes)
    for label in range(classes + 1):  # the last one is no label
        total = prior.log_prob(every, torch.full((len(every), 1), label) if classes else None).detach().exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-6 if hasattr(prior, "fit") else 1e-12)  # float32 tables


@EXACT
@SHAPES
def test_no_code_is_predicted_from_itself_or_a_later_one(name: str, grids: Grids, sizes: tuple[int, ...]) -> None:
    """Earlier and later are meant in the order in which the prior draws."""
    prior, codes = tiny(name, grids, sizes, 0), random_codes(3, grids, sizes)
    order, before = list(prior.order), each(prior.logits(codes, None))
    assert sorted(order) == list(range(codes.shape[1]))
    for step, t in enumerate(order):
        changed = codes.clone()
        changed[:, t] = (codes[:, t] + 1) % sizes[prior.space.locate(t)[0]]
        after = each(prior.logits(changed, None))
        moved = torch.tensor([not torch.equal(new, old) for new, old in zip(after, before, strict=True)])
        assert not moved[order[: step + 1]].any()
        if name not in BLIND and step + 1 < len(order):
            assert moved[order[step + 1 :]].any(), f"code {t} tells nothing about any later one"


def each(logits: tuple[Tensor, ...]) -> list[Tensor]:
    """Grid by grid [n,h*w,K] -> position by position [n,K]."""
    return [part for grid in logits for part in grid.unbind(1)]


def sampled_by_hand(
    prior: nn.Module, n: int, sampling: Sampling, labels: Tensor | None, known: Tensor | None, mask: Tensor | None
) -> Tensor:
    """One full pass per position, the draw in NumPy, from the same uniforms: an image's row, a position's column."""
    length = prior.space.length
    uniforms = torch.rand(n, length, generator=generator(3), dtype=torch.float64).numpy()
    codes = torch.zeros(n, length, dtype=torch.int64)
    for t in prior.order:
        logits = each(prior.logits(codes, labels))[t]
        if labels is not None and sampling.guidance:
            none = each(prior.logits(codes, torch.full_like(labels, 2)))[t]
            logits = none + sampling.guidance["label"] * (logits - none)
        cumulative = truncate(logits, sampling).softmax(1).detach().numpy().cumsum(1)
        codes[:, t] = torch.from_numpy((cumulative > uniforms[:, t, None] * cumulative[:, -1:]).argmax(1))
        if known is not None and mask is not None:
            codes[mask[:, t], t] = known[mask[:, t], t]
    return codes


@EXACT
@CLASSES
@SHAPES
@pytest.mark.parametrize(
    ("sampling", "some_known"),
    [(Sampling(), False), (Sampling(0.7, 3, 0.9, {"label": 2.5}), True)],
    ids=str,
)
def test_cached_and_naive_sampling_draw_the_codes_drawn_by_hand(
    name: str, grids: Grids, sizes: tuple[int, ...], classes: int, sampling: Sampling, some_known: bool
) -> None:
    if not classes:
        sampling = sampling._replace(guidance={})
    prior, labels, known, mask = tiny(name, grids, sizes, classes), random_labels(5, classes), None, None
    if some_known:
        known = random_codes(5, grids, sizes, seed=9)
        mask = torch.rand(known.shape, generator=generator(8)) < 0.4
        known[~mask] = -1  # must never be looked at
    expected = sampled_by_hand(prior, 5, sampling, labels, known, mask)
    given = {"conditions": labels, "known": known, "known_mask": mask}
    assert torch.equal(naive_sample(prior, 5, generator(3), sampling, **given), expected)
    assert torch.equal(prior.sample(5, generator(3), sampling, **given), expected)
    if mask is not None:
        assert torch.equal(expected[mask], known[mask])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """As many cores as this for a test, each worth taking for one image."""
    before = torch.get_num_threads()
    monkeypatch.setattr(draws, "PART", 1)
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@EXACT
@pytest.mark.parametrize(("n", "forks"), [(1, True), (2, True), (5, True), (5, False)])
def test_cores_that_share_the_images_draw_the_same_codes(
    name: str, n: int, forks: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image by its own uniforms, label and known codes, whichever process or thread walks it."""
    monkeypatch.setattr("tessera.autoregression.forks._may_fork", lambda: forks)
    (grids, sizes), labels = TWO, (torch.arange(n) % 3)[:, None]
    prior, known, sampling = (
        tiny(name, grids, sizes, 2),
        random_codes(n, grids, sizes, seed=9),
        Sampling(guidance={"label": 1.5}),
    )
    mask = torch.rand(known.shape, generator=generator(8)) < 0.4
    shared = prior.sample(n, generator(3), sampling, labels, known, mask)
    shared += 0  # may be written to
    torch.set_num_threads(1)
    assert torch.equal(shared, prior.sample(n, generator(3), sampling, labels, known, mask))


@EXACT
def test_samples_have_the_probabilities_that_log_prob_says(name: str) -> None:
    """All 16 images of 2x2 codes from 2: Pearson's statistic over 15 degrees of freedom exceeds 37.7 once in 1000."""
    prior, n = tiny(name, ((2, 2),), (2,), 0), 8000
    every = torch.tensor(list(itertools.product(range(2), repeat=4)))
    expected = prior.log_prob(every, None).detach().exp() * n
    counts = torch.bincount(prior.sample(n, generator(5)) @ torch.tensor([8, 4, 2, 1]), minlength=16)
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.7


@EVERY
def test_labels_are_given_exactly_where_there_are_classes(name: str) -> None:
    codes = random_codes(2, *TWO)
    without, with_classes = tiny(name, *TWO, 0), tiny(name, *TWO, 2)
    some = torch.tensor([[0], [1]])
    for call in (without.losses, without.log_prob):
        with pytest.raises(InputError, match="not conditioned"):
            call(codes, some)
    for call in (with_classes.losses, with_classes.log_prob):
        with pytest.raises(InputError, match="conditioned on label: conditions must be given"):
            call(codes, None)
        with pytest.raises(InputError, match="from 0 to 1, or 2 for none"):
            call(codes, torch.tensor([[0], [3]]))
        with pytest.raises(InputError, match="one row per image"):
            call(codes, some[:1])
    with pytest.raises(InputError, match="not conditioned"):
        without.sample(2, generator(), conditions=some)
    with pytest.raises(InputError, match="conditioned on label: conditions must be given"):
        with_classes.sample(2, generator())


@EVERY
def test_guidance_1_is_conditional_and_0_forgets_the_label(name: str) -> None:
    prior, labels = tiny(name, *TWO, 2), random_labels(6, 2)
    none = torch.full_like(labels, 2)
    given, forgotten = prior.sample(6, generator(), conditions=labels), prior.sample(6, generator(), conditions=none)
    assert torch.equal(prior.sample(6, generator(), Sampling(guidance={"label": 1.0}), labels), given)
    assert torch.equal(prior.sample(6, generator(), Sampling(guidance={"label": 0.0}), labels), forgotten)
    assert torch.equal(prior.sample(6, generator(), Sampling(guidance={"label": 3.0}), none), forgotten)
    with pytest.raises(InputError, match="guidance >= 0"):
        prior.sample(6, generator(), Sampling(guidance={"label": -1.0}), labels)
    with pytest.raises(InputError, match="guidance: this prior knows no words: it is told label"):
        prior.sample(6, generator(), Sampling(guidance={"words": 2.0}), labels)


@EXACT
def test_top_k_1_and_a_temperature_near_0_take_the_likeliest_code(name: str) -> None:
    prior = tiny(name, *TWO, 0)
    greedy = torch.zeros(3, 16, dtype=torch.int64)
    for t in prior.order:
        greedy[:, t] = each(prior.logits(greedy, None))[t].argmax(1)
    assert torch.equal(prior.sample(3, generator(), Sampling(top_k=1)), greedy)
    if name != "uniform":  # all its codes are the likeliest
        assert torch.equal(prior.sample(3, generator(), Sampling(temperature=1e-9)), greedy)


@EVERY
def test_known_codes_are_checked_where_they_count(name: str) -> None:
    prior, codes = tiny(name, *TWO, 0), random_codes(2, *TWO)
    mask = torch.ones(2, 16, dtype=torch.bool)
    assert torch.equal(prior.sample(2, generator(), known=codes, known_mask=mask), codes)
    with pytest.raises(InputError, match="together"):
        prior.sample(2, generator(), known=codes)
    with pytest.raises(InputError, match="shape"):
        prior.sample(2, generator(), known=codes[:, 1:], known_mask=mask[:, 1:])
    with pytest.raises(InputError, match="bool"):
        prior.sample(2, generator(), known=codes, known_mask=mask.long())
    codes[1, 3] = 3  # the first grid has 3 codes
    with pytest.raises(InputError, match="from 0 to 2"):
        prior.sample(2, generator(), known=codes, known_mask=mask)


@EVERY
@CLASSES
def test_a_prior_is_capturable_where_its_walk_asks_for_no_value(name: str, classes: int) -> None:
    """On the meta device there is none to give. `masked` has no walk at all."""
    prior, labels = tiny(name, *TWO, classes), random_labels(4, classes)
    assert type(prior).capturable is (name not in ("masked", "ngram"))
    uniforms = torch.zeros(4, 16, dtype=torch.float64, device="meta")
    labels = labels.to("meta") if labels is not None else None
    walk = partial(
        draws.walked, prior.to("meta"), getattr(prior, "walk", None), uniforms, Sampling(), labels, None, None
    )
    if prior.capturable:
        assert walk()[0].shape == (4, 16)
    elif prior.exact:
        with pytest.raises((RuntimeError, NotImplementedError)):
            walk()


# gated PixelCNN


def test_a_gated_layer_is_the_papers_masked_convolution() -> None:
    """Half kernels with padding and cropping against whole k x k kernels, masked, on every kernel size."""
    for kernel_size in (3, 5):
        torch.manual_seed(0)
        layer, reach = GatedLayer(4, kernel_size).double(), kernel_size // 2
        vertical, horizontal = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64)
        condition = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        above_kernel = F.pad(layer.vertical.weight, (0, 0, 0, reach))  # rows below the middle one masked
        left_kernel = F.pad(layer.horizontal.weight, (0, reach, reach, reach))  # the middle row, up to its centre
        above = F.conv2d(vertical, above_kernel, layer.vertical.bias, padding=reach)
        above = above + torch.einsum("oc,bcyx->boyx", layer.condition.weight[:, :, 0, 0], condition)
        left = F.conv2d(horizontal, left_kernel, padding=reach)
        left = left + torch.einsum("oc,bcyx->boyx", layer.link.weight[:, :, 0, 0], above)
        left = left + layer.link.bias[:, None, None]
        opened = torch.tanh(left[:, :4]) * torch.sigmoid(left[:, 4:])
        expected = horizontal + torch.einsum("oc,bcyx->boyx", layer.out.weight[:, :, 0, 0], opened)
        got_vertical, got_horizontal = layer(vertical, horizontal, condition, 0.0)
        torch.testing.assert_close(got_horizontal, expected)
        torch.testing.assert_close(got_vertical, torch.tanh(above[:, :4]) * torch.sigmoid(above[:, 4:]))


@pytest.mark.parametrize(("kernel_size", "layers"), [(3, 5), (5, 3)])
def test_the_receptive_field_is_every_earlier_code_and_no_other(kernel_size: int, layers: int) -> None:
    """By the gradient on embedded codes of a 5x6 grid: no blind spot above to the right, nothing from the future."""
    torch.manual_seed(0)
    network = GatedNetwork(4, 8, layers, kernel_size).double()
    embedded = torch.randn(1, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    logits = network.from_embedded(embedded, torch.randn(1, 8, 5, 6, dtype=torch.float64))[0]
    for t in range(30):
        (gradient,) = torch.autograd.grad(logits[t].square().sum(), embedded, retain_graph=True)
        seen = (gradient != 0).any(1).flatten()
        assert seen.tolist() == [earlier < t for earlier in range(30)]


def test_logits_seen_while_sampling_are_those_of_one_forward_pass() -> None:
    """In float32, with codes sent by hand, on three grids with labels; a cache that is off by one fails by far."""
    grids, sizes = ((3, 2), (7, 8), (7, 8)), (11, 32, 5)
    values = {"channels": 24, "layers": 6, "kernel_size": 5}
    prior = tiny("gated_pixelcnn", grids, sizes, 3, **values).float()
    codes, labels = random_codes(6, grids, sizes), random_labels(6, 3)
    steps = prior.walk(6, labels)
    seen = [next(steps)] + [steps.send(codes[:, t]) for t in range(codes.shape[1] - 1)]
    steps.close()
    full = each(prior.logits(codes, labels))
    for one, other in zip(seen, full, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_sample_remembers_nothing_of_the_last_one() -> None:
    """Two walks at once, of different sizes, do not disturb each other; the module keeps no tensor of either."""
    prior = tiny("gated_pixelcnn", *ONE, 0)
    attributes = {name: set(vars(module)) for name, module in prior.named_modules()}
    codes = {n: random_codes(n, *ONE, seed=n) for n in (2, 3)}
    walks = {n: prior.walk(n, None) for n in (2, 3)}
    seen = {n: [next(walk)] for n, walk in walks.items()}
    for t, n in itertools.product(range(11), (2, 3)):
        seen[n].append(walks[n].send(codes[n][:, t]))
    for n in (2, 3):
        walks[n].close()
        torch.testing.assert_close(torch.stack(seen[n], 1), prior.logits(codes[n], None)[0])
    assert attributes == {name: set(vars(module)) for name, module in prior.named_modules()}


def test_a_later_grid_is_conditioned_on_earlier_ones_and_on_the_label() -> None:
    prior, codes = tiny("gated_pixelcnn", *TWO, 2, channels=16), random_codes(1, *TWO)
    label = torch.tensor([[0]])
    first, second = prior.logits(codes, label)
    other_label = prior.logits(codes, 1 - label)
    assert (other_label[0] != first).any(2).all()
    assert (other_label[1] != second).any(2).all()
    changed = codes.clone()
    changed[0, 0] = (codes[0, 0] + 1) % 3
    moved = (prior.logits(changed, label)[1] != second).any(2)[0]
    assert moved[0], "the first code of the fine grid must see the coarse code at its place"


@pytest.mark.parametrize(("before", "after"), [((2, 3), (4, 6)), ((3, 3), (8, 7)), ((4, 4), (4, 4)), ((4, 6), (2, 2))])
def test_earlier_grids_are_resized_to_the_nearest_code(before: tuple[int, int], after: tuple[int, int]) -> None:
    codes = torch.arange(2 * before[0] * before[1]).view(2, *before)
    expected = F.interpolate(codes[:, None].double(), size=after, mode="nearest")[:, 0].long()
    assert torch.equal(resized(codes, *after), expected)


def test_every_parameter_of_a_pixelcnn_is_trained() -> None:
    prior, codes = tiny("gated_pixelcnn", *TWO, 2), random_codes(8, *TWO)
    prior.losses(codes, random_labels(8, 2))["nll"].backward()
    idle = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle


def test_dropout_acts_in_training_losses_only() -> None:
    prior, codes = tiny("gated_pixelcnn", *ONE, 0, dropout=0.5), random_codes(8, *ONE)
    quiet = prior.losses(codes, None)["nll"]
    prior.train()
    torch.manual_seed(0)
    noisy = prior.losses(codes, None)["nll"]
    assert noisy != quiet
    assert prior.losses(codes, None)["nll"] != noisy
    torch.manual_seed(0)
    assert prior.losses(codes, None)["nll"] == noisy
    prior = tiny("gated_pixelcnn", *ONE, 0, dropout=0.0)
    assert prior.losses(codes, None)["nll"] == prior.train().losses(codes, None)["nll"]


def test_a_pixelcnn_learns_a_rule_that_no_histogram_can() -> None:
    """Each code is the one to its left plus the one above, modulo 3; the first row and column are random. Learnt from
    ever new codes, so that the nats left over are those of the 5 random codes of 9."""
    draws = generator()
    prior = tiny("gated_pixelcnn", ((3, 3),), (3,), 0, channels=16, layers=2, dropout=0.0).float().train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(150):
        codes = torch.randint(3, (64, 3, 3), generator=draws)
        for y, x in itertools.product((1, 2), (1, 2)):
            codes[:, y, x] = (codes[:, y, x - 1] + codes[:, y - 1, x]) % 3
        optimizer.zero_grad()
        loss = prior.losses(codes.flatten(1), None)["nll"]
        loss.backward()
        optimizer.step()
    floor = 5 / 9 * math.log(3)
    assert floor - 0.01 < float(loss.detach()) < floor + 0.03  # nats; a histogram's would be log 3 = 1.10


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        tiny("gated_pixelcnn", *ONE, 0, kernel_size=4)


# histogram


def fitted(codes: Tensor, grids: Grids, sizes: tuple[int, ...], labels: Any = None, **values: Any) -> nn.Module:
    config = histogram.Config.model_validate({"per_position": False, "smoothing": 0.0, **values})
    prior = histogram.build(config, CodeSpace(grids, sizes), labelled(0 if labels is None else 2))
    prior.fit(codes, labels)
    return prior


def entropy(codes: Tensor) -> float:
    p = torch.unique(codes, return_counts=True)[1].double() / codes.numel()
    return float(-(p * p.log()).sum())


def test_the_likelihood_of_fitted_codes_is_their_entropy() -> None:
    codes = random_codes(50, *TWO) // 2 * 2  # odd codes never occur
    first, second = codes[:, :4], codes[:, 4:]
    nll = float(fitted(codes, *TWO).losses(codes, None)["nll"])
    assert nll == pytest.approx((4 * entropy(first) + 12 * entropy(second)) / 16, rel=1e-6)
    nll = float(fitted(codes, *TWO, per_position=True).losses(codes, None)["nll"])
    assert nll == pytest.approx(sum(entropy(codes[:, t]) for t in range(16)) / 16, rel=1e-6)
    labels = (torch.arange(50) % 3 == 0).long()[:, None]
    conditional = fitted(codes, *TWO, labels=labels).log_prob(codes, labels)
    for label in (0, 1):
        mine = codes[labels[:, 0] == label]
        expected = -4 * entropy(mine[:, :4]) - 12 * entropy(mine[:, 4:])
        assert float(conditional[labels[:, 0] == label].mean()) == pytest.approx(expected, rel=1e-6)


def test_smoothing_is_a_pseudo_count() -> None:
    codes = torch.tensor([[0, 0, 1]])
    prior = fitted(codes, ((1, 3),), (4,), smoothing=0.5)
    torch.testing.assert_close(prior.logits(codes, None)[0][0, 0].exp(), torch.tensor([2.5, 1.5, 0.5, 0.5]) / 5)


def test_an_unseen_code_is_impossible_without_smoothing_and_an_unseen_label_knows_nothing() -> None:
    codes = torch.tensor([[0, 0, 1]])
    prior = fitted(codes, ((1, 3),), (4,), labels=torch.tensor([[0]]))
    assert float(prior.log_prob(torch.tensor([[0, 0, 2]]), torch.tensor([[0]]))) == -math.inf
    assert set(prior.sample(50, generator(), conditions=torch.zeros(50, 1, dtype=torch.int64)).flatten().tolist()) == {
        0,
        1,
    }
    assert float(prior.log_prob(codes, torch.tensor([[1]]))) == pytest.approx(-3 * math.log(4))


def test_a_prior_in_closed_form_is_told_by_its_file() -> None:
    assert hasattr(histogram, "fit")
    assert not hasattr(gated_pixelcnn, "fit")
    for name in PRIORS:
        assert hasattr(seams.plugin("priors", name), "fit") == hasattr(tiny(name, *ONE, 0), "fit")
