"""How fast codes are drawn from each prior: `python -m benchmarks.sampling [PRIOR ...]`.

One process, the same batch for every clock: one full forward pass over the finished batch, which is the arithmetic that
any exact sampler must do; `prior.sample`, which remembers what it computed; *naive* sampling, a full pass per code, timed
at 8 positions spread evenly over the grid and scaled; *rows so far*, a pass per code over a canvas that ends at its row,
timed at 4 heights and scaled. The table gives seconds and multiples of the full pass, and the most memory that torch held.
The full pass and `sample` take turns, and the fastest of `--repeats` counts, since whatever else a machine does only
adds. `--plot FILE` draws the cost of a code against its position. A time is no artefact: the pipeline writes none.

With `--device cuda` there is a way more: the walk of `sample` captured as one CUDA graph and replayed (`nn/graphs.py`),
and what capturing costs, once. `--device cuda --check` times nothing: it compares the codes of both, of small priors,
with labels and without, truncated, guided, and with known codes, and fails where they differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tessera.runtime import process

process.prepare()  # threads and memory as in a stage, said before torch is loaded

import torch  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from benchmarks.memory import peak_mib  # noqa: E402
from tessera.autoregression.sampling import sample_codes, truncate  # noqa: E402
from tessera.core import seams  # noqa: E402
from tessera.core.conditioning import UNCONDITIONAL, Condition, Conditioning  # noqa: E402
from tessera.core.contracts import Grids, Sampling  # noqa: E402
from tessera.core.errors import InputError  # noqa: E402
from tessera.core.space import CodeSpace  # noqa: E402
from tessera.cuda_graphs import Replay  # noqa: E402

POSITIONS, HEIGHTS = 8, 4
SIZE = {"batch": 64, "grid": 16, "codebook_size": 256, "channels": 128, "layers": 12, "kv_heads": 1}


def values(name: str, channels: int, layers: int, kv_heads: int) -> dict[str, Any]:
    """A `Config` of this many layers of this many channels; PixelSNAIL has them in 3 blocks, or 2 or 1 where 3 does not divide
    their number."""
    blocks = next(count for count in (3, 2, 1) if layers % count == 0)
    return {
        "gated_pixelcnn": {"channels": channels, "layers": layers, "kernel_size": 3, "condition_blocks": 0},
        "pixelsnail": {"channels": channels, "blocks": blocks, "layers": layers // blocks, "kernel_size": 3, "heads": 4,
                       "condition_blocks": 0},
        "transformer": {"channels": channels, "layers": layers, "heads": 4, "kv_heads": kv_heads, "random_order": 0.0},
        "rnn": {"cell": "gru", "embedding": channels, "hidden": channels, "layers": layers, "context": 0},
    }[name] | {"dropout": 0.0}  # fmt: skip


PRIORS = ("gated_pixelcnn", "pixelsnail", "transformer", "rnn")


def configured(name: str, options: argparse.Namespace) -> Any:
    """
    Raises:
        InputError: the prior has no such size.
    """
    chosen = values(name, options.channels, options.layers, options.kv_heads)
    try:
        return seams.plugin("priors", name).Config.model_validate(chosen)
    except ValidationError as errors:
        rules = "; ".join(f"{'.'.join(map(str, e['loc'])) or name}: {e['msg']}" for e in errors.errors())
        raise InputError(
            f"{name} has no such size, of --channels {options.channels}, --layers {options.layers} and --kv-heads "
            f"{options.kv_heads}: {rules}. Give others, or name other priors"
        ) from None


def build(name: str, grids: Grids, options: argparse.Namespace, told: Conditioning = UNCONDITIONAL) -> Any:
    torch.manual_seed(0)
    space = CodeSpace(grids, (options.codebook_size,) * len(grids))
    module = seams.plugin("priors", name)
    return module.build(configured(name, options), space, told).eval().to(options.device)


def clock(work: Callable[[], object]) -> float:
    """Seconds, until a GPU has done what it was told as well."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The fastest of `repeats` runs of each, which take turns, after one to warm up."""
    rounds = [{way: clock(work) for way, work in works.items()} for _ in range(repeats + 1)]
    return {way: min(taken[way] for taken in rounds[1:]) for way in works}


