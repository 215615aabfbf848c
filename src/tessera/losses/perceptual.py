"""Distance of features: LPIPS without learned weights (Zhang et al. 2018, arXiv 1801.03924, eq. 1 with w = 1).

Features come from the extractor's second network, which never scores results, or from an ImageNet VGG16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera.core import files
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
    weights: str = Field(description="local file of torchvision's VGG16, .pth or .safetensors; empty: the extractor's "
                         "second network", examples=[""])  # fmt: skip
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

        state = read(file, sha256)
        with torch.device("meta"):  # allocates no memory: the unused classifier has half a gigabyte
            self.features = vgg16(weights=None, init_weights=False).features[: TAPS[-1] + 1]
        expected = self.features.state_dict()
        for name, tensor in expected.items():
            shape = getattr(state.get(f"features.{name}"), "shape", None)
            if shape != tensor.shape:
                what = "is missing" if shape is None else f"has shape {tuple(shape)}, want {tuple(tensor.shape)}"
                raise InputError(_remedy(f"must be torchvision's VGG16, got {file!r}, where features.{name} {what}"))
        self.features.load_state_dict({name: state[f"features.{name}"].float() for name in expected}, assign=True)
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


def read(file: str, sha256: str) -> dict[str, Any]:
    if not Path(file).is_file():
        raise InputError(_remedy(f"must be a local file, got {file!r}"))
    digest = files.sha256(Path(file))
    if not digest.startswith(sha256):
        raise InputError(
            _remedy(f"must have a SHA-256 that begins with weights_sha256 {sha256}, got {file!r} of {digest[:16]}")
        )
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(file)
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # other bytes fail in many ways, and torch's message advises unpickling
        raise InputError(
            _remedy(f"must be a state dict in .pth or .safetensors, got {file!r}, which is none")
        ) from error


def _remedy(problem: str) -> str:
    return (
        f"losses.perceptual.weights: {problem}. Get {URL} and put its path here; or leave it empty for the extractor's "
        "second network, which needs no download"
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
        return Perceptual(cast("Network", run.extractor("perceptual")))
    side = min(tokenizer.image_shape[1:])
    if side < SMALLEST:
        raise InputError(_remedy(f"must be empty where dataset.image_size is under {SMALLEST}, got {side} pixels"))
    return Perceptual(VGG16(config.weights, config.weights_sha256))
