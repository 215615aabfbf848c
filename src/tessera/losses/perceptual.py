"""Distance of features: LPIPS without learned weights (Zhang et al. 2018, arXiv 1801.03924, eq. 1 with w = 1).

Features come from the network of section `perceptual`, which never scores results, or from an ImageNet VGG16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera import pretrained
from tessera.core.contracts import Loss, Model, Output, Tokenizer
from tessera.core.errors import InputError
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.run import Run

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
TAPS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3, relu4_3 within torchvision's `features`
SMALLEST = 8  # pixels per side: there are three halvings before the last tap
EPSILON = 1e-8  # under the root of the norm: keeps the gradient finite where no feature is active


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])
    weights: str = Field(description="local file of torchvision's VGG16, .pth or .safetensors; empty: the "
                         "network of section perceptual", examples=[""])  # fmt: skip
    weights_sha256: str = Field(pattern="^[0-9a-f]{8,64}$", description="first digits of the SHA-256 of that file, which is "
                                "not a dependency of the stage; 397923af is torchvision's",
                                examples=["397923af"])  # fmt: skip


class VGG16(nn.Module):
    """torchvision's VGG16 up to relu4_3, with weights from a file. Images are in [-1, 1]; a grey channel is repeated.

    Raises:
        InputError: the file is missing, does not match `sha256`, cannot be read, or does not hold VGG16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, file: str, sha256: str) -> None:
        super().__init__()
        from torchvision.models import vgg16

        state = pretrained.read(Path(file), sha256, _remedy)
        with torch.device("meta"):  # allocates no memory: the unused classifier has half a gigabyte
            self.features = vgg16(weights=None, init_weights=False).features[: TAPS[-1] + 1]
        names = {name: f"features.{name}" for name in self.features.state_dict()}
        expected = {names[name]: tensor for name, tensor in self.features.state_dict().items()}
        pretrained.require_fit(expected, state, "torchvision's VGG16", _remedy)
        self.features.load_state_dict({name: state[names[name]].float() for name in names}, assign=True)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], ...]:
        """Activations at the four taps, finest first."""
        x, found = ((x + 1) / 2 - self.mean) / self.std, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                found.append(x)
        return tuple(found)


def _remedy(problem: str) -> str:
    return (
        f"losses.perceptual.weights: {problem}. Get {URL} and put its path here; or leave it empty for the network "
        "of section perceptual, which needs no download"
    )


class Network(Model, Protocol):
    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], ...]: ...


class Perceptual(nn.Module):
    """Squared distance between unit vectors of activations, mean over the places of a layer, then over layers; 0 to 4.

    The network is frozen and in evaluation mode. It is not a sub-module: it is never saved, trained or set to training mode.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._frozen = (network.requires_grad_(False).eval(),)

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        (network,) = self._frozen
        if next(network.parameters()).device != x.device:  # `to` of the objective does not reach it
            network.to(x.device)
        with torch.no_grad():
            wanted = network.maps(x)
        pairs = zip(network.maps(output.reconstruction), wanted, strict=True)
        return torch.stack([(unit(a) - unit(b)).square().sum(1).mean() for a, b in pairs]).mean()


def unit(activations: Float[Tensor, "b d i j"]) -> Float[Tensor, "b d i j"]:
    """The vector of channels at each place, scaled to length 1."""
    activations = activations.float()
    return activations * (activations.square().sum(1, keepdim=True) + EPSILON).rsqrt()


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    if not config.weights:
        return Perceptual(cast("Network", run.perceptual()))
    side = min(tokenizer.image_shape[1:])
    if side < SMALLEST:
        raise InputError(_remedy(f"must be empty where dataset.image_size is under {SMALLEST}, got {side} pixels"))
    return Perceptual(VGG16(config.weights, config.weights_sha256))
