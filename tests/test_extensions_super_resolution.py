"""Super-resolution: the upsampler, a decoder on frozen code vectors to twice the size of the images, its stage, and the
extension that judges it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import upsampler as stage
from tessera import scores, upsampling
from tessera.core import files, models
from tessera.core.contracts import SPLITS
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.images import arrays
from tessera.training.settings import Training
from tessera.upsamplers import bicubic_residual

KINDS = {  # tokenizer, quantizer, values of the tokenizer
    "vqvae": ("vqvae", "ema", {"downsampling": 4}),
    "residual": ("vqvae", "residual", {"downsampling": 4}),
    "vqvae2": ("vqvae2", "gradient", {"downsampling": 2, "top_downsampling": 2}),
    "vqvae2, residual": ("vqvae2", "residual", {"downsampling": 2, "top_downsampling": 4}),
    "prologue": ("prologue", "ema", {"downsampling": 4, "count": 3}),
    "pixels": ("pixels", "ema", {"levels": 4}),
}
COUNTS = {"train": 12, "val": 6, "test": 5}


@pytest.fixture
def larger_run(tiny_run, raw, tiny, runtime, make_images, train) -> Callable[..., Run]:
    """`larger_run("vqvae2", lr=0.01)`: a tiny run with that kind of tokenizer, targets of 16x16, and other values of the section's
    `training`; no upsampler is there yet."""
    tiny_run()

    def make(kind: str = "vqvae", **training: Any) -> Run:
        tokenizer, quantizer, own = KINDS[kind]
        raw["upsampler"]["training"] = tiny(Training, **training).model_dump()
        raw["tokenizer"]["name"], raw["quantizer"]["name"] = tokenizer, quantizer
        raw["tokenizer"][tokenizer] |= own
        run = Run(Params(raw), "super_resolution", runtime)
        targets = np.split(make_images(sum(COUNTS.values()), 16, 16), np.cumsum(list(COUNTS.values()))[:-1])
        for split, pixels in zip(COUNTS, targets, strict=True):
            files.save_array(run.folder("targets") / f"{split}.npy", pixels)
        if kind != "vqvae":  # the one there is
            _encode(run, train)
        return run

    return make


def _encode(run: Run, train: Callable[..., Any]) -> None:
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    tokenizer = models.build(recipe)
    if any(True for _ in tokenizer.parameters()):
        train(tokenizer, arrays.to_model(run.images("train")), steps=10)
    models.save(run.folder("tokenizer"), tokenizer, recipe, "")
    for split in SPLITS:
        with torch.no_grad():
            codes = tokenizer.eval().encode(arrays.to_model(run.images(split)))
        files.save_array(run.folder("codes") / f"{split}.npy", codes.numpy().astype(np.int32))


def made(run: Run) -> Any:
    """An untrained upsampler of the run's params, in eval mode."""
    return models.build(run.upsampler_recipe(run.tokenizer())).eval()


def seen_by(run: Run, split: str = "test") -> upsampling.Seen:
    return upsampling.of_split(run, run.tokenizer(), split, np.arange(COUNTS[split]))


def measured(run: Run) -> Any:
    """The extension's report, after the stage."""
    stage.main(run)
    return run.measure("extensions")


# the decoder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_code_vectors_is_decoded_at_twice_the_size(larger_run, kind):
    run = larger_run(kind)
    seen = seen_by(run)
    assert len(seen.vectors) == (2 if kind.startswith("vqvae2") else 1)
    assert made(run)(*seen).shape == (5, 3, 16, 16)
    report = measured(run)
    assert np.isfinite(report.metrics["decoder"]["psnr_db"])
    assert report.pictures["test"].shape == (3 * 68 + 4, 3 * 68 + 4, 3)  # rows, columns of 64 pixels and gaps


