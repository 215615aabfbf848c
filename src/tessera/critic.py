"""A critic: a small convolutional network on code vectors that tells false images from real ones. It sees no pixel.

`evaluation.two_sample` judges samples by critics that were not trained on them, `rejection` accepts samples by one that was trained
on others.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Device, Tokenizer
from tessera.core.params import Strict
from tessera.core.seeding import numpy_generator, seed_globally
from tessera.images.arrays import batches

AT_ONCE = 256  # images whose codes become vectors in one pass


class Config(Strict):
    """Its size and its training, the same in every section that has a critic."""

    channels: int = Field(ge=1, le=512, description="channels of the critic", examples=[4])
    layers: int = Field(ge=1, le=8, description="3x3 convolutions of the critic", examples=[2])
    dropout: float = Field(ge=0, lt=1, description="dropout before the critic's last layer, half of it on its input",
                           examples=[0.5])  # fmt: skip
    epochs: int = Field(ge=1, le=1000, description="passes over the images that it is trained on", examples=[2])
    batch_size: int = Field(ge=2, description="images per gradient step, of both sides together", examples=[8])
    lr: float = Field(gt=0, description="peak learning rate of AdamW, in one cycle", examples=[0.003])
    weight_decay: float = Field(ge=0, description="weight decay", examples=[0.1])


@torch.no_grad()
def code_vectors(tokenizer: Tokenizer, codes: Int[np.ndarray, "n t"], device: Device) -> Float[Tensor, "n d h w"]:
    """Code vectors of all levels that are decoded, one upon another; those of coarser levels are repeated up to the finest grid.
    Global codes are left out: nobody sees them in an image."""
    found = []
    for where in batches(len(codes), AT_ONCE):
        vectors = tokenizer.vectors(torch.from_numpy(np.array(codes[where], np.int64)).to(device))
        levels = tokenizer.space.placed(vectors)
        size = tuple(max(level.shape[axis] for level in levels) for axis in (2, 3))
        found.append(torch.cat([F.interpolate(level.float(), size) for level in levels], dim=1))
    return torch.cat(found).contiguous(memory_format=torch.channels_last)


def standardised(x: Float[Tensor, "n d h w"], train: Int[np.ndarray, " i"]) -> Float[Tensor, "n d h w"]:
    """Each dimension with mean 0 and variance 1 over the training images; one that never varies is 0."""
    deviation, mean = torch.std_mean(x[train], dim=(0, 2, 3), keepdim=True, correction=0)
    return torch.where(deviation > 0, (x - mean) / deviation.clamp(min=torch.finfo(x.dtype).eps), 0)


class Critic(nn.Module):
    """Convolutions, then mean and maximum over places, then a linear layer: the logit of being false."""

    def __init__(self, dim: int, config: Config) -> None:
        super().__init__()
        inputs = [dim, *[config.channels] * (config.layers - 1)]
        layers = [
            nn.Sequential(nn.Conv2d(n, config.channels, 3, padding=1), nn.BatchNorm2d(config.channels), nn.SiLU())
            for n in inputs
        ]
        # of whole dimensions: as powerful as of single values, in three quarters of the time
        self.convolutions = nn.Sequential(nn.Dropout2d(config.dropout / 2), *layers)
        self.last = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(2 * config.channels, 1))

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, " b"]:
        maps = self.convolutions(x)
        return self.last(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)).squeeze(1)


def trained(x: Float[Tensor, "n d h w"], truth: Float[Tensor, " n"], config: Config, seed: int) -> Critic:
    """A critic of these images, in evaluation mode: AdamW, one cycle of the learning rate, batches of equal size."""
    seed_globally(seed, "critic")  # initial weights, dropout
    order = numpy_generator(seed, "order")
    critic = Critic(x.shape[1], config).to(x.device).to(memory_format=torch.channels_last)
    parts = max(1, len(x) // config.batch_size)
    optimizer = torch.optim.AdamW(critic.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * parts)
    for _ in range(config.epochs):
        for batch in map(torch.from_numpy, np.array_split(order.permutation(len(x)), parts)):
            loss = F.binary_cross_entropy_with_logits(critic(x[batch]), truth[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    return critic.eval()
