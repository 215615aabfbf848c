"""Independent parts of one work, each in a process of its own on a CPU. No torch until it is needed."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from tessera.core.errors import InputError

if TYPE_CHECKING:
    from tessera.core.contracts import Device

T = TypeVar("T")
R = TypeVar("R")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_work: Callable[[Any], Any]  # of a fork: set when it begins


def each(work: Callable[[T], R], parts: Sequence[T], device: Device) -> list[R]:
    """`work` of each part, in order. On a CPU with a thread for each part, forks of this process compute them side by side, on one
    thread each: work that changes ever between small operations and Python gains less from threads within an operation. A fork
    inherits `work`; what it returns must be picklable.

    Raises:
        InputError: a process was killed.
        Exception: any exception that `work` raised.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or threads // max(1, len(parts)) != 1 or not may_fork():
        return [work(part) for part in parts]
    context = multiprocessing.get_context("fork")
    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        with (
            threadpool_limits(1),
            ProcessPoolExecutor(len(parts), context, initializer=begin, initargs=(work,)) as pool,
        ):
            return list(pool.map(of_fork, parts))
    except BrokenProcessPool:
        raise InputError(
            f"one of {len(parts)} processes was killed, perhaps for lack of memory; set runtime.threads to 1, and one process does "
            "the work"
        ) from None
    finally:
        torch.set_num_threads(threads)


def may_fork() -> bool:
    """Only on Linux: elsewhere system libraries may not survive a fork. A daemon, such as a pool's worker, may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def begin(work: Callable[[Any], Any]) -> None:
    """Begin a fork that `of_fork` works in. An interrupt is for the parent to answer. A parent that is killed cannot, so its death
    kills the fork, which would wait for work for ever."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def of_fork(part: Any) -> Any:
    """The work of a part, in a fork."""
    return _work(part)
