"""The masked PixelCNN: its masks, what it sees beside the gated one, and the order in which it draws channels."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import example, labelled
from torch import Tensor, nn

import tessera
from tessera.autoregression.sampling import naive_sample
from tessera.core import files, models
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Grids
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace
from tessera.priors import gated_pixelcnn, pixelcnn
from tessera.priors.gated_pixelcnn import GatedNetwork
from tessera.priors.pixelcnn import MaskedConv2d, MaskedNetwork, readable

ROOT = Path(__file__).resolve().parent.parent
INPUTS, OUTPUTS = (2, 1, 3), (1, 2, 2)  # features of three groups
RGB: tuple[Grids, tuple[int, ...]] = (((3, 4),) * 3, (5, 5, 5))
LEVELS: tuple[Grids, tuple[int, ...]] = (((2, 2), (4, 3), (4, 3)), (3, 5, 4))
SHAPES = pytest.mark.parametrize(("grids", "sizes"), [RGB, LEVELS], ids=["rgb", "a_level_and_two_depths"])
CLASSES = pytest.mark.parametrize("classes", [0, 2], ids=["unconditional", "two_classes"])


def build(grids: Grids, sizes: tuple[int, ...], classes: int = 0, **values: Any) -> pixelcnn.PixelCNN:
    config = example(pixelcnn.Config, **{"layers": 2, **values})
    return pixelcnn.build(config, CodeSpace(grids, sizes), labelled(classes)).double().eval()


def random_codes(count: int, grids: Grids, sizes: tuple[int, ...]) -> Tensor:
    return torch.cat([torch.randint(k, (count, h * w)) for (h, w), k in zip(grids, sizes, strict=True)], 1)


def random_labels(count: int, classes: int) -> Tensor | None:
    return (torch.arange(count) % (classes + 1))[:, None] if classes else None  # one of them is no label


def group_of(channel: int, widths: tuple[int, ...]) -> int:
    return [group for group, width in enumerate(widths) for _ in range(width)][channel]


def visible(o: int, i: int, dy: int, dx: int, itself: bool) -> bool:
    """Whether feature o sees feature i that lies dy rows and dx columns away (paper, sec. 3.4)."""
    if (dy, dx) != (0, 0):
        return dy < 0 or (dy == 0 and dx < 0)
    mine, its = group_of(o, OUTPUTS), group_of(i, INPUTS)
    return its < mine or (itself and its == mine)


# masks


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("itself", [False, True], ids="AB")
def test_a_mask_is_the_papers_entry_by_entry(kernel_size: int, itself: bool) -> None:
    reach = kernel_size // 2
    found = readable(kernel_size, INPUTS, OUTPUTS, itself)
    assert tuple(found.shape) == (5, 6, reach + 1, kernel_size)
    for o, i, row, column in itertools.product(*map(range, found.shape)):
        assert bool(found[o, i, row, column]) == visible(o, i, row - reach, column - reach, itself)


@pytest.mark.parametrize("itself", [False, True], ids="AB")
def test_a_masked_convolution_is_a_sum_over_what_is_visible(itself: bool) -> None:
    layer, x = MaskedConv2d(INPUTS, OUTPUTS, 3, itself).double(), torch.randn(2, 6, 3, 4, dtype=torch.float64)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    expected = bias[:, None, None].expand(2, 5, 3, 4).clone()
    for o, i, y, x_, dy, dx in itertools.product(range(5), range(6), range(3), range(4), (-1, 0, 1), (-1, 0, 1)):
        if 0 <= y + dy < 3 and 0 <= x_ + dx < 4 and visible(o, i, dy, dx, itself):
            expected[:, o, y, x_] += weight[o, i, 1 + dy, 1 + dx] * x[:, i, y + dy, x_ + dx]
    torch.testing.assert_close(layer(x).detach(), expected)


def test_what_is_masked_counts_nothing_and_is_never_written() -> None:
    layer, x = MaskedConv2d(INPUTS, OUTPUTS, 3), torch.randn(2, 6, 3, 4)
    expected = layer(x)
    with torch.no_grad():
        layer.weight[~layer.mask] = 1e6
    averaged = copy.deepcopy(layer)
    for one in (layer, averaged):
        assert torch.equal(one(x), expected)
        assert bool((one.weight[~one.mask] == 1e6).all())
    layer(x).square().sum().backward()
    assert not bool(layer.weight.grad[~layer.mask].any())
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_the_network_is_the_papers() -> None:
    """Table 1 and fig. 5 left with whole kernels: mask A in the first layer alone, ReLU before every other one, blocks of
    2h to h, h to h and h to 2h features, a condition as bias of the middle one."""
    network = MaskedNetwork((3, 4), 4, 2, 5, 3).double()
    codes, condition = torch.randint(3, (2, 2, 3, 4)), torch.randn(2, 4, 3, 4, dtype=torch.float64)

    def masked(layer: MaskedConv2d, x: Tensor, kernel: int, outputs: int, itself: bool = True) -> Tensor:
        inputs, first = x.shape[1], 3 if outputs == 7 else outputs // 2  # 3 + 4 logits, else halves
        assert tuple(layer.weight.shape) == (outputs, inputs, kernel // 2 + 1, kernel)
        whole, centre = F.pad(layer.weight, (0, 0, 0, kernel // 2)).clone(), kernel // 2
        whole[:, :, centre, centre + 1 :] = 0
        whole[:first, inputs // 2 :, centre, centre] = 0  # the first grid never sees the second at its place
        if not itself:
            whole[:first, : inputs // 2, centre, centre] = 0
            whole[first:, inputs // 2 :, centre, centre] = 0
        return F.conv2d(x, whole, layer.bias, padding=centre)

    embedded = [network.embeddings[group](codes[:, group]) for group in range(2)]
    x = masked(network.first, torch.cat(embedded, 3).permute(0, 3, 1, 2), 5, 8, itself=False)
    for block in network.blocks:
        inner = masked(block.reduce, x.relu(), 1, 4)
        inner = masked(block.middle, inner.relu(), 3, 4) + block.condition(condition)
        x = x + masked(block.expand, inner.relu(), 1, 8)
    x = masked(network.head, masked(network.hidden, x.relu(), 1, 8).relu(), 1, 7)
    first, second = network(list(codes.unbind(1)), condition)
    torch.testing.assert_close(torch.cat([first, second], dim=2), x.flatten(2).transpose(1, 2))


# receptive fields


def spread(field: set[tuple[int, int]], kernel_size: int, itself: bool, shape: tuple[int, int]) -> set[tuple[int, int]]:
    """Positions that a masked kernel at each of `field` sees, within the grid."""
    r, found = kernel_size // 2, set()
    for (y, x), dy, dx in itertools.product(field, range(-r, 1), range(-r, r + 1)):
        inside = 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]
        if inside and (dy < 0 or dx < 0 or (dx == 0 and itself)):
            found.add((y + dy, x + dx))
    return found


def masked_field(y: int, x: int, layers: int, kernel: int, first: int, shape: tuple[int, int]) -> set[tuple[int, int]]:
    field = {(y, x)}
    for _ in range(layers):
        field = spread(field, kernel, True, shape)
    return spread(field, first, False, shape)


def gated_field(y: int, x: int, layers: int, kernel: int, shape: tuple[int, int]) -> set[tuple[int, int]]:
    """What `layers` reach: a rectangle above, of one row more than they span upwards, and as much in the code's row."""
    reach = layers * (kernel // 2)
    above = itertools.product(range(y - 1 - reach, y), range(x - reach, x + reach + 1))
    row = ((y, left) for left in range(x - 1 - reach, x))
    return {(a, b) for a, b in (*above, *row) if 0 <= a < shape[0] and 0 <= b < shape[1]}


@pytest.fixture
def fields(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import receptive_fields

    return receptive_fields


@pytest.mark.parametrize(("layers", "kernel", "first"), [(1, 3, 3), (2, 3, 7), (6, 3, 5), (3, 5, 5)])
def test_the_masked_field_is_that_of_its_masks_and_the_gated_one_all_in_reach(
    fields: Any, layers: int, kernel: int, first: int
) -> None:
    shape = (6, 8)
    masked, gated = fields.masked(layers, kernel, first), fields.gated(layers, kernel)
    for y, x in [(0, 0), (0, 7), (3, 2), (5, 0), (5, 4)]:
        for logits, expected in [
            (masked, masked_field(y, x, layers, kernel, first, shape)),
            (gated, gated_field(y, x, layers, kernel, shape)),
        ]:
            found = fields.seen(logits, *shape, y, x)
            assert {(a, b) for a, b in itertools.product(range(6), range(8)) if found[a, b]} == expected


def test_a_deep_masked_network_has_the_blind_spot_and_a_gated_one_has_not(fields: Any) -> None:
    """Of j rows above, all beyond first // 2 + (j - 1) (k // 2) columns to the right, however deep."""
    y, x, height, width = 5, 3, 6, 12
    earlier = {(a, b) for a, b in itertools.product(range(height), range(width)) if (a, b) < (y, x)}
    blind = {(a, b) for a, b in earlier if a < y and b - x > 5 // 2 + (y - a - 1)}
    assert len(blind) == 6 + 5 + 4 + 3 + 2
    for logits, expected in [(fields.masked(14, 3, 5), earlier - blind), (fields.gated(14, 3), earlier)]:
        found = fields.seen(logits, height, width, y, x)
        assert {(a, b) for a, b in itertools.product(range(height), range(width)) if found[a, b]} == expected


# channels


def test_red_sees_no_colour_of_its_pixel_green_sees_red_and_blue_both() -> None:
    """By the gradient on embedded codes; of earlier pixels in reach every colour sees every colour."""
    shape, widths = (4, 5), (3, 3, 2)
    network = MaskedNetwork((2, 3, 2), 8, 1, 3, 3).double()
    embedded = torch.randn(4, 8, *shape, dtype=torch.float64, requires_grad=True)
    logits = network.from_embedded(embedded, torch.randn(1, 8, *shape, dtype=torch.float64))
    assert network.widths == widths
    for channel, (y, x) in itertools.product(range(3), [(0, 0), (1, 2), (3, 3)]):
        (gradient,) = torch.autograd.grad(logits[channel][:, 5 * y + x].square().sum(), embedded, retain_graph=True)
        earlier = masked_field(y, x, 1, 3, 3, shape)
        for other, part in enumerate(gradient.split(widths, dim=1)):
            seen = {tuple(place) for place in (part != 0).any(1).any(0).nonzero().tolist()}
            assert seen == earlier | ({(y, x)} if other < channel else set())


def test_the_order_is_place_by_place_within_grids_of_one_shape() -> None:
    assert list(build(((1, 2), (2, 2), (2, 2)), (2, 2, 2)).order) == [0, 1, 2, 6, 3, 7, 4, 8, 5, 9]
    assert list(build(((1, 2), (1, 2), (1, 2), (1, 1)), (2,) * 4).order) == [0, 2, 4, 1, 3, 5, 6]


@SHAPES
def test_no_code_is_predicted_from_itself_or_one_drawn_later(grids: Grids, sizes: tuple[int, ...]) -> None:
    prior, codes = build(grids, sizes, layers=4), random_codes(3, grids, sizes)
    before, order = torch.cat([grid.sum(2) for grid in prior.logits(codes, None)], 1), list(prior.order)
    assert sorted(order) == list(range(codes.shape[1]))
    for step, t in enumerate(order):
        changed = codes.clone()
        changed[:, t] = (codes[:, t] + 1) % sizes[prior.space.locate(t)[0]]
        moved = (torch.cat([grid.sum(2) for grid in prior.logits(changed, None)], 1) != before).any(0)[order]
        assert not moved[: step + 1].any()
        assert moved[step + 1 :].any() or step + 1 == len(order)


# sampling


@SHAPES
@CLASSES
def test_logits_seen_while_sampling_are_those_of_one_forward_pass(
    grids: Grids, sizes: tuple[int, ...], classes: int
) -> None:
    prior, codes, labels = build(grids, sizes, classes), random_codes(4, grids, sizes), random_labels(4, classes)
    full, order = prior.logits(codes, labels), list(prior.order)
    steps = prior.walk(4, labels)
    seen = [next(steps)] + [steps.send(codes[:, t]) for t in order[:-1]]
    with pytest.raises(StopIteration):
        steps.send(codes[:, order[-1]])
    for t, logits in zip(order, seen, strict=True):
        grid, place = prior.space.locate(t)
        torch.testing.assert_close(logits, full[grid][:, place])


@SHAPES
@CLASSES
def test_cached_sampling_draws_the_codes_of_naive_sampling(grids: Grids, sizes: tuple[int, ...], classes: int) -> None:
    prior, labels = build(grids, sizes, classes), random_labels(6, classes)
    known = random_codes(6, grids, sizes)
    for given in ({}, {"known": known, "known_mask": torch.rand(known.shape) < 0.4}):
        cached, naive = (
            draw(6, torch.Generator().manual_seed(1), conditions=labels, **given)
            for draw in (prior.sample, lambda *args, **rest: naive_sample(prior, *args, **rest))
        )
        assert torch.equal(cached, naive)


@pytest.mark.parametrize("kernels", [(3, 7), (5, 3)], ids=str)
def test_probabilities_of_all_sequences_sum_to_one(kernels: tuple[int, int]) -> None:
    grids, sizes = ((1, 1), (2, 1), (2, 1)), (2, 3, 2)
    every = torch.tensor(list(itertools.product(*map(range, (2, 3, 3, 2, 2)))))
    prior = build(grids, sizes, 2, kernel_size=kernels[0], first_kernel_size=kernels[1])
    for label in (0, 2):
        total = prior.log_prob(every, torch.full((len(every), 1), label)).detach().exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-12)


# training


def test_every_parameter_is_trained() -> None:
    prior, codes = build(*LEVELS, 2), random_codes(9, *LEVELS)
    prior.losses(codes, random_labels(9, 2))["nll"].backward()
    idle = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle


def test_dropout_acts_in_training_losses_only() -> None:
    prior, codes = build(*RGB, dropout=0.5), random_codes(4, *RGB)
    quiet = prior.losses(codes, None)["nll"]
    prior.train()
    assert prior.losses(codes, None)["nll"] != prior.losses(codes, None)["nll"]
    torch.testing.assert_close(-prior.log_prob(codes, None).mean() / 36, quiet)


def test_blue_learns_what_red_and_green_say() -> None:
    """Red and green are random, blue is their sum modulo 3 at its pixel: two of three codes cost log 3 nats."""
    grids, draws = ((2, 2),) * 3, torch.Generator().manual_seed(0)
    prior = build(grids, (3, 3, 3), channels=24, layers=1, first_kernel_size=3, dropout=0.0).float().train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(80):
        codes = torch.randint(3, (64, 12), generator=draws)
        codes[:, 8:] = (codes[:, :4] + codes[:, 4:8]) % 3
        optimizer.zero_grad()
        loss = prior.losses(codes, None)["nll"]
        loss.backward()
        optimizer.step()
    floor = 2 / 3 * math.log(3)
    assert floor - 0.02 < float(loss.detach()) < floor + 0.03


# the plug-in


def test_gated_is_the_gated_network_of_each_grid_in_turn() -> None:
    """Weights of before are those of now: the same names, drawn in the same order, and the same logits."""
    values = example(gated_pixelcnn.Config, layers=2)
    prior, codes = (
        gated_pixelcnn.build(values, CodeSpace(*LEVELS), UNCONDITIONAL).double().eval(),
        random_codes(3, *LEVELS),
    )
    assert list(prior.order) == list(range(28))
    torch.manual_seed(5)
    again = gated_pixelcnn.build(values, CodeSpace(*LEVELS), UNCONDITIONAL)
    torch.manual_seed(5)
    networks = nn.ModuleList(GatedNetwork(size, 6, 2, 3) for size in LEVELS[1])
    assert again.networks.state_dict().keys() == networks.state_dict().keys()
    assert all(torch.equal(again.networks.state_dict()[key], value) for key, value in networks.state_dict().items())
    networks.double().load_state_dict(prior.networks.state_dict())
    parts, logits = prior.space.split(codes), prior.logits(codes, None)
    for index, network in enumerate(networks):
        torch.testing.assert_close(network(parts[index], prior.conditions[index](parts[:index], None)), logits[index])


@pytest.mark.parametrize(("architecture", "now"), [("gated", gated_pixelcnn), ("masked", pixelcnn)])
def test_a_model_from_before_the_two_were_told_apart_by_name_loads(tmp_path: Path, architecture: str, now: Any) -> None:
    """As it was saved then: one plug-in, with the values of both. Weights kept their names."""
    values = {"channels": 6, "layers": 2, "kernel_size": 3, "dropout": 0.1, "condition_blocks": 1}
    own = {"first_kernel_size": 5} if architecture == "masked" else {}
    prior = now.build(now.Config.model_validate(values | own), CodeSpace(*LEVELS), UNCONDITIONAL).eval()
    facts = {"grids": LEVELS[0], "codebook_sizes": LEVELS[1], "classes": 0}
    config = {"architecture": architecture, "first_kernel_size": 5, **values}
    recipe = {"seam": "priors", "name": "pixelcnn", "config": config, "arguments": facts, "quantizer": None}
    files.write_json(tmp_path / models.RECIPE, recipe)
    models.save_weights(tmp_path / models.WEIGHTS, prior.state_dict())
    again, codes = tessera.load(tmp_path), random_codes(4, *LEVELS)
    assert type(again) is type(prior)
    assert models.read_recipe(tmp_path).name == now.__name__.rpartition(".")[2]
    assert torch.equal(again.log_prob(codes, None), prior.log_prob(codes, None))
    first = {"gated": "layers.0.vertical.weight", "masked": "blocks.0.middle.weight"}[architecture]
    assert f"networks.1.{first}" in prior.state_dict()


def test_an_even_kernel_and_too_few_channels_are_refused() -> None:
    for name in ("kernel_size", "first_kernel_size"):
        with pytest.raises(ValueError, match=f"(?s){name}.*odd"):
            build(*RGB, **{name: 4})
    with pytest.raises(InputError, match="at least 3"):
        build(*RGB, channels=2)
