"""How fast tokenizers train: `python -m benchmarks.tokenizers`.

One process, forward, loss, backward and Adam. First, images a second of `vqvae2` beside a VQ-VAE-2 of the same layers as
one composes it from vector-quantize-pytorch and plain convolutions, in float32 and, by autocast, in bfloat16. tessera's
stages have freed memory kept (`runtime/process.py`); a process of one's own has glibc's thresholds: each as it is run, and
both ways alike. Second, what share of the machine's convolution throughput a `vqvae` step reaches in float32: its
floating-point operations (torch's own counter) per second, over those of the fastest of a few plain 3x3 convolutions,
forward and backward; and how much faster it is in bfloat16.

Those that are compared take `--repeats` turns after one to warm up. A turn is several steps, as in training, where a step
finds the memory that one of its own kind left; the first of them does not count, and the median of the others does. A ratio
is that of the medians of one turn: of all turns, its median and quartiles are printed, since the speed of a shared machine
changes from one second to the next. Needs the test extra.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from vector_quantize_pytorch import VectorQuantize

from tessera import presets
from tessera.core import models
from tessera.core.params import Params, read
from tessera.runtime import process

SHAPE = {"channels": 128, "outer_channels": 64, "blocks": 2, "block_channels": 64, "normalisation": "batch"}
PEER = "vector-quantize-pytorch and plain convolutions"
QUANTIZER = {"quantizer.codebook_size": 512, "quantizer.code_dim": 64}
SIZES = ("small", "medium", "large", "xlarge")  # presets vqvae-...
CONVOLUTIONS = ((32, 128, 16), (32, 256, 16), (32, 128, 32), (16, 256, 32))  # images, channels, side


# the peer


class PlainBlock(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, inner, 3, padding=1),
            nn.BatchNorm2d(inner), nn.SiLU(), nn.Conv2d(inner, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def blocks() -> list[nn.Module]:
    return [PlainBlock(SHAPE["channels"], SHAPE["block_channels"]) for _ in range(SHAPE["blocks"])]


def active(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.SiLU()]


class PlainVQVAE2(nn.Module):
    """The layers of `vqvae2`, downsampling 4 and again 2, as torch's defaults have them."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        c, outer = SHAPE["channels"], SHAPE["outer_channels"]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, outer, 4, 2, 1), *active(outer), nn.Conv2d(outer, c, 4, 2, 1), *blocks()
        )
        self.top_encoder = nn.Sequential(
            *active(c), nn.Conv2d(c, c, 4, 2, 1), *blocks(), *active(c), nn.Conv2d(c, d, 1)
        )
        self.top_decoder = nn.Sequential(
            nn.Conv2d(d, c, 3, padding=1), *blocks(), *active(c), nn.ConvTranspose2d(c, c, 4, 2, 1)
        )
        self.projection = nn.Sequential(*active(2 * c), nn.Conv2d(2 * c, d, 1))
        self.upsampling = nn.ConvTranspose2d(d, d, 4, 2, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * d, c, 3, padding=1), *blocks(), *active(c), nn.ConvTranspose2d(c, outer, 4, 2, 1),
            *active(outer), nn.ConvTranspose2d(outer, 3, 4, 2, 1),
        )  # fmt: skip
        options = {"decay": 0.99, "commitment_weight": 0.25, "accept_image_fmap": True, "threshold_ema_dead_code": 2}
        self.top = VectorQuantize(dim=d, codebook_size=k, rotation_trick=False, **options)
        self.bottom = VectorQuantize(dim=d, codebook_size=k, rotation_trick=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        top, _, top_loss = self.top(self.top_encoder(features))
        bottom, _, bottom_loss = self.bottom(self.projection(torch.cat([features, self.top_decoder(top)], 1)))
        decoded = self.decoder(torch.cat([bottom, self.upsampling(top)], 1))
        return F.mse_loss(decoded, x) + top_loss.sum() + bottom_loss.sum()


# ours


class Loss(nn.Module):
    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, x: Tensor) -> Tensor:
        output = self.tokenizer(x)
        return F.mse_loss(output.reconstruction, x) + sum(sum(q.losses.values()) for q in output.quantized)


def ours(size: int, values: dict) -> Loss:
    raw = presets.applied(read(), {"dataset.image_size": size, "dataset.target_size": size, **values})
    return Loss(models.build(models.tokenizer_recipe(Params(raw), (3, size, size))))


def training_step(model: nn.Module, x: Tensor, precision: str = "float32") -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(x)
        loss.backward()
        optimizer.step()

    return step


