"""Quantization that begins late: z before, codes after, and a training across the boundary."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example

from stages import tokenizer as stage
from tessera.codebooks import delay
from tessera.core import files, models, seams
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch
from tessera.runtime.settings import Settings
from tessera.runtime.validation import problems

SETTINGS = Settings(device="cpu", devices=1, nodes=1, threads=1, checkpoint_seconds=0.0, keep_scratch=2)
KINDS = [("vqvae", "ema"), ("vqvae", "gradient"), ("vqvae", "residual"), ("vqvae2", "gradient")]


def quantizer_of(name: str) -> Any:
    module = seams.plugin("quantizers", name)
    torch.manual_seed(0)
    return module.build(example(module.Config), 4)


@pytest.mark.parametrize("name", ["ema", "gradient", "residual"])
def test_before_it_begins_z_q_is_z_and_nothing_changes(name):
    late, z = delay.Delayed(quantizer_of(name)).train(), torch.randn(3, 4, 2, 2, requires_grad=True)
    before = {key: value.clone() for key, value in late.state_dict().items()}
    numbers = torch.get_rng_state()
    found = late(z)
    assert torch.equal(found.z_q, z)
    assert found.codes.shape == (3, len(late.codebook_sizes), 2, 2)
    assert not found.codes.any()
    assert found.losses == {}
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[key]) for key, value in late.state_dict().items())
    found.z_q.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    assert all(parameter.grad is not None for parameter in late.parameters())  # as several ranks want it


@pytest.mark.parametrize("name", ["ema", "gradient", "residual"])
def test_once_begun_it_is_the_quantizer_whose_codebook_starts_from_latents(name):
    late, bare, z = delay.Delayed(quantizer_of(name)).train(), quantizer_of(name).train(), torch.randn(30, 4, 2, 2)
    late(torch.full_like(z, 100.0))
    late.begin()
    torch.manual_seed(1)
    found = late(z)
    torch.manual_seed(1)
    expected = bare(z)
    assert torch.equal(found.z_q, expected.z_q)
    assert torch.equal(found.codes, expected.codes)
    assert found.losses.keys() == expected.losses.keys()
    assert late.codebooks[0].abs().max() < 100
    assert torch.equal(late.decode(found.codes), bare.decode(expected.codes))


@pytest.mark.parametrize(("tokenizer", "quantizer"), KINDS)
def test_a_tokenizer_without_delay_is_the_one_of_its_recipe(raw, tokenizer, quantizer):
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = tokenizer, quantizer
    raw["tokenizer"]["vqvae2"]["downsampling"] = 2
    recipe = models.tokenizer_recipe(Params(raw), (3, 8, 8))
    made, x = models.build(recipe).eval(), torch.randn(2, 3, 8, 8)
    expected, names = made(x), list(made.state_dict())
    delay.delay(made)
    assert len(delay.delayed(made)) == len(expected.quantized)
    assert all(torch.equal(level.z_q, z) for level, z in zip(made(x).quantized, made(x).latents, strict=True))
    assert sorted(delay.state_without_delay(made)) == sorted(names)
    delay.undelay(made)
    assert list(made.state_dict()) == names
    assert torch.equal(made(x).reconstruction, expected.reconstruction)


# the stage


def changed(raw: dict[str, Any], unquantized: float, **values: Any) -> dict[str, Any]:
    """4 epochs of 3 steps, each evaluated."""
    training = {**raw["tokenizer"]["training"], "epochs": 4, "evaluate_every": 1, "batch_size": 4, "patience": 0}
    return {**raw, "tokenizer": {**raw["tokenizer"], "unquantized": unquantized, "training": training, **values}}


def trained(raw: dict[str, Any], runtime: Any) -> tuple[dict[str, torch.Tensor], pd.DataFrame, dict[str, Any]]:
    stage.main(Run(Params(raw), None, runtime))
    weights = models.load_weights(files.ARTIFACTS / "tokenizer" / models.WEIGHTS)
    return weights, pd.read_csv(files.PLOTS / "tokenizer.csv"), files.read_json(files.METRICS / "tokenizer.json")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_without_it_nothing_of_it_happens(tiny_run, raw, runtime, monkeypatch):
    tiny_run()

    def fail(*_: object) -> None:
        raise AssertionError("a delay")

    monkeypatch.setattr(delay, "Delayed", fail)
    monkeypatch.setattr(delay, "delayed", lambda _: {})
    _, rows, _ = trained(changed(raw, 0.0), runtime)
    assert "quantized" not in rows
    data = stage.Data({"train": np.zeros((4, 8, 8, 3), np.uint8), "val": np.zeros((2, 8, 8, 3), np.uint8)},
                      Params(raw).section("tokenizer", stage.Settings).augmentation, 4, "cpu")  # fmt: skip
    assert len(data.batch(np.arange(2), torch.Generator().manual_seed(0), 0.0)) == 1


@pytest.mark.parametrize("keep", ["best", "best_usage", "last"])
def test_only_an_epoch_that_is_quantized_is_kept(tiny_run, raw, runtime, keep):
    """The first half of 12 steps: epochs 1 and 2."""
    tiny_run()
    weights, rows, metrics = trained(changed(raw, 0.5, keep=keep, keep_every=1), runtime)
    assert rows["quantized"].tolist() == [0, 0, 1, 1]
    assert metrics["epoch"] > 2
    assert rows["val_usage"].iloc[0] < rows["val_usage"].iloc[-1]
    assert bool(weights["quantizer.initialised"])
    loaded = models.load(files.ARTIFACTS / "tokenizer")
    assert same(loaded.state_dict(), weights)
    for epoch in range(1, 5):
        kept = models.load_weights(files.ARTIFACTS / "tokenizer" / "epochs" / f"{epoch:04d}.safetensors")
        assert kept.keys() == weights.keys()
        assert bool(kept["quantizer.initialised"]) == (epoch > 2)


@pytest.mark.parametrize(("tokenizer", "quantizer"), [("vqvae", "ema"), ("vqvae2", "gradient")])
def test_it_changes_what_is_learnt_and_a_run_repeats_it(tiny_run, raw, runtime, tokenizer, quantizer):
    tiny_run()
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = tokenizer, quantizer
    raw["tokenizer"]["vqvae2"]["downsampling"] = 2
    off, _, _ = trained(changed(raw, 0.0), runtime)
    on, _, _ = trained(changed(raw, 0.4), runtime)
    again, _, _ = trained(changed(raw, 0.4), runtime)
    assert on.keys() == off.keys()
    assert same(on, again)
    assert not same(on, off)


class Stopping(Runtime):
    """A runtime that is told to stop once `left` more steps are done, as a signal would."""

    def __init__(self, scratch: Scratch, left: int) -> None:
        super().__init__(SETTINGS, scratch)
        self.left = left

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        self.left -= 1
        if self.left == 0:
            self.stopping = signal.SIGTERM


def resumed(raw: dict[str, Any]) -> tuple[dict[str, torch.Tensor], pd.DataFrame, int]:
    """What is left by a training that is stopped after every 5 steps, and how often it was."""
    for stops in range(9):
        try:
            with Scratch("tokenizer", "abc", 2) as scratch:
                return *trained(raw, Stopping(scratch, 5))[:2], stops
        except Interrupted:
            continue
    raise AssertionError("it never ended")


@pytest.mark.parametrize("weight_ema", [0.0, 0.5])
def test_interrupted_before_and_after_it_begins_ends_with_the_same_bits(tiny_run, raw, weight_ema):
    tiny_run()
    on = changed(raw, 0.5)
    on["tokenizer"]["training"]["weight_ema"] = weight_ema
    weights, rows, _ = trained(on, Runtime(SETTINGS))
    found, found_rows, stops = resumed(on)
    assert stops == 2  # of 12 steps, after 5 and 10; the second half is quantized
    assert same(found, weights)
    pd.testing.assert_frame_equal(found_rows, rows)


@pytest.mark.parametrize(("values", "where"), [
    ({"quantizer.name": "fsq"}, "tokenizer.unquantized"),
    ({"quantizer.name": "simvq"}, "tokenizer.unquantized"),
    ({"quantizer.initialisation": "normal"}, "quantizer.initialisation"),
    ({"quantizer.distance": "cosine"}, "tokenizer.unquantized"),
    ({"tokenizer.name": "vae", "quantizer.name": "kmeans"}, "tokenizer.unquantized"),
    ({"losses.code_entropy.weight": 1.0}, "losses.code_entropy.weight"),
    ({"losses.joint_prior.weight": 1.0}, "losses.joint_prior.weight"),
    ({"tokenizer.training.patience": 2}, "tokenizer"),
])  # fmt: skip
def test_what_it_does_not_go_with_is_refused(raw, values, where):
    raw["quantizer"]["codebook_size"] = 256  # a size of FSQ's table
    raw["quantizer"]["kmeans"]["latents"] = 256
    raw["quantizer"]["initialisation"] = "latents"
    for fraction, count in ((0.0, 0), (0.3, 1)):
        raw["tokenizer"]["unquantized"] = fraction
        for name, value in values.items():
            *place, last = name.split(".")
            section = raw
            for part in place:
                section = section[part]
            section[last] = value
        found = problems(raw)
        assert len(found) == count, found
        assert all(line.startswith(f"{where}: ") for line in found)


def test_pixels_do_not_read_it(raw):
    raw["tokenizer"] |= {"name": "pixels", "unquantized": 0.3}
    assert problems(raw) == []
