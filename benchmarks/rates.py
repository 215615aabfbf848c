"""What the default run does a second on this machine: `python -m benchmarks.rates`, after `dvc repro codes`.

Images a second that tokenizer and prior are trained on, each in float32 and in bfloat16, by Muon and by AdamW; all else is
params.yaml, also `runtime.device`. The clock runs from the `WARM`-th step of one epoch to its last, and a GPU is waited for at both
ends. After `dvc repro prior` also the codes a second of the stage `samples`, decoding and, on a GPU, the capture of the walk
included. `--repro` adds the seconds of the whole default run, in a clone of this repository without a cache.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from benchmarks.optimizers import KINDS, params_of, task_of, training_of
from stages import samples
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.runtime import provenance
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies.pages import markdown
from tessera.training.loop import Task, fit

WARM = 5  # steps before the clock: in them libraries choose and prepare kernels
PRECISIONS, OPTIMIZERS = ("float32", "bf16"), ("muon", "adamw")
Row = dict[str, Any]


def waited(device: torch.device) -> float:
    """The time when all work handed to the device is done, seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """A task whose steps are counted and timed."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.images, self._taken, self._of, self._device = 0, 0, task, device
        self._since = self._last = 0.0
        self.task = task._replace(batch=self._batch, evaluate=self._evaluate, snapshot=None)

    def _batch(self, indices: Any, *given: Any) -> tuple[torch.Tensor, ...]:
        self._taken += 1
        if self._taken == WARM + 1:
            self._since = waited(self._device)
        self.images += len(indices) if self._taken > WARM else 0
        return self._of.batch(indices, *given)

    def _evaluate(self, objective: Any) -> dict[str, float]:
        self._last = waited(self._device)
        return self._of.evaluate(objective)

    @property
    def rate(self) -> float:
        """Images a second, NaN where there were too few steps."""
        return self.images / (self._last - self._since) if self.images else float("nan")


def run_of(params: Params) -> Run:
    return Run(params, runtime=Runtime(params.section("runtime", Settings)))


def trainings(threads: int) -> Iterator[Row]:
    for kind in KINDS:
        provenance.require_together(*KINDS[kind].reads)
        for precision in PRECISIONS:
            for optimizer in OPTIMIZERS:
                params = params_of(kind, {"precision": precision, "optimizer": optimizer, "epochs": 1}, threads)
                run = run_of(params)
                clock = Clock(task_of(kind, run), run.runtime.device)
                fit(clock.task, training_of(kind, params), params.seed, run.runtime)
                yield {
                    "what": f"{kind}, images",
                    "precision": precision,
                    "optimizer": optimizer,
                    "a second": clock.rate,
                }


def walk() -> Iterator[Row]:
    """Codes that the stage `samples` draws and decodes a second."""
    if not (Path("artifacts") / "prior").is_dir():
        return
    provenance.require_together("dataset", "tokenizer", "prior")
    run = run_of(Params(read()))
    prior, tokenizer = run.prior(), run.tokenizer()
    since = waited(run.runtime.device)
    codes = samples.sample_set("rates", prior, tokenizer, run).codes
    yield {"what": "samples, codes", "a second": codes.size / (waited(run.runtime.device) - since)}


def whole_run() -> Row:
    """Seconds of `dvc repro` in a clone, whose cache is empty."""
    with TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((f"{folder}/src", folder))}
        since = time.perf_counter()
        command = [sys.executable, "-m", "tessera.runtime.command", "repro"]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        return {"what": "the whole run, seconds", "seconds": time.perf_counter() - since}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of a CPU (default 2)")
    parser.add_argument("--repro", action="store_true", help="also the seconds of the whole run")
    options = parser.parse_args(argv)
    try:
        rows = [*trainings(options.threads), *walk(), *([whole_run()] if options.repro else [])]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = pd.DataFrame(rows).round(1)
    print(markdown(table.fillna("")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
