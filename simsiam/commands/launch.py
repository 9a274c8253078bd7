"""How the processes of a run start and meet.

`launch` starts them with torchrun's engine; torchrun and srun may as well. Each process runs the same command.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from utils.distributed import local_world_size, rank, world_size
from utils.errors import RunError, StoppedBySignal, UserError, require
from utils.slurm import match_environment_to_started_tasks
from utils.waiting import call_interruptibly

TIMEOUT = timedelta(
    hours=2
)  # long enough for rank 0 to download or to decode; a dead peer is noticed at once
PARENT_VARIABLE = "SIMSIAM_PROCESSES_END_WITH"  # environment variable: the id of the process with which this one ends
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def cluster_environment() -> ClusterEnvironment | None:
    """Lightning's view of torchrun or SLURM; None if neither started this process."""
    if TorchElasticEnvironment.detect():  # also inside a job of SLURM
        return TorchElasticEnvironment()
    match_environment_to_started_tasks()
    try:
        return SLURMEnvironment() if SLURMEnvironment.detect() else None
    except RuntimeError as error:  # srun with half of its flags
        raise UserError(" ".join(str(error).split())) from None


@contextmanager
def process_group(devices: int | None, nodes: int | None, gpu: bool) -> Iterator[None]:
    """Join the run's other processes, if there are any; ranks above 0 print nothing.

    Raises UserError if other numbers of processes a machine (`devices`) and machines were asked for than were started.
    """
    end_with_parent()
    cluster = cluster_environment()
    if cluster is not None and cluster.world_size() > 1:
        join_processes(cluster, gpu)
    try:
        here, machines = local_world_size(), world_size() // local_world_size()
        require(
            devices in (None, here),
            f"--devices {devices}: {here} started on this machine; leave the flag out",
        )
        how = "torchrun --nnodes M --nproc-per-node N --rdzv-endpoint HOST:PORT main.py ... on each machine"
        require(
            nodes in (None, machines),
            f"--num-nodes {nodes}: started on {machines}; {how} starts it on M",
        )
        if rank() > 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def join_processes(cluster: ClusterEnvironment, gpu: bool) -> None:
    """Wait until all processes of the run have met at MASTER_ADDR:MASTER_PORT. A signal ends the wait.

    Raises:
        UserError: if they cannot meet there.
    """
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    processes = cluster.world_size()

    def join() -> None:
        distributed.init_process_group(
            backend, timeout=TIMEOUT, world_size=processes, rank=cluster.global_rank()
        )

    try:
        os.environ["MASTER_ADDR"] = cluster.main_address
        os.environ["MASTER_PORT"] = str(cluster.main_port)
        place = f"{cluster.main_address}:{cluster.main_port}"
        notice = f"waiting for all {processes} processes of the run to meet at {place}"
        call_interruptibly(join, notice if cluster.local_rank() == 0 else None)
    except (
        RuntimeError,
        ValueError,
        OSError,
    ) as error:  # torch's DistNetworkError and its like are RuntimeErrors
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the {processes} processes of the run could not meet at MASTER_ADDR:MASTER_PORT ({reason}): "
            "set them to an address that each machine reaches and a free port"
        ) from None


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its launcher dies, even by SIGKILL.

    Raises:
        StoppedBySignal: the launcher died before this process could ask for that.
    """
    launcher = os.environ.get(PARENT_VARIABLE)
    if launcher is None or sys.platform != "linux":
        return
    if launcher == str(os.getppid()):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if has_ended(launcher):
        raise StoppedBySignal(signal.SIGTERM, ": the command that started this run has ended")


def has_ended(process: str) -> bool:
    """Return whether the process with this id has ended, also if its parent has not asked for its status yet."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    state = status.rpartition(")")[2].split()[0]  # behind the name, which may contain anything
    return state in ("Z", "X")


def needs_launch(devices: int | None) -> bool:
    """Whether this process has to start the others of a run on several devices."""
    started = cluster_environment()
    alone = started is None or (
        started.world_size() == 1 and "TORCHELASTIC_RUN_ID" not in os.environ
    )
    return alone and (devices or 1) > 1


def launch(processes: int, command: list[str]) -> int:
    """Run `command` in several processes on this machine, by torchrun's engine; the exit status, the first failure's.

    The end of one ends all; signals are passed on to each.
    """
    end_with_parent()
    logging.disable(logging.CRITICAL)  # the engine's own log; this process only waits
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    os.environ.setdefault(
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600"
    )  # seconds, to end an epoch and save
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    engine = (f"--nproc-per-node={processes}", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    try:
        with TemporaryDirectory() as logs:  # the engine would leave its empty folders
            run(
                parse_args(
                    [
                        *engine,
                        f"--log-dir={logs}",
                        "--local-addr=127.0.0.1",
                        "--no-python",
                        *command,
                    ]
                )
            )
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        worst = max(failure.exitcode for failure in failed.failures.values())
        if worst > 1:  # that process has printed why
            return worst
        number, first = failed.get_first_failure()  # the others were ended because of it
        killed = first.exitcode < 0
        cause = f"process {number + 1} of {processes} was ended by "
        cause += signal.Signals(-first.exitcode).name if killed else "an error"
        message = (
            f"{cause}, and the others with it; the same command goes on from the last checkpoint"
        )
        raise RunError(message, 128 - first.exitcode if killed else 1) from None
    return 0
