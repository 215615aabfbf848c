"""A recogniser that sees pixels: which of a few classes, such as vendors or skin tones, is an image of?

Features of ImageNet say little of how something is drawn: of six vendors a logistic regression on them finds the right one for
little more than half of the originals, and of five skin tones likewise. A small network that is trained on the drawings themselves
knows line and colour. It sees each drawing twice, as it is and through the tokenizer, so that a decoder's blur gives nothing away
and disturbs nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Device
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.seeding import numpy_generator, seed_globally
from tessera.evaluation.words.recognition import places
from tessera.images.arrays import batches, to_model

AT_ONCE = 512  # images in one pass without gradients
SMALLEST = 4  # side in pixels, until which images are halved


class Config(Strict):
    channels: int = Field(
        ge=1,
        le=1024,
        description="before the first halving of the image, twice as many before each further one",
        examples=[8],
    )
    features: int = Field(
        ge=2, le=4096, description="after the last halving, of which the mean over places is classified", examples=[16]
    )
    dropout: float = Field(ge=0, lt=1, description="before the last layer", examples=[0.1])
    shift: int = Field(ge=0, le=16, description="pixels by which images are moved at random, at most, their edges repeated",
                       examples=[1])  # fmt: skip
    epochs: int = Field(ge=1, le=1000, description="passes over drawings and reconstructions", examples=[10])
    batch_size: int = Field(ge=2, description="images per gradient step", examples=[8])
    lr: float = Field(gt=0, description="peak learning rate of AdamW, in one cycle", examples=[0.01])
    weight_decay: float = Field(ge=0, description="weight decay", examples=[0.01])


class Drawings(NamedTuple):
    """Images of known classes, as they are and through the tokenizer. `by` says who drew each; where that is no help it is the
    same for all."""

    originals: UInt8[np.ndarray, "n h w c"]
    reconstructions: UInt8[np.ndarray, "n h w c"]
    classes: Shaped[np.ndarray, " n"]
    by: Shaped[np.ndarray, " n"]


class Network(nn.Module):
    """Images [B,C,H,W] and who drew each [B] to logits of classes: 3x3 convolutions, and maxima over 2x2 places until some 4x4
    are left. Who drew it scales and shifts the features (FiLM, arXiv 1709.07871, eq. 2): one vendor's dark is another's medium."""

    def __init__(self, config: Config, channels: int, side: int, classes: int, makers: int) -> None:
        super().__init__()
        halvings = max(1, (side // SMALLEST).bit_length() - 1)
        widths = [channels, *(config.channels * 2**i for i in range(halvings)), config.features]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if number < halvings:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.convolutions = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.features, classes))
        self.makers = nn.Embedding(makers, 2 * config.features)
        nn.init.zeros_(self.makers.weight)

    def forward(self, x: Float[Tensor, "b c h w"], by: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        scale, shift = self.makers(by).chunk(2, 1)
        found: Tensor = self.last((1 + scale) * self.convolutions(x).mean((2, 3)) + shift)
        return found


class PixelRecogniser:
    """A network trained to name the class of drawings.

    Attributes:
        classes: names of the classes [K], sorted.
        accuracy: fraction of the held-out images, reconstructions among them, that it recognises; nan where none is of a known
            class.

    Raises:
        InputError: `train` has one class, or none.
    """

    def __init__(self, train: Drawings, held_out: Drawings, config: Config, seed: int, device: Device) -> None:
        self.classes, index = np.unique(train.classes.astype(str), return_inverse=True)
        if len(self.classes) < 2:
            raise InputError(f"a recogniser needs images of two classes, got those of {len(self.classes)}")
        self._device = device
        seed_globally(seed, "recogniser")
        height, width, channels = train.originals.shape[1:]
        self._makers = np.unique(train.by.astype(str))
        network = Network(config, channels, min(height, width), len(self.classes), len(self._makers)).to(device)
        makers = self._index(train.by)
        self._network = fitted(
            network.to(memory_format=torch.channels_last), train, index, makers, config, seed, device
        )
        known = np.isin(held_out.classes.astype(str), self.classes)
        seen, by = (held_out.originals[known], held_out.reconstructions[known]), held_out.by[known]
        wanted = held_out.classes[known].astype(str)
        right = [float((self(pixels, by) == wanted).mean()) for pixels in seen if known.any()]
        self.accuracy = float(np.mean(right)) if right else np.nan

    def _index(self, by: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number of each maker; one who drew none of the training images counts as the first."""
        found: Int[np.ndarray, " n"] = (by.astype(str)[:, None] == self._makers).argmax(1)
        return found

    @torch.no_grad()
    def _scores(self, pixels: UInt8[np.ndarray, "n h w c"], by: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
        makers = torch.from_numpy(self._index(by)).to(self._device)
        found = [
            self._network(to_model(pixels[where], self._device), makers[where]).cpu().numpy()
            for where in batches(len(pixels), AT_ONCE)
        ]
        return np.concatenate(found)

    def __call__(self, pixels: UInt8[np.ndarray, "n h w c"], by: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
        """The likeliest class of each image, drawn by whom `by` says."""
        return self.classes[self._scores(pixels, by).argmax(1)]

    def places(
        self, pixels: UInt8[np.ndarray, "n h w c"], by: Shaped[np.ndarray, " n"], wanted: Shaped[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        """As `recognition.Recogniser.places`."""
        return places(lambda: self._scores(pixels, by), self.classes, wanted)


def fitted(
    network: Network,
    train: Drawings,
    index: Int[np.ndarray, " n"],
    makers: Int[np.ndarray, " n"],
    config: Config,
    seed: int,
    device: Device,
) -> Network:
    """AdamW, one cycle of the learning rate, batches of equal size; of each drawing and its reconstruction an epoch sees both. In
    evaluation mode."""
    order, n = numpy_generator(seed, "recogniser", "order"), len(index)
    parts = max(1, 2 * n // config.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * parts)
    for _ in range(config.epochs):
        for batch in np.array_split(order.permutation(2 * n), parts):
            rows = batch % n
            pixels = np.where((batch < n)[:, None, None, None], train.originals[rows], train.reconstructions[rows])
            moved = shifted(pixels, order.integers(-config.shift, config.shift, (len(rows), 2), endpoint=True))
            targets = torch.from_numpy(index[rows].astype(np.int64)).to(device)
            by = torch.from_numpy(makers[rows]).to(device)
            loss = F.cross_entropy(network(to_model(moved, device), by), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    return network.eval()


def shifted(pixels: UInt8[np.ndarray, "n h w c"], by: Int[np.ndarray, "n 2"]) -> UInt8[np.ndarray, "n h w c"]:
    """Each image moved by (rows, columns); what enters repeats the edge."""
    _, height, width, _ = pixels.shape
    rows = np.clip(np.arange(height) - by[:, :1], 0, height - 1)
    columns = np.clip(np.arange(width) - by[:, 1:], 0, width - 1)
    return pixels[np.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]
