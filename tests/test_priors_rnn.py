"""The recurrent prior against torch's own stacked layers, and what truncated back-propagation does and does not change."""

import itertools
import math
from typing import Any

import pytest
import torch
from conftest import labelled
from torch import Tensor, nn

from tessera.core.contracts import Grids
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped
from tessera.priors import rnn

GRIDS: Grids = ((1, 2), (2, 3), (2, 3))
SIZES = (3, 5, 4)
BOTH = pytest.mark.parametrize("cell", ["gru", "lstm"])


def tiny(cell: str, classes: int = 0, grids: Grids = GRIDS, sizes: tuple[int, ...] = SIZES, **values: Any) -> rnn.RNN:
    """In eval mode and float64."""
    config = {"cell": cell, "embedding": 6, "hidden": 8, "layers": 2, "context": 0, "dropout": 0.0, **values}
    torch.manual_seed(0)
    return rnn.build(rnn.Config.model_validate(config), CodeSpace(grids, sizes), labelled(classes)).double().eval()


def random_codes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randint(k, (count, h * w), generator=generator) for (h, w), k in zip(GRIDS, SIZES, strict=True)], 1
    )


def inputs_by_hand(prior: rnn.RNN, codes: Tensor, labels: Tensor | None) -> Tensor:
    """[B,T,C]: image by image, position by position."""
    which = [grid for grid, (height, width) in enumerate(GRIDS) for _ in range(height * width)]
    images = []
    for index, image in enumerate(codes.tolist()):
        rows = []
        for t in range(len(image)):
            before = prior.embeddings[which[t - 1]].weight[image[t - 1]] if t else prior.start
            label = prior.given.tables[0].weight[int(labels[index])] if labels is not None else 0
            rows.append(before + prior.positions[t] + label)
        images.append(torch.stack(rows))
    return torch.stack(images)


@BOTH
@pytest.mark.parametrize("classes", [0, 2])
def test_logits_are_those_of_torchs_stacked_layers(cell: str, classes: int) -> None:
    """One nn.GRU or nn.LSTM of three layers with the same weights; labels include the one that stands for none."""
    prior, codes = tiny(cell, classes, layers=3), random_codes(4)
    labels = torch.tensor([[0], [1], [2], [0]]) if classes else None
    whole = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](6, 8, num_layers=3, batch_first=True).double()
    for name, weights in whole.named_parameters():
        kind, layer = name.rsplit("_l", 1)
        weights.data = getattr(prior.network.layers[int(layer)], f"{kind}_l0").data
    hidden = whole(inputs_by_hand(prior, codes, labels))[0]
    for logits, head, part in zip(prior.logits(codes, labels), prior.heads, hidden.split([2, 6, 6], 1), strict=True):
        torch.testing.assert_close(logits, part @ head.weight.t() + head.bias)


@BOTH
def test_truncation_changes_no_likelihood(cell: str) -> None:
    whole, codes = tiny(cell), random_codes(5)
    for context in (1, 3, 7, 14, 100):
        truncated = tiny(cell, context=context).train()
        assert torch.equal(truncated.start, whole.start)
        torch.testing.assert_close(truncated.losses(codes, None), whole.losses(codes, None), rtol=1e-13, atol=0)


@BOTH
@pytest.mark.parametrize("context", [0, 1, 3, 5])
def test_gradients_reach_the_codes_of_the_context_and_no_other(cell: str, context: int) -> None:
    """Of logits at t to embedded codes: code s enters at s + 1; gradients stop at the last multiple of the context."""
    prior = tiny(cell, context=context)
    embedded = torch.randn(2, 14, 6, dtype=torch.float64, requires_grad=True)
    rows = [row for grid in prior.from_embedded(embedded, None) for row in grid.unbind(1)]
    for t, row in enumerate(rows):
        (gradient,) = torch.autograd.grad(row.square().sum(), embedded, retain_graph=True)
        first = t - t % context if context else 0
        assert (gradient != 0).any(2).any(0).tolist() == [first <= s + 1 <= t for s in range(14)]


@BOTH
def test_logits_seen_while_sampling_are_those_of_one_forward_pass(cell: str) -> None:
    """In float32; two walks at once, of different sizes, do not disturb each other."""
    prior, labels = tiny(cell, 2, layers=3).float(), {2: torch.tensor([[0], [2]]), 3: torch.tensor([[2], [1], [0]])}
    codes = {n: random_codes(n, seed=n) for n in (2, 3)}
    walks = {n: prior.walk(n, labels[n]) for n in (2, 3)}
    seen = {n: [next(walk)] for n, walk in walks.items()}
    for t, n in itertools.product(range(13), (2, 3)):
        seen[n].append(walks[n].send(codes[n][:, t]))
    for n in (2, 3):
        rows = [row for grid in prior.logits(codes[n], labels[n]) for row in grid.unbind(1)]
        for one, other in zip(seen[n], rows, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert not any(one.requires_grad for one in seen[n])


@BOTH
def test_dropout_acts_between_layers_and_not_between_positions(cell: str) -> None:
    """With the same masks by hand: of each layer's input, and of the last layer's output."""
    prior, codes = tiny(cell, dropout=0.4), random_codes(5)
    torch.manual_seed(1)
    x = inputs_by_hand(prior, codes, None)
    for layer in prior.network.layers:
        x = layer(x * dropped(torch.ones_like(x), 0.4))[0].contiguous()  # a mask lies in memory as its input does
    x = x * dropped(torch.ones_like(x), 0.4)
    expected = [head(part) for head, part in zip(prior.heads, x.split([2, 6, 6], 1), strict=True)]
    torch.manual_seed(1)
    for logits, other in zip(prior.predict(codes, None, 0.4), expected, strict=True):
        torch.testing.assert_close(logits, other)
    quiet = prior.losses(codes, None)["nll"]
    assert prior.train().losses(codes, None)["nll"] != quiet


@BOTH
def test_every_parameter_is_trained(cell: str) -> None:
    prior, codes = tiny(cell, 2, context=4), random_codes(8)
    prior.losses(codes, (torch.arange(8) % 3)[:, None])["nll"].backward()
    idle = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle


@BOTH
def test_it_remembers_a_row_through_its_state(cell: str) -> None:
    """The second row repeats the first: what is left are the nats of the first. One code ago alone tells nothing."""
    draws = torch.Generator().manual_seed(0)
    prior = tiny(cell, 0, ((2, 3),), (3,), embedding=16, hidden=32, layers=1).float().train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-2)
    for _ in range(150):
        row = torch.randint(3, (64, 3), generator=draws)
        optimizer.zero_grad()
        loss = prior.losses(torch.cat([row, row], 1), None)["nll"]
        loss.backward()
        optimizer.step()
    floor = math.log(3) / 2
    assert floor - 0.01 < float(loss.detach()) < floor + 0.03  # nats per code; a histogram's would be log 3 = 1.10
