"""How fast the default tokenizer trains with each quantizer: `python -m benchmarks.speed`, after `dvc repro dataset`.

Images a second of a whole training step (forward, losses, backward, Adam) on the first 32 images of the data set, for the runs
of `studies/estimators.yaml`. All take turns in one process, and the fastest of `--rounds` counts. Runs that differ in the seed
alone are left out, and so is a post-hoc codebook that is trained as another one is. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages import tokenizer as step
from tessera import presets
from tessera.core import models
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.runtime import provenance
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies import sweep
from tessera.studies.pages import markdown, short

STUDY, IMAGES = "estimators", 32


def trained_differently() -> dict[str, dict[str, Any]]:
    """What the runs of the study change in params.yaml, of those that make another training step."""
    study, raw, found = sweep.load(STUDY), read(), {}
    for name in study.runs:
        changes = {key: value for key, value in sweep.changes(study, name).items() if key != "seed"}
        params = Params(presets.applied(raw, changes))
        codebook = "post-hoc" if params.post_hoc else {k: v for k, v in changes.items() if k.startswith("quantizer.")}
        found.setdefault(repr((params.value("tokenizer.name"), codebook)), (name, changes))
    return dict(found.values())


def training_step(changes: dict[str, Any], threads: int) -> Callable[[], None]:
    machine = {"runtime.device": "cpu", "runtime.threads": threads}
    params = Params(presets.applied(read(), {**changes, **machine}))
    run = Run(params, runtime=Runtime(params.section("runtime", Settings)))
    data, objective = step.Data.of(run), step.initialised(models.tokenizer_recipe(params, run.image_shape), run)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], fused=True)
    (x,) = data.batch(np.arange(min(IMAGES, len(run.images("train")))), torch.Generator())
    objective.train()

    def once() -> None:
        optimizer.zero_grad()
        sum(objective(x).values()).backward()
        optimizer.step()

    return once


def measured(rounds: int, threads: int) -> pd.DataFrame:
    """Images a second of each run, and as a multiple of the first one's (`ema`)."""
    steps = {name: training_step(changes, threads) for name, changes in trained_differently().items()}
    taken: dict[str, float] = {}
    for _ in range(rounds):
        for name, once in steps.items():
            start = time.perf_counter()
            once()
            taken[name] = min(taken.get(name, float("inf")), time.perf_counter() - start)
    first = next(iter(taken.values()))
    rows = [(name, IMAGES / seconds, first / seconds) for name, seconds in taken.items()]
    return pd.DataFrame(rows, columns=["run", "images_per_second", f"of_{next(iter(taken))}"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40, help="default 40")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as many as cores")
    options = parser.parse_args(argv)
    try:
        provenance.require_together("dataset")
        table = measured(options.rounds, options.threads)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(table.map(short)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
