"""Collective operations between training processes (ranks), by torch.distributed. With one process they do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def ranks() -> int:
    """Number of processes."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if ranks() > 1 else 0


def add_up(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over ranks, in place."""
    if ranks() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor)


def average(tensor: Tensor) -> None:
    """Replace a tensor by its mean over ranks, in place."""
    if ranks() > 1:
        add_up(tensor)
        tensor /= ranks()


def take_largest(tensor: Tensor) -> None:
    """Replace a tensor by its elementwise maximum over ranks, in place."""
    if ranks() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def take_from_rank_0(*tensors: Tensor) -> None:
    """Replace each tensor by that of rank 0, in place. Tensors must be contiguous."""
    if ranks() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def leave() -> None:
    """Wait for all ranks, then leave the process group and continue alone."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
