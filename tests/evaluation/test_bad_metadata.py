"""Checkpoints that can be read, but have invalid values: status 2, one line on stderr."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import SMALL, Program
from utils.weights import BACKBONE, read_weights, write_weights

EVALUATIONS = ("knn", "linear", "finetune", "embed", "neighbours", "export")

# ---------------------------------------------------------------- values that a run resumes from

PARTS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "row",
    "settings",
    "global_step",
)
VALUES = (None, "x", [], {"a": 1}, [{}])


def combine_parts_and_values() -> list[Any]:
    """Each part with each value; the quick suite has each part and each value at least once."""
    combinations = []
    for i, part in enumerate(PARTS):
        for j, value in enumerate(VALUES):
            is_quick = i % len(VALUES) == j
            marks = () if is_quick else (pytest.mark.slow("like its neighbours in the table"),)
            combinations.append(pytest.param(part, value, marks=marks))
    return combinations


@pytest.mark.parametrize(("part", "value"), combine_parts_and_values())
def test_a_run_does_not_resume_from_a_part_of_the_wrong_kind(
    part: str, value: object, trained: Path, program: Program, tmp_path: Path
) -> None:
    """Lightning would fail with a traceback. The folder of the new run is not kept."""
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    content["settings"]["epochs"] = 3
    # Any dict would do as a row, because a run only prints it; its epoch must be a number.
    if part == "row" and value == {"a": 1}:
        value = {"epoch": "two"}
    torch.save(content | {part: value}, tmp_path / "a.ckpt")
    status, _, err = program(*SMALL, "--epochs", "3", "--ckpt-dir", str(tmp_path / "a.ckpt"))
    assert status == 2
    assert "a.ckpt" in err and err.count("\n") == 1, err
    assert not (tmp_path / "runs" / "simsiam_patterns").exists()


# ---------------------------------------------------------------- metadata of the backbone

HOSTILE: list[tuple[str, Any]] = [
    ("backbone", "resnet99"),
    ("backbone", ["resnet10"]),
    ("width", 0),
    ("width", -1),
    ("width", 3_000_000),
    ("width", "4"),
    ("width", None),
    ("mean", [0.5, 0.5]),
    ("mean", ["a", "b", "c"]),
    ("mean", None),
    ("std", [0.0, 0.0, 0.0]),
    ("std", [1, 1, float("nan")]),
    ("image_size", 0),
    ("classes", [1, 2]),
    ("settings", "x"),
    ("settings", None),
    ("settings", []),
    ("settings", {"dataset": ["a"]}),
    ("settings", {"dataset": "patterns", "data_dir": 5}),
    ("settings", {"dataset": "patterns", "train_images": "abc"}),
    ("settings", {"dataset": "patterns", "train_images": -5}),
    ("settings", {"dataset": "mnist"}),
    ("row", None),
    ("row", [1]),
    ("row", {"epoch": "two"}),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_invalid_metadata_are_refused_in_one_line(
    name: str, value: Any, trained: Path, program: Program, tmp_path: Path
) -> None:
    metadata, state = read_weights(trained / "backbone.safetensors", BACKBONE)
    write_weights(tmp_path / "a.safetensors", BACKBONE, state, metadata | {name: value})
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    if name in content["hyper_parameters"]:
        content["hyper_parameters"][name] = value
    else:
        content[name] = value
    torch.save(content, tmp_path / "a.ckpt")

    for file in ("a.safetensors", "a.ckpt"):
        status, out, err = program("knn", "--checkpoint", str(tmp_path / file))
        assert (status, out) == (2, "")
        assert err.count("\n") == 1, (file, err)
        assert name in err or "mnist" in err
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "a.safetensors"]


@pytest.mark.parametrize("command", EVALUATIONS)
def test_weights_that_are_not_finite_are_refused(
    command: str, trained: Path, program: Program, tmp_path: Path
) -> None:
    metadata, state = read_weights(trained / "backbone.safetensors", BACKBONE)
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    write_weights(tmp_path / "a.safetensors", BACKBONE, state, metadata)
    status, out, err = program(command, "--checkpoint", str(tmp_path / "a.safetensors"))
    assert (status, out) == (2, "")
    assert "not finite" in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]