def turns(steps: dict[str, Callable[[], None]], repeats: int, count: int = 4) -> dict[str, np.ndarray]:
    """Seconds of one step, the median of each turn."""
    taken = {name: np.empty((repeats + 1, count)) for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            process.keep_freed_memory()
            for turn in range(count):
                start = time.perf_counter()
                step()
                taken[name][repeat, turn] = time.perf_counter() - start
    return {name: np.median(seconds[1:, 1:], axis=1) for name, seconds in taken.items()}


def spread(ratios: np.ndarray, form: str) -> str:
    low, middle, high = (format(value, form) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return f"{middle} ({low} to {high})"


def images(batch: int, size: int, layout: torch.memory_format = torch.channels_last) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, size, size, generator=rng).mul(2).sub(1).contiguous(memory_format=layout)


def compare(batch: int, size: int, repeats: int) -> None:
    values = {f"tokenizer.vqvae2.{name}": value for name, value in SHAPE.items()}
    mine = ours(size, {"tokenizer.name": "vqvae2", **values, **QUANTIZER})
    peer = PlainVQVAE2(QUANTIZER["quantizer.codebook_size"], QUANTIZER["quantizer.code_dim"])
    sizes = [sum(p.numel() for p in model.parameters()) for model in (mine, peer)]
    k, d = QUANTIZER.values()
    print(f"vqvae2, {batch} images of {size}x{size}, K = {k}, D = {d}; {sizes[0]} and {sizes[1]} parameters")
    for precision in ("float32", "bf16"):
        print(f"  {'float32' if precision == 'float32' else 'bfloat16, by autocast'}")
        my_step = training_step(mine, images(batch, size), precision)
        peer_step = training_step(peer, images(batch, size, torch.contiguous_format), precision)
        modes = {
            "each as it is run": (my_step, with_glibcs_thresholds(peer_step)),
            "memory kept for both": (my_step, peer_step),
            "memory given back by both": (with_glibcs_thresholds(my_step), with_glibcs_thresholds(peer_step)),
        }
        for title, pair in modes.items():
            mine_s, peer_s = turns(dict(zip(("tessera", PEER), pair, strict=True)), repeats).values()
            speeds = f"{batch / np.median(mine_s):.0f} images/s, {PEER} {batch / np.median(peer_s):.0f}"
            print(f"    {title}: {speeds}; {spread(peer_s / mine_s, '.2f')} times as fast")


def with_glibcs_thresholds(step: Callable[[], None]) -> Callable[[], None]:
    def stepped() -> None:
        process.keep_freed_memory(*process.GLIBC)
        step()

    return stepped


def fraction_of_peak(batch: int, size: int, repeats: int) -> None:
    """Of each size of `vqvae` (presets)."""
    plain = {f"{shape}": convolution(*shape) for shape in CONVOLUTIONS}
    steps = {name: step for name, (step, _) in plain.items()}
    operations = {name: count for name, (_, count) in plain.items()}
    for name in SIZES:
        steps[name] = training_step(ours(size, presets.overrides(f"vqvae-{name}")), images(batch, size))
        with FlopCounterMode(display=False) as counter:
            steps[name]()
        half = f"{name}, bfloat16"
        steps[half] = training_step(ours(size, presets.overrides(f"vqvae-{name}")), images(batch, size), "bf16")
        operations[name] = operations[half] = counter.get_total_flops()
    rates = {name: operations[name] / seconds for name, seconds in turns(steps, repeats).items()}
    peak = np.max([rates[name] for name in plain], axis=0)
    fastest = f"the fastest 3x3 convolution: {np.median(peak) / 1e9:.0f} GFLOP/s"
    print(f"vqvae, {batch} images of {size}x{size}; {fastest}")
    for name in SIZES:
        rate = np.median(rates[name])
        speeds = f"{batch * rate / operations[name]:8.0f} images/s{rate / 1e9:8.0f} GFLOP/s"
        faster = spread(rates[f"{name}, bfloat16"] / rates[name], ".2f")
        print(f"  {name:10}{speeds}, {spread(rates[name] / peak, '.0%')} of it; in bfloat16 {faster} times as fast")


def convolution(batch: int, channels: int, side: int, calls: int = 4) -> tuple[Callable[[], None], int]:
    """Several calls, forward and both gradients, and their floating-point operations."""
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(x)

    def step() -> None:
        for _ in range(calls):
            x.grad = None
            layer.zero_grad(set_to_none=True)
            layer(x).backward(gradient)

    return step, calls * 3 * 2 * 9 * channels * channels * batch * side * side


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 32, "size": 64, "repeats": 6, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{options.threads} threads")
    compare(options.batch, options.size, options.repeats)
    fraction_of_peak(options.batch, options.size, options.repeats)


if __name__ == "__main__":
    main()
