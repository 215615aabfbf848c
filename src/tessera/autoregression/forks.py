"""Divides a batch among the cores of a CPU, for long walks of small operations."""

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

Work = Callable[[slice], tuple[Tensor, ...]]  # results of these rows


def spread(work: Work, n: int, least: int) -> list[tuple[Tensor, ...]]:
    """Results of `work` on rows 0 to n, in order, in parts of at least `least` rows. Each core computes one part.

    Torch's default is that all threads share each operation. They would then synchronise some hundred times per position,
    and the operations are too small: a second thread would gain almost nothing.

    Raises:
        RuntimeError: a process that worked on a part was killed, for example by the system for lack of memory.
        Exception: any exception that `work` raised.
    """
    threads = torch.get_num_threads()
    count = max(1, min(threads, n // least))
    bounds = [n * part // count for part in range(count + 1)]
    parts = list(map(slice, bounds, bounds[1:]))
    if count == 1:
        return [work(*parts)]
    # a fork has only one thread: see `_in_processes`
    spreading = _in_processes if threads // count == 1 and _may_fork() else partial(_in_threads, each=threads // count)
    try:
        return spreading(work, parts)
    finally:
        torch.set_num_threads(threads)


def _may_fork() -> bool:
    """Only on Linux: elsewhere system libraries may not survive a fork. A daemon, such as a pool's worker, may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def _in_threads(work: Work, parts: list[slice], each: int) -> list[tuple[Tensor, ...]]:
    with ThreadPoolExecutor(len(parts), initializer=partial(torch.set_num_threads, each)) as pool:
        return list(pool.map(work, parts))


def _in_processes(work: Work, parts: list[slice]) -> list[tuple[Tensor, ...]]:
    """Computes the first part here and the others in forks of this process, like the workers of torch's DataLoader.

    Threads would take turns at Python's lock, which each operation releases and takes again: with operations of some
    microseconds they wait for each other a third of the time. Forks read the memory without a copy and send back only
    results. OpenMP's threads do not survive a fork, so each process has one thread.
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
            theirs.close()  # the fork holds its own end: if the fork dies, the pipe closes
        return [work(parts[0]), *(_received(ours) for _, ours in forks)]
    finally:
        for fork, ours in forks:
            fork.kill()
            fork.join()
            ours.close()


def _report(work: Work, rows: slice, pipe: Connection) -> None:
    try:
        pipe.send(tuple(found.numpy() for found in work(rows)))  # torch would send tensors as shared files
    except Exception as error:  # raised again in the parent process
        pipe.send(error)


def _received(pipe: Connection) -> tuple[Tensor, ...]:
    try:
        result = pipe.recv()
    except EOFError:
        raise RuntimeError("a process that took a part of the work was killed; is there enough memory?") from None
    if isinstance(result, Exception):
        raise result
    return tuple(map(torch.from_numpy, result))
