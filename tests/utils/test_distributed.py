"""One run in two processes (gloo, on a CPU): whatever happens to one of them happens to the run, and it goes on."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models import resnet10
from simsiam.callbacks.knn import nearest_in_shards
from simsiam.commands import launch
from simsiam.evaluation.features import extract_features
from tests.at_steps import Events, start_with_events, start_with_events_below, steps_saved
from tests.helpers import SMALL, prints_only_header, read_rows, same_run, start_small
from tests.processes import Started, child_pids, torchrun_environments, wait_for
from utils import distributed

SHORT = (
    "--train-images",
    "64",
    "--batch-size",
    "16",
    "--epochs",
    "4",
    "--checkpoint-every",
    "2",
)  # 4 steps an epoch


def start_two(name: str, tmp_path: Path, *flags: str, **environment: str) -> Started:
    return start_small(name, tmp_path, *SHORT, *flags, **environment)


@contextmanager
def both(
    name: str, tmp_path: Path, *flags: str, events: tuple[Events, Events] = ({}, {})
) -> Iterator[list[Started]]:
    """Two processes as torchrun starts them, without torchrun, to see what each of them does; events by rank."""
    command = (*SMALL, *SHORT, "--save-dir", str(tmp_path / "runs"), "--exp-name", name, *flags)
    each = zip(events, torchrun_environments(), strict=True)
    processes = [start_with_events(some, *command, **told) for some, told in each]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def to_its_end(name: str, tmp_path: Path, *flags: str) -> tuple[str, str]:
    """What the first of two processes said of the run that they brought to its end, and what the second said."""
    with both(name, tmp_path, *flags) as pair:
        (out, err), (quiet, err2) = (process.communicate() for process in pair)
        assert [process.returncode for process in pair] == [0, 0] and err == err2 == "", err + err2
    return out, quiet


@pytest.fixture(scope="session")
def undisturbed(made: Callable[..., Path]) -> Path:
    def fill(folder: Path) -> None:
        out, _ = to_its_end("run", folder)
        assert "2 x cpu" in out and out.count("\nepoch ") == 4

    return made("two_undisturbed", fill) / "runs" / "run"


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """BN's statistics are those of the whole batch, each process has its part of it, and nothing counts twice.

    At a low rate: at the usual one, the last digit of a sum (or another number of threads) is a percent 60 steps later.
    """
    one = start_two("one", tmp_path, "--learning-rate", "0.001")
    assert (
        to_its_end("two", tmp_path, "--learning-rate", "0.001")[1] == ""
    )  # the first process speaks for both
    assert one.communicate()[1] == "" and one.returncode == 0
    for one, two in zip(
        read_rows(tmp_path / "runs" / "one"), read_rows(tmp_path / "runs" / "two"), strict=True
    ):
        assert one["step"] == two["step"] and one["learning_rate"] == two["learning_rate"]
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=5e-4)
        assert one["z_std"] == pytest.approx(two["z_std"], abs=1e-4)
        assert one["kNN_accuracy"] == pytest.approx(
            two["kNN_accuracy"], abs=2
        )  # of 100 test images


def find_neighbours(args: list[str]) -> int:
    """Features of ARGS[1] images and each image's neighbours among all, as this process has them, into ARGS[0]."""
    folder, n = args[0], int(args[1])
    with launch.process_group(None, None, gpu=False):
        torch.manual_seed(0)
        network = resnet10(4)
        images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
        part = distributed.shard(n)
        features = distributed.all_gather_rows(
            extract_features(network, images[part], torch.zeros(3), torch.ones(3))
        )
        bank = torch.nn.functional.normalize(
            torch.randn(n, 512), dim=1
        )  # of these features many are equally near
        found = nearest_in_shards(bank, bank[part], 200, part.start)
        torch.save(
            (features, *found), f"{folder}/{distributed.world_size()}_{distributed.rank()}.pt"
        )
    return 0


@pytest.mark.parametrize("images", [301, 3301], ids=["fewer in each process than vote", "more"])
def test_the_neighbours_in_a_shared_bank_are_those_of_one_process(
    images: int, tmp_path: Path
) -> None:
    args = [str(tmp_path), str(images)]
    processes = [Started(find_neighbours, args, **told) for told in [{}, *torchrun_environments()]]
    for process in processes:
        assert process.communicate() == ("", "") and process.returncode == 0
    (features, similarity, index), *shared = (
        torch.load(tmp_path / f"{end}.pt") for end in ("1_0", "2_0", "2_1")
    )
    assert index.shape == (images, 200) and index[:, 0].tolist() == list(
        range(images)
    )  # each its own neighbour
    tied = (
        -torch.diff(similarity, append=similarity[:, -1:]) < 1e-6
    )  # with the next one: either may come first
    tied |= tied.roll(1, dims=1)
    assert tied.float().mean() < 0.05
    for other_features, other_similarity, other_index in shared:
        torch.testing.assert_close(other_features, features, atol=1e-6, rtol=0)
        torch.testing.assert_close(other_similarity, similarity, atol=1e-6, rtol=0)
        assert torch.equal(other_index[~tied], index[~tied])


