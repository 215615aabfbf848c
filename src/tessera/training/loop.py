"""fit(): the one training loop. It knows no particular model. It returns its history, and the stage writes it.

Exact resume: the order of examples, the augmentation and the dropout of a step depend only on (seed, stage, epoch or step). So
a checkpoint holds weights, optimizer, averages and counters, but no generator's state. A killed run that is started again with
the same command ends with the same bits as an uninterrupted one (on CPU).

Several ranks divide each batch and take the same steps. Every decision about the training (a value that is not finite, the best
epoch, the end) is made for all ranks together, because a rank that stops alone leaves the others waiting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tessera.core import collectives
from tessera.core.contracts import Runtime
from tessera.core.errors import InputError, NonFiniteError
from tessera.core.seeding import generator, numpy_generator, seed_globally
from tessera.training.muon import Muon
from tessera.training.settings import Training

STEPS = 8  # per epoch, at least; a larger batch is made smaller
SMALL = 4  # examples per batch; a batch is not made smaller than this to reach STEPS
WARM_UP = 0.1  # largest fraction of all steps
FEW = 100  # steps; the log warns of a training with fewer
LOOKED_AT = 1000  # images of a split behind one point of a curve, at most; results are measured on whole splits

Row = dict[str, float]
Batch = Callable[
    [np.ndarray, Generator, float], tuple[Any, ...]
]  # indices [B], generator of this step, fraction of training completed -> arguments of the objective


class Task(NamedTuple):
    """One training. The stage defines the task, `Training` the hyperparameters.

    Attributes:
        name: names the random streams, the progress bar and the checkpoint. It is the section of params.yaml
            that holds `training`.
        objective: `forward(*batch)` returns named, weighted terms (means over the batch); their sum is minimised.
        examples: number of training examples.
        batch: gathers the examples at the given indices, and augments them with the given generator. Schedules receive
            the fraction of training completed, from 0 to below 1.
        evaluate: computes the validation row of the objective in eval mode.
        score: score of a row. The weights of the epoch with the highest score are kept; early stopping uses it too.
        streams: name of the random streams, if it is not `name`.
        snapshot: (objective, epoch) -> tensors to keep of an epoch in `snapshot_epochs` (0: before training), or None.
        curve: rows stand in `plots/<curve>.csv` while it trains, if not in `plots/<name>.csv`.
        checkpoint: names the checkpoint, if it is not `name`: of one of several trainings by the same section.
    """

    name: str
    objective: nn.Module
    examples: int
    batch: Batch
    evaluate: Callable[[Any], Row]
    score: Callable[[Row], float]
    streams: str = ""
    snapshot: Callable[[Any, int], dict[str, Tensor]] | None = None
    snapshot_epochs: Iterable[int] = ()
    curve: str = ""
    checkpoint: str = ""


class Fitted(NamedTuple):
    """`history` has one row per evaluation. `epoch` is the epoch whose weights the objective now holds. `notes` name the values
    of params.yaml for which the data set was too small, and the values used instead."""

    history: list[Row]
    epoch: int
    snapshots: dict[str, Tensor]  # "<epoch>/<name>" -> tensor
    notes: tuple[str, ...] = ()


def learning_rate(step: int, training: Training, steps_per_epoch: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up over W steps, then by `schedule`, where
    x = (step - W) / (all steps - W):

    - `constant`: lr;
    - `linear`: lr (1 - x), to zero;
    - `cosine`: lr (1 + cos(pi x)) / 2, to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, with eta_min = 0);
    - `restarts`: the same, where x begins anew every `restart_epochs` epochs (one cycle if there are fewer epochs).

    None ends before the training does: to end early is to have fewer `epochs`.
    """
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    done, total = step - training.warmup_steps, training.epochs * steps_per_epoch - training.warmup_steps
    if training.schedule == "constant":
        return training.lr
    if training.schedule == "restarts":
        total = max(1, min(total, training.restart_epochs * steps_per_epoch))
        done %= total
    if training.schedule == "linear":
        return training.lr * max(0.0, 1 - done / max(1, total))
    return training.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / max(1, total))))


