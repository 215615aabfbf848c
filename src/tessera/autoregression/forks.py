"""A batch in parts, side by side on the cores of a CPU: for long walks of small operations."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

Work = Callable[[slice], tuple[Tensor, ...]]  # of these rows


def spread(work: Work, n: int, least: int) -> list[tuple[Tensor, ...]]:
    """What `work` makes of rows 0 to n, in parts of `least` rows or more, in order; each core takes one part through.

    If instead all threads share each operation, as is torch's way, they meet some hundred times a position, and what they
    share is too small: a second thread then gains next to nothing.

    Raises:
        RuntimeError: a process that worked on a part was killed; by the system, say, for want of memory.
        Exception: whatever `work` raised.
    """
    threads = torch.get_num_threads()
    count = max(1, min(threads, n // least))
    bounds = [n * part // count for part in range(count + 1)]
    parts = list(map(slice, bounds, bounds[1:]))
    if count == 1:
        return [work(*parts)]
    # a fork has no threads but one: see `_in_processes`
    spreading = _in_processes if threads // count == 1 and _may_fork() else partial(_in_threads, each=threads // count)
    try:
        return spreading(work, parts)
    finally:
        torch.set_num_threads(threads)


def _may_fork() -> bool:
    """Elsewhere system libraries may not survive it; and a daemon, such as the worker of a pool, may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def _in_threads(work: Work, parts: list[slice], each: int) -> list[tuple[Tensor, ...]]:
    with ThreadPoolExecutor(len(parts), initializer=partial(torch.set_num_threads, each)) as pool:
        return list(pool.map(work, parts))


def _in_processes(work: Work, parts: list[slice]) -> list[tuple[Tensor, ...]]:
    """The first part here, the others in forks of this process, as torch's DataLoader has its workers.

    Threads would take turns at Python's lock, which each operation gives away and takes back: with operations of some
    microseconds they wait for each other a third of the time. Forks see what is in memory without a copy, and send back
    nothing but results. OpenMP's threads do not survive a fork, so that each process has one.
    """
    context = multiprocessing.get_context("fork")
    forks: list[tuple[Any, Connection]] = []
    try:
        torch.set_num_threads(1)
        for rows in parts[1:]:
            ours, theirs = context.Pipe(duplex=False)
            fork = context.Process(target=_report, args=(work, rows, theirs), daemon=True)
            fork.start()
            forks.append((fork, ours))
            theirs.close()  # the fork has its own; when that one ends, so does the pipe
        return [work(parts[0]), *(_received(ours) for _, ours in forks)]
    finally:
        for fork, ours in forks:
            fork.kill()
            fork.join()
            ours.close()


def _report(work: Work, rows: slice, pipe: Connection) -> None:
    try:
        pipe.send(tuple(found.numpy() for found in work(rows)))  # tensors would be shared as files
    except Exception as error:  # it is raised where the work was asked for
        pipe.send(error)


def _received(pipe: Connection) -> tuple[Tensor, ...]:
    try:
        result = pipe.recv()
    except EOFError:
        raise RuntimeError("a process that took a part of the work was killed; is there enough memory?") from None
    if isinstance(result, Exception):
        raise result
    return tuple(map(torch.from_numpy, result))
