"""What the processes of a run exchange; `simsiam.commands.launch` is how they start and meet."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from utils.waiting import call_interruptibly

Result = TypeVar("Result")


def world_size() -> int:
    """Number of processes of the run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """Number of the run's processes on this machine."""
    started = (
        os.environ.get("LOCAL_WORLD_SIZE")
        or os.environ.get("SLURM_NTASKS_PER_NODE")
        or world_size()
    )
    return min(
        int(started), world_size()
    )  # SLURM's variable is also there if srun has started none


def rank() -> int:
    """Number of this process; rank 0 writes files and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def broadcast_result(function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0 and return its result on all ranks, which end with rank 0's status if it raises."""
    box: list[Any] = [_call_in(rank() == 0, function)]
    if world_size() > 1:
        call_interruptibly(lambda: distributed.broadcast_object_list(box))
    return box[0]


def once_per_node(function: Callable[[], object]) -> None:
    """Call `function` in one process of each machine while the others wait; if it raises in one, all end."""
    _call_in(
        int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0, function
    )


def _call_in(chosen: bool, function: Callable[[], Result]) -> Result | None:
    if world_size() == 1:
        return function()
    result, failure, status = None, None, 0
    try:
        result = function() if chosen else None
    except BaseException as error:
        failure, status = error, getattr(error, "status", 1)
    # Interruptibly, because rank 0 may download for an hour.
    (status,) = call_interruptibly(lambda: all_reduce_max(status))
    if failure is not None:
        raise failure
    if status:
        raise SystemExit(status)
    return result


def all_reduce_max(*numbers: int) -> list[int]:
    """The maximum of each number over all processes. On the CPU: does not wait for GPUs."""
    if world_size() == 1:
        return list(numbers)
    values = torch.tensor(numbers)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values.tolist()


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over all processes, element by element; a copy."""
    values = values.clone()
    if world_size() > 1:
        distributed.all_reduce(values)
    return values / world_size()


def shard(n: int) -> slice:
    """This process's share of n items: contiguous, in the order of the ranks."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of the ranks; each may have another number of them."""
    if world_size() == 1:
        return rows
    from torchmetrics.utilities.distributed import (
        gather_all_tensors,
    )  # 2 s, which one process need not wait for

    return torch.cat(gather_all_tensors(rows))


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone: the cause is reported there."""
    lost = isinstance(error, distributed.DistError) or "gloo" in str(error)
    return world_size() > 1 and lost and "timed out" not in str(error).lower()