@pytest.mark.parametrize("kind", ["vqvae", "vqvae2", "vqvae2, residual"])
def test_every_level_tells(larger_run, kind):
    """Each level's vectors change what is drawn, once there is a residual."""
    run = larger_run(kind)
    decoder, seen = made(run), seen_by(run)
    with torch.no_grad():
        before = decoder(*seen)
        torch.testing.assert_close(before, upsampling.enlarged(seen.reconstruction))  # untrained
        for parameter in decoder.parameters():
            parameter.add_(0.1)
        before = decoder(*seen)
        for level in range(len(seen.vectors)):
            others = tuple(v + (index == level) * torch.randn_like(v) for index, v in enumerate(seen.vectors))
            assert (decoder(others, seen.reconstruction) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_coarse_vectors_lie_over_the_fine_ones_of_their_place(tiny):
    """One coarse vector reaches, through a decoder without surroundings, its own quarter of the image alone."""
    config = tiny(bicubic_residual.Config, blocks=0, outer_blocks=0, normalisation="none")
    decoder = bicubic_residual.build(config, (3, 4, 4), ((2, 2, 2), (3, 4, 4))).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.fill_(0.1)
            if parameter.dim() == 4:  # the middle of each kernel only
                parameter.copy_(F.pad(parameter[:, :, 1:2, 1:2], (1, 1, 1, 1)))
            assert parameter.abs().sum() > 0, name
        coarse, fine, blank = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
        before = decoder((coarse, fine), blank)
        coarse[0, :, 0, 1] = 1.0
        changed = (decoder((coarse, fine), blank) != before).any(1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, 4:] = True
    assert torch.equal(changed, expected)


def test_bicubic_enlargement_by_hand():
    """A single pixel becomes Keys' kernel (1981, eq. 4, with -0.75 in place of his -0.5), sampled at quarters."""
    a, row = -0.75, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])

    def kernel(x: float) -> float:
        x = abs(x)
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return near if x <= 1 else far if x < 2 else 0.0

    got = upsampling.enlarged(row.expand(1, 1, 6, 6))[0, 0, 6]
    expected = [kernel((place + 0.5) / 2 - 0.5 - 2) for place in range(12)]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    nearest = upsampling.enlarged(row.expand(1, 1, 6, 6), "nearest")[0, 0]
    assert torch.equal(nearest, row.repeat_interleave(2).expand(12, 12))


# its training


def test_a_little_training_adds_detail_and_keeps_the_picture(larger_run):
    """Nearer to the targets than the enlargement that it starts from; shrunk again, near the reconstruction."""
    run = larger_run("pixels", epochs=30, lr=0.02, evaluate_every=15, batch_size=4)
    stage.main(run)
    decoder, seen = run.upsampler(run.tokenizer()), seen_by(run)
    target = arrays.to_model(run.images("test", "targets"))
    with torch.no_grad():
        enlarged, plain = decoder(*seen), upsampling.enlarged(seen.reconstruction)
    assert F.mse_loss(enlarged, target) < 0.9 * F.mse_loss(plain, target)
    shrunk, others = F.avg_pool2d(enlarged, 2), seen.reconstruction.roll(1, 0)
    assert F.mse_loss(shrunk, seen.reconstruction) < 0.5 * F.mse_loss(others, seen.reconstruction)


def test_the_best_epoch_is_kept_and_its_scores_are_those_of_the_saved_network(larger_run):
    run = larger_run(epochs=4, lr=0.02, evaluate_every=1)
    stage.main(run)
    curve = files.read_table(Path("plots/upsampler.csv"))
    kept, metrics = curve.loc[curve["val_mse"].idxmin()], files.read_json(Path("metrics/upsampler.json"))
    assert metrics["epoch"] == kept["epoch"]
    with torch.no_grad():
        pixels = arrays.to_pixels(run.upsampler(run.tokenizer())(*seen_by(run, "val")))
    mse = scores.symmetric(scores.mse(pixels, run.images("val", "targets"))).mean()
    assert metrics["val"]["mse"] == pytest.approx(kept["val_mse"], rel=1e-4) == pytest.approx(mse, rel=1e-4)


def test_the_tokenizer_is_frozen(larger_run, monkeypatch):
    run = larger_run("vqvae2")
    tokenizer = run.tokenizer()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    monkeypatch.setattr(run, "tokenizer", lambda: tokenizer)
    stage.main(run)
    assert not tokenizer.training
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert not set(map(id, tokenizer.parameters())) & set(map(id, run.upsampler(tokenizer).parameters()))


def test_one_of_other_values_is_refused(larger_run, raw):
    run = larger_run()
    stage.main(run)
    raw["upsampler"]["bicubic_residual"]["channels"] += 1
    with pytest.raises(InputError, match=r"channels is 8 in the model, 9 in params.yaml. Run `dvc repro upsampler`"):
        run.measure("extensions")


def test_pairs_are_augmented_alike():
    """Enlarging and augmenting commute, also where both images of a batch are flipped or not."""
    x = torch.rand(8, 3, 6, 6) * 2 - 1
    large = upsampling.enlarged(x, "nearest")
    moved = []
    for step in range(6):
        small, target = stage.augmented(x, large, 0.5, 2, torch.Generator().manual_seed(step))
        assert torch.equal(upsampling.enlarged(small, "nearest"), target)
        moved.append(small)
    assert len({tuple(small.flatten().tolist()) for small in moved}) == len(moved)
    small, target = stage.augmented(x, large, 0.0, 0, torch.Generator())
    assert torch.equal(small, x)
    assert torch.equal(target, large)
    flipped, _ = stage.augmented(x, large, 1.0, 0, torch.Generator())
    assert torch.equal(flipped, x.flip(3))


# the report


