"""Runs of the real program, from the command line to the files that they leave."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simsiam.commands.pretrain import build_model
from simsiam.config.commands import Pretrain
from simsiam.data.datamodule import ViewsDataModule
from tests.at_steps import start_small_with_events
from tests.helpers import SMALL, Program, load_weights, read_rows, same_weights
from tests.processes import wait_for
from utils.settings import from_settings


def test_a_finished_run_has_all_files_metrics_and_curves(program: Program, tmp_path: Path) -> None:
    status, out, err = program(*SMALL, "--epochs", "3", "--seed", "3", "--pictures-every", "2")
    assert (status, err) == (0, "")
    run = tmp_path / "runs" / "simsiam_patterns"
    assert sorted(
        {"events" if file.startswith("events.out.tfevents") else file for file in os.listdir(run)}
    ) == [
        *("backbone.safetensors", "checkpoints", "config.yaml", "events", "metrics.jsonl"),
        *("summary.json", "views.png"),
    ]
    assert sorted(os.listdir(run / "checkpoints")) == ["best.ckpt", "last.ckpt"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == 3 * [
        [
            "epoch",
            "step",
            "train_loss",
            "z_std",
            "kNN_accuracy",
            "rankme",
            "learning_rate",
            "images_per_second",
            "seconds",
        ]
    ]
    assert [line["step"] for line in lines] == [4, 8, 12] and lines[-1][
        "learning_rate"
    ] == pytest.approx(0, abs=1e-9)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["kNN_accuracy"] == lines[-1]["kNN_accuracy"] and summary["epochs"] == 3
    assert summary["kNN_best"] == max(line["kNN_accuracy"] for line in lines)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (
        config["settings"]["seed"] == 3
        and config["settings"]["batch_size"] == 50
        and "torch" in config["versions"]
    )
    assert (
        config["resolved"]["precision"] == "32-true" and config["resolved"]["warmup_epochs"] == 0.3
    )

    assert f"main.py linear {run}" in out and f"main.py report {run}" in out
    assert f"-m tensorboard.main --logdir {run.parent}" in out
    assert "kNN of the untrained network" in out and out.count("\nepoch ") == 3
    events = EventAccumulator(str(run))
    events.Reload()
    scalars = {"train_loss", "kNN_accuracy", "learning_rate", "z_std", "perf/images_per_second"}
    assert scalars <= set(events.Tags()["scalars"])
    steps = {tag: [event.step for event in events.Images(tag)] for tag in ("views", "neighbours")}
    assert steps == {
        "views": [0, 7, 11],
        "neighbours": [7, 11],
    }  # of 4 steps an epoch: every second, and the last
    recorded = b"".join(file.read_bytes() for file in run.glob("events*"))
    assert (
        b"h_dim" in recorded and b"momentum" not in recorded
    )  # of the settings, those that differ from the defaults


def test_the_same_seed_gives_the_same_bits(trained: Path, program: Program, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 2)):
        assert program(*SMALL, "--epochs", "2", "--exp-name", name, "--seed", str(seed))[0] == 0
    again, other = tmp_path / "runs" / "again", tmp_path / "runs" / "other"
    assert read_rows(again) == read_rows(trained) and same_weights(again, trained)
    assert read_rows(other) != read_rows(trained) and not same_weights(other, trained)


def test_the_seed_decides_the_initial_weights() -> None:
    data = ViewsDataModule("patterns", train_images=20, test_images=10, batch_size=10)
    data.setup()
    settings = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 16}
    first, again, other = (
        build_model(from_settings(Pretrain, settings | {"seed": seed}), data).state_dict()
        for seed in (0, 0, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_a_finished_run_is_not_trained_again(program: Program, tmp_path: Path) -> None:
    assert program(*SMALL, "--epochs", "1")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    status, out, err = program(*SMALL, "--epochs", "1")
    assert (status, err) == (0, "") and "finished already" in out
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_other_settings_are_refused_unless_overwrite(program: Program, tmp_path: Path) -> None:
    assert program(*SMALL, "--epochs", "1")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    (run / "notes.txt").write_text("mine")
    status, out, err = program(*SMALL, "--epochs", "1", "--learning-rate", "0.1")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "--learning-rate 0.06, now 0.1" in err and "--overwrite" in err
    status, out, err = program(*SMALL, "--epochs", "3")
    assert (status, out) == (2, "") and f"--model-path {run}" in err and err.count("\n") == 1
    assert (
        program(*SMALL, "--epochs", "1", "--knn-every", "5")[0] == 0
    )  # what is measured makes no other run
    assert program(*SMALL, "--epochs", "1", "--learning-rate", "0.1", "--overwrite")[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["settings"]["learning_rate"] == 0.1
    assert len(read_rows(run)) == 1 and (run / "notes.txt").read_text() == "mine"


def test_two_processes_cannot_train_the_same_run(program: Program, tmp_path: Path) -> None:
    held = tmp_path / "held"
    first = start_small_with_events("shared", tmp_path, {5: [held]}, "--epochs", "2")
    wait_for(first, held.exists)
    status, _, err = program(*SMALL, "--epochs", "2", "--exp-name", "shared")
    assert status == 2 and "another process" in err and err.count("\n") == 1
    held.unlink()
    first.communicate()
    assert first.returncode == 0 and len(read_rows(tmp_path / "runs" / "shared")) == 2


def test_ckpt_dir_resumes_in_another_folder(program: Program, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert (
        program(*SMALL, "--epochs", "4", "--checkpoint-every", "1", "--exp-name", "whole")[0] == 0
    )
    earlier = runs / "whole" / "checkpoints" / "last.previous.ckpt"  # after three epochs
    assert (
        program(*SMALL, "--epochs", "4", "--exp-name", "rest", "--ckpt-dir", str(earlier))[0] == 0
    )
    assert sorted(os.listdir(runs / "rest" / "checkpoints")) == ["best.ckpt", "last.ckpt"]
    assert same_weights(runs / "rest", runs / "whole") and read_rows(runs / "rest") == read_rows(
        runs / "whole"
    )
    for flags, answer in (
        (("--epochs", "5", "--ckpt-dir", str(earlier)), "--epochs 4, now 5"),
        (("--epochs", "4", "--ckpt-dir", str(runs / "whole")), "nothing is left to train"),
        (("--epochs", "4", "--width", "8", "--ckpt-dir", str(earlier)), "--width 4, now 8"),
    ):
        status, _, err = program(*SMALL, *flags, "--exp-name", "other")
        assert (
            status == 2 and answer in err and err.count("\n") == 1 and not (runs / "other").exists()
        )


def test_a_resumed_run_keeps_its_precision(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint may be of a processor on which "auto" is another one, or in another folder."""

    def precision(name: str) -> str:
        return yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text())["resolved"][
            "precision"
        ]

    few = [
        "--train-images",
        "20",
        "--test-images",
        "10",
        "--batch-size",
        "10",
        "--knn-every",
        "0",
    ]  # bf16 may be slow
    flags = [*SMALL, *few, "--precision", "auto", "--checkpoint-every", "1", "--epochs", "2"]
    monkeypatch.setattr("utils.device._cpu_has_bf16", lambda: True)
    assert program(*flags, "--exp-name", "whole")[0] == 0
    shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / "half")
    shutil.rmtree(tmp_path / "runs" / "whole")
    checkpoints = tmp_path / "runs" / "half" / "checkpoints"
    (checkpoints / "last.previous.ckpt").replace(checkpoints / "last.ckpt")
    (tmp_path / "runs" / "half" / "summary.json").unlink()
    monkeypatch.setattr("utils.device._cpu_has_bf16", lambda: False)
    assert (
        program(*flags, "--exp-name", "other", "--ckpt-dir", str(checkpoints / "last.ckpt"))[0] == 0
    )
    assert (
        program(*flags, "--exp-name", "half")[0] == 0
        and precision("half") == precision("other") == "bf16-mixed"
    )
    assert program(*flags, "--exp-name", "new")[0] == 0 and precision("new") == "32-true"
    status, _, err = program(*flags, "--precision", "32", "--exp-name", "half")
    assert status == 2 and "--precision auto, now 32" in err


