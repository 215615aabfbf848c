"""Adversarial term of VQGAN (Esser et al. 2021, arXiv 2012.09841, eq. 4 to 7): a discriminator of patches learns to tell images
from reconstructions, and the tokenizer learns that it cannot.

Squared error is least for a mean of all images that fit the codes, which is blurred. The discriminator finds the blur.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params
    from tessera.core.run import Run

SLOPE = 0.2  # of LeakyReLU below 0, as in Isola et al.
WIDEST = 8  # times `channels`, as in Isola et al.
DELTA = 1e-6  # added to the norm of the discriminator's gradient (Esser et al., eq. 7)


class Config(Strict):
    weight: float = Field(
        ge=0, description="length of the discriminator's gradient at a reconstruction, in lengths of that of the squared error; "
        "0: not built", examples=[0.5])  # fmt: skip
    channels: int = Field(ge=1, description="channels after the first halving, doubled by each other one", examples=[4])
    layers: int = Field(ge=1, description="halvings: the patches of an image of side s stand on a grid of side s / 2^layers",
                        examples=[1])  # fmt: skip
    normalisation: Literal["spectral", "none"] = Field(
        description="spectral: each convolution is divided by its largest singular value", examples=["none"]
    )
    start: int = Field(ge=0, description="gradient steps in which the discriminator learns alone", examples=[0])

    def rule(self, params: Params) -> Iterator[str]:
        if not self.weight:
            return
        if (keep := params.value("tokenizer.keep")) != "last":
            yield (
                f"tokenizer.keep: must be last where losses.adversarial.weight is above 0, got {keep!r}: no score of validation "
                "images says which epoch is best, since the discriminator changes too; set it to last"
            )
        size = params.value("dataset.image_size")
        if size >> self.layers == 0:
            yield (
                f"losses.adversarial.layers: must be at most {size.bit_length() - 1} for dataset.image_size {size}, got "
                f"{self.layers}: a halving of one pixel leaves none"
            )


class Convolution(nn.Conv2d):
    """A convolution whose weights, a matrix [out,in*kh*kw], are divided by their largest singular value if `spectral` (Miyato et
    al. 2018, arXiv 1802.05957, algorithm 1): one power iteration in each training pass, from where the last one ended.

    Not `torch.nn.utils.parametrizations.spectral_norm`: Muon finds a matrix by the name `weight`.
    """

    left: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, spectral: bool) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=1)
        self.spectral = spectral
        if spectral:
            self.register_buffer("left", F.normalize(torch.randn(outputs), dim=0))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return F.conv2d(x, self.normalised(), self.bias, self.stride, self.padding)

    def normalised(self) -> Float[Tensor, "d c i j"]:
        """The weights that the convolution uses."""
        if not self.spectral:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                right = F.normalize(self.left @ matrix, dim=0)
                left = F.normalize(matrix @ right, dim=0)
                if self.training:
                    self.left.copy_(left)
            return self.weight / torch.dot(left, matrix @ right)


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004, sec. 3.2): images [B,C,H,W] to one logit for each patch [B,1,h,w], positive
    for real. It knows no statistics of a batch, so that ranks see what one process sees."""

    def __init__(self, config: Config, image_channels: int) -> None:
        super().__init__()
        spectral = config.normalisation == "spectral"
        widths = [image_channels, *(config.channels * min(2**layer, WIDEST) for layer in range(config.layers))]
        halvings: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            halvings += [Convolution(before, after, 4, 2, spectral), nn.LeakyReLU(SLOPE)]
        self.features = nn.Sequential(*halvings)
        self.head = Convolution(widths[-1], 1, 3, 1, spectral)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 i j"]:
        return self.head(self.features(x))


class Adversarial(nn.Module):
    """Hinge loss of the discriminator D (Lim & Ye 2017, arXiv 1705.02894), mean over patches and images, minus the mean of D at the
    reconstructions.

    Each side is trained by its own part. The hinge loss sees the reconstruction as a constant, and trains D alone. The rest
    trains the tokenizer alone, and has the gradient of `push` at the reconstruction. The optimizer moves both at once.

    In the first `start` training passes D learns alone: the gradient of one that knows nothing yet is noise. (Esser et al. let both
    begin later.) In evaluation mode the term is 0: D is another one in each epoch, so its value says nothing about which epoch
    is the better one.
    """

    batches: Tensor

    def __init__(self, config: Config, image_channels: int) -> None:
        super().__init__()
        self.start = config.start
        self.discriminator = Discriminator(config, image_channels)
        self.register_buffer(
            "batches", torch.tensor(0)
        )  # seen in training; a buffer, so that a resumed training knows it

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        if not self.training:
            return x.new_zeros((), dtype=torch.float32)
        self.batches += 1
        decoded = single(output.reconstruction)
        constant = decoded.detach().requires_grad_()
        real, fake = single(self.discriminator(torch.cat([x, constant]))).chunk(2)
        hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        if self.batches <= self.start:
            return hinge
        (upwards,) = torch.autograd.grad(fake.flatten(1).mean(1).sum(), constant, retain_graph=True)
        pushed = (push(upwards, constant.detach() - x) * decoded).sum()
        return hinge - fake.detach().mean() + (pushed - pushed.detach())


def single(tensor: Tensor) -> Tensor:
    """At least in float32, also under autocast."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def push(upwards: Float[Tensor, "b c h w"], error: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The gradient of the generator's term at the reconstructions: for each image that of -D, at the length of the gradient of the
    mean squared error, 2 |error| / size.

    Args:
        upwards: gradient of the discriminator's mean logit of each image.
        error: reconstruction minus image.

    This is the adaptive weight of eq. 7, at the reconstruction instead of the last layer, and for each image. So the weight of
    the term means the same whatever the discriminator and at every time of training: beside `mse` at weight 1, under a weight
    below 1, a step against both gradients still leads nearer to the image. No layer need be named, no second backward
    pass goes through the tokenizer, and the gradient of an image depends neither on its batch nor on the number of ranks.
    """
    wanted = 2 * lengths(error) / error.numel()
    return -upwards * wanted / (lengths(upwards) + DELTA)


def lengths(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return Adversarial(config, tokenizer.image_shape[0])