def is_served(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_missing_process(number, tmp_path: Path) -> None:
    first, _ = torchrun_environments()  # the second process is never started
    process = start_two("run", tmp_path, **first)
    address = (first["MASTER_ADDR"], int(first["MASTER_PORT"]))
    wait_for(process, lambda: is_served(address))  # from then on it waits in C++ code
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == f"main.py: stopped by {number.name}; the same command resumes, or starts again\n"


def test_a_signal_ends_the_wait_for_a_missing_first_process(tmp_path: Path) -> None:
    _, second = torchrun_environments()
    with socket.create_server((second["MASTER_ADDR"], int(second["MASTER_PORT"]))) as server:
        process = start_two("run", tmp_path, **second)
        connection, _ = server.accept()  # never answered
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", "") and process.returncode == 143
        connection.close()


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    first, _ = torchrun_environments()
    with socket.create_server((first["MASTER_ADDR"], int(first["MASTER_PORT"]))):
        process = start_two("run", tmp_path, **first)
        _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1, err
    assert "MASTER_PORT" in err and "in use" in err


ANOTHER = pytest.mark.slow("the other process, two more runs of two")


@pytest.mark.parametrize(
    ("number", "rank"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=ANOTHER)]
)
def test_a_signal_to_one_process_saves_and_ends_both(
    number: signal.Signals, rank: int, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    with both("run", tmp_path, events=in_step(6, number.name, rank)) as pair:
        said = [process.communicate()[1] for process in pair]
        assert [process.returncode for process in pair] == [128 + number] * 2, said
    assert (
        said[1] == ""
        and said[0].count("\n") == 1
        and f"stopped by {number.name} in epoch 2, step 6" in said[0]
    )
    assert steps_saved(run / "checkpoints" / "last.ckpt") == 6
    assert "resumed from" in to_its_end("run", tmp_path)[0] and same_run(run, undisturbed)


def in_step(step: int, event: str, rank: int) -> tuple[Events, Events]:
    """An event in one of two processes."""
    return ({step: [event]}, {}) if rank == 0 else ({}, {step: [event]})


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=ANOTHER)])
def test_a_process_that_is_killed_takes_the_other_along(rank: int, tmp_path: Path) -> None:
    with both("run", tmp_path, events=in_step(10, "SIGKILL", rank)) as pair:
        _, err = pair[1 - rank].communicate()
        assert pair[1 - rank].returncode == 1 and err == ""


@pytest.mark.slow("two more runs of two; that one which was stopped goes on is a quick test")
def test_a_run_whose_processes_died_goes_on_as_the_same_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    held = tmp_path / "held"
    with both(
        "run", tmp_path, events=in_step(11, str(held), 1)
    ) as pair:  # in epoch 3; the other waits for this one
        wait_for(pair[0], lambda: held.exists() and (run / "checkpoints" / "last.ckpt").exists())
        pair[1].kill()
        pair[0].communicate()
    assert "resumed from" in to_its_end("run", tmp_path)[0] and same_run(run, undisturbed)


@pytest.mark.slow(
    "five fresh starts; that a signal ends all and saves, and that the command tells, are quick tests"
)
def test_the_command_that_started_them_passes_a_signal_on_and_one_process_may_go_on_alone(
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
    assert (
        process.returncode == 143
        and err.count("\n") == 1
        and "saved: the same command resumes it" in err
    )
    alone = start_two("run", tmp_path)
    out, err = alone.communicate()
    assert (
        (alone.returncode, err) == (0, "")
        and "resumed from" in out
        and len(read_rows(tmp_path / "runs" / "run")) == 4
    )


@pytest.mark.slow("two fresh starts; that the death of one ends the other is a quick test")
def test_the_command_that_started_them_says_in_one_line_that_one_was_killed(tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
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
def test_a_mistake_is_told_once(flags: str, answer: str, tmp_path: Path) -> None:
    with both("run", tmp_path, *flags.split()) as pair:
        said = [process.communicate() for process in pair]
        assert [process.returncode for process in pair] == [2, 2]
    (out, err), nothing = said
    assert (
        prints_only_header(out) and nothing == ("", "") and err.count("\n") == 1 and answer in err
    ), err
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


@pytest.mark.slow("two fresh starts; each process's answer is a quick test")
def test_the_command_that_started_them_leaves_a_mistake_to_be_told_once(tmp_path: Path) -> None:
    process = start_two("wrong", tmp_path, "--devices", "2", "--batch-size", "25")
    out, err = process.communicate()
    assert process.returncode == 2 and prints_only_header(out), out
    assert err.count("\n") == 1 and "for 2 devices" in err, err
