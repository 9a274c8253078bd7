"""Start the processes of a run, and let them meet.

`launch` starts them on one machine with torchrun's engine. torchrun or srun can start them instead,
also on several machines. Each process runs the same command.
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

# How long a process waits for the others: rank 0 may download or decode for hours meanwhile. If a
# process dies, the others notice at once and do not wait for this long.
TIMEOUT = timedelta(hours=2)
# How long processes may take to end after a signal: they finish their step, or the measurements at
# the end of an epoch, and save.
SHUTDOWN_SECONDS = 600
# Environment variable with the id of the process that launched this one.
PARENT_VARIABLE = "SIMSIAM_PROCESSES_END_WITH"
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
MAX_ERROR_LENGTH = 200  # characters of torch's error that a message quotes


def cluster_environment() -> ClusterEnvironment | None:
    """Return how torchrun or SLURM started this process; None if neither did.

    Raises:
        UserError: SLURM's variables contradict each other.
    """
    # Ask for torchrun first: it may run inside a SLURM job.
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # SLURM's variables give the tasks that the job asked for. srun may have started fewer, or none.
    # Lightning reads the variables, so correct them first.
    match_environment_to_started_tasks()
    try:
        return SLURMEnvironment() if SLURMEnvironment.detect() else None
    except RuntimeError as error:  # Lightning refuses srun without --ntasks-per-node, for example
        raise UserError(" ".join(str(error).split())) from None


@contextmanager
def process_group(devices: int | None, nodes: int | None, gpu: bool) -> Iterator[None]:
    """Join the other processes of the run, if there are any; ranks above 0 then print nothing.

    Args:
        devices: processes that must run on this machine; None for any number.
        nodes: machines that must take part; None for any number.
        gpu: whether the processes also exchange tensors on GPUs.

    Raises:
        UserError: another number of processes or machines was started.
    """
    end_with_parent()
    cluster = cluster_environment()
    if cluster is not None and cluster.world_size() > 1:
        join_processes(cluster, gpu)
    try:
        started_here = local_world_size()
        started_nodes = world_size() // started_here
        require(
            devices is None or devices == started_here,
            f"--devices {devices}: the number of processes that were started on this machine is "
            f"{started_here}. Leave out this flag, or start {devices} of them.",
        )
        require(
            nodes is None or nodes == started_nodes,
            f"--num-nodes {nodes}: the number of machines with processes of this run is "
            f"{started_nodes}. On each machine, run: torchrun --nnodes {nodes} --nproc-per-node N "
            "--rdzv-endpoint HOST:PORT main.py ...",
        )
        if rank() > 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def join_processes(cluster: ClusterEnvironment, gpu: bool) -> None:
    """Wait until all processes of the run have met at MASTER_ADDR:MASTER_PORT.

    A signal ends the wait.

    Raises:
        UserError: the processes cannot meet there.
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
        address = f"{cluster.main_address}:{cluster.main_port}"
        notice = None
        if cluster.local_rank() == 0:
            notice = f"waiting for all {processes} processes of the run to meet at {address}"
        call_interruptibly(join, notice)
    except (RuntimeError, ValueError, OSError) as error:  # torch.DistNetworkError is a RuntimeError
        reason = " ".join(str(error).split())[:MAX_ERROR_LENGTH]
        raise UserError(
            f"the {processes} processes of the run could not meet at MASTER_ADDR:MASTER_PORT "
            f"({reason}). Set them to an address that each machine reaches and a free port."
        ) from None


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its launcher dies, even by SIGKILL.

    Raises:
        StoppedBySignal: the launcher died before this process asked the kernel for the signal.
    """
    launcher = os.environ.get(PARENT_VARIABLE)
    if launcher is None or sys.platform != "linux":
        return
    # The kernel's signal follows the parent. If the launcher is not the parent, or no longer, only
    # the check below applies.
    if launcher == str(os.getppid()):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Check this only now: if the launcher died before the request, the kernel sends no signal.
    if has_ended(launcher):
        raise StoppedBySignal(signal.SIGTERM, ": the command that started this run has ended")


def has_ended(process: str) -> bool:
    """Return whether the process with this id has ended, also if its parent has not noticed yet."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    # The state follows the name in parentheses, which may contain anything.
    state = status.rpartition(")")[2].split()[0]
    return state in ("Z", "X")


def needs_launch(devices: int) -> bool:
    """Return whether this process has to start the processes of a run on several devices."""
    if devices == 1:
        return False
    cluster = cluster_environment()
    if cluster is None:
        return True
    # A single SLURM task starts the processes of its run itself. A single process of torchrun does
    # not: `process_group` reports that --devices is wrong.
    return cluster.world_size() == 1 and isinstance(cluster, SLURMEnvironment)


def launch(processes: int, command: list[str], resume_command: str) -> int:
    """Run a command in several processes on this machine, by torchrun's engine.

    If one process ends early, the engine ends the others. It passes signals on to each process.

    Args:
        resume_command: what a message calls the command that resumes the run.

    Returns:
        The exit status: 0; 128 plus the number of the signal that ended the command; or the highest
        status of the processes that failed, if one of them has printed the reason.

    Raises:
        RunError: a process was killed, or failed without a message of its own.
    """
    end_with_parent()
    logging.disable(logging.CRITICAL)  # silences the engine; this process logs nothing itself
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        # Without a temporary folder, the engine would leave empty log folders behind.
        with TemporaryDirectory() as log_dir:
            engine_args = [
                f"--nproc-per-node={processes}",
                "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0",
                f"--log-dir={log_dir}",
                "--local-addr=127.0.0.1",
                "--no-python",
            ]
            run(parse_args([*engine_args, *command]))
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        return _explain_failure(error, processes, resume_command)
    return 0


def _explain_failure(error: ChildFailedError, processes: int, resume_command: str) -> int:
    """Return the highest exit status, if that process has printed the reason of its failure.

    Raises:
        RunError: no process has printed a reason.
    """
    highest_status = max(failure.exitcode for failure in error.failures.values())
    if highest_status > 1:  # the program uses 1 for failures without a message of its own
        return highest_status
    # The engine ended the other processes because of the first failure.
    local_rank, failure = error.get_first_failure()
    if failure.exitcode < 0:  # minus the number of a signal
        cause = signal.Signals(-failure.exitcode).name
        status = 128 - failure.exitcode
    else:
        cause = "an error"
        status = 1
    raise RunError(
        f"process {local_rank + 1} of {processes} was ended by {cause}, and the others with it; "
        f"{resume_command} resumes from the last checkpoint",
        status,
    ) from None
