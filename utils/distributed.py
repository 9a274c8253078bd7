"""Communication between the processes of a run. `simsiam.commands.launch` starts and connects them.

All functions also work in a run of a single process. Nothing is communicated then.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from utils.waiting import call_interruptibly

Result = TypeVar("Result")


def world_size() -> int:
    """Return the number of processes of the run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """Return the number of the run's processes on this machine."""
    # torchrun sets the first variable, srun the second.
    started = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
    if not started:
        return world_size()
    # SLURM sets SLURM_NTASKS_PER_NODE in each job, even if srun has not started the tasks.
    return min(int(started), world_size())


def rank() -> int:
    """Return the number of this process in the run. Rank 0 writes files and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def print_on_rank_zero(line: str) -> None:
    """Print a line, unless this is another process of a run."""
    if rank() == 0:
        print(line, flush=True)


def local_rank() -> int:
    """Return the number of this process among those on this machine."""
    # torchrun sets the first variable, srun the second.
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def broadcast_result(function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0 and return its result on all ranks.

    Raises:
        BaseException: on rank 0, if `function` raises it.
        SystemExit: on the other ranks, with the status of rank 0 if `function` raises there.
    """
    results: list[Any] = [_call_on_some_ranks(function, is_caller=rank() == 0)]
    if world_size() > 1:
        # On each rank, the item of the list is replaced by that of rank 0.
        call_interruptibly(lambda: distributed.broadcast_object_list(results))
    return results[0]


def once_per_node(function: Callable[[], object]) -> None:
    """Call `function` in one process on each machine while the other processes wait.

    Raises:
        BaseException: in the process that called `function`, if `function` raises it.
        SystemExit: in all other processes, if `function` raises in any process.
    """
    _call_on_some_ranks(function, is_caller=local_rank() == 0)


def _call_on_some_ranks(function: Callable[[], Result], is_caller: bool) -> Result | None:
    """Call `function` on the ranks whose `is_caller` is true. All ranks wait until it has ended.

    If a call raises, no rank returns: the exit status of the error ends the other ranks too.
    """
    if world_size() == 1:
        return function()
    result: Result | None = None
    error: BaseException | None = None
    status = 0
    if is_caller:
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001  (raised again below)
            error = raised
            status = getattr(raised, "status", 1)

    # This wait ends when the slowest rank arrives. Rank 0 may download for an hour, and signals
    # must work meanwhile.
    (highest_status,) = call_interruptibly(lambda: all_reduce_max(status))
    if error is not None:
        raise error
    if highest_status > 0:  # the rank whose call failed prints the message
        raise SystemExit(highest_status)
    return result


def all_reduce_max(*numbers: int) -> list[int]:
    """Return the maximum of each number over all processes.

    The numbers are sent from CPU to CPU, so this does not wait for computations on a GPU.
    """
    if world_size() == 1:
        return list(numbers)
    values = torch.tensor(numbers)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values.tolist()


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return a new tensor with the mean of each element over all processes."""
    total = values.clone()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total / world_size()


def shard(n: int) -> slice:
    """Return the part of n items for this process: contiguous, in the order of the ranks."""
    start = n * rank() // world_size()
    stop = n * (rank() + 1) // world_size()
    return slice(start, stop)


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes in the order of the ranks.

    Args:
        rows: (N, ...); N may differ between the processes.
    """
    if world_size() == 1:
        return rows
    # The import takes 2 s. A run of a single process saves this time.
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat(gather_all_tensors(rows))


def broadcast_rows(rows: Tensor) -> Tensor:
    """Return the rows of rank 0.

    Args:
        rows: (N, ...); N may differ between the processes.
    """
    if world_size() == 1:
        return rows
    length = torch.tensor(len(rows), device=rows.device)
    distributed.broadcast(length, src=0)
    received = rows.contiguous()
    if rank() > 0:
        received = rows.new_empty((int(length), *rows.shape[1:]))
    distributed.broadcast(received, src=0)
    return received


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error only means that another process has ended.

    The process that has ended prints the reason, so this process need not print anything. A timeout
    does not count, because then no process has ended, and no other process prints a message.
    """
    if world_size() == 1 or "timed out" in str(error).lower():
        return False
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
