"""Feature networks: the contract over every file of the seam, what is learnt, and where weights come from."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, FakeRuntime, example, pictures
from torch import nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

import stages.features
import stages.perceptual
import stages.scorer
from tessera import feature_training
from tessera.core import files, models, seams
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import SPLITS
from tessera.extractors import classifier, inception
from tessera.feature_training import Settings as Section
from tessera.images import arrays
from tessera.runtime.devices import Interrupted, Runtime
from tessera.runtime.scratch import Scratch
from tessera.runtime.settings import Settings
from tessera.runtime.validation import problems

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """Every extractor, built once from its tiny Config for two classes, with weights that let signals through."""
    torch.manual_seed(0)
    built = {}
    for name in seams.names("extractors"):
        module = seams.plugin("extractors", name)
        built[name] = module.build(example(module.Config), SHAPE, 2).eval()
        for layer in built[name].modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return built


@pytest.fixture
def x() -> torch.Tensor:
    return arrays.to_model(pictures(3))


# the contract


@pytest.mark.parametrize("name", seams.names("extractors"))
def test_features_are_finite_float32_of_the_promised_length(networks, name, x):
    features = networks[name](x)
    assert features.shape == (3, networks[name].dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert features.std(0).max() > 1e-3  # they tell images apart


@pytest.mark.parametrize("name", seams.names("extractors"))
def test_features_of_an_image_do_not_depend_on_its_batch(networks, name, x):
    torch.testing.assert_close(networks[name](x)[1:2], networks[name](x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", seams.names("extractors"))
def test_a_saved_network_needs_nothing_else(networks, name, x, tmp_path):
    """Neither params nor a file of pretrained weights."""
    config = example(seams.plugin("extractors", name).Config).model_dump()
    recipe = models.Recipe("extractors", name, config, {"image_shape": list(SHAPE), "classes": 2})
    models.save(tmp_path, networks[name], recipe, "")
    assert torch.equal(models.load(tmp_path)(x[:1]), networks[name](x[:1]))


def test_only_inception_is_called_fid(networks):
    for name, network in networks.items():
        assert (network.distance == "fid") == (name == "inception")
        assert network.distance == "fid" or network.distance.startswith("fd_")


# classifier


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 9), (3, 32, 32)])
def test_classifier_takes_any_channels_and_size(shape):
    network = classifier.build(example(classifier.Config), shape, 3)
    assert network(torch.zeros(2, *shape)).shape == (2, 8)
    assert network.maps(torch.zeros(2, *shape))[-1].shape[2] <= 4


def test_losses_are_cross_entropy_of_the_labels(networks, x):
    network, labels = networks["classifier"], torch.tensor([0, 1, 1])
    logits = network.head(network(x)).double()
    expected = -sum(logits[i].softmax(0)[label].log() for i, label in enumerate(labels)) / 3
    torch.testing.assert_close(network.losses(x, labels)["cross_entropy"].double(), expected, rtol=1e-5, atol=1e-6)
    assert network.accuracy(x, labels) == (logits.argmax(1) == labels).double().mean()


def test_without_labels_it_is_judged_on_all_four_turns(x):
    network = classifier.build(example(classifier.Config), SHAPE, 0).eval()
    by_hand, right = 0.0, 0
    for turns in range(4):
        turned = torch.from_numpy(np.rot90(x.numpy(), turns, axes=(2, 3)).copy())
        logits = network.head(network(turned)).detach()
        by_hand += float(F.cross_entropy(logits, torch.full((3,), turns))) / 4
        right += int((logits.argmax(1) == turns).sum())
    assert float(network.losses(x, None)["cross_entropy"].detach()) == pytest.approx(by_hand, rel=1e-5)
    assert float(network.accuracy(x, None)) == pytest.approx(right / 12)


def test_a_single_label_is_nothing_to_learn(x):
    assert classifier.build(example(classifier.Config), SHAPE, 1).head.out_features == 4


def test_turns_in_training_are_drawn_from_the_global_generator(x):
    network = classifier.build(example(classifier.Config, dropout=0.0), SHAPE, 0).train()
    x = x.repeat(8, 1, 1, 1)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(float(network.losses(x, None)["cross_entropy"].detach()))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("labelled", [True, False])
def test_it_learns(labelled):
    """Discs from squares; or, without labels, which way up a picture is whose upper half is dark."""
    pixels = pictures(24)
    if not labelled:
        pixels[:, :4] //= 4
    labels = torch.arange(24) % 2 if labelled else None
    network = classifier.build(example(classifier.Config, dropout=0.0), SHAPE, 2 if labelled else 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    before = float(network.eval().accuracy(arrays.to_model(pixels), labels))
    for _ in range(60):
        optimizer.zero_grad()
        network.train().losses(arrays.to_model(pixels), labels)["cross_entropy"].backward()
        optimizer.step()
    assert before < 0.8
    assert float(network.eval().accuracy(arrays.to_model(pixels), labels)) > 0.9


# training


def settings(raw: dict[str, Any], **training: Any) -> Section:
    section = Params(raw).section("scorer", Section)
    return section.model_copy(update={"training": section.training.model_copy(update=training)})


def splits() -> dict[str, feature_training.Labelled]:
    pixels, labels = pictures(24), np.arange(24) % 2
    return {"train": feature_training.Labelled(pixels[:16], labels[:16]),
            "val": feature_training.Labelled(pixels[16:], labels[16:])}  # fmt: skip


def trained(section: str, own: Section, runtime: Any) -> tuple[dict[str, torch.Tensor], Any]:
    torch.manual_seed(0)
    network = classifier.build(example(classifier.Config), SHAPE, 2)
    fitted = feature_training.train(network, section, splits(), own, 0, runtime)
    return network.state_dict(), fitted


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_epoch_of_highest_validation_accuracy_is_kept(raw, runtime):
    torch.manual_seed(0)
    network = classifier.build(example(classifier.Config), SHAPE, 2)
    fitted = feature_training.train(network, "scorer", splits(), settings(raw, epochs=8, lr=0.02), 0, runtime)
    best = max(row["val_accuracy"] for row in fitted.history)
    assert feature_training.metrics(fitted, splits()["val"])["val_accuracy"] == best
    assert feature_training.judge(network, splits()["val"], 3, "cpu")["val_accuracy"] == pytest.approx(best)


def test_the_two_networks_have_streams_of_their_own(raw, runtime):
    own = settings(raw, epochs=1)
    assert equal(trained("scorer", own, runtime)[0], trained("scorer", own, runtime)[0])
    assert not equal(trained("scorer", own, runtime)[0], trained("perceptual", own, runtime)[0])


def test_two_trainings_in_one_scratch_resume_each_from_its_own_checkpoint(raw, workspace):
    own = settings(raw, epochs=2, evaluate_every=1)
    machine = Settings(device="cpu", devices=1, nodes=1, threads=1, checkpoint_seconds=0.0, keep_scratch=1)
    whole = {section: trained(section, own, FakeRuntime())[0] for section in ("perceptual", "scorer")}

    def stop_later(runtime: Runtime) -> None:
        """Asks to stop at the sixth step of the second training."""
        step, prepare = 0, runtime.prepare

        def counting(model: nn.Module, *rest: Any) -> Any:
            def count(*_: Any) -> None:
                nonlocal step
                step += model.training
                runtime.stopping = 15 if step == 8 + 6 else 0

            model.register_forward_pre_hook(count)
            return prepare(model, *rest)

        runtime.prepare = counting

    with pytest.raises(Interrupted), Scratch("scorer", "same", 1) as scratch:  # noqa: PT012
        runtime = Runtime(machine, scratch)
        stop_later(runtime)
        trained("perceptual", own, runtime)
        trained("scorer", own, runtime)
    assert {path.name for path in scratch.folder.glob("*.safetensors")} == {
        "perceptual.safetensors",
        "scorer.safetensors",
    }
    with Scratch("scorer", "same", 1) as scratch:
        runtime = Runtime(machine, scratch)
        runtime.backward = lambda loss: pytest.fail("the first training was finished")
        assert equal(trained("perceptual", own, runtime)[0], whole["perceptual"])
        assert equal(trained("scorer", own, Runtime(machine, scratch))[0], whole["scorer"])
    with Scratch("scorer", "same", 1) as scratch:  # finished, and forced to run again: it shall train
        assert not list(scratch.folder.glob("*.safetensors"))


# stages


def written(*stages: str) -> dict[Path, bytes]:
    """Every file of the artefacts, metrics and curves of these stages."""
    return {
        path: path.read_bytes()
        for stage in stages
        for path in [*Path("artifacts", stage).rglob("*.*"), Path(f"metrics/{stage}.json"), Path(f"plots/{stage}.csv")]
    }


@pytest.mark.parametrize("section", ["scorer", "perceptual"])
def test_stage_writes_a_network_and_the_same_bytes_twice(section, tiny_run, raw):
    raw["losses"]["perceptual"]["weight"] = 0.5
    run, stage = tiny_run(), {"scorer": stages.scorer, "perceptual": stages.perceptual}[section]
    found = []
    for _ in range(2):
        stage.main(run)
        found.append(written(section))
    assert found[0] == found[1]
    metrics = files.read_json(Path(f"metrics/{section}.json"))
    assert metrics["features"] == getattr(run, section)().dim
    assert 0 <= metrics["val_accuracy"] <= 1
    history = files.read_table(Path(f"plots/{section}.csv"))
    assert list(history["epoch"])[-1] == run.params.value(f"{section}.training.epochs")


def test_the_two_networks_differ_where_their_values_are_equal(tiny_run, raw):
    raw["losses"]["perceptual"]["weight"] = 0.5
    raw["perceptual"] = raw["scorer"]
    run = tiny_run()
    stages.scorer.main(run)
    stages.perceptual.main(run)
    assert not equal(run.scorer().state_dict(), run.perceptual().state_dict())


def test_stage_trains_without_labels(tiny_run):
    run = tiny_run()
    files.write_json(run.folder("dataset") / "facts.json", {"label_names": []})
    stages.scorer.main(run)
    assert run.scorer().head.out_features == 4
    assert "val_majority" not in files.read_json(Path("metrics/scorer.json"))


NOT_ASKED_FOR = {
    "weight 0": {"weight": 0.0, "weights": ""},
    "weights of VGG": {"weight": 0.5, "weights": "vgg16.pth"},
}


@pytest.mark.parametrize("case", NOT_ASKED_FOR)
def test_no_perceptual_network_is_made_where_the_loss_asks_for_none(case, tiny_run, raw, monkeypatch):
    """And what is written instead depends on nothing, so that no tokenizer is trained anew for it."""
    raw["losses"]["perceptual"] |= NOT_ASKED_FOR[case]
    run = tiny_run()
    monkeypatch.setattr(feature_training, "make", lambda *_: pytest.fail("a network was made"))
    assert (run.folder("perceptual") / models.WEIGHTS).exists()  # of another run
    stages.perceptual.main(run)
    first = written("perceptual")
    assert Path("artifacts/perceptual/unused.json") in first
    assert not (run.folder("perceptual") / models.WEIGHTS).exists()
    assert files.read_json(Path("metrics/perceptual.json")) == {"applies": 0}
    raw["perceptual"]["training"]["epochs"] += 1
    raw["perceptual"]["name"] = "efficientnet"
    files.save_array(run.folder("dataset") / "train.npy", pictures(9))
    stages.perceptual.main(run)
    assert written("perceptual") == first
    with pytest.raises(InputError, match=r"artifacts/perceptual holds no network: .* run `dvc repro perceptual`"):
        run.perceptual()


def test_scorer_is_efficientnet_at_its_smallest_size(tiny_run, raw):
    """As params.yaml has it, but for the size: the stage, its record, and features by the network that was saved."""
    raw["scorer"] |= {"name": "efficientnet"}
    raw["scorer"]["efficientnet"] |= {"input_size": 32}
    run = tiny_run()
    stages.scorer.main(run)
    assert files.read_json(Path("metrics/scorer.json")) == {"features": 1280}
    assert list(files.read_table(Path("plots/scorer.csv"))["epoch"]) == [0]
    network = run.scorer()
    assert network.distance == "fd_efficientnet_lite0_at_32"
    assert network(arrays.to_model(pictures(4))).std(0).mean() > 0.01


@pytest.mark.parametrize("section", ["scorer", "perceptual"])
def test_weights_that_cannot_be_loaded_are_named_with_their_section(section, tiny_run, raw):
    raw["losses"]["perceptual"]["weight"] = 0.5
    raw[section] |= {"name": "efficientnet"}
    raw[section]["efficientnet"] |= {"weights": "nowhere.pth"}
    with pytest.raises(
        InputError, match=rf"^{section}\.efficientnet\.weights: must be a local file, got 'nowhere\.pth'"
    ):
        feature_training.make(section, tiny_run())


def seen_sets(run: Run) -> dict[str, np.ndarray]:
    """What the stage features reads, on disk: its sets, by name."""
    sets = {split: run.images(split) for split in SPLITS}
    decoded = {split: pictures(len(sets[split])) for split in SPLITS}
    for split, pixels in decoded.items():
        files.save_array(run.folder("reconstruction") / f"{split}.npy", pixels)
    sets |= {"reconstruction": decoded["test"], "reconstruction_val": decoded["val"]}
    sets |= {"reconstruction_train": decoded["train"][arrays.evenly(12, 8)], "samples": pictures(7)}
    sets |= {"baseline": pictures(6)}
    for of in ("samples", "baseline"):
        files.save_array(run.folder("samples") / of / "images.npy", sets[of])
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples", "baseline"]})
    return sets


def test_features_stage_sees_every_set_through_the_scorer(tiny_run):
    run = tiny_run()
    sets = seen_sets(run)
    stages.features.main(run)
    network = run.scorer()
    for name, pixels in sets.items():
        features = run.features(name)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, network(arrays.to_model(pixels.copy())).detach(), rtol=1e-4, atol=1e-5)
    assert run.distance == "fd_classifier"
    some = arrays.evenly(12, 8)
    assert list(run.families("reconstruction_train")) == [f"real/{name}" for name in run.table("train")["family"][some]]
    assert len(set(run.families("samples"))) == 7
    members = run.groups("test")
    assert list(members) == ["all", *LABELS]  # no pattern of people matches: each label is a group
    assert sorted(np.concatenate([members[name] for name in LABELS])) == list(members["all"])
    assert (run.labels("test")[members[LABELS[0]]] == 0).all()
    found = files.read_json(Path("metrics/features.json"))
    for of in ("test", "samples", "baseline"):
        assert sum(found[of].values()) == pytest.approx(1)


def test_a_family_of_a_data_set_is_never_that_of_a_sample(tiny_run):
    """Whatever its name; else a sample and a real image were variants of one image, and no pair of KID."""
    run = tiny_run()
    seen_sets(run)
    table = files.read_table(run.folder("dataset") / "table.csv")
    table["family"] = [("samples/0", "baseline/1", "real/samples/2")[at % 3] for at in range(len(table))]
    files.write_table(run.folder("dataset") / "table.csv", table)
    stages.features.main(run)
    real = ("train", "val", "test", "reconstruction", "reconstruction_val", "reconstruction_train")
    assert len(np.unique(np.concatenate([run.families(of) for of in real]))) == 3
    for of in real:
        assert not np.isin(run.families(of), np.concatenate([run.families("samples"), run.families("baseline")])).any()


def test_features_that_are_not_finite_are_refused_by_set_number_and_scorer(tiny_run, monkeypatch):
    run = tiny_run()
    samples = seen_sets(run)["samples"].copy()
    samples[[2, 5]] = 0
    files.save_array(run.folder("samples") / "samples" / "images.npy", samples)
    network = run.scorer()

    class Broken:
        """Of black images one feature is infinite."""

        dim, distance = network.dim, network.distance

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            found = network(x).clone()
            found[(x == -1).flatten(1).all(1), 1] = torch.inf
            return found

    monkeypatch.setattr(run, "scorer", Broken)
    with pytest.raises(
        InputError, match=r"^samples: features must be finite, and those of 2 of 7 .* scorer classifier"
    ):
        stages.features.main(run)
    assert not (run.folder("features") / "samples.npy").exists()


def test_groups_too_small_are_named_and_have_no_figures(tiny_run, capsys):
    run = tiny_run()
    run.params.raw["features"]["smallest_group"] = 3  # of 5 and 6 images, three and three, or three and two
    for split in SPLITS:
        files.save_array(run.folder("reconstruction") / f"{split}.npy", pictures(len(run.images(split))))
    for of in ("samples", "baseline"):
        files.save_array(run.folder("samples") / of / "images.npy", pictures(6))
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples", "baseline"]})
    stages.features.main(run)
    assert f"no figures for groups of fewer than 3 images in val or test: {LABELS[1]}" in capsys.readouterr().out
    assert list(run.groups("samples")) == ["all", LABELS[0]]


def test_samples_are_compared_with_the_images_of_one_vendor(tiny_run):
    run = tiny_run()
    facts = run.folder("dataset") / "facts.json"
    run.params.raw["features"]["vendor"] = "noto"
    with pytest.raises(InputError, match=r"features.vendor: must be a vendor .* got 'noto'; .* have no vendors"):
        stages.features.main(run)
    files.write_json(facts, files.read_json(facts) | {"vendor_names": ["noto", "other"]})
    table = pd.concat([run.table(split) for split in SPLITS])
    table["vendor"] = np.arange(len(table)) % 2
    table["vendor_name"] = np.array(["noto", "other"])[table["vendor"]]
    files.write_table(run.folder("dataset") / "table.csv", table)
    for split in SPLITS:
        files.save_array(run.folder("reconstruction") / f"{split}.npy", pictures(len(run.images(split))))
    for of in ("samples", "baseline"):
        files.save_array(run.folder("samples") / of / "images.npy", pictures(6))
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples", "baseline"]})
    run.params.raw["features"]["vendor"] = "mine"
    with pytest.raises(InputError, match="got 'mine'; there are noto, other"):
        stages.features.main(run)
    run.params.raw["features"]["vendor"] = "noto"
    stages.features.main(run)
    for of, split in (("test", "test"), ("reconstruction", "test"), ("reconstruction_val", "val"), ("train", "train")):
        assert run.groups(of)["all"].tolist() == np.flatnonzero(run.table(split)["vendor_name"] == "noto").tolist()
    assert len(run.groups("samples")["all"]) == 6


# inception


@pytest.fixture(scope="module")
def weights(networks, tmp_path_factory) -> tuple[Path, str]:
    """A file like torch-fidelity's, of random weights, and its SHA-256."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(networks["inception"].network.state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def built(path: Path | str, digest: str) -> inception.Inception:
    return inception.build(inception.Config(weights=str(path), weights_sha256=digest), SHAPE, 0)


