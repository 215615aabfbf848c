"""Divides the images of a set among the cores of a CPU. No torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tessera.core.errors import InputError

T = TypeVar("T")
PART = 128  # images that a process takes at once
PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_work: Callable[[int], Any]  # of a fork: set when it begins


def spread(work: Callable[[int], T], count: int, processes: int) -> Iterator[T]:
    """`work(0)` to `work(count - 1)`, in this order whatever the number of processes. Each takes the next `PART` when it is free.

    Forks, since threads would take turns at Python's lock: of a PNG of 32x32 pixels four fifths of the time is Python's. A fork
    inherits `work`, which need not be picklable; what it returns is. It sees the memory maps of this process, and writes to
    those that are shared; a file that it inherits open has one position for all, which `work` must not move. Elsewhere than on
    Linux system libraries may not survive a fork, so one process does the work.

    Raises:
        InputError: a process was killed.
        Exception: any exception that `work` raised; the first in order.
    """
    processes = min(processes, -(-count // PART))
    if processes <= 1 or not _may_fork():
        yield from map(work, range(count))
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(work,))
    try:
        for results in pool.map(_part, (range(first, min(first + PART, count)) for first in range(0, count, PART))):
            yield from results
    except BrokenProcessPool:
        raise InputError(
            f"one of {processes} processes that decoded images was killed, perhaps for lack of memory; set runtime.threads lower"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _may_fork() -> bool:
    """A daemon, such as a pool's worker, may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def _begin(work: Callable[[int], Any]) -> None:
    """An interrupt is for the parent to answer. A parent that is killed cannot, so its death kills the fork, which would wait for
    work for ever."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _part(indices: range) -> list[Any]:
    return [_work(i) for i in indices]
