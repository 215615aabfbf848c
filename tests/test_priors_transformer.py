"""What the transformer prior promises beyond the contract of priors (tests/test_priors.py), and its blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import labelled
from torch import Tensor, nn

from tessera.attention.blocks import ROOM, Block, Walk
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Grids
from tessera.core.space import CodeSpace
from tessera.priors.transformer import Config, Transformer, build

GRIDS: Grids = ((2, 2), (3, 4), (3, 4))
SIZES = (3, 5, 4)


@pytest.fixture
def make(tiny: Callable[..., Any]) -> Callable[..., Transformer]:
    def made(grids: Grids = GRIDS, sizes: tuple[int, ...] = SIZES, classes: int = 2, **values: Any) -> Transformer:
        return build(tiny(Config, **values), CodeSpace(grids, sizes), labelled(classes)).double().eval()

    return made


def random_codes(count: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    sizes = [size for (height, width), size in zip(GRIDS, SIZES, strict=True) for _ in range(height * width)]
    return torch.stack([torch.randint(size, (count,), generator=draws) for size in sizes], dim=1)


LABELS = torch.tensor([[0], [1], [2]])  # 2: no label


# blocks


def torchs_own(blocks: list[Block]) -> nn.TransformerEncoder:
    """The same weights in torch's encoder, which knows no shared keys and values: there each query head has a copy."""

    def apart(whole: Tensor, block: Block) -> Tensor:
        query, *shared = whole.split(block.parts)
        copies = block.heads // block.kv_heads
        return torch.cat([
            query, *(part.unflatten(0, (block.kv_heads, -1)).repeat_interleave(copies, 0).flatten(0, 1) for part in shared)
        ])  # fmt: skip

    channels, heads = blocks[0].out.in_features, blocks[0].heads
    layer = nn.TransformerEncoderLayer(
        channels, heads, 4 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, len(blocks), enable_nested_tensor=False).double().eval()
    for block, theirs in zip(blocks, encoder.layers, strict=True):
        theirs.self_attn.in_proj_weight.data = apart(block.qkv.weight, block)
        theirs.self_attn.in_proj_bias.data = apart(block.qkv.bias, block)
        pairs = [
            (theirs.self_attn.out_proj, block.out),
            (theirs.norm1, block.norm_attention),
            (theirs.norm2, block.norm_mlp),
        ]
        for to, own in [*pairs, (theirs.linear1, block.mlp[0]), (theirs.linear2, block.mlp[2])]:
            to.load_state_dict(own.state_dict())
    return encoder


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_directions"])
def test_blocks_are_torchs_own_encoder(causal: bool, kv_heads: int) -> None:
    blocks = [Block(12, 4, kv_heads).double() for _ in range(3)]
    for parameter in itertools.chain.from_iterable(block.parameters() for block in blocks):
        nn.init.normal_(parameter, std=0.5)  # biases and norms too
    x = own = torch.randn(2, 7, 12, dtype=torch.float64)
    for block in blocks:
        own = block(own, causal=causal)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    torch.testing.assert_close(own, torchs_own(blocks)(x, mask=mask), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_walk_through_a_block_is_its_forward_pass_while_the_room_grows(kv_heads: int) -> None:
    block, length = Block(12, 4, kv_heads).double(), 2 * ROOM + 1
    walk, x = Walk(block, 2), torch.randn(2, length, 12, dtype=torch.float64)
    with torch.no_grad():
        walked = torch.stack([walk.advance(x[:, t].clone()) for t in range(length)], dim=1)
    torch.testing.assert_close(walked, block(x), rtol=0, atol=1e-10)


# the prior


def test_logits_of_cached_steps_are_those_of_one_forward_pass(make: Callable[..., Transformer]) -> None:
    prior, codes = make(layers=3), random_codes(3)
    steps = prior.walk(3, LABELS)
    seen = [next(steps)] + [steps.send(codes[:, t]) for t in range(codes.shape[1] - 1)]
    steps.close()
    full = [grid[:, t] for grid in prior.logits(codes, LABELS) for t in range(grid.shape[1])]
    for one, other in zip(seen, full, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_two_walks_at_once_do_not_disturb_each_other(make: Callable[..., Transformer]) -> None:
    prior = make(classes=0)
    codes = {n: random_codes(n, seed=n) for n in (2, 3)}
    walks = {n: prior.walk(n, None) for n in codes}
    seen = {n: [next(walk)] for n, walk in walks.items()}
    for t, n in itertools.product(range(27), codes):
        seen[n].append(walks[n].send(codes[n][:, t]))
    for n, logits in seen.items():
        torch.testing.assert_close(torch.stack(logits[-12:], 1), prior.logits(codes[n], None)[2], rtol=0, atol=1e-10)


def test_in_any_order_each_code_is_given_all_codes_before_it_and_no_other(make: Callable[..., Transformer]) -> None:
    prior, codes = make(), random_codes(3)
    order = prior.random_orders(3, 1.0, codes.device)
    ordered = codes.gather(1, order)

    def logits(ordered: Tensor) -> list[Tensor]:
        return [grid[:, t] for grid in prior.ordered(ordered, LABELS, order, 0.0) for t in range(grid.shape[1])]

    before = logits(ordered)
    for step in range(28):
        changed = ordered.clone()
        changed[:, step] = (ordered[:, step] + 1) % 3
        moved = torch.stack([(new != old).any(1) for new, old in zip(logits(changed), before, strict=True)])
        assert not moved[: step + 1].any()
        assert moved[step + 1 :].all()


def test_a_prediction_depends_on_where_it_and_every_code_before_it_lie(make: Callable[..., Transformer]) -> None:
    """Equal codes in three orders of a 2x2 grid: the next target, and the place of a code before, each change it."""
    prior = make(((2, 2),), (3,), 0)
    codes, orders = torch.zeros(3, 4, dtype=torch.int64), torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2], [1, 0, 2, 3]])
    (logits,) = prior.ordered(codes, None, orders, 0.0)
    assert torch.equal(logits[0, :2], logits[1, :2])
    assert (logits[0, 2] != logits[1, 2]).any(), "another target"
    assert (logits[0, 2] != logits[2, 2]).any(), "the same target, other places of the codes before"


