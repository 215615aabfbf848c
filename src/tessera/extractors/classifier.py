"""A small convolutional network trained on the data set itself: the default features, with nothing to download.

Where the set has labels it learns those of the train split. Where it has none it learns by which of four rotations (0,
90, 180, 270 degrees) an image was turned (Gidaris et al. 2018, arXiv 1803.07728, section 3): images must then have an
upright. Distances on its features mean something for one data set and one trained network only, and never called FID.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import ImageShape, TrainedExtractor
from tessera.core.params import Strict
from tessera.networks import conv

if TYPE_CHECKING:
    from tessera.core.params import Params

TURNS, SMALLEST = 4, 4


class Config(Strict):
    channels: int = Field(ge=1, le=1024, description="channels after the first halving of the image; after each "
                          "further one twice as many, but after the last", examples=[4])  # fmt: skip
    features: int = Field(ge=2, le=4096, description="length F of a feature vector, the channels after the last "
                          "halving; well below the number of test images, or their covariance is singular",
                          examples=[8])  # fmt: skip
    dropout: float = Field(ge=0, lt=1, description="probability, between features and classes", examples=[0.1])

    def rule(self, params: Params) -> Iterator[str]:
        size = params.value("dataset.image_size")
        for _ in range(halvings(size)):
            size = -(-size // 2)
        made = ("scorer", "perceptual") if params.perceptual_network else ("scorer",)
        for section in made if size == 1 else ():
            if params.value(f"{section}.name") == "classifier" and params.config(section) == self:
                own = f"{section}.classifier"
                batch_size = params.value(f"{section}.training.batch_size")
                yield from conv.on_one_place("batch", self.channels, batch_size, section, own, params)


def halvings(image_size: int) -> int:
    """Until 4x4 is left, at least twice."""
    return max(2, (image_size // SMALLEST).bit_length() - 1)


def halving(before: int, after: int) -> nn.Sequential:
    """Two 3x3 convolutions, the first of stride 2: [B,before,H,W] to [B,after,ceil(H/2),ceil(W/2)]."""
    layers: list[nn.Module] = []
    for channels, stride in ((before, 2), (after, 1)):
        layers += [nn.Conv2d(channels, after, 3, stride, padding=1, bias=False), conv.normalisation("batch", after)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """See `core.contracts.Extractor`. Images are halved until 4x4 is left, at least twice: [B,3,32,32] through 16x16
    and 8x8 to [B,F,4,4], whose mean over space is the feature vector. It takes other sizes than it was built for.

    `classes` is the number of labels; with fewer than two there is nothing to tell apart, and it learns rotations.
    """

    distance = "fd_classifier"

    def __init__(self, config: Config, image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        self.dim, self.labelled = config.features, classes > 1
        channels, height, _ = image_shape
        widths = [channels, *(config.channels * 2**i for i in range(halvings(height) - 1)), config.features]
        self.stages = nn.ModuleList(halving(before, after) for before, after in pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.features, classes if self.labelled else TURNS)

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], ...]:
        """Activations after each halving, finest first."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b {self.dim}"]:
        return self.maps(x)[-1].mean((2, 3)).float()

    def losses(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy in nats."""
        x, targets = self._question(x, labels)
        return {"cross_entropy": F.cross_entropy(self.head(self.dropout(self(x))), targets)}

    def accuracy(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, ""]:
        """Share of right answers, from 0 to 1."""
        x, targets = self._question(x, labels)
        return (self.head(self(x)).argmax(1) == targets).float().mean()

    def _question(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images and what to tell about them: labels, or turns, at random in training and all four in evaluation."""
        if self.labelled:
            assert labels is not None, "a network built for labels is trained and judged on labels"
            return x, labels
        turned = torch.stack([x.rot90(turns, (2, 3)) for turns in range(TURNS)])
        if not self.training:
            return turned.flatten(0, 1), torch.arange(TURNS, device=x.device).repeat_interleave(len(x))
        turns = torch.randint(TURNS, (len(x),)).to(x.device)  # drawn on the CPU: the same on every device
        return turned[turns, torch.arange(len(x), device=x.device)], turns


def build(config: Config, image_shape: ImageShape, classes: int) -> TrainedExtractor:
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return Classifier(config, image_shape, classes).to(memory_format=torch.channels_last)
