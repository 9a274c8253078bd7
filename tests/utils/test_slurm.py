"""utils/slurm.py: the number of processes follows from SLURM's variables, with and without srun."""

import os

import pytest

from simsiam.commands import launch
from tests.helpers import SMALL, Program
from utils import slurm
from utils.errors import UserError

JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "n[1-2]"}
BATCH = {
    **JOB,
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_TASK_PID": str(os.getpid()),
}
# The variables of a command that is typed in the shell of `srun --pty bash`.
TYPED = {**STEP, "SLURM_TASK_PID": "1", "SLURM_PTY_PORT": "40000"}


@pytest.fixture
def started_with(monkeypatch: pytest.MonkeyPatch) -> object:
    """Set the variables of SLURM and return how many processes the run then has."""

    def count_processes(variables: dict[str, str]) -> int:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in {**dict.fromkeys(STEP, ""), **variables}.items():
            monkeypatch.setenv(name, value)  # so that they are restored after the test
            if not value:
                del os.environ[name]
        cluster = launch.cluster_environment()
        return cluster.world_size() if cluster is not None else 1

    return count_processes


@pytest.mark.parametrize(
    "variables",
    [
        JOB,
        BATCH,
        {**BATCH, "SLURM_STEP_ID": str(0xFFFFFFFA)},
        {**BATCH, "SLURM_JOB_NAME": "bash"},
        TYPED,
    ],
    ids=["salloc", "sbatch", "interactive step", "named bash", "typed in srun --pty bash"],
)
def test_process_without_srun_is_alone(variables, started_with, capsys) -> None:
    assert started_with(variables) == 1
    assert "2 tasks, but this command was not started by srun" in capsys.readouterr().out
    again = launch.cluster_environment()
    assert again is None or again.world_size() == 1
    assert capsys.readouterr().out == ""  # the line is printed once


@pytest.mark.parametrize("name", ["job", "bash", "interactive"])
def test_srun_starts_the_tasks_of_its_step(name: str, started_with, capsys) -> None:
    assert started_with({**STEP, "SLURM_JOB_NAME": name}) == 2
    assert capsys.readouterr().out == ""


def test_step_may_be_smaller_than_its_job(started_with) -> None:
    step = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    assert started_with({**STEP, "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", **step}) == 4
    assert os.environ["SLURM_NTASKS_PER_NODE"] == os.environ["SLURM_NNODES"] == "2"
    assert os.environ["SLURM_NODELIST"] == "n1"


def test_srun_needs_no_tasks_per_node(started_with) -> None:
    variables = {name: value for name, value in STEP.items() if name != "SLURM_NTASKS_PER_NODE"}
    assert started_with(variables) == 2


def test_machines_with_different_numbers_of_tasks_are_refused(started_with) -> None:
    with pytest.raises(UserError, match=r"2,1 tasks .* --ntasks-per-node"):
        started_with({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2,1"})


def test_missing_variable_of_srun_is_named(started_with) -> None:
    with pytest.raises(UserError, match="SLURM_STEP_ID is missing"):
        started_with({**BATCH, "SLURM_PROCID": "1"})


def test_without_slurm_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    before = dict(os.environ)
    slurm.match_environment_to_started_tasks()
    assert dict(os.environ) == before


def test_run_in_sbatch_without_srun_trains_to_its_end(program: Program, monkeypatch) -> None:
    for name, value in {**dict.fromkeys(STEP, ""), **BATCH}.items():
        monkeypatch.setenv(name, value)
    status, out, err = program(*SMALL, "--epochs", "1")
    assert (status, err) == (0, "")
    assert "Put srun before the command" in out and "device    cpu" in out
