"""What `benchmarks.peers_generation` uses of denoising-diffusion-pytorch, by the names of that package, without training: samples
are noise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class Unet(nn.Module):
    def __init__(self, channels: int, **_: Any) -> None:
        super().__init__()
        self.only = nn.Conv2d(channels, channels, 1)


class GaussianDiffusion(nn.Module):
    def __init__(self, model: Unet, *, image_size: int, timesteps: int, sampling_timesteps: int) -> None:
        super().__init__()
        assert 1 <= sampling_timesteps <= timesteps
        self.shape = (model.only.in_channels, image_size, image_size)

    def sample(self, batch_size: int) -> torch.Tensor:
        return torch.rand(batch_size, *self.shape)


class Trainer:
    def __init__(self, diffusion_model: GaussianDiffusion, folder: str, *, train_num_steps: int, **_: Any) -> None:
        self.images = sorted(Path(folder).glob("**/*.png"))
        assert self.images
        self.train_num_steps, self.step, self.dl = train_num_steps, 0, self._batches()
        self.ema = SimpleNamespace(ema_model=diffusion_model)

    def _batches(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.zeros(len(self.images))

    def train(self) -> None:
        while self.step < self.train_num_steps:
            next(self.dl)
            time.sleep(0.01)
            self.step += 1
