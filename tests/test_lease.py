"""A lease plans its run, and brings its results home however it ends."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from simsiam import load_backbone
from tests.benchmarks import lease_phases
from tests.benchmarks.lease import choose_epochs, plan_epochs
from tests.benchmarks.lease_phases import Lease, split_file
from tests.helpers import ROOT, SMALL, load_weights

MAX_FILES = 8  # that come back from the machine
MAX_BYTES = 16 * 2**20  # of each
WAIT_SECONDS = 240
LONG = ["--epochs", "100000", "--knn-every", "0", "--checkpoint-every", "1"]


def start_lease(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    """Start lease1 with a small run, as the leader of a process group."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "RUNS": str(tmp_path / "runs"),
        "OUT": str(tmp_path / "out"),
        "LEASE_SECONDS": "3000",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        ["bash", "tests/benchmarks/h200.sh", "lease1", *SMALL, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stop_in_training(tmp_path: Path, number: int) -> tuple[int, str]:
    """Send a signal to a lease and its processes once rows have come home.

    Returns:
        The exit status, and what was printed.
    """
    process = start_lease(tmp_path, *LONG)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (tmp_path / "out" / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)
        printed, _ = process.communicate(timeout=WAIT_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed


def join_parts(folder: Path) -> Path:
    """Join the parts of a backbone by the command that comes with them."""
    command = (folder / "backbone.sha256").read_text().splitlines()[0].removeprefix("# ")
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, capture_output=True)
    return folder / "backbone.safetensors"


def names_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as file:
        return file.getnames()


# ---------------------------------------------------------------- plan


def test_the_chosen_epochs_are_the_most_that_end_in_time() -> None:
    assert choose_epochs(540, 55, 40, epoch_seconds=2.5, most=200) == 178  # 178 * 2.5 = 445
    assert choose_epochs(539.9, 55, 40, epoch_seconds=2.5, most=200) == 177


def test_at_most_the_wanted_epochs_are_chosen() -> None:
    assert choose_epochs(5400, 55, 40, epoch_seconds=2.5, most=200) == 200


def test_no_epochs_are_chosen_if_there_is_no_time() -> None:
    assert choose_epochs(97, 55, 40, epoch_seconds=2.5, most=200) == 0
    assert choose_epochs(10, 55, 40, epoch_seconds=2.5, most=200) == 0


def test_the_plan_follows_the_measured_step(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "out", tmp_path / "run", seconds=500)
    without_steps = plan_epochs(lease, most=1000)
    step = {"step_seconds": 0.001, "steps_per_epoch": 390, "startup_seconds": 30.0}
    lease.facts["steps"] = [step]
    fast = plan_epochs(lease, most=1000)
    step["step_seconds"] = 0.01
    slow = plan_epochs(lease, most=1000)
    assert 0 < slow < without_steps < fast == 1000


# ---------------------------------------------------------------- phases


@pytest.fixture
def short_lease(tmp_path: Path) -> Lease:
    return Lease(tmp_path / "out", tmp_path / "run", seconds=1)


def test_a_phase_ends_when_only_its_reserve_is_left(short_lease: Lease) -> None:
    assert not short_lease.run_phase("sleep", ["-c", "import time; time.sleep(1000)"], 0.5)
    (phase,) = json.loads((short_lease.out / "lease.json").read_text())["phases"]
    assert phase["result"] == "out of time"
    assert short_lease.has_failed


def test_a_phase_is_left_out_if_there_is_no_time_for_it(short_lease: Lease) -> None:
    file = short_lease.out / "made"
    assert not short_lease.run_phase("make", ["-c", f"open({str(file)!r}, 'w')"], reserve=2)
    assert not file.exists()
    assert short_lease.facts["phases"][0]["result"] == "left out"


def test_the_log_has_what_a_phase_printed(tmp_path: Path) -> None:
    patient = Lease(tmp_path / "out", tmp_path / "run", seconds=200)
    assert patient.run_phase("print", ["-c", "print('a line')"], reserve=0)
    assert "a line\n" in (tmp_path / "out" / "log.txt").read_text()
    assert not patient.run_phase("fail", ["-c", "raise SystemExit(7)"], reserve=0)
    assert "failed with status 7" in (tmp_path / "out" / "log.txt").read_text()


# ---------------------------------------------------------------- results


def test_the_printed_command_joins_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_phases, "PART_BYTES", 1000)
    (tmp_path / "out").mkdir()
    content = os.urandom(3500)
    (tmp_path / "backbone.safetensors").write_bytes(content)
    parts = split_file(tmp_path / "backbone.safetensors", tmp_path / "out")
    assert [part.stat().st_size for part in parts] == [1000, 1000, 1000, 500]
    assert join_parts(tmp_path / "out").read_bytes() == content


