"""What every tokenizer promises, models as files, and what training and reconstruction report of a tokenizer."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import tessera
from tessera.core import files, images, models, seams
from tessera.core.errors import InputError
from tessera.core.params import Params, Training
from tessera.core.training import Fitted, fit
from tessera.nn import conv, scores
from tessera.steps import reconstruction, samples
from tessera.steps import tokenizer as training
from tessera.tokenizers import vqvae

SHAPES = {"square": (3, 8, 8), "wide": (3, 8, 16), "tall": (3, 16, 8), "grey": (1, 8, 8)}


def build(raw: dict[str, Any], name: str, shape: tuple[int, int, int] = (3, 8, 8)) -> tuple[nn.Module, models.Recipe]:
    raw["tokenizer"]["name"] = name
    recipe = models.tokenizer_recipe(Params(raw), shape)
    return models.build(recipe), recipe


@pytest.fixture(scope="module", params=[f"{name}-{kind}" for name in seams.names("tokenizers") for kind in SHAPES])
def _trained(request, _raw, make_images, train) -> nn.Module:
    name, _, kind = request.param.partition("-")
    channels, height, width = SHAPES[kind]
    torch.manual_seed(0)
    built, _ = build(copy.deepcopy(_raw), name, SHAPES[kind])
    return train(built, images.to_model(make_images(6, height, width, channels)))


@pytest.fixture
def tokenizer(_trained) -> nn.Module:
    """Each file of the seam at each shape, trained for a moment."""
    return copy.deepcopy(_trained)


@pytest.fixture
def x(tokenizer, make_images) -> torch.Tensor:
    channels, height, width = tokenizer.image_shape
    return images.to_model(make_images(5, height, width, channels))


# the contract


def test_grids_fold_the_codes(tokenizer, x):
    codes = tokenizer.encode(x)
    assert codes.shape == (5, sum(height * width for height, width in tokenizer.grids))
    assert codes.dtype == torch.int64
    assert len(codes.unique()) > 2  # or the tests below would say little
    assert len(tokenizer.codebook_sizes) == len(tokenizer.grids) == len(tokenizer.codebooks)
    for grid, size in zip(scores.split_grids(codes.numpy(), tokenizer.grids), tokenizer.codebook_sizes, strict=True):
        assert 0 <= grid.min() <= grid.max() < size
    assert [len(book) for book in tokenizer.codebooks] == list(tokenizer.codebook_sizes)


def test_output_has_one_entry_per_level(tokenizer, x):
    output = tokenizer(x)
    assert output.reconstruction.shape == x.shape
    assert len(output.latents) == len(output.quantized)
    assert [z.shape for z in output.latents] == [level.z_q.shape for level in output.quantized]
    depths = sum(level.codes.shape[1] for level in output.quantized)
    assert depths == len(tokenizer.grids)


def test_the_ways_through_the_tokenizer_meet(tokenizer, x):
    """x -> latents -> quantize -> decode_vectors is the forward pass, and codes alone give the same picture."""
    with torch.no_grad():
        output, codes = tokenizer(x), tokenizer.encode(x)
        quantized = tokenizer.quantize(tokenizer.latents(x))
        z_q = tuple(level.z_q for level in quantized)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(tokenizer.vectors(codes), z_q, strict=True))
        torch.testing.assert_close(tokenizer.decode_vectors(z_q), output.reconstruction)
        assert torch.equal(tokenizer.decode(codes), tokenizer.decode_vectors(tokenizer.vectors(codes)))
        torch.testing.assert_close(tokenizer.decode(codes), output.reconstruction)


def test_any_codes_can_be_decoded(tokenizer):
    draws = np.random.default_rng(0)
    sizes = [(h * w, k) for (h, w), k in zip(tokenizer.grids, tokenizer.codebook_sizes, strict=True)]
    codes = np.concatenate([draws.integers(0, k, (4, n)) for n, k in sizes], axis=1)
    decoded = tokenizer.decode(torch.from_numpy(codes))
    assert decoded.shape == (4, *tokenizer.image_shape)
    assert torch.isfinite(decoded).all()


def test_codes_of_another_length_are_refused(tokenizer):
    length = sum(height * width for height, width in tokenizer.grids)
    with pytest.raises(ValueError, match=f"codes must have {length} columns"):
        tokenizer.decode(torch.zeros(2, length + 1, dtype=torch.int64))


def test_one_image_does_not_depend_on_its_batch(tokenizer, x):
    with torch.no_grad():
        whole = tokenizer(x)
        for i in range(len(x)):
            alone = tokenizer(x[i : i + 1])
            torch.testing.assert_close(alone.reconstruction, whole.reconstruction[i : i + 1])
            for one, all_of_them in zip(alone.quantized, whole.quantized, strict=True):
                assert torch.equal(one.codes, all_of_them.codes[i : i + 1])


def test_evaluation_is_deterministic_and_moves_nothing(tokenizer, x):
    before = copy.deepcopy(tokenizer.state_dict())
    with torch.no_grad():
        first, second = tokenizer(x), tokenizer(x)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_gradient_reaches_every_weight_through_the_quantizer(tokenizer, x):
    """Of the reconstruction alone: without the straight-through estimator the encoder would get none."""
    tokenizer.train()(x).reconstruction.square().mean().backward()
    without = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]
    assert not without
    assert all(torch.isfinite(parameter.grad).all() for parameter in tokenizer.parameters())
    first = next(tokenizer.parameters())
    assert first.grad.abs().sum() > 0


def test_training_lowers_the_loss(raw, runtime, make_images):
    for name in seams.names("tokenizers"):
        tokenizer, _ = build(raw, name)
        mse = seams.plugin("losses", "mse")
        objective = training.Objective(tokenizer, {"mse": (1.0, mse.MSE())})
        section = Params(raw).tokenizer
        section = section.model_copy(
            update={"training": Training(**raw["tokenizer"]["training"] | {"epochs": 12, "lr": 0.01})}
        )
        data = training.Data({"train": make_images(16), "val": make_images(6)}, section.augmentation, 4, "cpu")
        history = fit(training.task(objective, data, section), section.training, 0, runtime).history
        assert history[-1]["val_mse"] < 0.5 * history[0]["val_mse"]


# vqvae


@pytest.mark.parametrize("downsampling", [2, 4, 8, 16, 32])
def test_grid_of_each_downsampling(tiny, downsampling):
    quantizer = seams.plugin("quantizers", "ema")
    config = tiny(vqvae.Config, downsampling=downsampling)
    tokenizer = vqvae.build(config, (3, 32, 64), lambda dim=None: quantizer.build(tiny(quantizer.Config), dim)).eval()
    assert tokenizer.grids == ((32 // downsampling, 64 // downsampling),)
    x = torch.rand(2, 3, 32, 64)
    assert tokenizer.latents(x)[0].shape[2:] == tokenizer.grids[0]
    assert tokenizer(x).reconstruction.shape == x.shape


@pytest.mark.parametrize("kind", ["batch", "group", "none"])
def test_normalisations(tiny, kind):
    """Group norm takes the most groups that divide the channels, 8 at most."""
    layer = conv.normalisation(kind, 12)
    expected = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "none": nn.Identity}[kind]
    assert type(layer) is expected
    assert kind != "group" or layer.num_groups == 6
    assert conv.normalisation("group", 7).num_groups == 7
    assert conv.normalisation("group", 16).num_groups == 8


def test_residual_block_adds_its_branch():
    block = conv.ResidualBlock(4, 2, "none", 0.0)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block(x), x + block.branch(x))
    block.branch[-1].weight.data.zero_()
    block.branch[-1].bias.data.zero_()
    assert torch.equal(block(x), x)


def test_dropout_is_active_in_training_only(tiny):
    block = conv.ResidualBlock(4, 4, "none", 0.5)
    x = torch.randn(2, 4, 3, 3)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_channels_from_the_image_inwards():
    assert conv.widths(2, 128, 32) == [128]
    assert conv.widths(8, 128, 32) == [32, 32, 128]


# models as files


@pytest.fixture(params=seams.names("tokenizers"))
def saved(request, raw, workspace, make_images, train) -> tuple[Path, nn.Module]:
    tokenizer, recipe = build(raw, request.param)
    train(tokenizer, images.to_model(make_images(6)), steps=20)
    models.save(Path("artifacts/tokenizer"), tokenizer, recipe, "a card")
    return Path("artifacts/tokenizer"), tokenizer


def test_saved_model_gives_the_same_output(saved, make_images):
    folder, tokenizer = saved
    x = images.to_model(make_images(4))
    loaded = models.load(folder)
    assert not loaded.training
    assert torch.equal(loaded.encode(x), tokenizer.encode(x))
    assert torch.equal(loaded(x).reconstruction, tokenizer(x).reconstruction)
    assert (loaded.grids, loaded.codebook_sizes) == (tokenizer.grids, tokenizer.codebook_sizes)


def test_model_loads_from_anywhere_without_params(saved, tmp_path_factory, monkeypatch, make_images):
    folder, tokenizer = saved
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    codes = tokenizer.encode(images.to_model(make_images(2)))
    assert torch.equal(tessera.load("model").decode(codes), tokenizer.decode(codes))


def test_saving_twice_gives_the_same_bytes(saved, raw):
    folder, tokenizer = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    models.save(folder, tokenizer, models.read_recipe(folder), "a card")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert set(before) == {"model.safetensors", "recipe.json", "README.md"}


def test_missing_surplus_and_misshapen_weights_are_all_named(saved):
    folder, _ = saved
    state = models.load_weights(folder / models.WEIGHTS)
    missing, misshapen = list(state)[:2]
    shape = tuple(state[misshapen].shape)
    del state[missing]
    state[misshapen] = torch.zeros(*shape, 2)
    state["surplus"] = torch.zeros(1)
    models.save_weights(folder / models.WEIGHTS, state)
    with pytest.raises(InputError, match=r"model\.safetensors does not fit .*recipe\.json") as caught:
        models.load(folder)
    message = str(caught.value)
    assert f"{missing} is missing" in message
    assert f"{misshapen} has shape {(*shape, 2)}, want {shape}" in message
    assert "surplus is not part of the model" in message


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_weights_cut_short_are_named(saved, kept):
    path = saved[0] / models.WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is not a whole safetensors file .* run `dvc repro`"):
        models.load(saved[0])


def test_missing_model_says_how_to_get_it(workspace):
    with pytest.raises(InputError, match=r"recipe\.json: there is no such file; run `dvc repro` or `dvc pull`"):
        tessera.load("artifacts/tokenizer")


@pytest.mark.parametrize("change", [{"quantizer": 3}, {"extra": 1}])
def test_broken_recipe_is_named(saved, change):
    path = saved[0] / models.RECIPE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"recipe\.json is no recipe of a model"):
        models.load(saved[0])


def test_recipe_of_a_plug_in_that_is_gone(saved):
    path = saved[0] / models.RECIPE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "vqgan"}))
    with pytest.raises(InputError, match=r"tokenizers/vqgan cannot be built: no 'vqgan' in src/tessera/tokenizers/"):
        models.load(saved[0])


def test_model_that_differs_from_params_is_refused_by_name(tiny_run):
    run = tiny_run()
    assert run.tokenizer().image_shape == (3, 8, 8)
    run.params.raw["quantizer"]["beta"] = 0.125
    message = (
        r"artifacts/tokenizer does not fit params.yaml: quantizer\.beta is .* in the model, 0\.125 in params\.yaml"
    )
    with pytest.raises(InputError, match=message + r"\. Run `dvc repro tokenizer`"):
        tiny_run().tokenizer()


def test_other_differences_from_params_are_named_too(tiny_run):
    run = tiny_run()
    run.params.raw["tokenizer"]["vqvae"]["channels"] = 9
    with pytest.raises(InputError, match=r"channels is \d+ in the model, 9 in params\.yaml"):
        tiny_run().tokenizer()
    recipe = models.read_recipe(run.folder("prior"))
    models.save(run.folder("prior"), nn.Identity(), recipe._replace(name="other"), "")
    with pytest.raises(InputError, match=r"artifacts/prior does not fit .* name is 'other' in the model"):
        tiny_run().prior()
    files.save_array(run.folder("dataset") / "train.npy", np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"image_shape is \[3, 8, 8\] in the model, \[3, 16, 16\] in params\.yaml"):
        tiny_run().extractor("scorer")


@pytest.mark.parametrize(("stage", "part"), [("tokenizer", ""), ("extractor", "scorer")])
def test_card_says_how_to_load_this_very_folder(tiny_run, stage, part):
    run = tiny_run()
    folder = run.folder(stage) / part
    run.save_model(stage, models.load(folder), models.read_recipe(folder), {"epoch": 1}, part)
    text = (folder / "README.md").read_text()
    (named,) = re.findall(r'tessera\.load\("(.+)"\)', text)
    assert tessera.load(named).state_dict().keys() == models.load_weights(folder / models.WEIGHTS).keys()


def test_weights_of_a_view_and_of_channels_last_are_stored_plainly(tmp_path):
    """safetensors refuses tensors that share memory or are not contiguous."""
    base = torch.arange(24.0).view(1, 2, 3, 4)
    state = {"a": base, "b": base[:, :1], "c": base.contiguous(memory_format=torch.channels_last)}
    models.save_weights(tmp_path / "w.safetensors", state)
    loaded = models.load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_card_is_the_same_twice_and_shows_params_and_metrics(raw):
    _, recipe = build(raw, "vqvae")
    metrics = {"epoch": 3, "val": {"perplexity": 12.345678, "usage": 0.5}}
    cards = {models.card("artifacts/tokenizer", recipe, {"quantizer": raw["quantizer"]}, metrics) for _ in range(2)}
    assert len(cards) == 1
    text = cards.pop()
    assert text.startswith("---\nlibrary_name: tessera\n")
    assert "| val.perplexity | 12.346 |" in text
    assert f"codebook_size: {raw['quantizer']['codebook_size']}" in text
    assert 'tessera.load("artifacts/tokenizer")' in text
    assert str(Path.cwd()) not in text


# what training reports


@pytest.fixture
def objective(raw) -> training.Objective:
    tokenizer, _ = build(raw, "vqvae")
    return training.Objective(tokenizer, {"mse": (0.5, seams.plugin("losses", "mse").MSE())})


def test_objective_sums_weighted_image_terms_and_the_quantizers_own(objective, make_images):
    x = images.to_model(make_images(4))
    objective.eval()
    losses, output = objective(x), objective.tokenizer(x)
    assert set(losses) == {"mse", "commitment"}
    torch.testing.assert_close(losses["mse"], 0.5 * (output.reconstruction - x).square().mean())
    torch.testing.assert_close(losses["commitment"], output.quantized[0].losses["commitment"])


def test_terms_of_weight_0_are_not_built(tiny_run, monkeypatch):
    run = tiny_run()
    assert list(training.loss_terms(run)) == list(run.params.raw["losses"])
    for values in run.params.raw["losses"].values():
        values["weight"] = 0.0
    monkeypatch.setattr(seams.plugin("losses", "mse"), "build", None)
    assert training.loss_terms(run) == {}


def test_validation_row_by_hand(objective, raw, make_images, train):
    """Means over all images, whatever the batches; perplexity and usage over the codes of all of them."""
    pixels = {"train": make_images(9), "val": make_images(7)}
    data = training.Data(pixels, Params(raw).tokenizer.augmentation, 3, "cpu")
    train(objective.tokenizer, images.to_model(pixels["train"]))
    with torch.no_grad():
        row = training._evaluate(objective, data)
        x = images.to_model(pixels["val"])
        output = objective.tokenizer(x)
        decoded = images.to_pixels(output.reconstruction)
        losses = objective(x)
    error = scores.mse(decoded, pixels["val"]).mean()
    shares = scores.frequencies(output.quantized[0].codes.numpy(), objective.tokenizer.codebook_sizes[0])
    expected = {
        "val_mse": float(losses["mse"]),
        "val_total": float(sum(losses.values())),
        "val_mse_pixels": error,
        "val_psnr_db": -10 * np.log10(error),
        "val_ssim": scores.ssim(decoded, pixels["val"]).mean(),
        "val_perplexity": scores.perplexity(shares),
        "val_usage": scores.usage(shares),
    }
    assert expected["val_perplexity"] > 2
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5), name
    assert {"train_perplexity", "train_psnr_db"} <= set(row)
    assert all(type(value) is float for value in row.values())


def test_as_many_training_as_validation_images_are_looked_at(raw, make_images):
    """Perplexity over fewer images is lower."""
    data = training.Data(
        {"train": make_images(20), "val": make_images(6)}, Params(raw).tokenizer.augmentation, 4, "cpu"
    )
    assert {split: len(pixels) for split, pixels in data.looked_at.items()} == {"train": 6, "val": 6}


def test_snapshots_become_pictures_and_weights(objective, raw, runtime, workspace, make_images):
    raw["tokenizer"] |= {"snapshot_epochs": [0, 2], "keep_every": 1}
    section = Params(raw).tokenizer
    data = training.Data({"train": make_images(8), "val": make_images(6)}, section.augmentation, 4, "cpu")
    fitted = fit(training.task(objective, data, section), section.training, 0, runtime)
    training.write_snapshots(fitted, data)
    folder = Path("artifacts/tokenizer")
    books = models.load_weights(folder / "snapshots.safetensors")
    assert set(books) == {"0/codebook_0", "2/codebook_0"}
    weights = models.load_weights(folder / "epochs" / "0002.safetensors")
    assert weights.keys() == objective.tokenizer.state_dict().keys()
    assert sorted(path.name for path in (folder / "epochs").iterdir()) == ["0001.safetensors", "0002.safetensors"]
    assert sorted(path.name for path in Path("plots/tokenizer").iterdir()) == ["codebook.png", "reconstructions.png"]


def test_no_snapshot_epochs_still_leave_the_originals(objective, raw, runtime, workspace, make_images):
    """The folder is a declared output, so it must be there."""
    data = training.Data({"train": make_images(8), "val": make_images(6)}, Params(raw).tokenizer.augmentation, 4, "cpu")
    training.write_snapshots(Fitted([], 1, {}), data)
    assert [path.name for path in Path("plots/tokenizer").iterdir()] == ["reconstructions.png"]


def test_metrics_are_those_of_the_kept_epoch():
    def row(epoch: int) -> dict[str, float]:
        names = [f"{split}_{name}" for split in ("val", "train") for name in ("total", "usage", "perplexity")]
        return {"epoch": epoch, **{name: epoch + i / 10 for i, name in enumerate(names)}}

    found = training.metrics(Fitted([row(2), row(4)], 2, {}))
    assert found["epoch"] == 2
    assert found["val"] == {"total": 2.0, "usage": 2.1, "perplexity": 2.2}


# reconstruction


@pytest.mark.parametrize("batch_size", [2, 100])
def test_reconstruction_scores_by_hand(saved, make_images, batch_size):
    _, tokenizer = saved
    pixels = make_images(5)
    table = reconstruction.decoded(tokenizer, pixels, Path("artifacts/reconstruction/test.npy"), batch_size, "cpu")
    with torch.no_grad():
        x = images.to_model(pixels)
        quantized = images.to_pixels(tokenizer.decode(tokenizer.encode(x)))
        continuous = images.to_pixels(tokenizer.decode_vectors(tokenizer.latents(x)))
    np.testing.assert_array_equal(files.load_array(Path("artifacts/reconstruction/test.npy")), quantized)
    error = ((quantized / 127.5 - pixels / 127.5) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(table["mse"], error, rtol=1e-5)
    np.testing.assert_allclose(table["psnr_db"], 10 * np.log10(4 / error), rtol=1e-5)
    np.testing.assert_allclose(
        table["mse_from_z"], ((continuous / 127.5 - pixels / 127.5) ** 2).mean((1, 2, 3)), rtol=1e-5
    )
    np.testing.assert_allclose(table["ssim"], scores.ssim(quantized, pixels))


def test_reconstruction_metrics_in_closed_form():
    """Two images of one family at 0.04, one of another at 0.4: means 0.16 over images and 0.22 over families."""
    table = pd.DataFrame(
        {
            "mse": [0.04, 0.04, 0.4],
            "psnr_db": [20.0, 20.0, 10.0],
            "ssim": [0.9, 0.9, 0.6],
            "mse_from_z": [0.004] * 3,
            "family": ["a", "a", "b"],
        }
    )
    splits = reconstruction.summary({"train": table, "test": table})
    assert list(splits["split"]) == ["train", "test"]
    assert list(splits["psnr_db_per_image"]) == pytest.approx([50 / 3] * 2)
    found = reconstruction.metrics(splits)
    assert found["mse"] == pytest.approx(0.16)
    assert found["psnr_db"] == pytest.approx(10 * np.log10(4 / 0.16))
    assert found["ssim"] == pytest.approx(0.8)
    assert found["psnr_db_from_z"] == pytest.approx(30)
    assert found["by_family"]["psnr_db"] == pytest.approx(10 * np.log10(4 / 0.22))
    assert found["by_family"]["ssim"] == pytest.approx(0.75)


def test_reconstruction_picture_shows_each_family_once(make_images):
    pixels = make_images(6)
    table = pd.DataFrame({"family": ["a", "a", "b", "c", "c", "c"]})
    sheet = reconstruction.picture(pixels, pixels, table)
    expected = pixels[[0, 2, 3]].repeat(8, 1).repeat(8, 2)
    for column, image in enumerate(expected):
        left = 4 + 68 * column
        np.testing.assert_array_equal(sheet[4:68, left : left + 64], image)
        np.testing.assert_array_equal(sheet[72:136, left : left + 64], image)


# samples


def test_samples_are_decoded_codes_of_the_prior(tiny_run):
    run = tiny_run()
    tokenizer, drawn = run.tokenizer(), samples.draw("samples", run.prior(), run.tokenizer(), run)
    count = run.params.samples.count
    assert drawn["codes"].shape == (count, run.codes("train").shape[1])
    assert set(drawn) == {"codes", "images"}  # no labels of a prior that is not conditioned on them
    expected = images.to_pixels(tokenizer.decode(torch.from_numpy(drawn["codes"]).long()))
    assert abs(drawn["images"].astype(int) - expected).max() <= 1
    assert samples.picture(drawn["images"]).dtype == np.uint8


def test_samples_depend_on_the_seed_and_their_name_alone(tiny_run):
    run = tiny_run()
    prior = samples.baseline(run)
    first = samples.draw("samples", prior, run.tokenizer(), run)["codes"]
    torch.rand(5)
    np.testing.assert_array_equal(samples.draw("samples", prior, run.tokenizer(), run)["codes"], first)
    assert (samples.draw("baseline", prior, run.tokenizer(), run)["codes"] != first).any()
    assert (first[:2] != first[2:]).any()  # each batch has a stream of its own


def test_labels_are_drawn_as_often_as_they_occur(tiny_run):
    """A prior that answers with the label itself."""

    class Echo(nn.Module):
        classes = 2

        def sample(self, n: int, generator: torch.Generator, sampling: Any, labels: torch.Tensor) -> torch.Tensor:
            return labels[:, None].expand(n, length)

    run = tiny_run()
    length = run.codes("train").shape[1]
    vars(run.params)["samples"] = run.params.samples.model_copy(update={"count": 300, "batch_size": 70})
    drawn = samples.draw("samples", Echo(), run.tokenizer(), run)
    assert drawn["labels"].shape == (300,)
    assert (drawn["codes"] == drawn["labels"][:, None]).all()
    assert abs(drawn["labels"].mean() - run.labels("train").mean()) < 0.1
