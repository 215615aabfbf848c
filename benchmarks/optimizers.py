"""How soon a training reaches given scores: `python -m benchmarks.optimizers tokenizer --optimizer muon --lr 0.005 --epochs 20`,
after `dvc repro dataset`, or `python -m benchmarks.optimizers prior`, after `dvc repro codes`.

Trains the tokenizer or the prior of params.yaml by other values of its section `training`, and evaluates it on the validation split
after each epoch: PSNR in dB, or bits per code. A CSV gets one row for each training: its values, all steps and seconds, the last
and the best score, and for each mark the steps and seconds at the first evaluation that reached it (empty: none did). Seconds are
those of training alone, without the first step, in which libraries prepare; evaluation does not count. The row is added when the
training ends. A training that has its row is not repeated, so a table that was killed goes on where it was.

One training is given by options, several by `--settings FILE.yaml`: a list of trainings, each a mapping of the same names, as in
params.yaml, to values. Options hold for each of them that does not name them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import prior, tokenizer
from tessera import presets
from tessera.core import files, models
from tessera.core.errors import InputError, NonFiniteError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.runtime import process, provenance
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies.pages import markdown
from tessera.training.loop import Task, fit
from tessera.training.settings import Training

Values = dict[str, Any]  # a training: fields of `Training`, and `seed`
ALWAYS: Values = {"evaluate_every": 1, "patience": 0}  # unless the training names them


class Kind(NamedTuple):
    """What is trained. `reads` are the artefacts; `sign` is -1 of a score that falls."""

    reads: tuple[str, ...]
    score: str
    sign: int
    marks: tuple[float, ...]


KINDS = {
    "tokenizer": Kind(("dataset",), "val_psnr_db", 1, (21.2, 21.8)),
    "prior": Kind(("dataset", "tokenizer", "codes"), "val_nll_bits_per_code", -1, (4.7, 4.6)),
}


class Note(NamedTuple):
    """An evaluation: the steps and the seconds of training before it, and the score."""

    steps: int
    seconds: float
    score: float


class Watch:
    """A task whose evaluations are noted."""

    def __init__(self, task: Task, score: str) -> None:
        self.score = score
        self.notes: list[Note] = []
        self._of, self._taken, self._since = task, 0, 0.0
        self.task = task._replace(batch=self._batch, evaluate=self._evaluate, snapshot=None)

    def _batch(self, *given: Any) -> tuple[Any, ...]:
        self._taken += 1
        if self._taken == 2:
            self._since = time.perf_counter()
        return self._of.batch(*given)

    def _evaluate(self, objective: Any) -> dict[str, float]:
        before = time.perf_counter()
        row = self._of.evaluate(objective)
        self.notes.append(Note(self._taken, before - self._since if self._taken > 1 else 0.0, row[self.score]))
        self._since += time.perf_counter() - before
        return row


def task_of(kind: str, run: Run) -> Task:
    """The task of the stage `kind`, freshly initialised."""
    if kind == "tokenizer":
        objective = tokenizer.initialised(models.tokenizer_recipe(run.params, run.image_shape), run)
        return tokenizer.task(objective, tokenizer.Data.of(run), run.params.section("tokenizer", tokenizer.Settings))
    data = prior.Data.of(run)
    seed_globally(run.params.seed, "prior", "initialisation")
    return prior.task(
        prior.Objective(models.build(models.prior_recipe(run.params, run.space, data.conditioning))), data
    )


def measured(kind: str, params: Params, marks: Sequence[float]) -> Values:
    """Train once: all steps and seconds, last and best score, and when each mark was reached."""
    _, score, sign, _ = KINDS[kind]
    run = Run(params, runtime=Runtime(params.section("runtime", Settings)))
    watch = Watch(task_of(kind, run), score)
    if not any(parameter.requires_grad for parameter in watch.task.objective.parameters()):
        raise InputError(f"{kind}.name: must be one that is trained, got {params.value(f'{kind}.name')!r}")
    try:
        fit(watch.task, training_of(kind, params), params.seed, run.runtime)
    except NonFiniteError as error:  # a learning rate that is too high is a result too
        print(error, file=sys.stderr)
    last = watch.notes[-1] if watch.notes else Note(0, 0.0, float("nan"))
    best = max((sign * note.score for note in watch.notes), default=float("nan"))
    found: Values = {"steps": last.steps, "seconds": last.seconds, "last": last.score, "best": sign * best}
    for mark in marks:
        reached = next((note for note in watch.notes if sign * note.score >= sign * mark), None)
        found |= zip(columns_of(mark), (reached.steps, reached.seconds) if reached else ("", ""), strict=True)
    return found


def columns_of(mark: float) -> tuple[str, str]:
    return f"steps to {mark:g}", f"seconds to {mark:g}"


def training_of(kind: str, params: Params) -> Training:
    return Training.model_validate(params.value(f"{kind}.training"))


def params_of(kind: str, values: Values, threads: int) -> Params:
    """params.yaml with a training's `values`.

    Raises:
        InputError: a name or a value is not valid.
    """
    if unknown := [name for name in values if name not in {*Training.model_fields, "seed"}]:
        raise InputError(f"--settings: {unknown[0]!r} is no value of a training; there are seed, "
                         f"{', '.join(Training.model_fields)}")  # fmt: skip
    named = {name if name == "seed" else f"{kind}.training.{name}": v for name, v in {**ALWAYS, **values}.items()}
    return Params(presets.applied(read(), {**named, "runtime.threads": threads}))


def cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def rows_of(table: Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows that `table` has, which may be none.

    Raises:
        InputError: it has other columns.
    """
    if not table.exists():
        return []
    found = pd.read_csv(table, dtype=str, keep_default_na=False)
    if list(found.columns) != columns:
        raise InputError(f"--table: {table} must have the columns of these marks, got {', '.join(found.columns)}; "
                         "name another file")  # fmt: skip
    return found.to_dict("records")


