"""Global codes before the grid: what trains them, what reads them, and what leaves them out."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages import tokenizer as training
from tessera import critic, ladder
from tessera.autoregression.condition import ConditionMap
from tessera.commands import encoded
from tessera.core import models, seams
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Quantized
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.space import CodeSpace
from tessera.extensions.inpainting import masks
from tessera.images import arrays
from tessera.runtime.validation import problems
from tessera.tokenizers import prologue
from tessera.training.loop import fit
from tessera.training.settings import Training

SPACE = CodeSpace(((1, 3), (4, 4)), (5, 7), 1)
PLAIN = CodeSpace(((4, 4),), (7,))


def built(raw: dict[str, Any], name: str = "prologue", quantizer: str = "ema", **values: Any) -> Any:
    """Of 8x8 images, with a grid of 4x4."""
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = name, quantizer
    raw["tokenizer"][name] |= {"downsampling": 2, "dropout": 0.0, **values}
    torch.manual_seed(0)
    return models.build(models.tokenizer_recipe(Params(raw), (3, 8, 8)))


def gradients(tokenizer: nn.Module, value: torch.Tensor) -> dict[str, bool]:
    """Of each part of the tokenizer, whether a gradient of `value` reaches it."""
    tokenizer.zero_grad()
    value.backward()
    found: dict[str, bool] = {}
    for name, parameter in tokenizer.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        found[name.partition(".")[0]] = found.get(name.partition(".")[0], False) or reached
    return found


# the decoder and what trains what


def test_the_decoder_does_not_read_global_codes(raw, make_images):
    tokenizer, x = built(raw), arrays.to_model(make_images(6))
    tokenizer(x)
    tokenizer.eval()
    codes = tokenizer.encode(x)
    count = tokenizer.space.global_codes
    changed = codes.clone()
    changed[:, :count] = (codes[:, :count] + 1) % tokenizer.space.sizes[0]
    assert not torch.equal(codes, changed)
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(changed))


def test_without_its_global_codes_it_is_vqvae_to_the_bit(raw, make_images):
    """The same first weights and the same reconstruction: the grid pays nothing for them."""
    plain = built(raw, "vqvae", attention=0)
    ours, x = built(raw, attention=0), arrays.to_model(make_images(6))
    stored = ours.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in plain.state_dict().items())
    torch.manual_seed(1)
    expected = plain.train()(x)
    torch.manual_seed(1)
    ours.quantizer.train()
    ours.global_quantizer.eval()  # which would draw its first code vectors before those of the grid
    found = ours.encoder(x)
    assert torch.equal(found, expected.latents[0])
    grid = ours.quantizer(found)
    assert torch.equal(grid.codes, expected.quantized[0].codes)
    assert torch.equal(ours.decoder(grid.z_q), expected.reconstruction)


@pytest.mark.parametrize("quantizer", ["gradient", "simvq"])
def test_the_cross_entropy_trains_the_branch_and_nothing_of_the_grid(raw, make_images, quantizer):
    tokenizer, x = built(raw, quantizer=quantizer), arrays.to_model(make_images(6))
    output = tokenizer.train()(x)
    first, grid = output.quantized
    reached = gradients(tokenizer, first.losses["prologue"])
    assert {name for name, found in reached.items() if found} == {"branch", "predictor"}
    output = tokenizer(x)
    first, grid = output.quantized
    reached = gradients(tokenizer, output.reconstruction.square().mean() + sum(grid.losses.values()))
    assert {name for name, found in reached.items() if found} == {"encoder", "quantizer", "decoder"}


def test_the_cross_entropy_predicts_each_code_from_those_before(raw, make_images):
    """By one pass for each code, which is given the global codes and the earlier codes alone."""
    tokenizer, x = built(raw, count=3), arrays.to_model(make_images(5))
    tokenizer(x)
    tokenizer.eval()
    with torch.no_grad():
        first, grid = tokenizer.quantize(tokenizer.latents(x))
        kept = torch.tensor([0, 1, 2, 3, 3])
        found = tokenizer.grid_nats(first.z_q, grid, kept)
        given, before = first.z_q[:, :, 0], grid.z_q.flatten(2)
        nats = []
        for image, place in itertools.product(range(5), range(16)):
            codes = [given[image, :, i] * (i < kept[image]) for i in range(3)]
            inputs = [torch.cat([code, torch.zeros(before.shape[1])]) for code in codes]
            inputs += [torch.cat([torch.zeros(given.shape[1]), before[image, :, i]]) for i in range(place)]
            last = torch.stack([*inputs, torch.zeros_like(inputs[0])])  # the output at a position is before its input
            logits = tokenizer.predictor(last[None])[0, -1]
            nats.append(-logits.log_softmax(0)[grid.codes[image].flatten()[place]])
    torch.testing.assert_close(found, torch.stack(nats).mean())


# worlds whose entropies are known


class World:
    """Grids of 2x4 places of two codes, of which the columns `a` and the rows `b` tell two bits: which half is dark, and,
    rarely, that rows alternate. A latent is its code vector and noise."""

    def __init__(self, rare: float) -> None:
        self.rare = rare
        self.generator = torch.Generator().manual_seed(0)

    def batch(self, n: int) -> tuple[torch.Tensor, Quantized, torch.Tensor]:
        """Latents, the quantized grid, and the bits [n,2]."""
        bits = torch.rand(n, 2, generator=self.generator) < torch.tensor([0.5, self.rare])
        codes = (
            (torch.arange(4) < 2)[None, None]
            ^ bits[:, 0, None, None]
            ^ (torch.arange(2)[:, None] * bits[:, 1, None, None] > 0)
        )
        z_q = (2.0 * codes - 1)[:, None].expand(-1, 4, -1, -1)
        return (
            z_q + 0.1 * torch.randn(z_q.shape, generator=self.generator),
            Quantized(z_q, codes[:, None].long(), {}),
            bits,
        )


def taught(tiny: Any, world: World, steps: int = 120, **values: Any) -> prologue.Prologue:
    """Global codes of a world, whose grid is fixed."""
    ema = seams.plugin("quantizers", "ema")

    def make_quantizer(dim: int | None = None, codebook_size: int | None = None) -> Any:
        return ema.build(tiny(ema.Config, codebook_size=codebook_size or 2, code_dim=4, beta=0.25, decay=0.9), dim)

    torch.manual_seed(0)
    config = tiny(prologue.Config, downsampling=2, codebook_size=4, **values)
    tokenizer = prologue.Prologue(config, (3, 4, 8), make_quantizer).train()
    optimizer = torch.optim.Adam([*tokenizer.branch.parameters(), *tokenizer.predictor.parameters()], 0.01)
    for _ in range(steps):
        z, grid, _ = world.batch(32)
        loss = sum(tokenizer._predicting(tokenizer.global_quantizer(tokenizer.branch(z)), grid).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokenizer.eval()


@torch.no_grad()
def nats_by_kept(tokenizer: prologue.Prologue, world: World) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Nats of a grid given the first 0, 1, ... global codes; these codes and the bits of the world."""
    z, grid, bits = world.batch(400)
    first = tokenizer.global_quantizer(tokenizer.branch(z))
    kept = [torch.full((400,), m) for m in range(tokenizer.count + 1)]
    return (
        [8 * float(tokenizer.grid_nats(first.z_q, grid, m)) for m in kept],
        first.codes.flatten(1).numpy(),
        bits.numpy(),
    )


