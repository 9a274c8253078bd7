"""What the commands that use a checkpoint share: where figures go, and an answer in one line to what is wrong."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import main
from simsiam.evaluation.metrics import accuracy, confusion, per_class
from tests.at_steps import start_with_events
from tests.helpers import Program, Started, as_nobody
from utils.filesystem import lock_folder

COMMANDS = ("knn", "linear", "finetune", "embed", "neighbours", "export")


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_figures_of_hand_made_predictions() -> None:
    truth, predicted = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    counts = confusion(predicted, truth, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert accuracy(counts) == 75 and per_class(counts, ("a", "b", "c")) == {
        "a": 200 / 3,
        "b": 100,
        "c": None,
    }


@pytest.mark.parametrize(
    "command", ["knn", pytest.param("neighbours", marks=pytest.mark.slow("as knn"))]
)
def test_figures_lie_in_the_run_whichever_of_its_files_is_named(
    command: str, copy: Path, program: Program
) -> None:
    """Those of the best epoch in a folder of their own; the file may be named with the flag or without."""
    for file, where in (
        (copy, "results"),
        (copy / "checkpoints" / "last.ckpt", "results"),
        (copy / "checkpoints" / "best.ckpt", "results/best"),
        (copy / "backbone.safetensors", "results"),
    ):
        named = [str(file)] if where == "results" else ["--checkpoint", str(file)]
        status, out, err = program(command, *named, "--overwrite")
        assert (status, err) == (0, "") and f"{copy}/{where}/{command}/summary.json" in out
        summary = json.loads((copy / where / command / "summary.json").read_text())
        assert (
            summary["epoch"] in (1, 2)
            and summary["command"] == command
            and "torch" in summary["versions"]
        )


def test_a_file_that_was_carried_away_knows_its_data_and_keeps_figures_beside_it(
    copy: Path, tmp_path: Path, program: Program
) -> None:
    for name in ("checkpoints/last.ckpt", "backbone.safetensors"):
        alone = tmp_path / "elsewhere" / Path(name).name
        alone.parent.mkdir(exist_ok=True)
        shutil.copy(copy / name, alone)
        assert program("knn", "--checkpoint", str(alone))[0] == 0
        summary = json.loads(
            (tmp_path / "elsewhere" / f"{alone.stem}_results" / "knn" / "summary.json").read_text()
        )
        assert (summary["dataset"], summary["train_images"], summary["test_images"]) == (
            "patterns",
            200,
            100,
        )
    there = tmp_path / "there"
    assert program("knn", "--checkpoint", str(copy), "--results-dir", str(there))[0] == 0
    assert (there / "knn" / "summary.json").exists() and not (copy / "results").exists()


def test_earlier_figures_are_not_replaced_unasked(copy: Path, program: Program) -> None:
    assert program("knn", "--checkpoint", str(copy))[0] == 0
    mine = copy / "results" / "knn" / "notes.txt"
    mine.write_text("mine")
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    status, _, err = program("knn", "--checkpoint", str(copy))
    assert status == 2 and "--overwrite" in err and err.count("\n") == 1
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before
    assert (
        program("knn", "--checkpoint", str(copy), "--overwrite")[0] == 0
        and mine.read_text() == "mine"
    )


@pytest.mark.slow("two further runs for one folder")
def test_a_run_that_starts_anew_drops_the_figures_of_the_old_one(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    from tests.conftest import SMALL

    flags = [*SMALL, "--epochs", "1", "--save-dir", str(tmp_path), "--exp-name", "run"]
    assert program(*flags)[0] == 0 and program("knn", "--checkpoint", str(tmp_path / "run"))[0] == 0
    assert program(*flags, "--overwrite")[0] == 0 and not (tmp_path / "run" / "results").exists()


def test_a_command_changes_nothing_of_the_run(copy: Path, program: Program) -> None:
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    for command, *flags in (
        ("knn",),
        ("linear",),
        ("linear", "--augment", "--epochs", "2"),
        ("finetune", "--label-fraction", "0.25", "--epochs", "2"),
        ("embed",),
        ("neighbours",),
        ("export",),
    ):
        status, _, err = program(command, "--checkpoint", str(copy), *flags)
        assert (status, err) == (0, ""), command
    assert {
        f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and "results" not in f.parts
    } == before


# ---------------------------------------------------------------- bad input: status 2, one line, nothing written

BAD_FLAGS = {
    "knn": {
        "--bogus": "no such flag",
        "--dataset mnist": "cifar10",
        "--train-images 0": "greater than or equal to 1",
        "--dataset cifar10 --data-dir /no/such --data-url http://127.0.0.1:9/x": "data_batch_1 is missing",
        "--results-dir /proc/nowhere": "cannot be written",
        "--results-dir /etc/passwd": "is a file",
    },
    "linear": {
        "--epochs 5": "goes with --augment",
        "--crop-scale 0.5": "goes with --augment",
        "--augment --epochs 0": "greater than or equal to 1",
        "--augment --crop-scale 2": "less than or equal to 1",
        "--augment --learning-rate nan": "finite",
        "--held-out 0": "greater than 0",
        "--held-out 0.001": "0 of 200",
        "--results-dir=": "is empty",
        "--precision bf16": "goes with --augment",
        "--augment --precision 16": "GPU",
        "--seed -1": "greater than or equal to 0",
    },
    "finetune": {
        "--label-fraction 0": "greater than 0",
        "--label-fraction 1.5": "less than or equal to 1",
        "--label-fraction nan": "less than or equal to 1",
        "--label-fraction 0.01": "without a label",
        "--label-count 0": "greater than or equal to 1",
        "--label-count 9": "without a label",
        "--label-count 210": "21 of class horizontal, which has 20",
        "--label-count 50 --label-fraction 0.1": "one of them",
        "--seeds": "at least 1 item",
        "--seeds -1": "greater than or equal to 0",
        "--epochs 0": "greater than or equal to 1",
        "--batch-size 1": "greater than or equal to 2",
        "--learning-rate 0": "greater than 0",
        "--head-learning-rate -1": "greater than 0",
        "--crop-scale 0": "greater than 0",
    },
    "embed": {
        "--output features.txt": "ends in .npz",
        "--output features.npy": "ends in .npz",
        "--output /proc/nowhere/f.npz": "cannot be written",
        "--images /no/such": "no such folder",
        "--images /etc/passwd": "no such folder",
        "--split all": "There are both, train, test",
        f"--output /tmp/{'x' * 300}.npz": "too long",
        "--images=": "is empty",
    },
    "neighbours": {
        "--output picture.jpg": ".png",
        "--queries 0": "greater than or equal to 1",
        "--k 51": "less than or equal to 50",
        "--train-images 5": "there are 5 train images",
        "--images /no/such": "no such folder",
    },
    "export": {
        "--format tflite": "There are safetensors, torch-export, onnx",
        "--output backbone.onnx": "ends in .safetensors",
        "--format onnx --output backbone.pt2": "ends in .onnx",
        "--output /": "ends in .safetensors",
    },
}


@pytest.mark.parametrize(
    ("command", "flags"), [(c, flags) for c in BAD_FLAGS for flags in BAD_FLAGS[c]]
)
def test_a_wrong_flag_is_answered_in_one_line(
    command: str, flags: str, trained: Path, program: Program
) -> None:
    before = sorted(trained.rglob("*"))
    status, out, err = program(command, "--checkpoint", str(trained), *flags.split())
    assert status == 2 and out == "", (out, err)
    assert err.startswith("main.py: ") and err.count("\n") == 1 and BAD_FLAGS[command][flags] in err
    assert sorted(trained.rglob("*")) == before


@pytest.mark.slow("each command twice; that a command replaces nothing unasked is a quick test")
def test_what_a_person_keeps_among_the_figures_stays(copy: Path, program: Program) -> None:
    mine = ["2024-2025/thesis.txt", "12345/notes.txt", "mine.safetensors", "seed_0/mine.txt"]
    for command in COMMANDS:
        name = (
            "finetune_0.25"
            if command == "finetune"
            else "export_safetensors"
            if command == "export"
            else command
        )
        for file in mine:
            (copy / "results" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / "results" / name / file).write_text("mine")
        flags = ["--label-fraction", "0.25", "--epochs", "1"] if command == "finetune" else []
        for again in ([], ["--overwrite"]):
            assert program(command, "--checkpoint", str(copy), *flags, *again)[0] == 0
            assert all((copy / "results" / name / file).read_text() == "mine" for file in mine)


@pytest.mark.slow("each command twice; that wrong flags leave all as it is is a quick test")
def test_a_call_that_fails_leaves_the_figures_of_an_earlier_one(
    copy: Path, program: Program, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "bad.png").write_text("no image")
    for command, *flags in (
        ("embed", "--images", str(images)),
        ("neighbours", "--images", str(images)),
        ("linear", "--held-out", "0.001"),
        ("linear", "--precision", "bf16"),
        ("knn", "--train-images", "0"),
    ):
        assert program(command, "--checkpoint", str(copy), "--overwrite")[0] == 0
        before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
        assert program(command, "--checkpoint", str(copy), "--overwrite", *flags)[0] == 2
        assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


def into_a_closed_pipe(args: list[str]) -> int:
    """main.py, whose reader has seen enough, as in `| head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    return main.main(args)


def test_a_closed_pipe_ends_it_quietly(trained: Path, tmp_path: Path) -> None:
    process = Started(
        into_a_closed_pipe, ["knn", "--checkpoint", str(trained), "--results-dir", str(tmp_path)]
    )
    assert process.communicate()[1] == "" and process.returncode == 141


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_finetune_keeps_finished_seeds(
    number: signal.Signals, trained: Path, tmp_path: Path
) -> None:
    flags = [
        "--label-fraction",
        "0.25",
        "--epochs",
        "2",
        "--seeds",
        "0",
        "1",
    ]  # two steps for each seed
    where = ["--checkpoint", str(trained), "--results-dir", str(tmp_path)]
    process = start_with_events({4: [number.name]}, "finetune", *where, *flags)
    _, err = process.communicate()
    assert process.returncode == 128 + number and err.count("\n") == 1
    assert f"stopped by {number.name}" in err
    folder = tmp_path / "finetune_0.25"
    assert (folder / "seed_0" / "summary.json").exists()
    assert (
        not (folder / "seed_1" / "summary.json").exists() and not (folder / "summary.json").exists()
    )


def test_two_at_once_are_kept_apart(trained: Path, program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "linear"
    folder.mkdir()
    with lock_folder(folder, ""):
        status, _, err = program(
            "linear", "--checkpoint", str(trained), "--results-dir", str(tmp_path)
        )
    assert status == 2 and "another process is at work" in err and err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_what_may_not_be_read_or_written_is_named(trained: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(trained, secret / "run")
    secret.chmod(0o700)
    open_ = tmp_path / "open"
    shutil.copytree(trained, open_)
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest keeps others out of its folders
        folder.chmod(0o755)
    for flags in (
        ["--checkpoint", str(secret / "run")],
        ["--checkpoint", str(open_)],
        ["--checkpoint", str(open_), "--results-dir", str(secret / "results")],
    ):
        process = Started(as_nobody, ["knn", *flags])
        _, err = process.communicate()
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert "ermission" in err or "cannot be written" in err
