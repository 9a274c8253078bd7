"""The results in tests/golden/ are computed as before (`python tests/goldens.py --write`)."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import goldens
from tests.helpers import load_weights, read_rows
from tests.processes import start

KNN_TOLERANCE = 5.0  # percent: two of the 40 test images


@pytest.fixture(scope="module")
def same_machine() -> bool:
    """Return whether sums are rounded here as on the machine that wrote the files."""
    here = {"torch": torch.__version__, "rounding": goldens.rounding()}
    return goldens.read("machine") == here


def without_decimals(lines: list[str]) -> list[str]:
    """Mask the numbers that vary with rounding, and the epoch of the best one, in printed lines."""
    return [re.sub(r"-?\d+\.\d+|\(epoch \d+\)", "X", line) for line in lines]


def check_close(actual: dict[str, Any], golden: dict[str, Any]) -> None:
    """Check that numbers are equal except for rounding."""
    assert actual.keys() == golden.keys()
    for key in actual:
        if key == "kNN_accuracy":
            tolerance = KNN_TOLERANCE
        else:
            tolerance = goldens.TOLERANCE * max(1, abs(golden[key]))
        assert actual[key] == pytest.approx(golden[key], abs=tolerance), key


@pytest.mark.parametrize("name", goldens.RUNS)
def test_a_run_computes_the_stored_results(name: str, same_machine: bool, tmp_path: Path) -> None:
    golden = goldens.read(name)
    actual = goldens.record(name, tmp_path)
    if same_machine:
        assert actual == golden
        return
    assert actual["files"] == golden["files"]
    assert without_decimals(actual["printed"]) == without_decimals(golden["printed"])
    check_close(actual["norms"], golden["norms"])
    for actual_row, golden_row in zip(actual["rows"], golden["rows"], strict=True):
        check_close(actual_row, golden_row)


def test_the_stored_resumed_run_equals_the_uninterrupted_one() -> None:
    plain = goldens.read("plain")
    resumed = goldens.read("resumed_in_the_middle_of_an_epoch")
    assert resumed["weights"] == plain["weights"]
    assert resumed["rows"] == plain["rows"]


def norms(run: Path) -> dict[str, float]:
    return {key: weight.double().norm().item() for key, weight in load_weights(run).items()}


def test_a_checkpoint_with_old_class_names_resumes(tmp_path: Path) -> None:
    """The checkpoint was saved at step 6 of 8. Its callbacks' states have the old class names."""
    flags = [*goldens.FLAGS, "--width", "2", "--out-dim", "8", "--h-dim", "4"]
    flags += ["--save-dir", str(tmp_path)]
    goldens.finish(start(*flags, "--exp-name", "uninterrupted"))

    # In the old version, `auto` meant fp32 on every processor.
    flags[flags.index("--precision") + 1] = "auto"
    checkpoint = goldens.FOLDER / "before_the_move.ckpt"
    goldens.finish(start(*flags, "--exp-name", "resumed", "--ckpt-dir", str(checkpoint)))

    uninterrupted = read_rows(tmp_path / "uninterrupted")
    resumed = read_rows(tmp_path / "resumed")
    for resumed_row, other_row in zip(resumed, uninterrupted, strict=True):
        # The row of the first epoch has no `rankme`, which the old version did not measure.
        check_close(resumed_row, {name: other_row[name] for name in resumed_row})
    assert "rankme" in resumed[-1]
    check_close(norms(tmp_path / "resumed"), norms(tmp_path / "uninterrupted"))