def test_inception_agrees_with_torch_fidelity(weights):
    assert inception.URL == URL_INCEPTION_V3
    pixels = torch.from_numpy(pictures(2)).permute(0, 3, 1, 2)
    theirs = FeatureExtractorInceptionV3("witness", ["2048"], feature_extractor_weights_path=weights[0])(pixels)[0]
    network = built(weights[0], weights[1][:12])
    network.load_pretrained()
    assert torch.equal(network(arrays.to_model(pictures(2))), theirs)


def test_inception_repeats_grey_to_three_channels(networks):
    grey = arrays.to_model(pictures(1, channels=1))
    assert torch.equal(networks["inception"](grey), networks["inception"](grey.repeat(1, 3, 1, 1)))


def test_inception_is_never_in_training_mode(networks):
    assert not any(module.training for module in networks["inception"].train().modules())


def test_weights_that_are_not_there_are_named_with_the_remedy():
    with pytest.raises(InputError, match=f"inception.weights: must be a local file.*nowhere.pth.*{inception.FILE}"):
        built("nowhere.pth", "6726825d").load_pretrained()


def test_without_weights_and_network_it_says_what_to_provide(monkeypatch, tmp_path):
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=f"is empty.*no network.*put {inception.FILE} beside params.yaml"):
        built("", "6726825d").load_pretrained()


