"""Ranks, and the few collectives used outside DeepSpeed. Without a process group this is rank 0 of 1."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number over all machines, 0 <= rank < world_size()."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes logs."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, written into it. With NCCL it must lie on this rank's GPU."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_objects(obj: Any) -> list[Any]:
    """Every rank's `obj` (picklable), in rank order, on every rank."""
    if world_size() == 1:
        return [obj]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, obj)
    return gathered
