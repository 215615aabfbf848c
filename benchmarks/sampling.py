"""How fast codes are drawn from each prior: `python -m benchmarks.sampling [PRIOR ...]`.

One process, the same batch for every clock: one full forward pass over the finished batch, which is the arithmetic that
any exact sampler must do; `prior.sample`, which remembers what it computed; *naive* sampling, a full pass per code, timed
at 8 positions spread evenly over the grid and scaled; *rows so far*, a pass per code over a canvas that ends at its row,
timed at 4 heights and scaled. The table gives seconds and multiples of the full pass, and the most memory that torch held. The
fastest of `--repeats` counts, since whatever else a machine does only adds. `--plot FILE` draws the cost of a code
against its position. A time is no artefact: the pipeline writes none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import peak_mib
from tessera.core import seams
from tessera.core.contracts import Sampling
from tessera.nn.sampling import draw, truncate

POSITIONS, HEIGHTS = 8, 4
SIZE = {"batch": 64, "grid": 16, "codebook_size": 256, "channels": 128, "layers": 12}


def values(name: str, channels: int, layers: int) -> dict[str, Any]:
    """A `Config` of this many layers of this many channels."""
    return {
        "pixelcnn": {"architecture": "gated", "channels": channels, "layers": layers, "kernel_size": 3,
                     "first_kernel_size": 7, "condition_blocks": 0},
        "pixelsnail": {"channels": channels, "blocks": 3, "layers": layers // 3, "kernel_size": 3, "heads": 4,
                       "condition_blocks": 0},
        "transformer": {"channels": channels, "layers": layers, "heads": 4, "random_order": 0.0},
        "rnn": {"cell": "gru", "embedding": channels, "hidden": channels, "layers": layers, "context": 0},
    }[name] | {"dropout": 0.0}  # fmt: skip


PRIORS = ("pixelcnn", "pixelsnail", "transformer", "rnn")


def build(name: str, height: int, options: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    module = seams.plugin("priors", name)
    config = module.Config.model_validate(values(name, options.channels, options.layers))
    return module.build(config, ((height, options.grid),), (options.codebook_size,), 0).eval()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of `repeats` runs, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def naive(prior: Any, codes: torch.Tensor, uniforms: torch.Tensor) -> None:
    """One code in each of 8 columns of the sequence, by a full pass each."""
    for t in torch.linspace(0, codes.shape[1] - 1, POSITIONS).long().tolist():
        draw(truncate(prior.logits(codes, None)[0][:, t], Sampling()), uniforms)


def rows_so_far(name: str, codes: torch.Tensor, uniforms: torch.Tensor, options: argparse.Namespace) -> float:
    """Seconds of all codes, if each took a pass over the rows up to its own: the mean over heights, times the codes."""
    side, taken = options.grid, []
    for height in torch.linspace(1, side, HEIGHTS).round().long().tolist():
        prior, so_far = build(name, height, options), codes[:, : height * side]
        work = partial(lambda prior, so_far: draw(truncate(prior.logits(so_far, None)[0][:, -1], Sampling()), uniforms),
                       prior, so_far)  # fmt: skip
        taken.append(seconds(work, 1))
    return side * side * sum(taken) / len(taken)


@torch.no_grad()
def measure(name: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Seconds and MiB of each way."""
    prior, codes = build(name, options.grid, options), options.grid**2
    uniforms = torch.rand(options.batch, dtype=torch.float64)
    sample = lambda: prior.sample(options.batch, torch.Generator().manual_seed(0))  # noqa: E731
    finished = sample()
    full = lambda: prior.logits(finished, None)  # noqa: E731
    slow = partial(naive, prior, finished, uniforms)
    return {
        "one full forward pass": (seconds(full, options.repeats), peak_mib(full)),
        "sample": (seconds(sample, options.repeats), peak_mib(sample)),
        "naive sampling": (seconds(slow, 1) * codes / POSITIONS, peak_mib(slow)),
        "rows so far": (rows_so_far(name, finished, uniforms, options), float("nan")),
    }


@torch.no_grad()
def cost_by_position(name: str, options: argparse.Namespace) -> list[float]:
    """Milliseconds of each code of one `sample`, the fastest of `--repeats`."""
    prior = build(name, options.grid, options)
    uniforms = torch.rand(options.grid**2, options.batch, dtype=torch.float64)
    best: list[float] = []
    for _ in range(options.repeats + 1):
        walk, codes, taken = prior.steps(options.batch, None), None, []
        for row in uniforms:
            start = time.perf_counter()
            codes = draw((next(walk) if codes is None else walk.send(codes)).double(), row)
            taken.append(1e3 * (time.perf_counter() - start))
        walk.close()
        best = [min(pair) for pair in zip(best, taken, strict=True)] if best else taken
    return best


def plot(names: list[str], options: argparse.Namespace, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for name in names:
        axis.plot(cost_by_position(name, options), linewidth=1, label=name)
    axis.set(title=f"cost of a code, {options.batch} images at once", xlabel="position in the sequence",
             ylabel="milliseconds", yscale="log")  # fmt: skip
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", nargs="*", default=list(PRIORS), help=f"of {', '.join(PRIORS)}; default all")
    for name, size in {**SIZE, "repeats": 3, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--plot", type=Path, help="write the cost by position to this PNG instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.plot:
        return plot(options.priors, options, options.plot)
    print(
        f"{options.batch} images of {options.grid}x{options.grid} codes from {options.codebook_size}; {options.layers} "
        f"layers of {options.channels} channels; float32, {options.threads} threads"
    )
    print(f"{'':14}{'':24}{'seconds':>10}{'of a pass':>12}{'of sample':>12}{'codes/s':>12}{'MiB':>8}")
    for name in options.priors:
        taken = measure(name, options)
        full, ours = taken["one full forward pass"][0], taken["sample"][0]
        for way, (value, mib) in taken.items():
            rate = options.batch * options.grid**2 / value
            print(f"{name:14}{way:24}{value:10.2f}{value / full:11.2f}x{value / ours:11.2f}x{rate:12.0f}{mib:8.0f}",
                  flush=True)  # fmt: skip
    return None


if __name__ == "__main__":
    main()
