"""Settings of a process before it computes. They change speed; the number of threads also changes the last bits of sums."""

from __future__ import annotations

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
COMMITTED_THREADS = 2  # runtime.threads of the committed run; another number changes the order of sums, and so bits
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # libraries read these when they are loaded
GLIBC = (32 << 20, 64 << 20)  # upper limits of glibc's own thresholds, which grow with the size of freed blocks


def prepare() -> None:
    """Set up the process. Must be called before torch is loaded.

    While libgomp's threads wait, they spin before they sleep: 300,000 turns by default. If another process takes a core, they
    spin through its whole time slice. Without spinning every small operation has to wake a thread, which is slow too.
    Measured: gradient steps per second of the default tokenizer on two cores, first with both free, then with one taken: 38 and
    4 with 30,000 turns, 23 and 12 without spinning, 37 and 11 with 1,000 turns.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()


def keep_freed_memory(block: int = 1 << 30, total: int = (1 << 31) - 1) -> None:
    """Keep freed blocks of up to `block` bytes, and up to `total` bytes of free memory at the end of the heap.

    glibc returns large blocks to the system, so each training step gets its activations as fresh pages, with one page fault per
    4 KiB (measured at 64x64: 19,000 faults and a quarter of the time of a step). Keeping the blocks costs no memory, because
    the next step needs as much. Other C libraries have no such setting and are left alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, block)
        mallopt(M_TRIM_THRESHOLD, total)


def use_threads(count: int) -> None:
    """Let each library of this process and of its child processes compute on `count` threads; 0: no limit. NumPy is already
    loaded, so it is set directly. Libraries that are loaded later read the environment. torch is set again by
    `devices.Runtime.device`."""
    if count:
        from threadpoolctl import threadpool_limits

        os.environ.update(dict.fromkeys(POOLS, str(count)))
        threadpool_limits(count)


def threads() -> int:
    """How many threads the libraries of this process compute on: those of `use_threads`, or one per core that it may use."""
    stated = os.environ.get(POOLS[0], "").partition(",")[0]  # OpenMP takes a list: one number for each depth of nesting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(stated) if stated.isdigit() and int(stated) else cores


def other_bits(count: int) -> str | None:
    """A note for the log if this process computes on another number of threads than the committed run did; else None."""
    if count == COMMITTED_THREADS:
        return None
    return (
        f"computing on {count} threads (runtime.threads), the committed run on {COMMITTED_THREADS}: sums are taken in another "
        "order, so that results agree with it within noise, not to the bit"
    )
