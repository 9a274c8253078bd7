"""A run prints and stores which weights it has started from, and how good they were."""

import json
import re
from pathlib import Path

import torch
import yaml

from models import resnet10
from simsiam.report.groups import Group
from simsiam.report.records import read_run
from simsiam.report.summary import summarize_groups
from tests.helpers import SMALL, Program, read_rows, read_summary

FLAGS = (*SMALL, "--knn-every", "1", "--checkpoint-every", "1")


def test_model_path_starts_other_heads_from_the_backbone_alone(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    file = trained / "checkpoints" / "last.ckpt"
    status, out, _ = program(*SMALL, "--epochs", "1", "--h-dim", "8", "--model-path", str(file))
    assert status == 0
    assert (
        f"  start     the backbone of {file}\n"
        "            left out its projector and predictor: h_dim is 16 in the file and 8 in the "
        "new run\n"
        "            projector and predictor start from random weights\n"
    ) in out


def save_foreign(file: Path) -> None:
    """Save the backbone of a small network in the layout of lightly."""
    torch.manual_seed(5)
    state = {f"backbone.{name}": weight for name, weight in resnet10(width=4).state_dict().items()}
    state["projection_head.layers.0.weight"] = torch.zeros(32, 32)
    torch.save({"state_dict": state}, file)


def test_a_run_says_and_stores_that_it_starts_from_foreign_weights(
    program: Program, tmp_path: Path
) -> None:
    file = tmp_path / "lightly.ckpt"
    save_foreign(file)
    status, out, _ = program(*FLAGS, "--epochs", "1", "--model-path", str(file))
    assert status == 0
    lines = [
        f"the backbone of {file} (as lightly or solo-learn saves it)",
        "left out projection_head.layers.0.weight",
        "projector and predictor start from random weights",
    ]
    hint = "were trained with ImageNet's, as most are, pass --normalize imagenet"
    assert "  start     " + "\n            ".join(lines) in out and hint in out

    run = tmp_path / "runs" / "simsiam_patterns"
    resolved = yaml.safe_load((run / "config.yaml").read_text())["resolved"]
    assert resolved["starting_weights"] == "; ".join(lines)
    summary = read_summary(run)
    accuracy = f"{summary['kNN_start']:.2f}"
    assert f"kNN of the starting network: {accuracy} %" in out and "untrained" not in out
    assert f"{accuracy} % at the start" in out and "kNN_untrained" not in summary


def test_a_resumed_run_remembers_that_it_started_from_weights(
    program: Program, tmp_path: Path
) -> None:
    save_foreign(tmp_path / "lightly.ckpt")
    flags = ("--epochs", "2", "--model-path", str(tmp_path / "lightly.ckpt"))
    assert program(*FLAGS, *flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    accuracy = read_summary(run)["kNN_start"]
    config = (run / "config.yaml").read_text()
    (run / "summary.json").unlink()  # as if it had been killed before its last file was written
    assert "starting_weights: the backbone of" in config and program(*FLAGS, *flags)[0] == 0
    assert read_summary(run)["kNN_start"] == accuracy
    assert (run / "config.yaml").read_text() == config

    early = run / "checkpoints" / "last.previous.ckpt"
    # --ckpt-dir resumes without --model-path, so only the checkpoint knows.
    resumed = ("--epochs", "2", "--ckpt-dir", str(early), "--exp-name", "resumed")
    status, out, err = program(*FLAGS, *resumed)
    assert status == 0, err
    assert read_summary(tmp_path / "runs" / "resumed")["kNN_start"] == accuracy
    assert read_rows(tmp_path / "runs" / "resumed") == read_rows(run)
    assert f"{accuracy:.2f} % at the start" in out


def test_the_report_tells_starting_weights_from_untrained_ones(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    save_foreign(tmp_path / "lightly.ckpt")
    program(*FLAGS, "--epochs", "1", "--model-path", str(tmp_path / "lightly.ckpt"))
    run = tmp_path / "runs" / "simsiam_patterns"
    groups = [Group([read_run(trained)], 0, "A", ""), Group([read_run(run)], 1, "B", "")]
    untrained = f"{read_summary(trained)['kNN_untrained']:.2f}"
    start = f"{read_summary(run)['kNN_start']:.2f}"
    table = summarize_groups(groups)
    assert table["kNN, untrained (%)"] == [untrained, "-"]
    assert table["kNN, starting weights (%)"] == ["-", start]
    assert "kNN, starting weights (%)" not in summarize_groups(groups[:1])

    # Versions before this one called it kNN_untrained in either case.
    summary = read_summary(run)
    summary["kNN_untrained"] = summary.pop("kNN_start")
    (run / "summary.json").write_text(json.dumps(summary))
    groups = [Group([read_run(run)], 0, "", "")]
    assert summarize_groups(groups)["kNN, starting weights (%)"] == [start]


def test_a_dry_run_describes_the_weights_and_writes_nothing(
    program: Program, tmp_path: Path
) -> None:
    save_foreign(tmp_path / "lightly.ckpt")
    status, out, _ = program(*FLAGS, "--dry-run", "--model-path", str(tmp_path / "lightly.ckpt"))
    assert status == 0 and re.search("start     the backbone of .*lightly.ckpt", out)
    assert not (tmp_path / "runs").exists()
