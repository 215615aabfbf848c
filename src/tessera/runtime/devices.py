"""The machine as a stage sees it: devices, ranks, precision, progress. Training goes through Accelerate. A stage that only runs
a model asks torch for the same device, and so avoids the start-up time of Accelerate."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.core import collectives, processor
from tessera.core.errors import InputError
from tessera.runtime import process, ranks
from tessera.runtime.live import Live
from tessera.runtime.scratch import Scratch, root
from tessera.runtime.settings import FP16_ON_A_CPU, Settings, in_fp16

if TYPE_CHECKING:
    import torch
    from filelock import BaseFileLock
    from torch import Tensor, nn


class Interrupted(SystemExit):
    """The stage received INT or TERM and has saved its state."""


def require_precisions(raw: dict[str, Any]) -> None:
    """Check the precisions before any work: otherwise a tokenizer could train for hours before a prior that this machine cannot
    train. The answer depends on the machine, so every stage checks, not only every new version of params.yaml.

    Args:
        raw: params.yaml, validated.

    Raises:
        InputError: trainings use fp16, and there is no accelerator. The message names them all.
    """
    if found := list(in_fp16(raw)):  # usually there is none, and torch need not be loaded
        import torch

        if not torch.accelerator.is_available():
            raise InputError("this machine has no accelerator:\n" + "\n".join(f"  {problem}" for problem in found))


class Runtime:
    """The object that stages and `fit` use as `run.runtime`.

    Attributes:
        rank, ranks: index of this training process, and number of processes.
        stopping: the signal that asked to stop, or 0; set by the stage's signal handler.
        training: whether the next checkpoint will check `stopping`: True from the first backward pass of a training to its
            last checkpoint.
    """

    def __init__(self, settings: Settings, scratch: Scratch | None = None) -> None:
        self._settings, self._scratch = settings, scratch
        self._accelerator: Any = None
        self._saved = time.monotonic()
        self.rank, self.ranks = ranks.place()
        self.stopping, self.training = 0, False
        self._slot = _take_gpu_slot() if settings.device == "auto" and self.ranks == 1 else None

    @cached_property
    def device(self) -> torch.device:
        import torch

        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        if self._settings.device == "cpu" or not torch.accelerator.is_available():
            return torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None, "one is available"
        # a launcher may show each process only its own GPU, or all GPUs
        return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())

    @property
    def main(self) -> bool:
        """Whether this process writes files: only rank 0 does."""
        return self.rank == 0

    def progress(self, **options: Any) -> Any:
        """A tqdm progress bar. Outside a terminal it updates only every 15 seconds."""
        from tqdm import tqdm

        interval = 0.5 if sys.stderr.isatty() else 15
        return tqdm(mininterval=interval, dynamic_ncols=True, disable=not self.main, **options)

    def live(self, curve: str, images: int, done: float) -> Live:
        """What shows a training while it goes on, see `Live`."""
        folder = self._scratch.folder if self._scratch is not None and self.main else None
        return Live(folder, curve, images, done)

    # ranks

    def join(self, stage: str) -> None:
        """Meet the other ranks of `stage`. By now the leading process has locked the scratch, and all ranks resume from it."""
        if self.ranks > 1:
            from accelerate import PartialState
            from accelerate.utils import broadcast_object_list

            PartialState(cpu=self.device.type == "cpu")
            folder = self._scratch.folder.name if self._scratch is not None else os.environ.get(ranks.GUARDED)
            folder = broadcast_object_list([folder])[0]
            if self._scratch is None and folder:
                self._scratch = Scratch(stage, folder, self._settings.keep_scratch)

    def leave(self) -> None:
        """End the joint work of the ranks. Rank 0 continues alone and writes the files."""
        if self.ranks > 1:
            collectives.leave()

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of ranks, on every rank."""
        if self.ranks == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def _agree_to_stop(self) -> None:
        """Agree on `stopping`. A signal reaches ranks at different steps, and a rank that stops alone leaves the others waiting."""
        if self.ranks > 1:
            import torch

            stopping = torch.tensor(self.stopping, device=self.device)
            collectives.take_largest(stopping)
            self.stopping = int(stopping)

    # training

    def unsupported(self, precision: str) -> str | None:
        """Why the device cannot compute in a precision, or None if it can. Accelerate does not check: asked for fp16 on a CPU, it
        computes in float32."""
        return FP16_ON_A_CPU if precision == "fp16" and self.device.type == "cpu" else None

    def faster(self, precision: str) -> str | None:
        """The precision in which this device trains faster than in `precision`, by its kind and by no timing; or None. A CPU
        that does not multiply bfloat16 in hardware is slower in bf16 than in float32."""
        import torch

        if self.device.type == "cpu":
            best = "bf16" if processor.multiplies_bfloat16() else "float32"
        else:
            best = "bf16" if torch.amp.is_autocast_available(self.device.type) else "float32"
        return best if (precision == "float32") == (best == "bf16") else None

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        import torch
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if self.device.type == "cpu" and self.main and (said := process.other_bits(torch.get_num_threads())):
            print(said, flush=True)
        if self.main and (best := self.faster(precision)):
            print(f"training.precision is {precision}; {best} would be faster on this machine", flush=True)
        AcceleratorState._reset_state()  # otherwise the next training in this process would keep the precision of the last
        mixed = "no" if precision == "float32" else precision  # Accelerate's name for float32
        self._accelerator = Accelerator(mixed_precision=mixed, cpu=self.device.type == "cpu")
        return self._accelerator.prepare(model, optimizer)

    def autocast(self) -> AbstractContextManager[None]:
        return self._accelerator.autocast() if self._accelerator is not None else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.training = True
        self._accelerator.backward(loss)

    def clip_gradients(self, parameters: Iterable[nn.Parameter], norm: float) -> Tensor:
        return self._accelerator.clip_grad_norm_(parameters, norm)

    # scratch

    def resume(self, task: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self._scratch.load(task) if self._scratch is not None else None

    def checkpoint(
        self, task: str, pack: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]], force: bool = False
    ) -> None:
        """Save `pack()` for the training `task` if a checkpoint is due, or if a signal asked to stop; then stop. `force`: the
        training has ended, so save in any case.

        Raises:
            Interrupted: a signal asked to stop. The state has been saved.
        """
        self._agree_to_stop()
        due = force or time.monotonic() - self._saved >= self._settings.checkpoint_seconds
        if self._scratch is not None and self.main and (due or self.stopping):
            self._scratch.save(task, *pack())
            self._saved = time.monotonic()
        if force:  # before `stopping` is read: a signal in between would otherwise be ignored
            self.training = False
        if self.stopping:
            if self.main:
                print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
            raise Interrupted(128 + self.stopping)


def _take_gpu_slot() -> BaseFileLock | None:
    """If there are several GPUs, take one that no other stage process of this repository uses.

    DVC does not assign GPUs to its queue workers, so a lock per GPU decides. The process holds it until it ends.
    """
    from filelock import FileLock, Timeout

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else sorted(p.name[6:] for p in Path("/dev").glob("nvidia[0-9]*"))
    for gpu in gpus if len(gpus) > 1 else ():
        (root() / "slots").mkdir(parents=True, exist_ok=True)
        lock = FileLock(root() / "slots" / f"{gpu}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return lock
    return None
