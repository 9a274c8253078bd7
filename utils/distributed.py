"""Several processes that are one run: how they are started, who is the first, and what they agree upon.

torchrun's engine starts them (`launch`), or torchrun or srun themselves; each then runs the same command.
"""

import ctypes
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, distributed

from utils.errors import RunFailure, UserError, check

Decided = TypeVar("Decided")
PATIENCE = timedelta(hours=2)  # while the first one downloads, or measures; one that is gone is noticed at once
ELSEWHERE = "torchrun --nnodes M --nproc-per-node N --rdzv-endpoint HOST:PORT main.py ... starts it on each machine"
PARENT_VARIABLE = "SIMSIAM_PROCESSES_END_WITH"  # of the environment: with that process, this one ends


def cluster_environment() -> ClusterEnvironment | None:
    """Who started this process together with others, if anybody did."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            try:
                return kind()
            except RuntimeError as error:  # srun with half of its flags
                raise UserError(" ".join(str(error).split())) from None
    return None


def local_world_size() -> int:
    """How many of the run's processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or world_size())


def world_size() -> int:
    """How many processes are this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 is the one that writes and speaks."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def process_group(devices: int | None, nodes: int | None, gpu: bool) -> Iterator[None]:
    """Meet the others; all but the first fall silent.

    Args:
        devices: how many processes were asked for on this machine, None where whoever started them decides.
        nodes: likewise, on how many machines.

    Raises:
        UserError: another number of them was started.
    """
    _end_with_parent()
    found = cluster_environment()
    if found is None or found.world_size() == 1:
        check(devices in (None, 1), f"--devices {devices}: one process was started here; leave the flag out")
        check(nodes in (None, 1), f"--num-nodes {nodes}: {ELSEWHERE}")
        yield
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = found.main_address, str(found.main_port)
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    distributed.init_process_group(backend, rank=found.global_rank(), world_size=found.world_size(), timeout=PATIENCE)
    try:
        number = local_world_size()
        check(devices in (None, number), f"--devices {devices}: {number} processes were started; leave the flag out")
        check(
            nodes in (None, world_size() // number),
            f"--num-nodes {nodes}: it runs on {world_size() // number}; {ELSEWHERE}",
        )
        if rank() > 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        yield
    finally:
        distributed.destroy_process_group()


def _end_with_parent() -> None:
    """Let the kernel tell this process to stop when the one that started it is gone, killed perhaps."""
    if os.environ.get(PARENT_VARIABLE) == str(os.getppid()) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def broadcast_result(decide: Callable[[], Decided]) -> Decided:
    """What the first process finds, for all. Where it fails, it tells the person and the others leave with its status.

    Raises:
        SystemExit: in all but the first, when `decide` raised there.
    """
    if world_size() == 1:
        return decide()
    box: list[Any] = [None, 1]
    if rank() > 0:
        distributed.broadcast_object_list(box)
        if box[1]:
            raise SystemExit(box[1])
        return box[0]
    try:
        box = [decide(), 0]
    except BaseException as error:
        box[1] = error.status if isinstance(error, RunFailure) else 2 if isinstance(error, UserError) else 1
        raise
    finally:
        distributed.broadcast_object_list(box)
    return box[0]


def once_per_node(prepare: Callable[[], object]) -> None:
    """Let one process of each machine do what the others there wait for.

    Raises:
        SystemExit: in those for which it failed elsewhere.
    """
    problem = None
    if int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", 0)) == 0 or world_size() == 1:
        try:
            prepare()
        except BaseException as error:
            if world_size() == 1:
                raise
            problem = error
    status = 0 if problem is None else 2 if isinstance(problem, UserError) else 1
    (worst,) = all_reduce_max(status)
    if problem is not None:
        raise problem
    if worst:
        raise SystemExit(worst)


def check_equal(digest: str | None, message: str) -> None:
    """Raise UserError unless all processes have the same hexadecimal digest, or None."""
    number = int(digest[:15], 16) if digest else 0
    high, low = all_reduce_max(number, -number)
    check(high == -low, message)


def all_reduce_max(*numbers: int) -> list[int]:
    """The largest of each over all processes; a rendezvous, which does not wait for devices."""
    found = torch.tensor(numbers)
    if world_size() > 1:
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.tolist()


class DelayedMaximum:
    """`largest` as of the step before: each process learns it at the same step, and none waits."""

    def __init__(self) -> None:
        self.asked: tuple[Any, Tensor] | None = None

    def __call__(self, *numbers: int) -> list[int]:
        if world_size() == 1:
            return list(numbers)
        answer = [0] * len(numbers)
        if self.asked is not None:
            self.asked[0].wait()
            answer = self.asked[1].tolist()
        mine = torch.tensor(numbers)
        self.asked = (distributed.all_reduce(mine, distributed.ReduceOp.MAX, async_op=True), mine)
        return answer


def shard(n: int, block: int) -> slice:
    """This process's part of n things, in whole blocks: what is done block by block is done as one process would."""
    blocks = -(-n // block)
    start, stop = (blocks * r // world_size() * block for r in (rank(), rank() + 1))
    return slice(min(start, n), min(stop, n))


def all_gather_rows(part: Tensor, where: slice, shape: tuple[int, ...]) -> Tensor:
    """A tensor of which each process has the rows `where`, for all of them."""
    if world_size() == 1:
        return part
    found = torch.zeros(shape, dtype=part.dtype, device=part.device)
    if len(part):
        found[where] = part
    distributed.all_reduce(found)  # to add zeros changes nothing
    return found


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over all processes of a tensor that each has."""
    if world_size() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values / world_size()


def barrier() -> None:
    if world_size() > 1:
        distributed.barrier()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone: why, that one or who started it will tell."""
    if "timed out" in str(error).lower():
        return False
    return world_size() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def needs_launch(devices: int | None) -> bool:
    """Whether this process has to start the others of a run on several devices."""
    started = cluster_environment()
    alone = started is None or (started.world_size() == 1 and "TORCHELASTIC_RUN_ID" not in os.environ)
    return alone and (devices or 1) > 1


def launch(processes: int, command: list[str]) -> int:
    """Run `command` in so many processes on this machine, by torchrun's engine.

    What ends one ends all; a signal is passed on, and each saves or not as it would alone.

    Returns:
        The exit status of all: that of the first to fail.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _end_with_parent()
    logging.disable(logging.CRITICAL)  # in this process, which only waits: what a person must know, we say
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds, to end an epoch and save
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        told = max(failure.exitcode for failure in failed.failures.values())
        if told > 1:  # by the process that has it
            return told
        number, failure = failed.get_first_failure()
        cause = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else "an error"
        raise RunFailure(
            f"process {number + 1} of {processes} was ended by {cause}, and the others with it; "
            "the same command goes on from the last checkpoint",
            128 - failure.exitcode if failure.exitcode < 0 else 1,
        ) from None
    return 0