def averaging_decay(step: int, decay: float) -> float:
    """Decay of the averaged weights after step `step` (from 1): min(decay, (1 + step) / (10 + step)), as in TensorFlow's
    `ExponentialMovingAverage` with `num_updates`. With the full decay, the untrained weights would dominate the average of a
    short training."""
    return min(decay, (1 + step) / (10 + step))


def largest_batch(task: Task, training: Training, ranks: int) -> int:
    """Largest number of examples per batch: an epoch has at least `STEPS` batches, if that leaves batches of `SMALL`. It is a
    power of two, so that two or eight processes divide it evenly: the number of processes must not change the result.

    Raises:
        InputError: the processes cannot divide a batch.
    """
    processes = f"the {ranks} training processes (runtime.devices times runtime.nodes)"
    if training.batch_size % ranks:
        raise InputError(f"{task.name}.training.batch_size must be divisible by {processes}, got {training.batch_size}")
    if task.examples < ranks:
        raise InputError(
            f"{processes} must not be more than the {task.examples} images of the train split: take fewer processes, or a "
            "source with more images"
        )
    few = min(task.examples, 1 << (max(SMALL, task.examples // STEPS).bit_length() - 1))
    least = min(2, task.examples // ranks)  # per process: batch normalisation of a 1x1 grid needs two
    return max(least, few // ranks) * ranks


def suited(task: Task, training: Training, ranks: int) -> tuple[Training, tuple[str, ...]]:
    """`training` adapted to the number of examples, and a note for the log on each change: the batch is at most
    `largest_batch`, and the warm-up at most the fraction `WARM_UP` of all steps."""
    own = f"{task.name}.training"
    batch_size = min(training.batch_size, largest_batch(task, training, ranks))
    steps = training.epochs * (task.examples // batch_size)
    warmup_steps = min(training.warmup_steps, int(WARM_UP * steps))
    notes = []
    if batch_size < training.batch_size:
        notes.append(f"{own}.batch_size: {batch_size} instead of {training.batch_size}, since the train split has "
                     f"{task.examples} images")  # fmt: skip
    if warmup_steps < training.warmup_steps:
        notes.append(
            f"{own}.warmup_steps: {warmup_steps} instead of {training.warmup_steps}, since there are {steps} steps"
        )
    if steps < FEW:
        notes.append(f"{own}.epochs: {training.epochs} are {steps} steps in all, hardly a training; raise epochs")
    return training.model_copy(update={"batch_size": batch_size, "warmup_steps": warmup_steps}), tuple(notes)


def fit(task: Task, training: Training, seed: int, runtime: Runtime) -> Fitted:
    """Train `task.objective` in place. On return it holds the best weights, on the CPU, in eval mode.

    Raises:
        InputError: the ranks cannot divide a batch, or the device cannot compute in `training.precision`.
        NonFiniteError: a term, a latent or the gradient is not finite (nothing was updated with it), or no evaluation
            gave a finite score.
    """
    if reason := runtime.unsupported(training.precision):
        raise InputError(f"{task.name}.training.precision: {reason}")
    streams = task.streams or task.name
    training, notes = suited(task, training, runtime.ranks)
    if runtime.main:
        print(*notes, sep="\n", end="\n" if notes else "", flush=True)
    # an epoch drops the examples that do not fill a batch, other ones in each epoch
    steps_per_epoch = task.examples // training.batch_size
    state = _State(task, training, runtime)
    steps = training.epochs * steps_per_epoch
    bar = runtime.progress(total=steps, initial=state.step, desc=task.name)
    live = runtime.live(task.curve or task.name, steps * training.batch_size, state.step / steps)
    live.rows(state.history)
    if state.step == 0:
        state.take_snapshot(0)
    while state.step < steps and not state.stopped:
        epoch, begun = divmod(state.step, steps_per_epoch)
        order = numpy_generator(seed, streams, "order", epoch).permutation(task.examples)
        for position in range(begun, steps_per_epoch):
            indices = order[position * training.batch_size : (position + 1) * training.batch_size]
            indices = _part(indices, runtime.rank, runtime.ranks)
            seed_globally(seed, streams, "step", state.step, runtime.rank)
            rng = generator(seed, streams, "batch", state.step, runtime.rank)
            batch = task.batch(indices, rng, state.step / steps)
            loss = state.update(batch, learning_rate(state.step, training, steps_per_epoch))
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            live.update(state.step / steps)
            if position + 1 < steps_per_epoch:
                runtime.checkpoint(task.checkpoint or task.name, state.pack)
        state.end_epoch(epoch + 1, last=state.step == steps)
        live.rows(state.history)
        runtime.checkpoint(task.checkpoint or task.name, state.pack, force=state.step == steps or state.stopped)
    bar.close()
    return state.keep_best()._replace(notes=notes)


def _part(indices: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """The part of a batch that a rank computes. Readers of memory maps sort the indices, so they are sorted before they are
    divided: the parts, rank after rank, are then the rows of the batch as one process has it."""
    return np.split(np.sort(indices), ranks)[rank] if ranks > 1 else indices


def _row_of_rank_0(row: Row, device: torch.device) -> Row:
    """The evaluation of rank 0, on every rank. All ranks evaluate the same weights on the whole split, but on GPUs not to the
    same bits: ranks would keep, and stop at, different epochs."""
    if collectives.ranks() == 1:
        return row
    values = torch.tensor(list(row.values()), dtype=torch.float64, device=device)
    collectives.take_from_rank_0(values)
    return dict(zip(row, values.tolist(), strict=True))


def optimizer_of(objective: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of every parameter of `objective` that requires a gradient."""
    if training.optimizer == "muon":
        return Muon(objective, training.lr, training.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    parameters = [p for p in objective.parameters() if p.requires_grad]
    # fused: one kernel instead of eight per parameter, which saves a tenth of a step of a small model
    return kind(parameters, lr=training.lr, weight_decay=training.weight_decay, fused=True)


class _State:
    """The state of a training between steps, which a checkpoint holds."""

    def __init__(self, task: Task, training: Training, runtime: Runtime) -> None:
        self.task, self.training, self.runtime = task, training, runtime
        self.objective = task.objective
        self.optimizer = optimizer_of(self.objective, training)
        self.step, self.waited, self.stopped = 0, 0, False
        self.best_epoch, self.best_score = 0, -math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[Row] = []
        self.sums: Row = {}
        self.snapshots: dict[str, Tensor] = {}
        self.objective.to(runtime.device)
        self.averaged = None
        if training.weight_ema:
            self.averaged = AveragedModel(self.objective, multi_avg_fn=self._average)
        self.unpack(runtime.resume(task.checkpoint or task.name))
        self.wrapped, self.optimizer = runtime.prepare(self.objective, self.optimizer, training.precision)
        self._require_same_step()

    @property
    def evaluated(self) -> nn.Module:
        return self.averaged.module if self.averaged is not None else self.objective

    def _require_same_step(self) -> None:
        """
        Raises:
            InputError: the ranks resume at different steps, since some do not find the checkpoint. All ranks raise it.
        """
        if collectives.ranks() == 1:
            return
        extremes = torch.tensor([self.step, -self.step], device=self.runtime.device)
        collectives.take_largest(extremes)
        highest, lowest = extremes[0].item(), -extremes[1].item()
        if lowest != highest:
            raise InputError(
                f"{self.task.name}: some ranks resume at step {highest} and some at {lowest}. "
                ".scratch must lie on a file system that all machines share; delete it to start anew"
            )

    def update(self, batch: tuple[Any, ...], rate: float) -> float:
        """Take one gradient step, and return the loss, the mean over the batch of all ranks."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.wrapped.train()
        try:
            with self.runtime.autocast():
                terms = self.wrapped(*batch)
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.task.name}, step {self.step}: {error}; nothing was updated. "
                                 f"Lower {self.task.name}.training.lr") from None  # fmt: skip
        total = sum(terms.values())
        means = torch.stack([*terms.values(), total]).detach()
        collectives.average(means)  # ranks hold equal parts of the batch; a non-finite value of one reaches all
        values = dict(zip([*terms, "total"], means.tolist(), strict=True))
        self._require_finite(values)
        self.optimizer.zero_grad(set_to_none=True)
        self.runtime.backward(total)
        clip = self.training.clip_norm or math.inf
        norm = float(self.runtime.clip_gradients(self.wrapped.parameters(), clip))
        if self.training.precision != "fp16":  # under fp16 the gradient scaler itself skips such a step
            self._require_finite({"gradient_norm": norm})
        self.optimizer.step()
        self.step += 1
        if self.averaged is not None:
            self.averaged.update_parameters(self.objective)
        for name, value in [*values.items(), ("gradient_norm", norm), ("steps", 1.0)]:
            self.sums[name] = self.sums.get(name, 0.0) + value
        return values["total"]

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        get_ema_multi_avg_fn(averaging_decay(self.step, self.training.weight_ema))(averaged, current, count)

    def _require_finite(self, values: Row) -> None:
        wrong = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise NonFiniteError(f"{self.task.name}, step {self.step}: {', '.join(wrong)} is not finite; nothing was "
                                 f"updated. Lower {self.task.name}.training.lr, or look at the images")  # fmt: skip

    def end_epoch(self, epoch: int, last: bool) -> None:
        if epoch % self.training.evaluate_every == 0 or last:
            self._evaluate(epoch)
        self.take_snapshot(epoch)

    def _evaluate(self, epoch: int) -> None:
        # each rank has its own batch statistics until the next forward pass
        collectives.take_from_rank_0(*self.evaluated.buffers())
        self.evaluated.eval()
        with torch.no_grad():
            validation = _row_of_rank_0(self.task.evaluate(self.evaluated), self.runtime.device)
        steps = self.sums.pop("steps")
        train = {f"train_{name}": value / steps for name, value in self.sums.items()}
        row = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"], **train, **validation}
        self.sums = {}
        self.history.append(row)
        score = float(self.task.score(row))
        if score > self.best_score:
            self.best_score, self.best_epoch, self.waited = score, epoch, 0
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.evaluated.state_dict().items()}
        else:
            self.waited += 1
            self.stopped = 0 < self.training.patience <= self.waited

    def take_snapshot(self, epoch: int) -> None:
        if self.task.snapshot is not None and epoch in set(self.task.snapshot_epochs):
            self.evaluated.eval()
            with torch.no_grad():
                taken = self.task.snapshot(self.evaluated, epoch)
            self.snapshots |= {f"{epoch}/{name}": tensor.detach().cpu().clone() for name, tensor in taken.items()}

    def keep_best(self) -> Fitted:
        if not self.best:
            raise NonFiniteError(f"{self.task.name}: no evaluation gave a finite score; the last row of the history is "
                                 f"{self.history[-1]}. Lower {self.task.name}.training.lr")  # fmt: skip
        self.objective.load_state_dict(self.best)
        self.objective.to("cpu").eval()
        return Fitted(self.history, self.best_epoch, self.snapshots)

    COUNTERS = ("step", "waited", "stopped", "best_epoch", "best_score", "history", "sums")

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values for a checkpoint."""
        tensors = {f"objective/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        if self.averaged is not None:
            tensors |= {f"averaged/{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"snapshots/{name}": tensor for name, tensor in self.snapshots.items()}
        return tensors, {name: getattr(self, name) for name in self.COUNTERS}

    def unpack(self, packed: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if packed is None:
            return
        tensors, values = packed
        parts: dict[str, dict[str, Tensor]] = {"best": {}, "snapshots": {}, "averaged": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        self.objective.load_state_dict(parts["objective"])
        if self.averaged is not None:
            self.averaged.load_state_dict(parts["averaged"])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, slot = name.partition("/")
            slots.setdefault(int(index), {})[slot] = self._laid_out(int(index), tensor)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.best, self.snapshots = parts["best"], parts["snapshots"]
        for name in self.COUNTERS:
            setattr(self, name, values[name])

    def _laid_out(self, index: int, slot: Tensor) -> Tensor:
        """`slot` in the memory layout of its parameter (channels-last). Files hold contiguous tensors, but the fused optimizer
        walks through parameter and slot in memory order."""
        parameter = [p for group in self.optimizer.param_groups for p in group["params"]][index]
        return torch.empty_like(parameter).copy_(slot) if slot.shape == parameter.shape and slot.dim() else slot
