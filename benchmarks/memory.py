"""How much memory a piece of work holds at most, by torch's own count."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch


def peak_mib(work: Callable[[], object]) -> float:
    """The most that torch held at once on the CPU during `work`, above what it held before, in MiB."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held) / 2**20
