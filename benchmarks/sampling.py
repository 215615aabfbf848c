"""How fast codes are drawn from a gated PixelCNN: `python -m benchmarks.sampling`.

One process, three clocks on the same network and batch: one full forward pass over the finished batch, which is the
least that any exact sampler must compute; cached sampling (`prior.sample`); naive sampling, a full pass per code, timed
at 8 positions spread evenly over the grid and scaled. The table gives seconds and multiples of the full pass. The
fastest of `--repeats` counts, since whatever else a machine does only adds. Nothing is written: a time is no artefact.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from tessera.core.contracts import Sampling
from tessera.nn.sampling import draw, truncate
from tessera.priors import pixelcnn

POSITIONS = 8


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of `repeats` runs, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    side = options.grid
    torch.manual_seed(0)
    values = {name: getattr(options, name) for name in ("channels", "layers", "kernel_size")}
    config = pixelcnn.Config(**values, dropout=0.0, condition_blocks=0)
    prior = pixelcnn.build(config, ((side, side),), (options.codebook_size,), 0).eval()
    uniforms = torch.rand(options.batch, dtype=torch.float64)

    def sample() -> torch.Tensor:
        return prior.sample(options.batch, torch.Generator().manual_seed(0))

    finished = sample()

    def naive() -> None:
        for t in torch.linspace(0, side * side - 1, POSITIONS).long().tolist():
            draw(truncate(prior.logits(finished, None)[0][:, t], Sampling()), uniforms)

    return {
        "one full forward pass": seconds(lambda: prior.logits(finished, None), options.repeats),
        "cached sampling": seconds(sample, options.repeats),
        "naive sampling": seconds(naive, 1) * side * side / POSITIONS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"batch": 64, "grid": 16, "codebook_size": 256, "channels": 128, "layers": 12, "kernel_size": 3}
    for name, size in {**sizes, "repeats": 3, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=f"default {size}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.batch} images of {options.grid}x{options.grid} codes from {options.codebook_size}; {options.layers} "
        f"layers of {options.channels} channels, kernel {options.kernel_size}; float32, {options.threads} threads"
    )
    taken = measure(options)
    full = taken["one full forward pass"]
    print(f"{'':24}{'seconds':>10}{'of a pass':>12}{'codes/s':>12}")
    for name, value in taken.items():
        print(f"{name:24}{value:10.2f}{value / full:11.2f}x{options.batch * options.grid**2 / value:12.0f}")
    print(f"cached is {taken['naive sampling'] / taken['cached sampling']:.0f} times as fast as naive sampling")


if __name__ == "__main__":
    main()
