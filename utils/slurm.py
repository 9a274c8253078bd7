"""Find out from SLURM's environment variables which tasks srun has started.

SLURM_NTASKS and SLURM_NTASKS_PER_NODE say how many tasks a job asks for. They are also set in the
script of sbatch and in the shell of salloc. There, a single process runs, but Lightning takes the
variables for the number of processes that run.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from utils.console import print_line
from utils.errors import UserError, require

JOB = "slurm_job"  # the key of a job's id

# SLURM numbers the steps of a job from 0. Ids from this one upwards stand for scripts of sbatch,
# shells of salloc and SLURM's own daemons.
FIRST_RESERVED_STEP = 0xFFFFFFF0

# Lightning takes jobs of these names for interactive shells, and ignores SLURM there.
NAMES_OF_INTERACTIVE_JOBS = ("bash", "interactive")


def started_by_srun() -> bool:
    """Return whether srun started this process, and with it the other tasks of its step.

    srun sets SLURM_STEP_ID for its tasks. The children of a task inherit the variable, so it is not
    enough. A child of a script that srun started counts as the task. A command that somebody types
    in the shell of `srun --pty bash` does not count.
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= FIRST_RESERVED_STEP:
        return False
    is_the_task = os.environ.get("SLURM_TASK_PID", "") in ("", str(os.getpid()))
    if is_the_task:
        return True
    # This is a child of the task. In a terminal, somebody has typed the command.
    in_a_terminal = "SLURM_PTY_PORT" in os.environ or os.isatty(0)
    return not in_a_terminal


def match_environment_to_started_tasks() -> None:
    """Set the numbers of tasks and machines that Lightning reads to what srun has started.

    If srun did not start this process, the numbers are set to 1. If the job has more tasks, a
    printed line says that they are not used. Outside of a SLURM job, nothing changes.

    Raises:
        UserError: if the machines have different numbers of tasks, or a variable is missing.
    """
    requested_tasks = _read_number("SLURM_NTASKS")
    if requested_tasks is None:
        return
    if started_by_srun():
        tasks = _read_number("SLURM_STEP_NUM_TASKS") or requested_tasks
        _copy_step_to_job()
    else:
        _require_first_task()
        if requested_tasks > 1:
            print_line(
                f"The SLURM job has {requested_tasks} tasks, but this command was not started by "
                "srun, so they are not used. Put srun before the command to use them."
            )
        tasks = 1
        os.environ["SLURM_NTASKS_PER_NODE"] = "1"
        os.environ["SLURM_NNODES"] = "1"
    # Change the variable of the step too. Child processes inherit the environment, and would
    # otherwise read a number of tasks that this process does not use.
    os.environ["SLURM_NTASKS"] = str(tasks)
    os.environ["SLURM_STEP_NUM_TASKS"] = str(tasks)


def describe_job() -> dict[str, str]:
    """Return the id of the SLURM job of this process; nothing outside of a job."""
    job = os.environ.get("SLURM_JOB_ID")
    return {JOB: job} if job else {}


def is_restart_of(job: Mapping[str, Any]) -> bool:
    """Return whether SLURM has requeued this process's job, and `describe_job` returned `job` then.

    A job keeps its id when it is requeued.
    """
    restarts = _read_number("SLURM_RESTART_COUNT") or 0
    return restarts > 0 and JOB in job and job[JOB] == os.environ.get("SLURM_JOB_ID")


def _require_first_task() -> None:
    """Raise UserError if this task has a rank above 0, which only srun gives."""
    rank = _read_number("SLURM_PROCID") or 0
    require(
        rank == 0,
        f"SLURM_PROCID is {rank}, so srun started several tasks, but SLURM_STEP_ID is missing. "
        "Pass all SLURM_ variables on to the program (a container may drop some).",
    )


def _copy_step_to_job() -> None:
    """Set the variables of the job to the values of srun's step, which may use fewer machines."""
    tasks_per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    if tasks_per_node:
        os.environ["SLURM_NTASKS_PER_NODE"] = _parse_tasks_per_node(tasks_per_node)
    nodes = os.environ.get("SLURM_STEP_NUM_NODES")
    if nodes:
        os.environ["SLURM_NNODES"] = nodes
    node_list = os.environ.get("SLURM_STEP_NODELIST")
    if node_list:
        os.environ["SLURM_NODELIST"] = node_list
    # Lightning ignores SLURM in jobs of these names, but srun can start a step there too. So give
    # the job another name.
    if os.environ.get("SLURM_JOB_NAME") in NAMES_OF_INTERACTIVE_JOBS:
        os.environ["SLURM_JOB_NAME"] = "srun"


def _parse_tasks_per_node(text: str) -> str:
    """Return the number in "4" or "4(x2)", SLURM's notation for 4 tasks on each of 2 machines."""
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
    if match is None:
        raise UserError(
            f"srun started {text} tasks on the machines, which must all have the same number of "
            "tasks. Pass --ntasks-per-node N to srun."
        )
    return match[1]


def _read_number(variable: str) -> int | None:
    """Return the value of an environment variable, or None if it is missing or not a number."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None