def test_raster_order_is_what_predicts(make: Callable[..., Transformer]) -> None:
    prior, codes = make(), random_codes(3)
    order = prior.random_orders(3, 0.0, codes.device)
    assert torch.equal(order, torch.arange(28).expand(3, -1))
    for one, other in zip(prior.ordered(codes, LABELS, order, 0.0), prior.logits(codes, LABELS), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_orders_are_random_within_each_grid_for_the_share_asked(make: Callable[..., Transformer]) -> None:
    prior = make()
    orders = prior.random_orders(4000, 0.7, torch.device("cpu"))
    for first, last in ((0, 4), (4, 16), (16, 28)):
        assert torch.equal(orders[:, first:last].sort(1).values, torch.arange(first, last).expand(4000, -1))
    shuffled = (orders != torch.arange(28)).any(1)
    assert float(shuffled.double().mean()) == pytest.approx(0.7, abs=0.03)  # 4 standard deviations
    # each of the 24 orders of the first grid: 2800 / 24 = 117 times, standard deviation 11
    counts = torch.unique(orders[shuffled, :4], dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert 70 < int(counts.min()) <= int(counts.max()) < 165


def test_the_share_of_random_orders_falls_to_zero(make: Callable[..., Transformer], monkeypatch: Any) -> None:
    prior, shares = make(random_order=0.8, dropout=0.0), []
    orders = prior.random_orders

    def watched(count: int, share: float, device: torch.device) -> Tensor:
        shares.append(share)
        return orders(count, share, device)

    monkeypatch.setattr(prior, "random_orders", watched)
    for done in (0.0, 0.2, 0.4, 0.8, 0.9, 1.0):
        prior.train().losses(random_codes(3), LABELS, done)
        prior.eval().losses(random_codes(3), LABELS, done)
    assert shares == pytest.approx([1, 0.75, 0.5])


def test_random_orders_act_in_training_alone_and_by_the_global_seed(make: Callable[..., Transformer]) -> None:
    prior, codes = make(random_order=0.5, dropout=0.0), random_codes(3)

    def loss(seed: int, done: float) -> float:
        torch.manual_seed(seed)
        return float(prior.losses(codes, LABELS, done)["nll"].detach())

    raster = loss(0, 0.0)
    prior.train()
    assert loss(1, 0.0) == loss(1, 0.0)
    assert len({loss(1, 0.0), loss(2, 0.0), raster}) == 3
    assert loss(1, 0.5) == loss(2, 0.7) == raster
    prior = make(random_order=0.0, dropout=0.0).train()
    assert loss(1, 0.0) == loss(2, 0.0)


def test_dropout_acts_in_training_losses_only(make: Callable[..., Transformer]) -> None:
    prior, codes = make(random_order=0.0, dropout=0.5), random_codes(3)
    quiet = prior.losses(codes, LABELS)["nll"]
    assert (
        len({float(prior.train().losses(codes, LABELS)["nll"].detach()) for _ in range(2)} | {float(quiet.detach())})
        == 3
    )
    torch.testing.assert_close(-prior.log_prob(codes, LABELS).mean() / 28, quiet)


@pytest.mark.parametrize("done", [0.0, 1.0], ids=["random_orders", "raster"])
def test_every_parameter_is_trained(make: Callable[..., Transformer], done: float) -> None:
    prior = make(random_order=0.5).train()
    prior.losses(random_codes(16), (torch.arange(16) % 3)[:, None], done)["nll"].backward()
    idle = [name for name, p in prior.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle


@pytest.mark.parametrize(("random_order", "steps"), [(0.0, 200), (0.4, 300)], ids=["raster", "random_orders_first"])
def test_it_learns_a_rule_that_no_histogram_can(tiny: Callable[..., Any], random_order: float, steps: int) -> None:
    """Each code is the one to its left plus the one above, modulo 3; the first row and column are random. Learnt from
    ever new codes, so that the nats left over are those of the 5 random codes of 9."""
    draws = torch.Generator().manual_seed(0)
    config = tiny(Config, channels=32, heads=4, layers=2, dropout=0.0, random_order=random_order)
    prior = build(config, CodeSpace(((3, 3),), (3,)), UNCONDITIONAL).train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for step in range(steps):
        codes = torch.randint(3, (64, 3, 3), generator=draws)
        for y, x in itertools.product((1, 2), (1, 2)):
            codes[:, y, x] = (codes[:, y, x - 1] + codes[:, y - 1, x]) % 3
        optimizer.zero_grad()
        loss = prior.losses(codes.flatten(1), None, step / steps)["nll"]
        loss.backward()
        optimizer.step()
    floor = 5 / 9 * math.log(3)
    assert floor - 0.01 < float(loss.detach()) < floor + 0.03  # nats; a histogram's would be log 3 = 1.10


def test_heads_that_do_not_divide_channels_or_heads_are_refused(tiny: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="divide channels 8, got 3"):
        tiny(Config, heads=3)
    with pytest.raises(ValueError, match="kv_heads must divide heads 2, got 3"):
        tiny(Config, kv_heads=3)
