"""What the commands that use a checkpoint share: where figures go, and an answer in one line to what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simsiam.evaluation import accuracy, confusion, per_class
from tests.test_load import bad_files

Program = Callable[..., tuple[int, str, str]]
COMMANDS = ("knn", "linear", "finetune", "embed", "neighbours", "export")


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_figures_of_hand_made_predictions() -> None:
    truth, predicted = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    counts = confusion(predicted, truth, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert accuracy(counts) == 75 and per_class(counts, ("a", "b", "c")) == {"a": 200 / 3, "b": 100, "c": None}


@pytest.mark.parametrize("command", ["knn", "neighbours"])
def test_figures_lie_in_the_run_whichever_of_its_files_is_named(command: str, copy: Path, program: Program) -> None:
    for file in (
        copy,
        copy / "checkpoints" / "last.ckpt",
        copy / "checkpoints" / "best.ckpt",
        copy / "backbone.safetensors",
    ):
        status, out, err = program(command, "--checkpoint", str(file), "--overwrite")
        assert (status, err) == (0, "") and f"{copy}/results/{command}/summary.json" in out
        summary = json.loads((copy / "results" / command / "summary.json").read_text())
        assert summary["epoch"] in (1, 2) and summary["command"] == command and "torch" in summary["versions"]


def test_a_file_that_was_carried_away_knows_its_data_and_keeps_figures_beside_it(
    copy: Path, tmp_path: Path, program: Program
) -> None:
    for name in ("checkpoints/last.ckpt", "backbone.safetensors"):
        alone = tmp_path / "elsewhere" / Path(name).name
        alone.parent.mkdir(exist_ok=True)
        shutil.copy(copy / name, alone)
        assert program("knn", "--checkpoint", str(alone))[0] == 0
        summary = json.loads((tmp_path / "elsewhere" / f"{alone.stem}_results" / "knn" / "summary.json").read_text())
        assert (summary["dataset"], summary["train_images"], summary["test_images"]) == ("patterns", 400, 100)
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
    assert program("knn", "--checkpoint", str(copy), "--overwrite")[0] == 0 and mine.read_text() == "mine"
    assert len(list(mine.parent.glob("events*"))) == 1


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
        ("linear", "--augment", "--epochs", "2", "--learning-rate", "1"),
        ("finetune", "--label-fraction", "0.25", "--epochs", "2"),
        ("embed",),
        ("neighbours",),
        ("export",),
    ):
        status, _, err = program(command, "--checkpoint", str(copy), *flags)
        assert (status, err) == (0, ""), command
    assert {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and "results" not in f.parts} == before


# ---------------------------------------------------------------- bad input: status 2, one line, nothing written

BAD_FLAGS = {
    "knn": {
        "--bogus": "bogus",
        "--dataset mnist": "cifar10",
        "--train-images 0": "at least 1",
        "--dataset cifar10 --data-dir /no/such --data-url http://127.0.0.1:9/x": "data_batch_1 is missing",
        "--results-dir /proc/nowhere": "/proc",
        "--results-dir /etc/passwd": "is a file",
    },
    "linear": {
        "--epochs 5": "goes with --augment",
        "--crop-scale 0.5": "goes with --augment",
        "--augment --epochs 0": "above 0",
        "--augment --crop-scale 2": "at most 1",
        "--augment --learning-rate nan": "above 0",
        "--held-out 0": "above 0",
        "--held-out 0.001": "0 of 400",
        "--precision bf16": "goes with --augment",
        "--augment --precision 16": "GPU",
        "--seed -1": "0 or more",
    },
    "finetune": {
        "--label-fraction 0": "above 0 and at most 1",
        "--label-fraction 1.5": "above 0 and at most 1",
        "--label-fraction nan": "above 0 and at most 1",
        "--label-fraction 0.01": "without a label",
        "--label-count 0": "at least 1",
        "--label-count 9": "without a label",
        "--label-count 410": "41 of class horizontal, which has 40",
        "--label-count 50 --label-fraction 0.2": "one of them",
        "--seeds 0 0": "twice",
        "--seeds": "at least one",
        "--seeds -1": "0 or more",
        "--epochs 0": "at least 1",
        "--batch-size 1": "BN",
        "--learning-rate 0": "above 0",
        "--head-learning-rate -1": "above 0",
        "--crop-scale 0": "above 0",
    },
    "embed": {
        "--output features.txt": ".npz or .npy",
        "--output /proc/nowhere/f.npz": "cannot be written",
        "--images /no/such": "no such folder",
        "--images /etc/passwd": "no such folder",
        "--split all": "--split",
    },
    "neighbours": {
        "--output picture.jpg": ".png",
        "--queries 0": "1 to 100",
        "--k 101": "1 to 100",
        "--train-images 5": "there are 5 train images",
        "--images /no/such": "no such folder",
    },
    "export": {
        "--format tflite": "--format",
        "--output backbone.onnx": "ends in .safetensors",
        "--format onnx --output backbone.pt2": "ends in .onnx",
        "--output /": "ends in .safetensors",
    },
}


@pytest.mark.parametrize(("command", "flags"), [(c, flags) for c in BAD_FLAGS for flags in BAD_FLAGS[c]])
def test_a_wrong_flag_is_answered_in_one_line(command: str, flags: str, trained: Path, program: Program) -> None:
    before = sorted(trained.rglob("*"))
    status, out, err = program(command, "--checkpoint", str(trained), *flags.split())
    assert status == 2 and out == "", (out, err)
    assert err.startswith("main.py: ") and err.count("\n") == 1 and BAD_FLAGS[command][flags] in err
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_bad_checkpoint_is_answered_in_one_line(
    command: str, trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = bad_files(trained / "checkpoints" / "last.ckpt", trained / "backbone.safetensors", folder)
    whole = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(whole | {"hyper_parameters": whole["hyper_parameters"] | {"width": 8}}, folder / "width.ckpt")
    torch.save(whole | {"hyper_parameters": whole["hyper_parameters"] | {"bogus": 8}}, folder / "bogus.ckpt")
    torch.save({k: v for k, v in whole.items() if k != "settings"}, folder / "nameless.ckpt")
    save_file(load_file(trained / "backbone.safetensors"), folder / "bare.safetensors")
    bad |= {
        "width.ckpt": "do not fit",
        "bogus.ckpt": "bogus",
        "nameless.ckpt": "give --dataset",
        "bare.safetensors": "not a backbone of this program",
    }
    before = sorted(tmp_path.rglob("*"))
    for name, answer in bad.items():
        status, out, err = program(command, "--checkpoint", str(folder / name))
        assert (status, out) == (2, "") and err.count("\n") == 1 and answer in err, (name, err)
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("HACKED")


def test_without_a_checkpoint_it_says_what_is_missing(program: Program) -> None:
    for command in COMMANDS:
        assert program(command) == (2, "", "main.py: --checkpoint PATH must be given\n")
        status, out, _ = program(command, "--help")
        assert status == 0 and "--checkpoint PATH" in out and "(default: None)" not in out
    status, _, err = program("lineer", "--checkpoint", "x")
    assert status == 2 and "lineer: no such command; there are pretrain, knn, linear" in err
