"""How fast a training step of a quantizer is, beside vector-quantize-pytorch: `python -m benchmarks.quantizers`.

One process, the same latents: forward, EMA update with restarts of dead codes, and backward from z_q and the commitment
term, in training mode, float32. Two sizes of codebook, both gradient estimators. The fastest of `--repeats` counts, after
two steps to warm up, both sides taking turns. tessera's stages have freed memory kept (`runtime/process.py`), a process of
one's own has glibc's thresholds: `own` are each side's milliseconds as it is run, `kept` and `glibc` those of both alike, and
the ratios are of these. Memory is the most that torch held at once during a step, above what it held
before. Needs the test extra.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from vector_quantize_pytorch import VectorQuantize

from benchmarks.memory import peak_mib
from tessera.quantizers import ema
from tessera.runtime import process

SIZES = ((256, 64), (1024, 256))
ESTIMATORS = ("straight_through", "rotation")
MAP = (64, 16, 16)  # images, height, width: 16,384 latents


def ours(k: int, d: int, estimator: str) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    config = ema.Config(
        beta=0.25, codebook_size=k, code_dim=d, estimator=estimator, distance="euclidean", decay=0.99,
        initialisation="latents", restart="dead", restart_below=0.1, smoothing=0.0,
    )  # fmt: skip
    quantizer = ema.build(config, None).train()

    def step(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = quantizer(z)
        return out.z_q, out.losses["commitment"]

    return step


def theirs(
    k: int, d: int, estimator: str, restart: bool
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    quantizer = VectorQuantize(
        dim=d, codebook_size=k, decay=0.99, commitment_weight=0.25, accept_image_fmap=True,
        rotation_trick=estimator == "rotation", threshold_ema_dead_code=2 if restart else 0,
    ).train()  # fmt: skip

    def step(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z_q, _, loss = quantizer(z)
        return z_q, loss.sum()

    return step


SIDES = {
    "tessera": ours,
    "vector-quantize-pytorch": lambda k, d, e: theirs(k, d, e, restart=True),
    "the same without restarts": lambda k, d, e: theirs(k, d, e, restart=False),
}


def latents(d: int) -> torch.Tensor:
    b, h, w = MAP
    z = torch.randn(b, d, h, w, generator=torch.Generator().manual_seed(0))
    return z.contiguous(memory_format=torch.channels_last)  # as a convolutional encoder hands them on here


def train(step: Callable, z: torch.Tensor, weights: torch.Tensor) -> None:
    z = z.detach().requires_grad_()
    z_q, loss = step(z)
    ((z_q * weights).sum() + loss).backward()


MODES = {"own": lambda name: name == "tessera", "kept": lambda name: True, "glibc": lambda name: False}


def seconds(steps: dict[str, Callable], d: int, repeats: int, kept: Callable[[str], bool]) -> dict[str, float]:
    z = latents(d)
    weights = torch.randn_like(z)
    taken: dict[str, float] = {}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            process.keep_freed_memory(*(() if kept(name) else process.GLIBC))
            start = time.perf_counter()
            train(step, z, weights)
            if repeat >= 2:
                taken[name] = min(taken.get(name, 1e9), time.perf_counter() - start)
    return taken


def held_mib(step: Callable, d: int) -> float:
    z = latents(d)
    weights = torch.randn_like(z)
    train(step, z, weights)
    return peak_mib(lambda: train(step, z, weights))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="default 10")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as many as cores")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    b, h, w = MAP
    print(f"{b * h * w} latents, {options.threads} threads; milliseconds a training step, ratio to tessera's; MiB held")
    print(f"{'K':>5}{'D':>5}  {'estimator':18}{'':28}{''.join(f'{mode:>16}' for mode in MODES)}{'MiB':>6}")
    for k, d in SIZES:
        for estimator in ESTIMATORS:
            torch.manual_seed(0)
            steps = {name: side(k, d, estimator) for name, side in SIDES.items()}
            taken = {mode: seconds(steps, d, options.repeats, kept) for mode, kept in MODES.items()}
            for name, step in steps.items():
                cells = [(1e3 * times[name], times[name] / times["tessera"]) for times in taken.values()]
                columns = "".join(f"{ms:9.1f} {ratio:5.2f}x" for ms, ratio in cells)
                print(f"{k:5}{d:5}  {estimator:18}{name:28}{columns}{held_mib(step, d):6.0f}")


if __name__ == "__main__":
    main()
