"""What the CPU can do."""

from __future__ import annotations


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply bfloat16: AMX, or AVX-512 BF16."""
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16", False) or has.get("avx512_bf16", False))