def test_report_is_the_same_whatever_the_global_generators_hold(larger_run):
    run = larger_run()
    first = measured(run)
    torch.manual_seed(7)
    np.random.seed(7)
    again = measured(run)
    assert first.metrics == again.metrics
    assert all(first.tables[name].equals(again.tables[name]) for name in first.tables)
    np.testing.assert_array_equal(first.pictures["test"], again.pictures["test"])


def test_report_by_hand(larger_run):
    """Without an update that helps (a rate of next to nothing) the decoder is the bicubic enlargement, and the others are
    scored on 8-bit test images."""
    run = larger_run(lr=1e-12)
    metrics = measured(run).metrics
    target, seen = run.images("test", "targets"), seen_by(run)
    expected = {
        "decoder": upsampling.enlarged(seen.reconstruction),
        "bicubic": upsampling.enlarged(seen.reconstruction),
        "nearest": seen.reconstruction.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "bicubic_of_original": upsampling.enlarged(arrays.to_model(run.images("test"))),
    }
    for name, x in expected.items():
        pixels = arrays.to_pixels(x)
        error = ((pixels.astype(float) - target) / 127.5) ** 2
        assert metrics[name]["mse"] == pytest.approx(error.mean(), rel=1e-3)
        assert metrics[name]["psnr_db"] == pytest.approx(10 * np.log10(4 / error.mean()), abs=1e-2)
        assert metrics[name]["ssim"] == pytest.approx(scores.ssim(pixels, target).mean(), abs=1e-3)
    assert metrics["gain_db"]["bicubic"] == pytest.approx(0, abs=1e-2)
    assert metrics["gain_db"]["bicubic_of_original"] < 0
    assert set(metrics["gain_db"]) == set(expected) - {"decoder"}


def test_picture_shows_target_bicubic_and_decoder(larger_run):
    run = larger_run()
    report = measured(run)
    sheet, target = report.pictures["test"], run.images("test", "targets")
    first = np.unique(run.table("test")["family"], return_index=True)[1]
    np.testing.assert_array_equal(sheet[4:68:4, 4:68:4], target[min(first)])
    bicubic = arrays.to_pixels(upsampling.enlarged(seen_by(run).reconstruction))
    np.testing.assert_array_equal(sheet[72:136:4, 4:68:4], bicubic[min(first)])
    run.write("extensions", report)
    assert {path.name for path in Path("plots/extensions/super_resolution").iterdir()} == {
        "methods.csv",
        "test.png",
    }


# where it applies

OFF = {
    "off": ({"upsampler": {"enabled": False}}, "upsampler.enabled is false"),
    "size": ({"dataset": {"target_size": 24}}, "dataset.target_size must be 2 times dataset.image_size, 16, got 24"),
    "vector": (
        {"tokenizer": {"name": "vae"}},
        "tokenizer.vae.latent must be spatial: one vector per image has no grid to decode from",
    ),
}


@pytest.mark.parametrize("case", OFF)
def test_where_it_does_not_apply_nothing_is_trained(larger_run, raw, case, capsys):
    run = larger_run()
    stage.main(run)
    assert run.unused("upsampler") is None
    values, reason = OFF[case]
    raw["tokenizer"]["vae"]["latent"] = "vector"
    for section, changed in values.items():
        raw[section] |= changed
    stage.main(run)
    assert [path.name for path in Path("artifacts/upsampler").iterdir()] == ["unused.json"]  # and no weights of before
    assert files.read_json(Path("metrics/upsampler.json")) == {"applies": 0}
    assert run.measure("extensions").metrics == {"applies": 0}
    assert capsys.readouterr().out.endswith(f"extensions@super_resolution does not apply: {reason}\n")
    raw["upsampler"]["enabled"], raw["dataset"]["target_size"], raw["tokenizer"]["name"] = True, 16, "vqvae"
    stage.main(run)
    assert run.unused("upsampler") is None


def test_training_messages_name_the_place_in_params(larger_run, runtime):
    run, runtime.ranks = larger_run(batch_size=99), 2
    with pytest.raises(ValueError, match=r"^upsampler\.training\.batch_size must be divisible by"):
        stage.main(run)


def test_it_resumes_from_its_own_checkpoint(larger_run, runtime, monkeypatch):
    saved: dict[str, Any] = {}
    monkeypatch.setattr(runtime, "checkpoint", lambda task, pack, force=False: saved.__setitem__(task, pack()))
    run = larger_run()
    whole = measured(run)
    assert list(saved) == ["upsampler"]
    monkeypatch.setattr(runtime, "resume", lambda task: saved[task])
    monkeypatch.setattr(runtime, "progress", lambda **options: _nothing_left(options))
    assert measured(run).metrics == whole.metrics


def _nothing_left(options: dict[str, Any]) -> Any:
    assert options["initial"] == options["total"]
    return SimpleNamespace(close=lambda: None)