def test_one_global_code_learns_the_layout(tiny):
    """Left or right: ln 2 nats without the code, none with it, and a code belongs to one layout."""
    tokenizer = taught(tiny, World(rare=0.0), count=1, nested=0.5)
    (without, given), codes, bits = nats_by_kept(tokenizer, World(rare=0.0))
    assert without == pytest.approx(math.log(2), abs=0.1)
    assert given < 0.1
    of = [set(codes[bits[:, 0] == side, 0]) for side in (False, True)]
    assert of[0]
    assert of[1]
    assert not of[0] & of[1]


def test_the_first_code_is_the_coarsest(tiny):
    """Of two bits, 1 and .47 in entropy: nested dropout has the first code tell more than the last."""
    world = World(rare=0.1)
    tokenizer = taught(tiny, world, steps=200, count=2, nested=0.75)
    found, codes, bits = nats_by_kept(tokenizer, world)
    assert found[0] - found[1] > 2 * (found[1] - found[2])
    agrees = [abs(np.corrcoef(codes[:, 0] == code, bits[:, 0])[0, 1]) for code in np.unique(codes[:, 0])]
    assert max(agrees) > 0.5


def test_nested_dropout_keeps_each_number_alike_and_draws_nothing_where_it_is_off(raw):
    tokenizer = built(raw, count=4, nested=0.8).train()
    torch.manual_seed(0)
    kept = tokenizer._kept(20_000)
    fractions = torch.bincount(kept, minlength=5) / len(kept)
    torch.testing.assert_close(fractions, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2]), atol=0.01, rtol=0)
    off = built(raw, count=4, nested=0.0).train()
    before = torch.get_rng_state()
    assert (tokenizer.eval()._kept(9) == 4).all()
    assert (off._kept(9) == 4).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_reported_in_evaluation_with_and_without_global_codes(raw, make_images):
    tokenizer, x = built(raw, weight=0.1, nested=0.5), arrays.to_model(make_images(6))
    assert "grid_nats" not in tokenizer.train()(x).quantized[0].reported
    first, _ = tokenizer.eval()(x).quantized
    assert first.losses["prologue"].item() == pytest.approx(0.1 * first.reported["grid_nats"].item())
    assert first.reported["grid_nats_alone"] != first.reported["grid_nats"]
    assert "grid_nats_alone" not in built(raw, nested=0.0).eval()(x).quantized[0].reported


