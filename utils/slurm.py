"""Which tasks srun has started, by SLURM's environment variables.

SLURM_NTASKS and SLURM_NTASKS_PER_NODE say what a job asks for. They are also set in the script of
sbatch and in the shell of salloc, where there is a single process, but Lightning takes them for the
number of processes that run.
"""

import os
import re

from utils.console import print_line
from utils.errors import UserError, require

# SLURM gives ids from here on to scripts of sbatch, shells of salloc and its own daemons.
FIRST_RESERVED_STEP = 0xFFFFFFF0


def started_by_srun() -> bool:
    """Whether srun started this process, and with it the other tasks of its step.

    srun sets SLURM_STEP_ID. A command typed in the shell of `srun --pty bash` inherits it, but is
    not the task that srun has started.
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= FIRST_RESERVED_STEP:
        return False
    in_a_terminal = "SLURM_PTY_PORT" in os.environ or os.isatty(0)
    is_the_task = os.environ.get("SLURM_TASK_PID", "") in ("", str(os.getpid()))
    return is_the_task or not in_a_terminal


def match_environment_to_started_tasks() -> None:
    """Set SLURM's numbers of tasks and machines, which Lightning reads, to those of srun.

    If srun did not start this process, there is one task, and a line says so. Without a SLURM job
    nothing changes.

    Raises:
        UserError: if the machines have different numbers of tasks, or a variable is missing.
    """
    asked = _read_number("SLURM_NTASKS")
    if asked is None:
        return
    if started_by_srun():
        tasks = _read_number("SLURM_STEP_NUM_TASKS") or asked
        _copy_step_to_job()
    else:
        rank = _read_number("SLURM_PROCID") or 0
        require(
            rank == 0,
            f"SLURM_PROCID is {rank}, so srun started several tasks, but SLURM_STEP_ID is missing: "
            "pass all SLURM_ variables on to the program (a container may drop some)",
        )
        if asked > 1:
            print_line(
                f"The SLURM job has {asked} tasks, but this command was not started by srun, "
                "so they are not used. Put srun before the command to use them."
            )
        tasks = 1
        os.environ["SLURM_NTASKS_PER_NODE"] = os.environ["SLURM_NNODES"] = "1"
    # A program that this process starts must not see the job's tasks either.
    os.environ["SLURM_NTASKS"] = os.environ["SLURM_STEP_NUM_TASKS"] = str(tasks)


def _copy_step_to_job() -> None:
    """Describe the step of srun in the variables of the job, which may have more machines."""
    if per_node := os.environ.get("SLURM_STEP_TASKS_PER_NODE"):
        os.environ["SLURM_NTASKS_PER_NODE"] = _parse_tasks_per_node(per_node)
    if nodes := os.environ.get("SLURM_STEP_NUM_NODES"):
        os.environ["SLURM_NNODES"] = nodes
    if node_list := os.environ.get("SLURM_STEP_NODELIST"):
        os.environ["SLURM_NODELIST"] = node_list
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        # Lightning ignores SLURM in jobs of these names, as salloc gives them. srun works in them.
        os.environ["SLURM_JOB_NAME"] = "srun"


def _parse_tasks_per_node(text: str) -> str:
    """Return the number in "4" or "4(x2)", SLURM's notation for 4 tasks on each of 2 machines."""
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
    if match is None:
        raise UserError(f"srun started {text} tasks on the machines: give srun --ntasks-per-node N")
    return match[1]


def _read_number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
