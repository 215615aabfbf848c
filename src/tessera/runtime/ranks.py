"""Ranks: the processes that divide a training or an extraction; how they are started, and which of them leads.

DVC starts one process. If `runtime.devices` times `runtime.nodes` is above 1, this process starts the ranks by torchrun, from
inside its own lock and guard, and waits. So the launcher is no part of a stage's `cmd`, which is part of the stage's identity.
Ranks that were started by `accelerate launch`, torchrun or Slurm have no such process above them; then rank 0 locks and guards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from tessera.core.errors import InputError
from tessera.runtime.settings import Settings

GUARDED = "TESSERA_GUARDED"  # set for ranks by a process that locks and guards: the name of its scratch folder, or ''
PLACE = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")  # variables of torchrun that users set on each machine
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def place() -> tuple[int, int]:
    """Rank of this process, and number of ranks."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_rank() else (0, 1)


def is_rank() -> bool:
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def follows() -> bool:
    """Whether another process has read and checked params.yaml for this one."""
    return is_rank() and (GUARDED in os.environ or os.environ["RANK"] != "0")


def leads(settings: Settings) -> bool:
    """Whether this process locks the scratch and guards the inputs: exactly one process on all machines does."""
    other_machine = not is_rank() and settings.nodes > 1 and os.environ.get("NODE_RANK", "0") != "0"
    return not follows() and not other_machine


def launch(stage: str, key: str | None, settings: Settings, scratch: str) -> None:
    """Run the stage as ranks, and exit as they do. On a signal, this process passes it to the ranks once, and waits with its lock
    until they have saved and ended. They have a session of their own, because Ctrl-C would otherwise reach them twice."""
    command = [*launcher(settings, os.environ), "-m", f"stages.{stage}", *([key] if key else [])]
    environment = {**os.environ, GUARDED: scratch}
    ranks = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_end_with_parent)
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        ranks.terminate()

    with handling(stop):
        code = ranks.wait()
    if code:
        sys.exit(128 + received[0] if received else code if code > 0 else 128 - code)


def _end_with_parent() -> None:
    """Runs in the launcher before it starts: if the stage is killed, no ranks may be left that hold devices (Linux only)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def launcher(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """The command that starts the ranks: all of this machine, all of a Slurm job, or this machine's part of several machines.

    Raises:
        InputError: there are several machines, no Slurm job, and the environment does not say which machine this is.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={settings.devices}"]
    if settings.nodes == 1:
        return [*torchrun, "--standalone"]
    torchrun.append(f"--nnodes={settings.nodes}")
    if "SLURM_JOB_ID" in environment:
        address = environment.get("MASTER_ADDR", socket.gethostname())
        meeting = f"{address}:{environment.get('MASTER_PORT', _free_port())}"
        each = ["srun", f"--nodes={settings.nodes}", f"--ntasks={settings.nodes}", "--ntasks-per-node=1"]
        job = environment["SLURM_JOB_ID"]
        return [*each, *torchrun, "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", f"--rdzv-id={job}"]
    missing = [name for name in PLACE if name not in environment]
    if missing:
        raise InputError(
            f"runtime.nodes is {settings.nodes}, but {', '.join(missing)} is not set and there is no Slurm job: start this "
            "stage on every machine with MASTER_ADDR, MASTER_PORT and NODE_RANK, see docs/scale.md"
        )
    address, port, node = (environment[name] for name in PLACE)
    return [*torchrun, f"--master-addr={address}", f"--master-port={port}", f"--node-rank={node}"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Send INT and TERM to `handler` within the block."""
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