def test_training_is_the_same_to_the_bit_each_time(raw, runtime, make_images):
    found = []
    for _ in range(2):
        tokenizer = built(raw, nested=0.5)
        objective = training.Objective(tokenizer, {"mse": (1.0, seams.plugin("losses", "mse").MSE())})
        section = Params(raw).section("tokenizer", training.Settings)
        section = section.model_copy(update={"training": Training(**raw["tokenizer"]["training"] | {"epochs": 2})})
        data = training.Data({"train": make_images(16), "val": make_images(6)}, section.augmentation, 4, "cpu")
        fit(training.task(objective, data, section), section.training, 0, runtime)
        found.append(tokenizer.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# rules


@pytest.mark.parametrize(
    ("quantizer", "values", "size", "line"),
    [
        (
            "kmeans",
            {},
            64,
            "quantizer.name: must be one that is trained with the tokenizer under tokenizer.name prologue",
        ),
        ("fsq", {"levels": [4, 3]}, 64, "quantizer.fsq.levels: must be empty under tokenizer.name prologue"),
        ("fsq", {"levels": []}, 64, "tokenizer.prologue.codebook_size: must be one of 256"),
        ("lfq", {}, 48, "tokenizer.prologue.codebook_size: must be a power of two"),
    ],
)
def test_quantizers_that_have_no_other_size(raw, quantizer, values, size, line):
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = "prologue", quantizer
    raw["quantizer"][quantizer] |= values
    raw["quantizer"]["codebook_size"] = 256
    raw["tokenizer"]["prologue"] |= {"downsampling": 2, "codebook_size": size}
    assert any(found.startswith(line) for found in problems(raw)), problems(raw)


@pytest.mark.parametrize("quantizer", ["gradient", "simvq", "lfq", "residual", "fsq"])
def test_quantizers_with_another_codebook_for_global_codes(raw, quantizer, make_images):
    raw["quantizer"]["codebook_size"] = 256
    raw["quantizer"]["fsq"]["levels"] = []
    size = 1024 if quantizer == "fsq" else 16  # a size of its table
    tokenizer, x = built(raw, quantizer=quantizer, codebook_size=size), arrays.to_model(make_images(6))
    assert np.isfinite(sum(float(term.detach()) for level in tokenizer(x).quantized for term in level.losses.values()))
    assert [len(book) for book in tokenizer.codebooks] == list(tokenizer.space.sizes)
    assert tokenizer.space.sizes[-1] != tokenizer.space.sizes[0]


# the space


def test_a_space_with_global_codes():
    codes = np.arange(2 * 19).reshape(2, 19)
    assert (SPACE.global_codes, SPACE.global_levels, SPACE.placed_grids) == (3, 1, ((4, 4),))
    assert SPACE.placed(["global", "grid"]) == ("grid",)
    assert PLAIN.placed(["grid"]) == ("grid",)
    assert CodeSpace.of_facts(SPACE.facts) == SPACE
    assert "global_grids" not in PLAIN.facts
    alone, grid = SPACE.neighbourhoods(codes)
    assert alone.shape == (6, 1, 1)
    np.testing.assert_array_equal(alone.flatten(), codes[:, :3].flatten())
    np.testing.assert_array_equal(grid, SPACE.split(codes)[1])


@pytest.mark.parametrize("count", [-1, 2, 3])
def test_a_grid_must_be_left_that_is_decoded(count):
    with pytest.raises(InputError, match=f"global_grids must be from 0 to 1, .* got {count}"):
        CodeSpace(((1, 3), (4, 4)), (5, 7), count)


def test_files_of_codes_keep_which_are_global(tmp_path: Path):
    codes = np.zeros((2, 19), np.int64)
    encoded.write(tmp_path / "codes.npz", encoded.Encoded(codes, ["a", "b"], SPACE, "0"))
    assert encoded.read(tmp_path / "codes.npz").space == SPACE
    found = dict(np.load(tmp_path / "codes.npz"))
    np.savez(tmp_path / "wrong.npz", **found | {"global_grids": np.array(2)})
    with pytest.raises(InputError, match="global_grids must be one integer below 2"):
        encoded.read(tmp_path / "wrong.npz")


# what reads codes


@pytest.mark.parametrize("rung", ladder.rungs(SPACE))
def test_the_ladder_damages_only_the_grid(rung):
    """As that of the same images without global codes."""
    draws = np.random.default_rng(0)
    names = np.array([f"image {i}" for i in range(12)])
    grid = draws.integers(0, 7, (12, 16))
    both = np.concatenate([draws.integers(0, 5, (12, 3)), grid], axis=1)
    plain, ours = (
        ladder.damaged(ladder.Images(codes, names, names, np.zeros(12, int)), space, rung, 0, 1)
        for codes, space in ((grid, PLAIN), (both, SPACE))
    )
    assert ladder.rungs(PLAIN) == ladder.rungs(SPACE)
    np.testing.assert_array_equal(ours.codes[:, :3], both[:, :3])
    np.testing.assert_array_equal(ours.codes[:, 3:], plain.codes)
    assert (plain.codes != grid).any()


def test_critics_see_what_is_decoded(raw, make_images):
    tokenizer = built(raw)
    tokenizer(arrays.to_model(make_images(6)))
    codes = tokenizer.eval().encode(arrays.to_model(make_images(4))).numpy()
    vectors = critic.code_vectors(tokenizer, codes, "cpu")
    torch.testing.assert_close(vectors, tokenizer.vectors(torch.from_numpy(codes))[1])


def test_inpainting_keeps_global_codes():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :2, :2] = True
    expected = np.zeros(19, bool)
    expected[3] = True
    np.testing.assert_array_equal(masks.cells(mask, SPACE)[0], expected)


