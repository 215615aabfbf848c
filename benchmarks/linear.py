"""How fast the linear layers of the default train: `python -m benchmarks.linear`.

`tessera.networks.linear` beside `torch.nn.functional.linear`, one process, taking turns, float32 on the CPU: forward and backward,
medians. The layers are those of the default prior and of attention in the default tokenizer. torch multiplies by MKL, ours by
oneDNN: which is faster depends on the processor, whose vector instructions are named above the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.commands import line
from tessera.networks.linear import linear
from tessera.studies.pages import markdown

# rows, inputs, outputs: at batches of 32 (prior) and 64 (tokenizer), 64 places each
LAYERS = {
    "pixelsnail, condition of a gated layer": (2048, 96, 192),
    "pixelsnail, keys and values": (2048, 192, 96),
    "pixelsnail, merge of a block": (2048, 144, 192),
    "pixelsnail, logits": (2048, 96, 256),
    "attention of the tokenizer, in": (4096, 128, 192),
    "attention of the tokenizer, out": (4096, 64, 128),
}
SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"torch": F.linear, "tessera": linear}


def seconds(apply: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Sequence[Tensor], weights: Tensor) -> float:
    for value in inputs:
        value.grad = None
    begun = time.perf_counter()
    apply(*inputs).backward(weights)
    return time.perf_counter() - begun


def measured(repeats: int) -> pd.DataFrame:
    rows = []
    for name, (count, before, after) in LAYERS.items():
        rng = torch.Generator().manual_seed(0)
        shapes = (count // 64, 8, 8, before), (after, before), (after,)
        inputs = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
        weights = torch.randn((count // 64, 8, 8, after), generator=rng)
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(repeats + 2):  # two to warm up
            for side, apply in SIDES.items():
                found[side].append(1000 * seconds(apply, inputs, weights))
        medians = {f"{side}_ms": median(each[2:]) for side, each in found.items()}
        ratio = medians["tessera_ms"] / medians["torch_ms"]
        rows.append({"layer": name, "rows": count, "in": before, "out": after, **medians, "ratio": ratio})
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linear", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=line.whole(1), default=50, help="default 50")
    parser.add_argument(
        "--threads", type=line.whole(1), default=torch.get_num_threads(), help="default: as many as cores"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    table = measured(options.repeats)
    print(f"{torch.backends.cpu.get_cpu_capability()}, {options.threads} threads")
    print(markdown(table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