def held_mib(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the count is of this thread, and those of a walk are others
        held = peak_mib(work)
        torch.set_num_threads(threads)
        return held
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def naive(prior: Any, codes: torch.Tensor, uniforms: torch.Tensor) -> None:
    """One code in each of 8 columns of the sequence, by a full pass each."""
    for t in torch.linspace(0, codes.shape[1] - 1, POSITIONS).long().tolist():
        sample_codes(truncate(prior.logits(codes, None)[0][:, t], Sampling()), uniforms)


def rows_so_far(name: str, codes: torch.Tensor, uniforms: torch.Tensor, options: argparse.Namespace) -> float:
    """Seconds of all codes, if each took a pass over the rows up to its own: the mean over heights, times the codes."""
    side, works = options.grid, {}
    for height in torch.linspace(1, side, HEIGHTS).round().long().tolist():
        prior, so_far = build(name, ((height, side),), options), codes[:, : height * side]
        works[height] = partial(lambda prior, so_far: sample_codes(truncate(prior.logits(so_far, None)[0][:, -1], Sampling()),
                                                           uniforms), prior, so_far)  # fmt: skip
    return side * side * sum(seconds(works, 1).values()) / len(works)


@torch.no_grad()
def measure(name: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Seconds and MiB of each way."""
    prior, codes = build(name, ((options.grid, options.grid),), options), options.grid**2
    uniforms = torch.rand(options.batch, dtype=torch.float64).to(options.device)
    sample = lambda: prior.sample(options.batch, torch.Generator().manual_seed(0))  # noqa: E731
    finished = sample()
    ways = {"one full forward pass": lambda: prior.logits(finished, None), "sample": sample}
    once = {}
    if options.device == "cuda":
        replays: list[Replay] = []
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        once["capturing, once"] = (
            clock(lambda: replays.append(Replay(prior, options.batch))),
            (free - torch.cuda.mem_get_info()[0]) / 2**20,  # with what the driver keeps
        )
        ways["sample, captured"] = lambda: replays[0].sample(torch.Generator().manual_seed(0))
    fastest = seconds(ways, options.repeats)
    taken = {way: (fastest[way], held_mib(work, options.device)) for way, work in ways.items()} | once
    slow = partial(naive, prior, finished, uniforms)
    slowly = seconds({"": slow}, 1)[""] * codes / POSITIONS
    return taken | {
        "naive sampling": (slowly, held_mib(slow, options.device)),
        "rows so far": (rows_so_far(name, finished, uniforms, options), float("nan")),
    }


LABELLED = Conditioning((Condition("label", ("a", "b", "c"), 1, 0.1),))
CASES: dict[
    str, tuple[Conditioning, Sampling, bool]
] = {  # what the prior is told, how codes are drawn, whether some are known
    "plain": (UNCONDITIONAL, Sampling(), False),
    "truncated": (UNCONDITIONAL, Sampling(temperature=0.9, top_k=50, top_p=0.9), False),
    "known": (UNCONDITIONAL, Sampling(), True),
    "guided": (LABELLED, Sampling(guidance={"label": 2.0}), False),
}


def check(name: str, case: str, dtype: torch.dtype, options: argparse.Namespace) -> bool:
    """Whether a replayed walk draws the codes of `sample`, for two batches in turn, of two grids."""
    told, sampling, known = CASES[case]
    grids, n, rng = ((3, 5), (6, 6)), 16, torch.Generator().manual_seed(1)
    prior = build(name, grids, options, told).to(dtype)
    replay, equal = Replay(prior, n, sampling, known), []
    for seed in (0, 1):
        given: dict[str, torch.Tensor] = {}
        if told:
            given["conditions"] = torch.randint(told["label"].none + 1, (n, 1), generator=rng).to(options.device)
        if known:
            shape = (n, prior.space.length)
            given["known"] = torch.randint(options.codebook_size, shape, generator=rng).to(options.device)
            given["known_mask"] = (torch.rand(shape, generator=rng) < 0.3).to(options.device)
        ways = (prior.sample(n, torch.Generator().manual_seed(seed), sampling, **given),
                replay.sample(torch.Generator().manual_seed(seed), **given))  # fmt: skip
        equal.append(torch.equal(*ways))
    return all(equal)


def check_all(options: argparse.Namespace) -> bool:
    sound = True
    for name in options.priors:
        for case in CASES:
            for dtype in (torch.float32, torch.float64):
                equal = check(name, case, dtype, options)
                print(f"{name:16}{case:12}{dtype!s:16}{'equal codes' if equal else 'OTHER CODES'}", flush=True)
                sound &= equal
    return sound


@torch.no_grad()
def cost_by_position(name: str, options: argparse.Namespace) -> list[float]:
    """Milliseconds of each code of one `sample`, the fastest of `--repeats`."""
    prior = build(name, ((options.grid, options.grid),), options)
    uniforms = torch.rand(options.grid**2, options.batch, dtype=torch.float64).to(options.device)
    best: list[float] = []
    for _ in range(options.repeats + 1):
        walk, codes, taken = prior.walk(options.batch, None), None, []
        for row in uniforms:
            start = time.perf_counter()
            codes = sample_codes((next(walk) if codes is None else walk.send(codes)).double(), row)
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


def _require_sizes(parser: argparse.ArgumentParser, numbers: Iterable[str], options: argparse.Namespace) -> None:
    """Before any prior is timed."""
    for name in numbers:
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if unknown := [name for name in options.priors if name not in PRIORS]:
        parser.error(f"there is no prior {', '.join(unknown)} to time; there are {', '.join(PRIORS)}")
    try:
        for name in options.priors:
            configured(name, options)
    except InputError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", nargs="*", default=list(PRIORS), help=f"of {', '.join(PRIORS)}; default all")
    numbers = {**SIZE, "repeats": 3, "threads": torch.get_num_threads()}
    for name, size in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=f"at least 1; default {size}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument("--check", action="store_true", help="compare the codes of both ways on a GPU instead")
    parser.add_argument("--plot", type=Path, help="write the cost by position to this PNG instead")
    options = parser.parse_args(argv)
    _require_sizes(parser, numbers, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device on this machine")
    if options.check and options.device != "cuda":
        parser.error("--check compares with a captured CUDA graph: add --device cuda, on a machine with a CUDA device")
    torch.set_num_threads(options.threads)
    if options.check:
        raise SystemExit(0 if check_all(options) else 1)
    if options.plot:
        return plot(options.priors, options, options.plot)
    where = f"{options.threads} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"{options.batch} images of {options.grid}x{options.grid} codes from {options.codebook_size}; {options.layers} "
        f"layers of {options.channels} channels; transformer of 4 heads, {options.kv_heads} of keys and values; float32, {where}"
    )
    print(f"{'':16}{'':24}{'seconds':>10}{'of a pass':>12}{'of sample':>12}{'codes/s':>12}{'MiB':>8}")
    for name in options.priors:
        taken = measure(name, options)
        full, ours = taken["one full forward pass"][0], taken["sample"][0]
        for way, (value, mib) in taken.items():
            rate = options.batch * options.grid**2 / value
            print(f"{name:16}{way:24}{value:10.2f}{value / full:11.2f}x{value / ours:11.2f}x{rate:12.0f}{mib:8.0f}",
                  flush=True)  # fmt: skip
    return None


if __name__ == "__main__":
    main()
