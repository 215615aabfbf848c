"""The decoder to twice the size: a residual on the bicubic enlargement of the reconstruction (VDSR, Kim et al. 2016, arXiv
1511.04587, sec. 3.2), decoded from all levels at once (VQ-VAE-2, Razavi et al. 2019, arXiv 1906.00446, algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tessera.core.contracts import Device, ImageShape, Tokenizer
from tessera.networks import conv
from tessera.networks.doubling import Doubling

FACTOR = 2


class Widths(Protocol):
    """Params of a decoder."""

    @property
    def channels(self) -> int: ...  # at the finest grid of codes
    @property
    def outer_channels(self) -> int: ...  # at finer resolutions
    @property
    def blocks(self) -> int: ...  # residual blocks at the finest grid of codes
    @property
    def outer_blocks(self) -> int: ...  # residual blocks at the size of the originals
    @property
    def normalisation(self) -> str: ...  # batch, group or none


class Seen(NamedTuple):
    """The decoder's input: the code vectors of images, level by level, and their reconstruction in [-1, 1]."""

    vectors: tuple[Float[Tensor, "b d h w"], ...]
    reconstruction: Float[Tensor, "b c h w"]


def enlarged(x: Float[Tensor, "b c h w"], mode: str = "bicubic") -> Float[Tensor, "b c 2*h 2*w"]:
    """Enlarges to twice the size. `nearest` repeats pixels. `bicubic` is cubic convolution (Keys 1981) with a = -0.75 over 4x4
    pixels: pixel centres at half-integers (`align_corners=False`), repeated edges, no antialiasing (only shrinking needs it)."""
    return F.interpolate(x, scale_factor=FACTOR, mode=mode, **({"align_corners": False} if mode == "bicubic" else {}))


class Decoder(nn.Module):
    """Code vectors [B,D,h,w] of each level and the reconstruction [B,C,H,W] to images [B,C,2H,2W]. For example, 8x8 code vectors
    of 32x32 images are decoded at 8x8, upsampled to 16x16 and 32x32, joined there with the reconstruction, and end at 64x64."""

    def __init__(self, config: Widths, dims: tuple[int, ...], grid: int, image_shape: ImageShape) -> None:
        super().__init__()
        image_channels, size, _ = image_shape
        c, kind = config.channels, config.normalisation
        layers: list[nn.Module] = [nn.Conv2d(sum(dims), c, 3, padding=1), *_blocks(config.blocks, c, kind)]
        for _ in range(conv.halvings(size // grid)):
            layers += [conv.normalisation(kind, c), nn.SiLU()]
            layers.append(Doubling(c, config.outer_channels))
            c = config.outer_channels
        self.inner = nn.Sequential(*layers)
        self.look = nn.Conv2d(image_channels, c, 3, padding=1)
        layers = [*_blocks(config.outer_blocks, c, kind), conv.normalisation(kind, c), nn.SiLU()]
        last = nn.Conv2d(c, FACTOR**2 * image_channels, 3, padding=1)
        self.outer = nn.Sequential(*layers, last, nn.PixelShuffle(FACTOR))
        for parameter in last.parameters():  # initially the residual is zero
            nn.init.zeros_(parameter)

    def forward(self, seen: Seen) -> Float[Tensor, "b c 2*h 2*w"]:
        finest = seen.vectors[-1].shape[2:]
        vectors = torch.cat([F.interpolate(level, size=finest) for level in seen.vectors], dim=1)
        features = self.inner(vectors) + self.look(seen.reconstruction)
        return enlarged(seen.reconstruction) + self.outer(features)


def _blocks(count: int, channels: int, kind: str) -> list[nn.Module]:
    return [conv.ResidualBlock(channels, inner(channels), kind, dropout=0.0) for _ in range(count)]


def inner(channels: int) -> int:
    """Channels inside a residual block."""
    return max(1, channels // 2)


@torch.no_grad()
def see(tokenizer: Tokenizer, codes: Int[Tensor, "b t"]) -> Seen:
    vectors = tokenizer.vectors(codes)
    return Seen(vectors, tokenizer.decode_vectors(vectors).clamp(-1, 1))


def made_for(tokenizer: Tokenizer, config: Widths, device: Device = "cpu") -> Decoder:
    """A new decoder, initialised from torch's global generator, for the shapes of the tokenizer's code vectors."""
    codes = torch.zeros(1, tokenizer.space.length, dtype=torch.int64, device=device)
    vectors = see(tokenizer, codes).vectors
    dims, grid = tuple(level.shape[1] for level in vectors), vectors[-1].shape[2]
    # channels-last weights: images arrive channels-last, and convolutions on CPU are faster on them
    return Decoder(config, dims, grid, tokenizer.image_shape).to(memory_format=torch.channels_last)


def augmented(
    x: Float[Tensor, "b c h w"], target: Float[Tensor, "b c 2*h 2*w"], flip: float, shift: int, generator: Generator
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c 2*h 2*w"]]:
    """Flips each pair with probability `flip`, and shifts all images alike by up to `shift` pixels, targets by twice as many;
    white (1) comes in."""
    mirrored = (torch.rand(len(x), generator=generator) < flip).to(x.device)[:, None, None, None]
    dy, dx = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()

    def moved(pixels: Tensor, factor: int) -> Tensor:
        height, width = pixels.shape[2:]
        top, left = factor * dy, factor * dx
        padded = F.pad(torch.where(mirrored, pixels.flip(3), pixels), (factor * shift,) * 4, value=1.0)
        cut = padded[:, :, top : top + height, left : left + width]
        return cut.contiguous(memory_format=torch.channels_last)

    return moved(x, 1), moved(target, FACTOR)
