"""One run in two processes on a CPU: if one process ends, the run ends and can be resumed."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models import resnet10
from simsiam.callbacks import sharded_features
from simsiam.callbacks.sharded_features import nearest_in_shards
from simsiam.commands import launch
from simsiam.evaluation.features import extract_features
from tests.at_steps import Events, start_with_events, start_with_events_below, steps_saved
from tests.helpers import SMALL, prints_only_header, read_rows, same_run, start_small
from tests.processes import Started, child_pids, torchrun_environments, wait_for
from utils import distributed

# An epoch has 4 steps.
SHORT = (
    *("--train-images", "64", "--batch-size", "16", "--epochs", "4"),
    *("--checkpoint-every", "2"),
)


def start_short(name: str, tmp_path: Path, *flags: str, **environment: str) -> Started:
    return start_small(name, tmp_path, *SHORT, *flags, **environment)


@contextmanager
def start_pair(
    name: str, tmp_path: Path, *flags: str, events: tuple[Events, Events] = ({}, {})
) -> Iterator[list[Started]]:
    """Start two processes as torchrun would, but without it, so that a test sees what each does.

    Args:
        events: what happens in the process of each rank.
    """
    command = (*SMALL, *SHORT, "--save-dir", str(tmp_path / "runs"), "--exp-name", name, *flags)
    processes: list[Started] = []
    for events_of_rank, environment in zip(events, torchrun_environments(), strict=True):
        processes.append(start_with_events(events_of_rank, *command, **environment))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def train_in_pair(name: str, tmp_path: Path, *flags: str) -> tuple[str, str]:
    """Train a run to its end in two processes, and return the stdout of each."""
    with start_pair(name, tmp_path, *flags) as pair:
        out_0, err_0 = pair[0].communicate()
        out_1, err_1 = pair[1].communicate()
        assert (err_0, err_1) == ("", "")
        assert [process.returncode for process in pair] == [0, 0]
    return out_0, out_1


@pytest.fixture(scope="session")
def undisturbed(make_once: Callable[..., Path]) -> Path:
    """Return the folder of a run in two processes that nothing has interrupted."""

    def fill(folder: Path) -> None:
        out, _ = train_in_pair("run", folder)
        assert "2 x cpu" in out and out.count("\nepoch ") == 4

    return make_once("two_undisturbed", fill) / "runs" / "run"


def test_two_processes_learn_the_same_as_one(tmp_path: Path) -> None:
    """BN's statistics are those of the complete batch, and each process trains on its own part.

    The learning rate is low. At the usual rate, a difference in the last digit of a sum grows to a
    percent within 60 steps.
    """
    one = start_short("one", tmp_path, "--learning-rate", "0.001")
    _, out_1 = train_in_pair("two", tmp_path, "--learning-rate", "0.001")
    assert out_1 == ""  # rank 0 prints for both
    _, err = one.communicate()
    assert (one.returncode, err) == (0, "")
    rows_of_one = read_rows(tmp_path / "runs" / "one")
    rows_of_two = read_rows(tmp_path / "runs" / "two")
    for row_1, row_2 in zip(rows_of_one, rows_of_two, strict=True):
        assert row_1["step"] == row_2["step"]
        assert row_1["learning_rate"] == row_2["learning_rate"]
        assert row_1["train_loss"] == pytest.approx(row_2["train_loss"], abs=5e-4)
        assert row_1["z_std"] == pytest.approx(row_2["z_std"], abs=1e-4)
        # Two percent are two of the 100 test images.
        assert row_1["kNN_accuracy"] == pytest.approx(row_2["kNN_accuracy"], abs=2)


def find_neighbours(args: list[str]) -> int:
    """Save features and neighbours of args[1] images, as this process has them, in args[0]."""
    folder = args[0]
    n = int(args[1])
    with launch.process_group(None, None, gpu=False):
        torch.manual_seed(0)
        network = resnet10(4)
        images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
        part = distributed.shard(n)
        features = distributed.all_gather_rows(
            extract_features(network, images[part], torch.zeros(3), torch.ones(3))
        )
        # These features have clear neighbours. Among those of the network many are equally near.
        bank = torch.nn.functional.normalize(torch.randn(n, 512), dim=1)
        sharded_features.EXCHANGE_BYTES = 200 * 12 * 2 * 128  # 128 queries at a time
        similarity, index = nearest_in_shards(bank, bank[part], 200, part.start)
        others, _ = nearest_in_shards(bank, bank[part], 200, part.start, own=torch.arange(n))
        file = f"{folder}/{distributed.world_size()}_{distributed.rank()}.pt"
        torch.save((features, similarity, index, others), file)
    return 0


@pytest.mark.parametrize("images", [301, 3301], ids=["fewer in each process than vote", "more"])
def test_neighbours_in_a_shared_bank_are_those_of_one_process(images: int, tmp_path: Path) -> None:
    args = [str(tmp_path), str(images)]
    environments = [{}, *torchrun_environments()]
    processes = [Started(find_neighbours, args, **variables) for variables in environments]
    for process in processes:
        assert process.communicate() == ("", "")
        assert process.returncode == 0
    features, similarity, index, others = torch.load(tmp_path / "1_0.pt")
    assert index.shape == (images, 200)
    assert index[:, 0].tolist() == list(range(images))  # each is its own nearest neighbour
    assert torch.equal(others[:, :199], similarity[:, 1:])  # unless it is left out

    # Of two neighbours that are equally near, either may come first.
    tied_with_next = -torch.diff(similarity, append=similarity[:, -1:]) < 1e-6
    tied = tied_with_next | tied_with_next.roll(1, dims=1)
    assert tied.float().mean() < 0.05
    for name in ("2_0", "2_1"):
        loaded = torch.load(tmp_path / f"{name}.pt")
        other_features, other_similarity, other_index, other_others = loaded
        torch.testing.assert_close(other_features, features, atol=1e-6, rtol=0)
        torch.testing.assert_close(other_similarity, similarity, atol=1e-6, rtol=0)
        torch.testing.assert_close(other_others, others, atol=1e-6, rtol=0)
        assert torch.equal(other_index[~tied], index[~tied])


def is_served(address: tuple[str, int]) -> bool:
    """Return whether a process accepts connections at this address."""
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_wait_for_a_missing_process(number, tmp_path: Path) -> None:
    first, _ = torchrun_environments()  # the second process is never started
    process = start_short("run", tmp_path, **first)
    address = (first["MASTER_ADDR"], int(first["MASTER_PORT"]))
    wait_for(process, lambda: is_served(address))  # from now on the process waits in C++ code
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == f"main.py: stopped by {number.name}; the same command resumes, or starts again\n"


def test_signal_ends_the_wait_for_a_missing_first_process(tmp_path: Path) -> None:
    _, second = torchrun_environments()
    with socket.create_server((second["MASTER_ADDR"], int(second["MASTER_PORT"]))) as server:
        process = start_short("run", tmp_path, **second)
        connection, _ = server.accept()  # never answered
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", "") and process.returncode == 143
        connection.close()


def test_port_in_use_gives_one_line_of_error(tmp_path: Path) -> None:
    first, _ = torchrun_environments()
    with socket.create_server((first["MASTER_ADDR"], int(first["MASTER_PORT"]))):
        process = start_short("run", tmp_path, **first)
        _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1, err
    assert "MASTER_PORT" in err and "in use" in err


OTHER_RANK = pytest.mark.slow("the same with the other process: two more runs of two")


@pytest.mark.parametrize(
    ("number", "rank"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=OTHER_RANK)]
)
def test_signal_to_one_process_saves_and_ends_both(
    number: signal.Signals, rank: int, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    with start_pair("run", tmp_path, events=in_step(6, number.name, rank)) as pair:
        _, err_0 = pair[0].communicate()
        _, err_1 = pair[1].communicate()
        assert [process.returncode for process in pair] == [128 + number] * 2
    assert err_0.count("\n") == 1
    assert f"stopped by {number.name} in epoch 2, step 6" in err_0
    assert err_1 == ""
    assert steps_saved(run / "checkpoints" / "last.ckpt") == 6
    out_0, _ = train_in_pair("run", tmp_path)
    assert "resumed from" in out_0
    assert same_run(run, undisturbed)


def in_step(step: int, event: str, rank: int) -> tuple[Events, Events]:
    """Return an event in one of two processes, as `start_pair` takes it."""
    return ({step: [event]}, {}) if rank == 0 else ({}, {step: [event]})


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=OTHER_RANK)])
def test_other_process_ends_when_one_is_killed(rank: int, tmp_path: Path) -> None:
    with start_pair("run", tmp_path, events=in_step(10, "SIGKILL", rank)) as pair:
        _, err = pair[1 - rank].communicate()
        assert pair[1 - rank].returncode == 1 and err == ""


@pytest.mark.slow("two more runs of two; resuming after a signal has a quick test")
def test_run_whose_processes_were_killed_resumes_exactly(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    held = tmp_path / "held"
    # Rank 1 stops in epoch 3, and rank 0 waits for it.
    with start_pair("run", tmp_path, events=in_step(11, str(held), 1)) as pair:
        wait_for(pair[0], lambda: held.exists() and (run / "checkpoints" / "last.ckpt").exists())
        pair[1].kill()
        pair[0].communicate()
    out_0, _ = train_in_pair("run", tmp_path)
    assert "resumed from" in out_0
    assert same_run(run, undisturbed)


@pytest.mark.slow("five fresh starts; a signal to one of the processes has a quick test")
def test_launcher_passes_a_signal_on_and_a_single_process_can_resume(
    tmp_path: Path,
) -> None:
    held = tmp_path / "held"
    where = ("--save-dir", str(tmp_path / "runs"), "--exp-name", "run")
    process = start_with_events_below(
        tmp_path, {6: [held]}, *SMALL, *SHORT, *where, "--devices", "2"
    )
    wait_for(process, held.exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.count("\n") == 1
    assert "saved: the same command resumes it" in err
    alone = start_short("run", tmp_path)
    out, err = alone.communicate()
    assert (alone.returncode, err) == (0, "")
    assert "resumed from" in out
    assert len(read_rows(tmp_path / "runs" / "run")) == 4


@pytest.mark.slow("two fresh starts; the end of the other process has a quick test")
def test_launcher_prints_one_line_if_a_process_was_killed(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    where = ("--save-dir", str(tmp_path / "runs"), "--exp-name", "run")
    flags = (*SMALL, *SHORT, *where, "--devices", "2")
    held = tmp_path / "held"
    process = start_with_events_below(tmp_path, {11: [held]}, *flags, TMPDIR=str(temporary))
    wait_for(process, held.exists)
    os.kill(child_pids(process)[-1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGKILL and err.count("\n") == 1, err
    assert "process 2 of 2 was ended by SIGKILL" in err and "the same command resumes" in err
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ("--batch-size 25", "must split into 2 equal parts of at least 2 images, for 2 devices"),
        ("--ckpt-dir /etc/passwd", "not a checkpoint"),
    ],
)
def test_user_error_is_printed_once(flags: str, answer: str, tmp_path: Path) -> None:
    with start_pair("run", tmp_path, *flags.split()) as pair:
        out_0, err_0 = pair[0].communicate()
        out_1, err_1 = pair[1].communicate()
        assert [process.returncode for process in pair] == [2, 2]
    assert prints_only_header(out_0)
    assert err_0.count("\n") == 1
    assert answer in err_0
    assert (out_1, err_1) == ("", "")
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


@pytest.mark.slow("two fresh starts; what each process prints has a quick test")
def test_launcher_does_not_repeat_a_user_error(tmp_path: Path) -> None:
    process = start_short("wrong", tmp_path, "--devices", "2", "--batch-size", "25")
    out, err = process.communicate()
    assert process.returncode == 2 and prints_only_header(out), out
    assert err.count("\n") == 1 and "for 2 devices" in err, err
