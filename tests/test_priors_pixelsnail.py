"""PixelSNAIL: its parts against formulas written out, what it sees, its cached walk, and that it learns."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import labelled
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tessera.autoregression.sampling import naive_sample
from tessera.core.contracts import Grids
from tessera.core.space import CodeSpace
from tessera.priors import pixelsnail

TWO: tuple[Grids, tuple[int, ...]] = (((2, 2), (4, 3)), (3, 5))
THREE: tuple[Grids, tuple[int, ...]] = (((3, 2), (5, 6), (5, 6)), (11, 16, 5))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_codes(count: int, grids: Grids, sizes: tuple[int, ...]) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    parts = zip(grids, sizes, strict=True)
    return torch.cat([torch.randint(k, (count, h * w), generator=draws) for (h, w), k in parts], dim=1)


def tiny(grids: Grids, sizes: tuple[int, ...], classes: int = 0, **values: Any) -> nn.Module:
    """In eval mode and float64; biases and gains moved away from 0 and 1, where they would not be noticed."""
    examples = {field: info.examples[0] for field, info in pixelsnail.Config.model_fields.items()}
    torch.manual_seed(0)
    config = pixelsnail.Config.model_validate({**examples, **values})
    return moved(pixelsnail.build(config, CodeSpace(grids, sizes), labelled(classes))).eval()


def moved(module: Any) -> Any:
    for index, parameter in enumerate(module.double().parameters()):
        parameter.data += normal(*parameter.shape, seed=index) / 10
    return module


# parts


def test_weight_normalisation_is_pytorchs() -> None:
    ours, reference = moved(pixelsnail.Linear(5, 4)), parametrizations.weight_norm(nn.Linear(5, 4).double(), dim=0)
    reference.parametrizations.weight.original0.data = ours.gain.data[:, None].clone()
    reference.parametrizations.weight.original1.data = ours.direction.data.clone()
    reference.bias.data = ours.bias.data.clone()
    x = normal(3, 5)
    torch.testing.assert_close(ours(x), reference(x))
    torch.testing.assert_close(ours.fixed()(x), reference(x))
    for module in (ours, reference):
        module(x).square().sum().backward()
    torch.testing.assert_close(ours.direction.grad, reference.parametrizations.weight.original1.grad)
    torch.testing.assert_close(ours.gain.grad[:, None], reference.parametrizations.weight.original0.grad)


@pytest.mark.parametrize("own", [False, True], ids=["without_itself", "with_itself"])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_causal_convolution_is_a_masked_one(kernel_size: int, own: bool) -> None:
    """A whole k x k kernel, zero from its centre on (mask A) or from behind it (mask B) (PixelCNN, sec. 2.1)."""
    conv = moved(pixelsnail.CausalConv(3, 4, kernel_size, own))
    centre = kernel_size**2 // 2
    whole = torch.zeros(4, kernel_size**2, 3, dtype=torch.float64)
    whole[:, : centre + own] = conv.weight().view(4, centre + own, 3)
    whole = whole.view(4, kernel_size, kernel_size, 3).permute(0, 3, 1, 2)
    x = normal(2, 5, 6, 3)
    expected = F.conv2d(x.permute(0, 3, 1, 2), whole, conv.bias, padding=kernel_size // 2)
    torch.testing.assert_close(conv(x), expected.permute(0, 2, 3, 1))


def test_a_gated_layer_adds_one_half_opened_by_the_other() -> None:
    layer, x, condition = moved(pixelsnail.GatedLayer(4, 3)), normal(2, 3, 5, 4), normal(1, 3, 5, 4, seed=1)
    sums = layer.conv(x / (1 + torch.exp(-x))) + torch.einsum("oc,byxc->byxo", layer.condition.weight, condition)
    expected = x + sums[..., :4] / (1 + torch.exp(-sums[..., 4:]))
    torch.testing.assert_close(layer(x, condition, 0.0), expected)


def test_attention_is_softmax_over_strictly_earlier_positions_and_one_of_nothing() -> None:
    """Written out for each image, head and position; what is nothing has key and value 0."""
    attention, x, embedded = moved(pixelsnail.Attention(8, 2)), normal(2, 3, 4, 8), normal(2, 3, 4, 8, seed=1)
    query = attention.query(x).view(2, 12, 2, 2)  # images, positions, heads, channels
    memory = attention.memory(torch.cat([x, embedded], dim=3)).view(
        2, 12, 2, 2, 2
    )  # ..., key or value, heads, channels
    expected = torch.zeros(2, 12, 2, 2, dtype=torch.float64)
    for image, t, head in itertools.product(range(2), range(12), range(2)):
        earlier = memory[image, :t, :, head]
        weights = (earlier[:, 0] @ query[image, t, head] / math.sqrt(2)).exp()
        expected[image, t, head] = (weights[:, None] * earlier[:, 1]).sum(0) / (1 + weights.sum())
    torch.testing.assert_close(attention(x, embedded), expected.view(2, 3, 4, 4))
    assert not attention(x, embedded)[:, 0, 0].any()


def test_a_block_merges_features_and_what_they_attend_to() -> None:
    block, x = moved(pixelsnail.Block(8, 2, 3, 2)), normal(2, 3, 4, 8)
    embedded, condition = normal(2, 3, 4, 8, seed=1), normal(2, 3, 4, 8, seed=2)
    features = block.layers[1](block.layers[0](x, [condition], 0.0), [condition], 0.0)
    both = torch.cat([features, block.attention(features, embedded)], dim=3)
    sums = (both * torch.sigmoid(both)) @ block.merge.weight().T + block.merge.bias
    expected = features + sums[..., :8] * torch.sigmoid(sums[..., 8:])
    torch.testing.assert_close(block(x, embedded, [condition], 0.0), expected)


# the network


@pytest.mark.parametrize(("blocks", "layers", "kernel_size"), [(1, 1, 3), (2, 2, 3), (1, 1, 5)])
def test_the_receptive_field_is_every_earlier_code_and_no_other(blocks: int, layers: int, kernel_size: int) -> None:
    """By the gradient on embedded codes of a 5x6 grid, the farthest of which only attention reaches."""
    network = moved(pixelsnail.Snail(4, 8, blocks, layers, kernel_size, 2))
    embedded, condition = normal(1, 5, 6, 8).requires_grad_(), normal(1, 8, 5, 6, seed=1)
    logits = network.from_embedded(embedded, [condition])[0]
    for t in range(30):
        (gradient,) = torch.autograd.grad(logits[t].square().sum(), embedded, retain_graph=True)
        assert (gradient != 0).any(3).flatten().tolist() == [earlier < t for earlier in range(30)]


def test_convolutions_alone_see_a_cone() -> None:
    """With attention silenced: of each row above, one code farther to the right; the codes beyond are for attention."""
    network = moved(pixelsnail.Snail(4, 8, 1, 6, 3, 2))
    network.blocks[0].merge.gain.data.zero_()
    embedded = normal(1, 5, 6, 8).requires_grad_()
    logits = network.from_embedded(embedded, [normal(1, 8, 5, 6, seed=1)])[0]
    for y, x in itertools.product(range(5), range(6)):
        (gradient,) = torch.autograd.grad(logits[6 * y + x].square().sum(), embedded, retain_graph=True)
        cone = [
            (up > 0 and column - x <= up) or (up == 0 and column < x)
            for up in range(y, y - 5, -1)
            for column in range(6)
        ]
        assert (gradient != 0).any(3).flatten().tolist() == cone


# the prior


def test_logits_seen_while_sampling_are_those_of_one_forward_pass() -> None:
    """With codes sent by hand, on three grids with labels, one image without, and kernels that reach two rows."""
    prior = tiny(*THREE, 3, layers=2, kernel_size=5)
    codes, labels = random_codes(4, *THREE), torch.tensor([[0], [1], [2], [3]])
    steps = prior.walk(4, labels)
    seen = [next(steps)] + [steps.send(codes[:, t]) for t in range(codes.shape[1] - 1)]
    steps.close()
    full = [grid[:, t] for grid in prior.logits(codes, labels) for t in range(grid.shape[1])]
    for one, other in zip(seen, full, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_cached_and_naive_sampling_draw_the_same_codes_on_three_grids() -> None:
    grids, sizes = ((1, 1), (3, 3), (2, 4)), (7, 4, 3)
    prior, labels = tiny(grids, sizes, 3, kernel_size=5), torch.tensor([[0], [1], [2], [3]])
    naive = naive_sample(prior, 4, torch.Generator().manual_seed(1), conditions=labels)
    assert torch.equal(prior.sample(4, torch.Generator().manual_seed(1), conditions=labels), naive)


def test_a_sample_remembers_nothing_of_another() -> None:
    """Two walks at once, of different sizes, do not disturb each other; the module keeps no tensor of either."""
    grids, sizes = ((4, 3),), (5,)
    prior, codes = tiny(grids, sizes), {n: random_codes(n, grids, sizes) for n in (2, 3)}
    attributes = {name: set(vars(module)) for name, module in prior.named_modules()}
    walks = {n: prior.walk(n, None) for n in (2, 3)}
    seen = {n: [next(walk)] for n, walk in walks.items()}
    for t, n in itertools.product(range(11), (2, 3)):
        seen[n].append(walks[n].send(codes[n][:, t]))
    for n in (2, 3):
        walks[n].close()
        torch.testing.assert_close(torch.stack(seen[n], 1), prior.logits(codes[n], None)[0])
    assert attributes == {name: set(vars(module)) for name, module in prior.named_modules()}


def test_every_parameter_is_trained() -> None:
    prior, codes = tiny(*TWO, 2), random_codes(8, *TWO)
    prior.losses(codes, (torch.arange(8) % 3)[:, None])["nll"].backward()
    idle = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle


def test_a_copy_is_averaged_on_its_own() -> None:
    """As in training: the average of one update is the updated weights, and the copy shares no tensor with the prior."""
    prior, codes = tiny(*TWO), random_codes(4, *TWO)
    average = AveragedModel(prior, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    before = {name: p.clone() for name, p in prior.named_parameters()}
    average.update_parameters(prior)  # the first one copies
    for parameter in prior.parameters():
        parameter.data += 1
    average.update_parameters(prior)
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)
    other = copy.deepcopy(prior)
    assert torch.equal(other.log_prob(codes, None), prior.log_prob(codes, None))
    assert not torch.equal(average.module.log_prob(codes, None), prior.log_prob(codes, None))


def test_dropout_acts_in_training_losses_only() -> None:
    prior, codes = tiny(*TWO, dropout=0.5), random_codes(8, *TWO)
    quiet, log_prob = prior.losses(codes, None)["nll"], prior.log_prob(codes, None)
    prior.train()
    torch.manual_seed(0)
    noisy = prior.losses(codes, None)["nll"]
    assert noisy != quiet
    assert prior.losses(codes, None)["nll"] != noisy
    torch.manual_seed(0)
    assert prior.losses(codes, None)["nll"] == noisy
    assert torch.equal(prior.log_prob(codes, None), log_prob)
    prior = tiny(*TWO, dropout=0.0)
    assert prior.losses(codes, None)["nll"] == prior.train().losses(codes, None)["nll"]


@pytest.mark.parametrize("part", ["layer", "merge"])
def test_dropout_acts_in_gated_layers_and_where_attention_is_merged(part: str) -> None:
    block, x = moved(pixelsnail.Block(8, 1, 3, 2)), normal(2, 3, 4, 8)
    silenced = block.merge if part == "layer" else block.layers[0].conv  # so that the other one alone is left
    silenced.gain.data.zero_()
    quiet, noisy = (block(x, x, x, dropout) for dropout in (0.0, 0.5))
    assert not torch.equal(quiet, noisy)


def test_it_learns_a_rule_that_only_attention_reaches() -> None:
    """The last code of 7 in a row is the first one; all others are random. One convolution of one layer reaches two codes
    back. Learnt from ever new codes, so that the nats left over are those of 6 random codes of 7."""
    draws = torch.Generator().manual_seed(0)
    prior = tiny(((1, 7),), (3,), channels=16, blocks=1, dropout=0.0).float().train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(100):
        codes = torch.randint(3, (64, 7), generator=draws)
        codes[:, 6] = codes[:, 0]
        optimizer.zero_grad()
        loss = prior.losses(codes, None)["nll"]
        loss.backward()
        optimizer.step()
    floor = 6 / 7 * math.log(3)
    assert floor - 0.01 < float(loss.detach()) < floor + 0.03  # nats; without the rule log 3, 0.16 above


def test_it_learns_a_rule_of_neighbours() -> None:
    """Each code is the one to its left plus the one above, modulo 3; the first row and column are random."""
    draws = torch.Generator().manual_seed(0)
    prior = tiny(((3, 3),), (3,), channels=16, blocks=1, layers=2, dropout=0.0).float().train()
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


@pytest.mark.parametrize(
    ("values", "rule"), [({"kernel_size": 4}, "odd"), ({"channels": 6, "heads": 2}, "divide half")]
)
def test_sizes_that_do_not_fit_are_refused(values: dict[str, int], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        tiny(*TWO, **values)
