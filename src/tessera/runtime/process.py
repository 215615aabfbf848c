"""What a process is told before it computes. It changes speed; the number of threads also changes the last bits of sums."""

from __future__ import annotations

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
COMMITTED_THREADS = 2  # runtime.threads of the committed run; others add up in another order, and give other bits
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read by libraries when they are loaded
GLIBC = (32 << 20, 64 << 20)  # where its own thresholds end, which follow what is freed: the least it gives back


def prepare() -> None:
    """Before torch is loaded.

    libgomp's threads spin for a while before they sleep when they wait, 300,000 turns by default, and where another process
    takes a core they spin through its whole time slice. Not to spin at all is slow as well: each small operation then wakes
    a thread. Walk a second of the default tokenizer on two cores, quiet and with one of them taken: with 30,000 turns 38
    and 4, not spinning 23 and 12, with 1,000 turns 37 and 11.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()


def keep_freed_memory(block: int = 1 << 30, total: int = (1 << 31) - 1) -> None:
    """Keep blocks of up to `block` bytes when they are freed, and `total` bytes at the end of the heap.

    glibc gives large blocks back to the system, so that each training step gets its activations as fresh pages, one fault
    for each 4 KiB (measured at 64x64: 19,000 faults and a quarter of the time of a step). Keeping them costs no memory: the
    next step needs as much. Other C libraries have no such setting and are left alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, block)
        mallopt(M_TRIM_THRESHOLD, total)


def use_threads(count: int) -> None:
    """Let each library of this process, and of those that it starts, compute on `count` threads; 0: on as many as it likes.
    NumPy is loaded by now and must be told, what comes later reads its environment; torch is told again by
    `devices.Runtime.device`."""
    if count:
        from threadpoolctl import threadpool_limits

        os.environ.update(dict.fromkeys(POOLS, str(count)))
        threadpool_limits(count)


def other_bits(count: int) -> str | None:
    """What to tell a user whose process computes on so many threads, if the committed run's had others."""
    if count == COMMITTED_THREADS:
        return None
    return (
        f"computing on {count} threads (runtime.threads), the committed run on {COMMITTED_THREADS}: sums are taken in another "
        "order, so that results agree with it within noise, not to the bit"
    )