@pytest.mark.parametrize("file", ["", "checkpoints/last.ckpt", "backbone.safetensors"])
def test_model_path_starts_from_weights_alone(
    file: str, trained: Path, program: Program, tmp_path: Path
) -> None:
    status, _, _ = program(
        *SMALL, "--epochs", "1", "--knn-every", "1", "--model-path", str(trained / file)
    )
    summary = json.loads((tmp_path / "runs" / "simsiam_patterns" / "summary.json").read_text())
    reached = json.loads((trained / "summary.json").read_text())["kNN_accuracy"]
    assert (status, summary["kNN_start"], summary["step"]) == (0, reached, 4)


def test_model_path_needs_the_same_architecture(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    status, _, err = program(*SMALL, "--width", "8", "--model-path", str(trained))
    assert (
        status == 2
        and "width is 4 in the file and 8 in the new run" in err
        and not (tmp_path / "runs").exists()
    )


def test_overwrite_does_not_delete_the_checkpoint_to_resume_from(
    program: Program, tmp_path: Path
) -> None:
    assert program(*SMALL, "--epochs", "2", "--checkpoint-every", "1")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    before = sorted(run.rglob("*"))
    given = str(run / "checkpoints" / "last.previous.ckpt")
    again = ["--epochs", "2", "--checkpoint-every", "1", "--overwrite", "--ckpt-dir", given]
    status, _, err = program(*SMALL, *again)
    assert status == 2 and "--overwrite would delete" in err and sorted(run.rglob("*")) == before


def test_ckpt_dir_is_refused_for_an_unfinished_run(program: Program, tmp_path: Path) -> None:
    assert program(*SMALL, "--epochs", "2")[0] == 0
    (tmp_path / "runs" / "simsiam_patterns" / "summary.json").unlink()
    status, _, err = program(*SMALL, "--epochs", "2", "--ckpt-dir", "/no/such")
    assert status == 2 and "Leave out this flag" in err


def test_a_folder_of_another_program_is_not_touched(program: Program, tmp_path: Path) -> None:
    theirs = tmp_path / "runs" / "simsiam_patterns"
    (theirs / "checkpoints").mkdir(parents=True)
    (theirs / "checkpoints" / "precious.pt").write_text("mine")
    (theirs / "config.yaml").write_text("model: other")
    status, _, err = program(*SMALL, "--overwrite")
    assert (
        status == 2
        and "not a run" in err
        and (theirs / "checkpoints" / "precious.pt").read_text() == "mine"
    )


def test_few_images_and_four_views_train_to_the_end(program: Program) -> None:
    few = ["--train-images", "4", "--test-images", "3", "--batch-size", "2", "--knn-k", "2"]
    assert program(*SMALL, *few, "--views", "4", "--epochs", "1")[0] == 0


@pytest.mark.slow("kills at any moment are a quick test")
def test_a_run_killed_while_it_finishes_is_finished_by_the_same_command(
    program: Program, tmp_path: Path
) -> None:
    assert program(*SMALL, "--epochs", "2")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    summary, trained = (run / "summary.json").read_text(), load_weights(run)
    (run / "summary.json").unlink()
    (run / "backbone.safetensors").unlink()
    (run / ".summary.json.1.partial").write_text("{")
    assert program(*SMALL, "--epochs", "2")[0] == 0
    assert (run / "summary.json").read_text() == summary and (run / "backbone.safetensors").exists()
    assert all(torch.equal(load_weights(run)[name], trained[name]) for name in trained)
    assert not list(run.glob(".*"))


def test_a_run_whose_best_ckpt_was_removed_can_be_finished(
    program: Program, tmp_path: Path
) -> None:
    assert program(*SMALL, "--epochs", "1")[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    (run / "summary.json").unlink()
    (run / "checkpoints" / "best.ckpt").unlink()
    status, out, err = program(*SMALL, "--epochs", "1")
    assert (status, err) == (0, "")
    assert "% in the last epoch, " in out and "in the best" not in out