def add(kind: str, trainings: list[Values], marks: Sequence[float], table: Path, threads: int) -> None:
    """Add a row to `table` for each training that has none."""
    all_params = [params_of(kind, values, threads) for values in trainings]  # a wrong value of the last stops the first
    provenance.require_together(*KINDS[kind].reads)
    of_marks = [column for mark in marks for column in columns_of(mark)]
    measures = ["steps", "seconds", "last", "best", *of_marks]
    columns = ["kind", "seed", "threads", *Training.model_fields, *measures]
    for params in all_params:
        rows, values = rows_of(table, columns), training_of(kind, params).model_dump()
        own = {n: cell(v) for n, v in {"kind": kind, "seed": params.seed, "threads": threads, **values}.items()}
        if any({name: row[name] for name in own} == own for row in rows):
            continue
        found = {name: cell(value) for name, value in measured(kind, params, marks).items()}
        files.write_table(table, pd.DataFrame([*rows, {**own, **found}], columns=columns))


def trainings_of(options: argparse.Namespace) -> list[Values]:
    """
    Raises:
        InputError: the file of settings is no list of mappings.
    """
    given = {name: value for name in (*Training.model_fields, "seed") if (value := getattr(options, name)) is not None}
    if options.settings is None:
        return [given]
    try:
        listed = YAML(typ="safe").load(options.settings.read_text())
    except (OSError, YAMLError) as error:
        raise InputError(f"--settings: {options.settings} must be a YAML file: {error}") from None
    if not (isinstance(listed, list) and listed and all(isinstance(values, dict) for values in listed)):
        raise InputError(f"--settings: {options.settings} must be a list of mappings, such as [{{lr: 0.01}}]")
    return [given | values for values in listed]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, help="what is trained")
    for name, field in Training.model_fields.items():
        plain = cast("Callable[[str], Any]", field.annotation if field.annotation in (int, float) else str)
        default = ALWAYS.get(name, "that of params.yaml")
        parser.add_argument(f"--{name.replace('_', '-')}", type=plain, help=f"{field.description} (default: {default})")
    parser.add_argument("--seed", type=int, help="default: that of params.yaml")
    parser.add_argument("--settings", type=Path, help="YAML file of trainings")
    parser.add_argument("--marks", type=float, nargs="+", help="scores (default: 21.2 and 21.8 dB; 4.7 and 4.6 bits)")
    parser.add_argument("--threads", type=int, default=process.COMMITTED_THREADS, help="default 2")
    parser.add_argument("--table", type=Path, help="CSV of all rows (default: optimizers-KIND.csv in artifacts/)")
    options = parser.parse_args(argv)
    table = options.table or files.ARTIFACTS / f"optimizers-{options.kind}.csv"
    try:
        add(options.kind, trainings_of(options), options.marks or KINDS[options.kind].marks, table, options.threads)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = pd.read_csv(table, dtype=str, keep_default_na=False)
    print(markdown(shown[[name for name in shown if shown[name].nunique() > 1 or name not in Training.model_fields]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