def test_the_checksum_finds_a_damaged_part(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "backbone.safetensors").write_bytes(os.urandom(100))
    (part,) = split_file(tmp_path / "backbone.safetensors", tmp_path / "out")
    part.write_bytes(b"damaged")
    with pytest.raises(subprocess.CalledProcessError):
        join_parts(tmp_path / "out")


def test_the_parts_are_small_enough_to_come_back() -> None:
    assert lease_phases.PART_BYTES <= MAX_BYTES


# ---------------------------------------------------------------- rehearsals


@pytest.mark.timeout(500)
@pytest.mark.slow("a lease from end to end: five starts of Python")
def test_a_lease_brings_home_its_figures_and_its_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_lease(tmp_path, "--epochs", "2")
    printed, _ = process.communicate(timeout=2 * WAIT_SECONDS)
    assert process.returncode == 0, printed
    out = tmp_path / "out"
    run = tmp_path / "runs" / "lease1"
    files = list(out.iterdir())
    assert len(files) <= MAX_FILES
    assert max(file.stat().st_size for file in files) <= MAX_BYTES

    facts = json.loads((out / "lease.json").read_text())
    phases = [phase["phase"] for phase in facts["phases"]]
    assert phases == ["steps", "train", "knn", "linear", "race"]
    assert [step["views"] for step in facts["steps"]] == [4, 2]
    assert facts["plan"]["epochs"] == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    results = ["results/knn/summary.json", "results/linear/summary.json"]
    assert {"config.yaml", "summary.json", *results} <= set(names_in(out / "figures.tar.gz"))
    assert "kNN, k 10, one vote each" in (out / "log.txt").read_text()

    # The backbone of a full run has three parts.
    monkeypatch.setattr(lease_phases, "PART_BYTES", 30_000)
    assert len(split_file(run / "backbone.safetensors", out)) == 3
    joined = load_backbone(join_parts(out))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(joined(x), load_backbone(run)(x))

    process = start_lease(tmp_path)
    printed, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 2
    assert "exists" in printed


@pytest.mark.timeout(500)
@pytest.mark.slow("a measurement, a training and an export, each with a start of Python")
def test_a_terminated_lease_brings_home_the_last_checkpoint(tmp_path: Path) -> None:
    status, printed = stop_in_training(tmp_path, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, printed
    out = tmp_path / "out"
    phases = json.loads((out / "lease.json").read_text())["phases"]
    results = {phase["phase"]: phase["result"] for phase in phases}
    assert results == {"steps": "done", "train": "stopped by a signal", "export": "done"}
    assert "config.yaml" in names_in(out / "figures.tar.gz")
    backbone = load_backbone(join_parts(out))
    trained = load_weights(tmp_path / "runs" / "lease1")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, trained[f"backbone.{name}"])


@pytest.mark.timeout(500)
@pytest.mark.slow("a measurement and a training, each with a start of Python")
def test_a_killed_lease_leaves_figures(tmp_path: Path) -> None:
    status, printed = stop_in_training(tmp_path, signal.SIGKILL)
    assert status == -signal.SIGKILL, printed
    out = tmp_path / "out"
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert "train_loss" in json.loads(line)
    facts = json.loads((out / "lease.json").read_text())
    assert facts["steps"]
    assert facts["plan"]["epochs"] > 0
    assert "z_std" in (out / "log.txt").read_text()  # in the line of the first epoch
