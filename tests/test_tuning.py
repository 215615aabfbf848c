"""The decoder is tuned on codes of which some are wrong: it mends them, and no code changes."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import example
from kinds import KINDS
from pydantic import ValidationError
from test_training import SETTINGS, Stopping
from torch import nn

from stages import tokenizer as stage
from tessera import scores
from tessera.core import files, models
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.space import CodeSpace
from tessera.images import arrays
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch
from tessera.runtime.validation import problems
from tessera.studies import plan
from tessera.tokenizers import pixels

WITH_WEIGHTS = [kind for kind in KINDS if kind != "pixels"]


def asked(raw: dict[str, Any], kind: str = "vqvae", epochs: int = 2, **values: Any) -> dict[str, Any]:
    """params.yaml of a tokenizer of that kind, tuned for so many epochs."""
    raw = copy.deepcopy(raw)
    name, quantizer, own = KINDS[kind]
    raw["tokenizer"]["name"], raw["quantizer"]["name"] = name, quantizer
    raw["tokenizer"][name] |= own
    raw["tokenizer"]["tuning"] |= values
    raw["tokenizer"]["tuning"]["training"] |= {"epochs": epochs}
    return raw


def made(raw: dict[str, Any], runtime: Any) -> tuple[Any, dict[str, Any]]:
    """The tokenizer that the stage writes, and its metrics."""
    stage.main(Run(Params(raw), runtime=runtime))
    return models.load(files.ARTIFACTS / "tokenizer"), files.read_json(files.METRICS / "tokenizer.json")


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_codes_stay_as_they_are_and_the_decoder_alone_moves(kind, raw, tiny_run, runtime):
    x = arrays.to_model(tiny_run().images("test"))
    before, plain = made(asked(raw, kind, epochs=0), runtime)
    assert "tuning" not in plain
    assert not Path("plots/tokenizer/tuning.csv").exists()
    after, found = made(asked(raw, kind, epochs=2, rate=0.5), runtime)
    assert {name: value for name, value in found.items() if name != "tuning"} == plain
    with torch.no_grad():
        assert torch.equal(after.encode(x), before.encode(x))
    state = after.state_dict()
    moved = {name.partition(".")[0] for name, old in before.state_dict().items() if not torch.equal(state[name], old)}
    assert moved == ({"decoder", "upsampling"} if kind in ("vqvae2", "vqvae2, residual") else {"decoder"})
    assert list(files.read_table(Path("plots/tokenizer/tuning.csv"))["epoch"]) == [1, 2]


@pytest.mark.parametrize("kind", ["vqvae", "prologue"])
def test_a_tokenizer_that_is_quantized_late_is_tuned_too(kind, raw, tiny_run, runtime):
    x = arrays.to_model(tiny_run().images("test"))
    raw["tokenizer"]["unquantized"] = 0.4
    before, _ = made(asked(raw, kind, epochs=0), runtime)
    after, found = made(asked(raw, kind, epochs=1), runtime)
    assert found["tuning"]["psnr_db"]
    with torch.no_grad():
        assert torch.equal(after.encode(x), before.encode(x))


def test_metrics_are_the_psnr_before_and_after(raw, tiny_run, runtime):
    """That of validation images from their own codes is what the models that are written give."""
    pixels = tiny_run().images("val")
    untuned, _ = made(asked(raw, epochs=0), runtime)
    tuned, found = made(asked(raw, rate=1.0), runtime)
    for name, tokenizer in {"before": untuned, "after": tuned}.items():
        with torch.no_grad():
            decoded = arrays.to_pixels(tokenizer.decode(tokenizer.encode(arrays.to_model(pixels))))
        wanted = float(scores.psnr_db(scores.mse(decoded, pixels).mean()))
        assert found["tuning"]["psnr_db"][name] == pytest.approx(wanted, abs=1e-4)
    assert found["tuning"]["psnr_db_replaced"]["before"] < found["tuning"]["psnr_db"]["before"]


class Table(nn.Module):
    """One pixel an image, its code 0 to 3 the nearest of four values; each code is decoded to a value of its own. Its encoder has
    a parameter, and statistics that a pass in training mode changes."""

    image_shape, space = (1, 1, 1), CodeSpace(((1, 1),), (4,))

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.tensor([[-1.0], [-0.5], [0.5], [1.0]]))
        self.encoder = nn.BatchNorm2d(1, affine=True)
        self.decoded = nn.Linear(1, 1)
        with torch.no_grad():
            self.decoded.weight.fill_(1)
            self.decoded.bias.zero_()

    @property
    def codebooks(self) -> tuple[torch.Tensor, ...]:
        return (self.book,)

    def latents(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x + 0 * self.encoder(x),)

    def quantize(self, latents: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        codes = (latents[0] - self.book.view(1, 4, 1, 1)).abs().argmin(1, keepdim=True)
        return (stage.Quantized(latents[0], codes, {"commitment": self.book.sum()}),)

    def vectors(self, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.book[codes][:, :, None],)

    def decode_vectors(self, z_q: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.decoded(z_q[0])


class Squared(nn.Module):
    def forward(self, x: torch.Tensor, output: Any) -> torch.Tensor:
        return (output.reconstruction - x).square().mean()


def test_a_decoder_learns_the_mean_of_the_images_that_a_code_may_stand_for(runtime):
    """Half of the codes -1 are replaced by -.5 and the other way round, so both values decode to a line whose least squares are
    known: of images -1 and -.5 alike and z equal or exchanged with probability 1/2, the slope is 0 and the mean -.75."""
    values = np.array([0, 64] * 32, np.uint8).reshape(-1, 1, 1, 1)  # of [-1, 1]: -1 and about -.5
    data = stage.Data({"train": values, "val": values}, SimpleNamespace(), 64, "cpu")
    data.batch = lambda indices, generator, done=0.0: (arrays.to_model(values[np.sort(indices)]),)
    training = example(stage.TuningTraining, epochs=40, batch_size=8, lr=0.1, schedule="linear", evaluate_every=40)
    own = example(stage.TuningSettings, rate=0.5, neighbours=1).model_copy(update={"training": training})
    params = SimpleNamespace(section=lambda *_: SimpleNamespace(tuning=own), seed=0)
    tokenizer = Table()
    encoder = copy.deepcopy(tokenizer.encoder.state_dict())
    tuned = stage.tune(
        stage.Objective(tokenizer, {"mse": (1.0, Squared())}), data, SimpleNamespace(params=params, runtime=runtime)
    )
    assert tokenizer.decoded.weight.item() == pytest.approx(0, abs=0.1)
    assert tokenizer.decoded.bias.item() == pytest.approx(-0.75, abs=0.08)
    assert all(torch.equal(value, encoder[name]) for name, value in tokenizer.encoder.state_dict().items())
    gains = tuned.gains
    assert gains["psnr_db_replaced"]["after"] > gains["psnr_db_replaced"]["before"] + 2
    assert gains["psnr_db"]["after"] < gains["psnr_db"]["before"]


def test_replaced_codes_are_as_many_as_the_rate_says_and_near(raw, make_images):
    tokenizer = models.build(models.tokenizer_recipe(Params(asked(raw)), (3, 8, 8))).train()
    x = arrays.to_model(make_images(200))
    tokenizer(x)
    state = copy.deepcopy(tokenizer.state_dict())
    own = example(stage.TuningSettings, rate=0.25, neighbours=1)
    vectors, latents, quantized = stage.Replacing(tokenizer, own, 0)(x, torch.Generator().manual_seed(0))
    assert tokenizer.training
    assert all(torch.equal(value, state[name]) for name, value in tokenizer.state_dict().items())
    assert (quantized[0].losses, latents[0].requires_grad) == ({}, False)
    with torch.no_grad():
        clean = tokenizer.vectors(tokenizer.space.join([level.codes for level in quantized]))
    changed = (vectors[0] != clean[0]).any(1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / changed.numel()) ** 0.5)
    book = tokenizer.codebooks[0]
    for old, new in list(zip(clean[0].movedim(1, 3)[changed], vectors[0].movedim(1, 3)[changed], strict=True))[:20]:
        others = [(old - vector).norm().item() for vector in book if not torch.equal(vector, old)]
        assert (old - new).norm().item() == pytest.approx(min(others), rel=1e-5)


CASES = {
    "muon, averaged weights": ("vqvae", {"optimizer": "muon", "weight_ema": 0.5}, 0.0),
    "adversarial": ("vqvae2, residual", {"optimizer": "adam"}, 0.5),
    "a codebook fitted afterwards": ("vae, kmeans", {"optimizer": "adam", "precision": "bf16"}, 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_after_every_few_steps_it_ends_with_the_same_bits(case, raw, tiny_run):
    """Both trainings, 6 steps each of 12 images: the first is found finished, or goes on."""
    kind, training, weight = CASES[case]
    raw["tokenizer"]["keep"] = "last"
    raw["losses"]["adversarial"] |= {"weight": weight, "start": 2}
    raw["tokenizer"]["training"] |= {"epochs": 2, "batch_size": 4}
    values = asked(raw, kind)
    values["tokenizer"]["tuning"]["training"] |= {"batch_size": 4, **training}
    tiny_run()
    whole, metrics = made(values, Runtime(SETTINGS))
    for _ in range(3):
        with pytest.raises(Interrupted), Scratch("tokenizer", "abc", 2) as scratch:
            made(values, Stopping(scratch, 4))
    with Scratch("tokenizer", "abc", 2) as scratch:
        resumed, again = made(values, Runtime(SETTINGS, scratch))
        assert sorted(path.stem for path in scratch.folder.glob("*.safetensors")) == ["tokenizer", "tokenizer.tuning"]
    state = resumed.state_dict()
    assert [name for name, value in whole.state_dict().items() if not torch.equal(value, state[name])] == []
    assert again == metrics


def test_another_codebook_is_tuned_on_anew(raw):
    """A training that is found finished in the scratch may belong to another quantizer only where nothing is tuned."""
    assert stage.after_training(Params(asked(raw, "vae, kmeans", epochs=0))) == ("quantizer",)
    assert stage.after_training(Params(asked(raw, "vae, kmeans", epochs=1))) == ()
    assert stage.after_training(Params(asked(raw, "vqvae", epochs=0))) == ()


# what is refused


def test_a_tokenizer_without_weights_is_refused_by_name(raw, runtime):
    (line,) = problems(asked(raw, "pixels", epochs=3))
    assert line.startswith("tokenizer.tuning.training.epochs: must be 0 under tokenizer.name pixels")
    assert "got 3; set it to 0, or choose another tokenizer" in line
    assert problems(asked(raw, "pixels", epochs=0)) == []
    identity = pixels.Pixels(example(pixels.Config), (3, 8, 8))
    with pytest.raises(
        InputError, match=r"tokenizer\.tuning\.training\.epochs: must be 0 for a tokenizer whose decoder"
    ):
        stage.freeze_all_but_decoder(identity)


def test_without_losses_there_is_nothing_to_tune_by(raw, runtime):
    params = Params(asked(raw))
    tokenizer = models.build(models.tokenizer_recipe(params, (3, 8, 8)))
    with pytest.raises(InputError, match="losses: one must have a weight above 0"):
        stage.tune(stage.Objective(tokenizer, {}), None, SimpleNamespace(params=params, runtime=runtime))


@pytest.mark.parametrize("loss", ["smoothness", "code_entropy", "predictability", "joint_prior", "none"])
def test_losses_of_latents_and_codes_alone_tune_no_decoder(raw, loss):
    raw = asked(raw, epochs=2)
    raw["losses"] = {name: {**own, "weight": float(name == loss)} for name, own in raw["losses"].items()}
    (line,) = problems(raw)
    assert line.startswith("tokenizer.tuning.training.epochs: must be 0 unless a loss of images has a weight above 0")
    assert f"got 2 with {loss};" in line
    raw["losses"]["l1"]["weight"] = 1.0
    assert problems(raw) == []


def test_the_last_epoch_is_kept(tiny):
    values = example(stage.TuningSettings).model_dump()
    with pytest.raises(ValidationError, match=r"training\.patience must be 0, .* got 2; set it to 0"):
        stage.TuningSettings.model_validate(values | {"training": values["training"] | {"patience": 2}})


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_the_rate_is_a_fraction_of_the_codes(rate):
    with pytest.raises(ValidationError):
        example(stage.TuningSettings, rate=rate)


def test_values_of_no_tuning_count_for_no_result(raw):
    """So results of a time before it are those of today."""
    counted = plan.today(
        {"tokenizer.name": "vqvae", "tokenizer.tuning.rate": 0.1, "tokenizer.tuning.training.epochs": 0}
    )
    assert counted == {"tokenizer.name": "vqvae"}
    tuned = {"tokenizer.tuning.rate": 0.1, "tokenizer.tuning.training.epochs": 6}
    assert plan.today(tuned) == tuned


def test_it_is_off_by_default():
    assert (
        importlib.import_module("tessera.core.params").read("params.yaml")["tokenizer"]["tuning"]["training"]["epochs"]
        == 0
    )
