"""Section `runtime` of params.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from tessera.core.params import Strict

FP16_ON_A_CPU = (
    "must be float32 or bf16 on a CPU, got 'fp16', in which only accelerators compute; set it to float32, or to bf16 "
    "(fast on CPUs with AMX or AVX-512 BF16)"
)


class Settings(Strict):
    """The machine. No stage declares this section, so a change re-runs nothing. `device`, `devices`, `nodes` and `threads` change
    the last bits of sums, and so results within noise. The others change no result."""

    device: Literal["auto", "cpu"] = Field(description="auto: the accelerator if there is one, else the CPU")
    devices: int = Field(
        ge=1, description="processes (ranks) on each machine that divide training and extraction, one per device"
    )
    nodes: int = Field(ge=1, description="number of machines; for several see docs/scale.md")
    threads: int = Field(ge=0, description="CPU threads per process, which change bits; 0: one per core")
    checkpoint_seconds: float = Field(ge=0, description="seconds between scratch checkpoints; 0: every step")
    keep_scratch: int = Field(ge=1, description="scratch folders kept per stage; the oldest are deleted first")


def in_fp16(raw: dict[str, Any], place: str = "") -> Iterator[str]:
    """One problem for each training in fp16, on a machine without accelerator."""
    for key, value in raw.items():
        if key == "training" and value["precision"] == "fp16":
            yield f"{place}training.precision: {FP16_ON_A_CPU}"
        elif isinstance(value, dict):
            yield from in_fp16(value, f"{place}{key}.")
