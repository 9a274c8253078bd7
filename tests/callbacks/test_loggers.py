"""--logger: what main.py records with other loggers than TensorBoard's."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_lightning.loggers import MLFlowLogger

from simsiam.callbacks.loggers import ResilientMLFlowLogger
from tests.helpers import ROOT, SMALL, Program, read_curves, read_rows, read_summary

LOGGERS = [
    "--dataset",
    "patterns",
    "--train-images",
    "100",
    "--test-images",
    "50",
    "--knn-k",
    "5",
    "--epochs",
    "2",
]
LOGGERS += [
    "--backbone",
    "resnet10",
    "--width",
    "4",
    "--out-dim",
    "32",
    "--h-dim",
    "16",
    "--batch-size",
    "50",
]
LOGGERS += ["--accelerator", "cpu", "--exp-name", "run", "--logger"]


@pytest.mark.slow("starts the processes of wandb and mlflow; csv and TensorBoard are quick tests")
def test_main_logs_to_wandb_and_mlflow_instead_of_tensorboard(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        *LOGGERS,
        "wandb",
        "mlflow",
    ]  # wandb ends as Python does
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    (kNN,) = run.glob("mlruns/*/*/metrics/kNN_accuracy")
    points = [float(line.split()[1]) for line in kNN.read_text().splitlines()]
    assert points == [
        read_summary(run)["kNN_untrained"],
        *(row["kNN_accuracy"] for row in read_rows(run)),
    ]
    (recorded,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"kNN_accuracy" in recorded.read_bytes() and not list(run.glob("events*"))


def test_main_logs_to_csv_instead_of_tensorboard(tmp_path: Path, program: Program) -> None:
    status, _, err = program(*LOGGERS, "csv")
    run = tmp_path / "runs" / "run"
    table = list(
        csv.DictReader((run / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    )
    assert (status, err) == (0, "") and not list(run.glob("events*"))
    recorded = [float(row["train_loss"]) for row in table if row["train_loss"]]
    assert (
        recorded == pytest.approx([row["train_loss"] for row in read_rows(run)])
        and len(recorded) == 2
    )


def test_tensorboard_has_kNN_before_training_and_of_an_epoch_of_one_step(
    tmp_path: Path, program: Program
) -> None:
    """Both points are at step 0. Other curves have each epoch once."""
    flags = [*SMALL, "--batch-size", "200", "--epochs", "2", "--exp-name", "run"]
    status, _, err = program(*flags)
    assert (status, err) == (0, "")
    run = tmp_path / "runs" / "run"
    curves = read_curves(run)
    rows = read_rows(run)
    accuracies = [read_summary(run)["kNN_untrained"], *(row["kNN_accuracy"] for row in rows)]
    assert [step for step, _ in curves["kNN_accuracy"]] == [0, 0, 1]
    assert [value for _, value in curves["kNN_accuracy"]] == pytest.approx(accuracies)
    assert [step for step, _ in curves["train_loss"]] == [0, 1]


def test_error_says_how_to_install_a_missing_logger(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = program(*LOGGERS, "mlflow")
    assert status == 2 and err.count("\n") == 1
    assert "--logger mlflow needs a package that is not installed. Run: pip install mlflow" in err
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


def test_a_run_goes_on_if_mlflow_does_not_take_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its server may be gone for a while, or its disk be full."""
    logged: list[int] = []

    def log_every_third(self: MLFlowLogger, metrics: dict[str, float], step: int) -> None:
        if step % 3 > 0:
            raise ValueError("Metric 'rankme' is malformed.\nNo data found.")
        logged.append(step)

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(MLFlowLogger, "log_metrics", log_every_third)
    logger = ResilientMLFlowLogger("simsiam", "run", f"file:{tmp_path}")
    for step in range(7):
        logger.log_metrics({"rankme": 1.0}, step)
    assert logged == [0, 3, 6]
    reason = "Metric 'rankme' is malformed. No data found."
    assert capsys.readouterr().out == f"warning: MLflow lacks points of this run ({reason}).\n"
