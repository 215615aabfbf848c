"""Super-resolution: a decoder on frozen code vectors, to twice the size of the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tessera import scores
from tessera.core import files, models
from tessera.core.contracts import SPLITS
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.extensions import super_resolution as extension
from tessera.extensions.super_resolution import upscaling
from tessera.images import arrays

KINDS = {  # tokenizer, quantizer, values of the tokenizer
    "vqvae": ("vqvae", "ema", {"downsampling": 4}),
    "residual": ("vqvae", "residual", {"downsampling": 4}),
    "vqvae2": ("vqvae2", "gradient", {"downsampling": 2, "top_downsampling": 2}),
    "vqvae2, residual": ("vqvae2", "residual", {"downsampling": 2, "top_downsampling": 4}),
    "pixels": ("pixels", "ema", {"levels": 4}),
}
COUNTS = {"train": 12, "val": 6, "test": 5}


@pytest.fixture
def larger_run(tiny_run, raw, tiny, runtime, make_images, train) -> Callable[..., Run]:
    """`larger_run("vqvae2", lr=0.01)`: a tiny run with that kind of tokenizer, targets of 16x16, and other values of `training`."""
    tiny_run()

    def make(kind: str = "vqvae", **training: Any) -> Run:
        values = tiny(extension.Config).model_dump()
        values["training"] |= training
        tokenizer, quantizer, own = KINDS[kind]
        raw["extensions"]["super_resolution"] = values
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


def config_of(run: Run) -> extension.Config:
    return run.params.config("extensions", "super_resolution")


def seen_by(run: Run, split: str = "test") -> upscaling.Seen:
    return upscaling.see(run.tokenizer(), torch.from_numpy(run.codes(split).astype(np.int64)))


# the decoder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_code_vectors_is_decoded_at_twice_the_size(larger_run, kind):
    run = larger_run(kind)
    seen = seen_by(run)
    assert len(seen.vectors) == (2 if kind.startswith("vqvae2") else 1)
    decoder = upscaling.made_for(run.tokenizer(), config_of(run)).eval()
    assert decoder(seen).shape == (5, 3, 16, 16)
    report = run.measure("extensions")
    assert np.isfinite(report.metrics["decoder"]["psnr_db"])
    assert report.pictures["test"].shape == (3 * 68 + 4, 3 * 68 + 4, 3)  # rows, columns of 64 pixels and gaps


@pytest.mark.parametrize("kind", ["vqvae", "vqvae2", "vqvae2, residual"])
def test_every_level_tells(larger_run, kind):
    """Each level's vectors change what is drawn, once there is a residual."""
    run = larger_run(kind)
    decoder = upscaling.made_for(run.tokenizer(), config_of(run)).eval()
    seen = seen_by(run)
    with torch.no_grad():
        before = decoder(seen)
        torch.testing.assert_close(before, upscaling.enlarged(seen.reconstruction))  # untrained
        for parameter in decoder.parameters():
            parameter.add_(0.1)
        before = decoder(seen)
        for level in range(len(seen.vectors)):
            others = tuple(v + (index == level) * torch.randn_like(v) for index, v in enumerate(seen.vectors))
            assert (decoder(seen._replace(vectors=others)) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_coarse_vectors_lie_over_the_fine_ones_of_their_place(tiny):
    """One coarse vector reaches, through a decoder without surroundings, its own quarter of the image alone."""
    config = tiny(extension.Config, blocks=0, outer_blocks=0, normalisation="none")
    decoder = upscaling.Decoder(config, (2, 3), 4, (3, 4, 4)).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.fill_(0.1)
            if parameter.dim() == 4:  # the middle of each kernel only
                parameter.copy_(F.pad(parameter[:, :, 1:2, 1:2], (1, 1, 1, 1)))
            assert parameter.abs().sum() > 0, name
        coarse, fine, blank = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
        before = decoder(upscaling.Seen((coarse, fine), blank))
        coarse[0, :, 0, 1] = 1.0
        changed = (decoder(upscaling.Seen((coarse, fine), blank)) != before).any(1)[0]
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

    got = upscaling.enlarged(row.expand(1, 1, 6, 6))[0, 0, 6]
    expected = [kernel((place + 0.5) / 2 - 0.5 - 2) for place in range(12)]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    nearest = upscaling.enlarged(row.expand(1, 1, 6, 6), "nearest")[0, 0]
    assert torch.equal(nearest, row.repeat_interleave(2).expand(12, 12))


# its training


def test_a_little_training_adds_detail_and_keeps_the_picture(larger_run):
    """Nearer to the targets than the enlargement that it starts from; shrunk again, near the reconstruction."""
    run = larger_run("pixels", epochs=30, lr=0.02, evaluate_every=15)
    decoder, fitted = extension.trained(config_of(run), run.tokenizer(), run)
    seen, target = seen_by(run), arrays.to_model(run.images("test", "targets"))
    with torch.no_grad():
        made, plain = decoder(seen), upscaling.enlarged(seen.reconstruction)
    assert F.mse_loss(made, target) < 0.9 * F.mse_loss(plain, target)
    shrunk, others = F.avg_pool2d(made, 2), seen.reconstruction.roll(1, 0)
    assert F.mse_loss(shrunk, seen.reconstruction) < 0.5 * F.mse_loss(others, seen.reconstruction)
    assert fitted.epoch == min(fitted.history, key=lambda row: row["val_mse"])["epoch"]


def test_the_tokenizer_is_frozen(larger_run):
    run = larger_run("vqvae2")
    tokenizer = run.tokenizer()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    decoder, _ = extension.trained(config_of(run), tokenizer, run)
    assert not tokenizer.training
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert not set(map(id, tokenizer.parameters())) & set(map(id, decoder.parameters()))


def test_pairs_are_augmented_alike():
    """Enlarging and augmenting commute, also where both images of a batch are flipped or not."""
    x = torch.rand(8, 3, 6, 6) * 2 - 1
    large = upscaling.enlarged(x, "nearest")
    moved = []
    for step in range(6):
        small, target = upscaling.augmented(x, large, 0.5, 2, torch.Generator().manual_seed(step))
        assert torch.equal(upscaling.enlarged(small, "nearest"), target)
        moved.append(small)
    assert len({tuple(small.flatten().tolist()) for small in moved}) == len(moved)
    small, target = upscaling.augmented(x, large, 0.0, 0, torch.Generator())
    assert torch.equal(small, x)
    assert torch.equal(target, large)
    flipped, _ = upscaling.augmented(x, large, 1.0, 0, torch.Generator())
    assert torch.equal(flipped, x.flip(3))


# the report


def test_report_is_the_same_whatever_the_global_generators_hold(larger_run):
    run = larger_run()
    first = run.measure("extensions")
    torch.manual_seed(7)
    np.random.seed(7)
    again = run.measure("extensions")
    assert first.metrics == again.metrics
    assert all(first.tables[name].equals(again.tables[name]) for name in first.tables)
    np.testing.assert_array_equal(first.pictures["test"], again.pictures["test"])


def test_report_by_hand(larger_run):
    """Without an update that helps (a rate of next to nothing) the decoder is the bicubic enlargement, and the others are
    scored on 8-bit test images."""
    run = larger_run(lr=1e-12)
    metrics = run.measure("extensions").metrics
    target, seen = run.images("test", "targets"), seen_by(run)
    made = {
        "decoder": upscaling.enlarged(seen.reconstruction),
        "bicubic": upscaling.enlarged(seen.reconstruction),
        "nearest": seen.reconstruction.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "bicubic_of_original": upscaling.enlarged(arrays.to_model(run.images("test"))),
    }
    for name, x in made.items():
        pixels = arrays.to_pixels(x)
        error = ((pixels.astype(float) - target) / 127.5) ** 2
        assert metrics[name]["mse"] == pytest.approx(error.mean(), rel=1e-3)
        assert metrics[name]["psnr_db"] == pytest.approx(10 * np.log10(4 / error.mean()), abs=1e-2)
        assert metrics[name]["ssim"] == pytest.approx(scores.ssim(pixels, target).mean(), abs=1e-3)
    assert metrics["gain_db"]["bicubic"] == pytest.approx(0, abs=1e-2)
    assert metrics["gain_db"]["bicubic_of_original"] < 0
    assert set(metrics["gain_db"]) == set(made) - {"decoder"}


def test_picture_shows_target_bicubic_and_decoder(larger_run):
    run = larger_run()
    report = run.measure("extensions")
    sheet, target = report.pictures["test"], run.images("test", "targets")
    first = np.unique(run.table("test")["family"], return_index=True)[1]
    np.testing.assert_array_equal(sheet[4:68:4, 4:68:4], target[min(first)])
    bicubic = arrays.to_pixels(upscaling.enlarged(seen_by(run).reconstruction))
    np.testing.assert_array_equal(sheet[72:136:4, 4:68:4], bicubic[min(first)])
    run.write("extensions", report)
    assert {path.name for path in Path("plots/extensions/super_resolution").iterdir()} == {
        "methods.csv",
        "curve.csv",
        "test.png",
    }


# where it applies


def test_it_says_where_it_does_not_apply(raw):
    raw["dataset"] |= {"image_size": 8, "target_size": 16}
    assert extension.requires(Params(raw)) is None
    raw["dataset"]["target_size"] = 24
    assert extension.requires(Params(raw)) == "dataset.target_size must be 2 times dataset.image_size, 16, got 24"
    raw["dataset"]["target_size"] = 16
    raw["tokenizer"]["name"] = "vae"
    raw["tokenizer"]["vae"]["latent"] = "vector"
    assert "tokenizer.vae.latent must be spatial" in extension.requires(Params(raw))


def test_where_it_does_not_apply_nothing_is_trained(larger_run, capsys):
    run = larger_run()
    run.params.raw["dataset"]["target_size"] = 8
    vars(run.params).pop("dataset", None)
    assert run.measure("extensions").metrics == {"applies": 0}
    assert "does not apply: dataset.target_size must be 2 times" in capsys.readouterr().out


def test_training_messages_name_the_place_in_params(larger_run, runtime):
    run, runtime.ranks = larger_run(batch_size=99), 2
    with pytest.raises(ValueError, match=r"^extensions\.super_resolution\.training\.batch_size must be divisible by"):
        run.measure("extensions")


def test_it_resumes_from_its_own_checkpoint(larger_run, runtime, monkeypatch):
    saved: dict[str, Any] = {}
    monkeypatch.setattr(runtime, "checkpoint", lambda task, pack, force=False: saved.__setitem__(task, pack()))
    run = larger_run()
    whole = run.measure("extensions")
    assert list(saved) == [extension.NAME]
    monkeypatch.setattr(runtime, "resume", lambda task: saved[task])
    monkeypatch.setattr(runtime, "progress", lambda **options: _nothing_left(options))
    again = run.measure("extensions")
    assert again.metrics == whole.metrics


def _nothing_left(options: dict[str, Any]) -> Any:
    assert options["initial"] == options["total"]
    return SimpleNamespace(close=lambda: None)
