"""Nothing that is computed has changed since tests/golden/ was written (`python tests/goldens.py --write`)."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import goldens
from tests.helpers import rows, start, weights


@pytest.fixture(scope="module")
def same_machine() -> bool:
    """Whether sums are rounded here as they were where the files were written; else they are compared less exactly."""
    written = goldens.read("machine")
    return written == {"torch": torch.__version__, "rounding": goldens.rounding()}


def without_decimals(lines: list[str]) -> list[str]:
    """Figures vary with rounding, and so may the epoch with the best of them."""
    return [re.sub(r"-?\d+\.\d+|\(epoch \d+\)", "X", line) for line in lines]


def check_close(found: dict[str, Any], golden: dict[str, Any]) -> None:
    """Equal but for rounding: a figure within goldens.TOLERANCE, an accuracy within two of the test images."""
    assert found.keys() == golden.keys()
    for key in found:
        bound = 5.0 if key == "kNN_accuracy" else goldens.TOLERANCE * max(1, abs(golden[key]))
        assert found[key] == pytest.approx(golden[key], abs=bound), key


@pytest.mark.parametrize("name", goldens.RUNS)
def test_a_run_gives_what_it_gave(name: str, same_machine: bool, tmp_path: Path) -> None:
    golden, found = goldens.read(name), goldens.record(name, tmp_path)
    if same_machine:
        assert found == golden
        return
    assert found["files"] == golden["files"]
    assert without_decimals(found["printed"]) == without_decimals(golden["printed"])
    check_close(found["norms"], golden["norms"])
    for mine, theirs in zip(found["rows"], golden["rows"], strict=True):
        check_close(mine, theirs)


def test_a_run_that_was_resumed_gives_what_one_left_alone_gives() -> None:
    plain, resumed = (goldens.read(name) for name in ("plain", "resumed_in_the_middle_of_an_epoch"))
    assert resumed["weights"] == plain["weights"] and resumed["rows"] == plain["rows"]


def test_a_checkpoint_from_before_the_classes_were_renamed_is_gone_on_from(tmp_path: Path) -> None:
    """It was written in mid-epoch, at step 6 of 8; what it remembers under the old names is taken up."""
    small = [
        *goldens.FLAGS,
        "--width",
        "2",
        "--out-dim",
        "8",
        "--h-dim",
        "4",
        "--save-dir",
        str(tmp_path),
        "--exp-name",
    ]
    goldens.finish(start(*small, "left_alone"))
    small[small.index("--precision") + 1] = "auto"  # which it was on every processor
    goldens.finish(
        start(*small, "resumed", "--ckpt-dir", str(goldens.FOLDER / "before_the_move.ckpt"))
    )
    alone, resumed = rows(tmp_path / "left_alone"), rows(tmp_path / "resumed")
    for mine, theirs in zip(resumed, alone, strict=True):
        check_close(
            mine, {name: theirs[name] for name in mine}
        )  # its first epoch was before `rankme`
    assert "rankme" in resumed[-1]
    trained, kept = weights(tmp_path / "resumed"), weights(tmp_path / "left_alone")
    check_close(
        {k: v.double().norm().item() for k, v in trained.items()},
        {k: v.double().norm().item() for k, v in kept.items()},
    )
