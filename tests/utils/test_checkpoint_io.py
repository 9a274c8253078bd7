"""utils/checkpoint_io.py: what a checkpoint must hold to be resumed, also under its older names.

Damaged and hostile files are in tests/evaluation/test_bad_checkpoints.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from simsiam.commands.resume import REQUIRED_STATES
from tests import goldens
from utils.checkpoint_io import read_checkpoint, read_resumable
from utils.errors import UserError

CLASS_NAMES = {"KNNMonitor", "MetricsRecorder", "CheckpointCallback"}


def test_states_of_older_checkpoints_get_the_names_of_their_classes() -> None:
    """tests/test_goldens.py resumes from this checkpoint."""
    file = goldens.FOLDER / "before_the_move.ckpt"
    old = torch.load(file, weights_only=True)["callbacks"]
    states = read_resumable(file, REQUIRED_STATES)["callbacks"]
    assert old.keys() == {"KNNMonitor", "Recorder", "Keeper"} and states.keys() == CLASS_NAMES
    assert states["MetricsRecorder"]["rows"] == old["Recorder"]["rows"]
    assert states["CheckpointCallback"] == old["Keeper"]


def test_new_checkpoints_carry_the_names_of_the_classes(trained: Path) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["callbacks"].keys() == CLASS_NAMES | {"CollapseMonitor"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loops": {}}, "no valid loops"),
        ({"loops": None, "global_step": "x"}, "no valid global_step, loops"),
        ({"optimizer_states": []}, "no valid optimizer_states"),
        ({"row": {"epoch": "two"}}, "no valid row"),
        ({"callbacks": {"MetricsRecorder": {}}}, "no state of CheckpointCallback"),
    ],
)
def test_an_error_names_what_is_missing(
    changes: dict[str, Any], message: str, trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content | changes, tmp_path / "a.ckpt")
    read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=message):
        read_resumable(tmp_path / "a.ckpt", REQUIRED_STATES)


def test_the_first_epoch_has_no_row_yet(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content | {"row": {}}, tmp_path / "a.ckpt")
    assert read_resumable(tmp_path / "a.ckpt", REQUIRED_STATES)["row"] == {}
