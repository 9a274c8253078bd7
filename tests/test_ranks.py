"""One run in two processes (gloo, on a CPU): whatever happens to one of them happens to the run, and it goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL
from tests.test_faults import ROOT, same_run
from tests.test_run import rows, wait_for_epochs

SHORT = ("--batch-size", "40", "--epochs", "6", "--checkpoint-every", "2")  # 10 steps an epoch


def start(name: str, tmp_path: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "main.py", *SMALL, *SHORT, "--save-dir", str(tmp_path / "runs"), "--exp-name", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *flags], cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment)


def as_torchrun_tells() -> list[dict[str, str]]:
    """The environment of each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


@contextmanager
def both(name: str, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes as torchrun starts them, without torchrun, to see what each of them does."""
    processes = [start(name, tmp_path, **told) for told in as_torchrun_tells()]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    process = start("run", folder, "--devices", "2")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and "2 x cpu" in out and out.count("\nepoch ") == 6
    return folder / "runs" / "run"


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """BN's statistics are those of the whole batch, each process has its part of it, and nothing counts twice.

    At a low rate: at the usual one, the last digit of a sum (or another number of threads) is a percent 60 steps later.
    """
    for name, flags in (("one", []), ("two", ["--devices", "2"])):
        process = start(name, tmp_path, "--learning-rate", "0.001", *flags)
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    for one, two in zip(rows(tmp_path / "runs" / "one"), rows(tmp_path / "runs" / "two"), strict=True):
        assert one["step"] == two["step"] and one["learning_rate"] == two["learning_rate"]
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=5e-4)
        assert one["z_std"] == pytest.approx(two["z_std"], abs=1e-4)
        assert one["kNN_accuracy"] == pytest.approx(two["kNN_accuracy"], abs=2)  # of 100 test images


NEIGHBOURS = """
import sys, torch
from simsiam.features import extract_features
from simsiam.monitor import KNNMonitor
from models import resnet10
from utils import ranks

with ranks.joined(None, None, gpu=False):
    torch.manual_seed(0)
    network = resnet10(4)
    images = torch.randint(256, (int(sys.argv[2]), 3, 32, 32), dtype=torch.uint8)
    part, n = ranks.share(len(images), 1000), len(images)
    mine = extract_features(network, images, torch.zeros(3), torch.ones(3), part=part)
    features = ranks.whole(mine, part, (n, 32))
    bank = torch.nn.functional.normalize(torch.randn(n, 512), dim=1)  # of this network's features many are equally near
    found = KNNMonitor(k=200)._neighbours(bank, bank[part], part.start, n)
    torch.save((features, *found), f"{sys.argv[1]}/{n}_{ranks.world()}_{ranks.rank()}.pt")
"""


@pytest.mark.parametrize("images", [300, 3300], ids=["all of them in one process", "shared"])
def test_the_neighbours_of_a_shared_bank_are_those_of_one_process_to_the_bit(images: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NEIGHBOURS, str(tmp_path), str(images)]
    environments = [{**os.environ, "OMP_NUM_THREADS": "1"} | told for told in [{}, *as_torchrun_tells()]]
    for process in [subprocess.Popen(command, cwd=ROOT, env=own) for own in environments]:
        assert process.wait(60) == 0
    ends = ("1_0", "2_0", "2_1")
    (features, similarity, labels), *shared = (torch.load(tmp_path / f"{images}_{end}.pt") for end in ends)
    assert labels.shape == (images, 200) and labels[:, 0].tolist() == list(range(images))  # each its own neighbour
    tied = torch.diff(similarity, append=similarity[:, -1:]) == 0  # to the next one: either may come first
    tied |= tied.roll(1, dims=1)
    assert tied.float().mean() < 0.02  # few, and the ends of each row, whose other neighbour is not seen
    for theirs, their_similarity, their_labels in shared:
        assert torch.equal(features, theirs) and torch.equal(similarity, their_similarity)
        assert torch.equal(labels[~tied], their_labels[~tied])


def finish(*names: str, tmp_path: Path) -> list[Path]:
    """The runs, brought to their end by the same command, at once."""
    for process in [start(name, tmp_path, "--devices", "2") for name in names]:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "") and "resumed from" in out
    return [tmp_path / "runs" / name for name in names]


def test_a_signal_to_one_process_saves_and_ends_both(undisturbed: Path, tmp_path: Path) -> None:
    cases = {"a": (signal.SIGTERM, 1), "b": (signal.SIGINT, 0)}
    with ExitStack() as running:
        pairs = {name: running.enter_context(both(name, tmp_path)) for name in cases}
        for name, (number, rank) in cases.items():
            wait_for_epochs(pairs[name][0], tmp_path / "runs" / name, 1)
            pairs[name][rank].send_signal(number)
        for name, (number, _) in cases.items():
            said = [process.communicate(timeout=60)[1] for process in pairs[name]]
            assert [process.returncode for process in pairs[name]] == [128 + number] * 2, said
            assert said[1] == "" and said[0].count("\n") == 1 and f"stopped by {number.name}" in said[0]
            last = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
            step = torch.load(last, weights_only=True)["global_step"]
            assert f"step {step}" in said[0] and 10 <= step < 60
    assert all(same_run(run, undisturbed) for run in finish(*cases, tmp_path=tmp_path))


def test_a_process_that_is_killed_takes_the_other_along(undisturbed: Path, tmp_path: Path) -> None:
    with both("a", tmp_path) as a, both("b", tmp_path) as b:
        for rank, pair in enumerate((a, b)):
            wait_for_epochs(pair[0], tmp_path / "runs" / "ab"[rank], 3)
            pair[rank].kill()
        begun = time.monotonic()
        for rank, pair in enumerate((a, b)):
            _, err = pair[1 - rank].communicate(timeout=60)
            assert pair[1 - rank].returncode == 1 and err == "" and time.monotonic() - begun < 30
    assert all(same_run(run, undisturbed) for run in finish("a", "b", tmp_path=tmp_path))


def test_the_command_that_started_them_passes_a_signal_on_and_one_process_may_go_on_alone(tmp_path: Path) -> None:
    process = start("run", tmp_path, "--devices", "2")
    wait_for_epochs(process, tmp_path / "runs" / "run", 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.count("\n") == 1 and "saved: the same command resumes it" in err
    alone = start("run", tmp_path)
    out, err = alone.communicate(timeout=120)
    assert (alone.returncode, err) == (0, "") and "resumed from" in out and len(rows(tmp_path / "runs" / "run")) == 6


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_the_command_that_started_them_says_in_one_line_that_one_was_killed(tmp_path: Path) -> None:
    process = start("run", tmp_path, "--devices", "2")
    wait_for_epochs(process, tmp_path / "runs" / "run", 3)
    os.kill(children(process)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and err.count("\n") == 1, err
    assert "process 2 of 2 was ended by SIGKILL" in err and "the same command goes on" in err


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ("--batch-size 25", "2 devices share it in equal parts"),
        ("--ckpt-dir /etc/passwd", "not a checkpoint"),
        ("--devices 0", "at least 1"),
    ],
)
def test_a_mistake_is_told_once(flags: str, answer: str, tmp_path: Path) -> None:
    process = start("run", tmp_path, "--devices", "2", *flags.split())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "") and err.count("\n") == 1 and answer in err, err
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()
