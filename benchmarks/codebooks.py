"""How the cost of a codebook grows with K and D, against its arithmetic: `python -m benchmarks.codebooks`.

On one thread, for 2,048 latents (32 images of 8x8 codes), the search (`nearest`) and the update of `ema` (running means, restarts):
the fewest CPU milliseconds of `--repeats`, and the most memory that torch held, above what it held before. Codes are dead and
restart, as in each codebook that is larger than what the latents can use.

    of_the_product    the time of the product of codebook and latents alone, 2 N K D operations, as a fraction of the search
    times_a_pass      the update, in passes over sums and code vectors: 16 K D bytes, at the speed at which torch copies as many

A search that costs what its arithmetic does has 1; an update would have 1 if each number were read and written once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.memory import peak_mib
from tessera.codebooks.codebook import EMACodebook, EMASettings, nearest
from tessera.core import files
from tessera.runtime import process
from tessera.studies.pages import markdown

SIZES = (256, 1024, 4096, 16_384, 65_536)
DIMENSIONS = (8, 32, 64, 256)
LATENTS = 2048
SCORES = 1 << 22  # of the product alone, in memory at once


def fewest(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds, which others on the core do not lengthen."""
    work()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def codebook_of(k: int, d: int) -> EMACodebook:
    settings = EMASettings(
        codebook_size=k,
        code_dim=d,
        decay=0.99,
        initialisation="normal",
        restart="dead",
        restart_below=0.3,
        smoothing=1e-5,
    )
    return EMACodebook(settings, d).train()


def measured(k: int, d: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    z, codebook = torch.randn(LATENTS, d), codebook_of(k, d)
    chosen, parts = nearest(z, codebook.codes), z.split(max(1, SCORES // k))
    sums = torch.empty(2, k, d), torch.empty(2, k, d)
    search = fewest(lambda: nearest(z, codebook.codes), repeats)
    scores = torch.empty(k, len(parts[0]))
    product = fewest(
        lambda: [torch.mm(codebook.codes, part.t(), out=scores[:, : len(part)]) for part in parts], repeats
    )
    update = fewest(lambda: codebook.update(z, chosen), repeats)
    copy = fewest(lambda: sums[0].copy_(sums[1]), repeats)
    return {
        "K": k,
        "D": d,
        "search_ms": 1e3 * search,
        "search_gflop": 2e-9 * LATENTS * k * d,
        "of_the_product": product / search,
        "search_mib": peak_mib(lambda: nearest(z, codebook.codes)),
        "update_ms": 1e3 * update,
        "update_mb": 16e-6 * k * d,
        "times_a_pass": update / copy,
        "update_mib": peak_mib(lambda: codebook.update(z, chosen)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="default 5")
    parser.add_argument("--table", type=Path, help="a CSV file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    process.keep_freed_memory()
    table = pd.DataFrame([measured(k, d, options.repeats) for k in SIZES for d in DIMENSIONS])
    if options.table:
        files.write_table(options.table, table)
    print(markdown(table.map(lambda value: f"{value:.3g}" if value < 1000 else f"{value:,.0f}")))


if __name__ == "__main__":
    sys.exit(main())
