"""Divides the images of a set among the cores of a CPU. No torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from tessera import forks
from tessera.core.errors import InputError

T = TypeVar("T")
PART = 128  # images that a process takes at once


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
    if processes <= 1 or not forks.may_fork():
        yield from map(work, range(count))
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, initializer=forks.begin, initargs=(partial(_part, work),))
    try:
        for results in pool.map(
            forks.of_fork, (range(first, min(first + PART, count)) for first in range(0, count, PART))
        ):
            yield from results
    except BrokenProcessPool:
        raise InputError(
            f"one of {processes} processes that decoded images was killed, perhaps for lack of memory; set runtime.threads lower"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _part(work: Callable[[int], T], indices: range) -> list[T]:
    return [work(i) for i in indices]
