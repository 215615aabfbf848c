"""What several training processes (ranks) do together, by torch.distributed. In one process each is a question and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def ranks() -> int:
    """How many processes there are."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if ranks() > 1 else 0


def add_up(*tensors: Tensor) -> None:
    """Each becomes its sum over ranks, in place."""
    if ranks() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor)


def average(tensor: Tensor) -> None:
    """It becomes its mean over ranks, in place."""
    if ranks() > 1:
        add_up(tensor)
        tensor /= ranks()


def take_largest(tensor: Tensor) -> None:
    """It becomes its largest value over ranks, element by element, in place."""
    if ranks() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def take_from_rank_0(*tensors: Tensor) -> None:
    """Each becomes what rank 0 has, in place; it must be contiguous."""
    if ranks() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def leave() -> None:
    """Wait for all ranks, and work alone from here on."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