@pytest.mark.parametrize("name", ["pixelsnail", "gated_pixelcnn", "pixelcnn", "transformer", "rnn"])
def test_every_place_of_the_grid_is_told_every_global_code(raw, name):
    torch.manual_seed(0)
    prior = models.build(models.prior_recipe(Params(raw), SPACE, UNCONDITIONAL, name)).eval()
    for parameter in prior.parameters():  # heads that begin at zero would hide it
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    torch.manual_seed(1)
    codes = torch.randint(0, 5, (8, 19))
    with torch.no_grad():
        before = prior.logits(codes, None)[1]
        for place in range(3):
            others = codes.clone()
            others[:, place] = (codes[:, place] + 1) % 5
            assert (prior.logits(others, None)[1] - before).abs().amax((0, 2)).min() > 0


def test_a_global_code_is_embedded_by_its_position():
    """At every place, the sum of a vector for each position and code, over the root of their number."""
    torch.manual_seed(0)
    given = ConditionMap(6, SPACE, 1, UNCONDITIONAL, 0)
    codes = torch.tensor([[[4, 0, 2]]])
    table = given.earlier[0].weight
    assert table.shape == (15, 6)
    vector = (table[4] + table[5 + 0] + table[10 + 2]) / math.sqrt(3)
    with torch.no_grad():
        found = given([codes], None)
    torch.testing.assert_close(
        found, 2 * given.positions.detach() + vector[None, :, None, None].expand(1, 6, 4, 4).detach()
    )


def test_an_earlier_grid_with_places_is_embedded_as_before():
    torch.manual_seed(0)
    space = CodeSpace(((2, 2), (4, 4)), (5, 7))
    given = ConditionMap(6, space, 1, UNCONDITIONAL, 0)
    assert [tuple(p.shape) for p in given.parameters()] == [(1, 6, 4, 4), (5, 6)]
    codes = torch.tensor([[[4, 0], [1, 2]]])
    with torch.no_grad():
        found = given([codes], None)
        large = F.embedding(codes.repeat_interleave(2, 1).repeat_interleave(2, 2), given.earlier[0].weight)
    torch.testing.assert_close(found, (large.permute(0, 3, 1, 2) + given.positions) + given.positions)