def test_other_weights_are_refused(weights):
    with pytest.raises(InputError, match="begins with weights_sha256 6726825d, got"):
        built(weights[0], "6726825d").load_pretrained()


def test_weights_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(InputError, match=r"must be a state dict .*which is none"):
        built(path, hashlib.sha256(path.read_bytes()).hexdigest()).load_pretrained()
    assert not (tmp_path / "executed").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "executed").exists()  # it is a trap


def test_no_loss_compares_by_a_network_without_a_gradient(raw):
    raw["perceptual"]["name"] = "inception"
    assert "perceptual.name: must be a network that passes a gradient, got 'inception'; choose classifier" in problems(
        raw
    )
    raw["scorer"]["name"] = "inception"  # which may score
    raw["perceptual"]["name"] = "efficientnet"
    assert problems(raw) == []


def test_no_loss_is_trained_against_the_network_that_scores(raw):
    raw["scorer"]["name"] = raw["perceptual"]["name"] = "efficientnet"
    assert problems(raw) == []  # the loss is off
    raw["losses"]["perceptual"]["weight"] = 0.5
    (said,) = problems(raw)
    assert said.startswith(
        "perceptual.name: must not be efficientnet, whose weights are those of the network that scores"
    )
    raw["losses"]["perceptual"]["weights"] = "vgg16.pth"
    assert problems(raw) == []


def test_two_classifiers_are_two_networks(raw):
    raw["losses"]["perceptual"]["weight"] = 0.5
    assert raw["scorer"]["name"] == raw["perceptual"]["name"] == "classifier"
    assert problems(raw) == []


def test_a_network_that_is_not_trained_loads_its_weights(weights, raw, runtime):
    network = built(*weights)
    before = network.network.fc.weight.clone()
    fitted = feature_training.train(network, "scorer", splits(), settings(raw), 0, runtime)
    assert not torch.equal(network.network.fc.weight, before)
    assert fitted.history == []
    assert feature_training.metrics(fitted, splits()["val"]) == {}
