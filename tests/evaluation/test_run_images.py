"""Evaluations of a run whose folder of images was changed after it."""

from dataclasses import replace
from pathlib import Path

import pytest

from simsiam.config.evaluation_commands import Embed
from simsiam.config.evaluation_options import CheckpointOptions
from simsiam.config.options import EvaluationDataOptions
from simsiam.evaluation.checkpoint import load_checkpoint
from simsiam.evaluation.run_images import find_conversion
from tests.helpers import TINY, Program
from tests.images import patterns, smooth_image, write_images

HELD_OUT = ["--held-out-images", "20"]


def train(tmp_path: Path, program: Program, *flags: str) -> Path:
    """Train a run on a folder of images, and return the run."""
    write_images(tmp_path / "photos", patterns(120))
    write_images(tmp_path / "photos", patterns(20, split=1), split="test")
    data = ["--dataset", "folder", "--data-dir", str(tmp_path / "photos"), "--image-size", "32"]
    status, _, err = program(*TINY, *data, *flags, "--exp-name", "run")
    assert (status, err) == (0, "")
    return tmp_path / "runs" / "run"


@pytest.mark.parametrize("flags", [[], HELD_OUT])
def test_a_warning_says_that_the_folder_was_changed(
    flags: list[str], tmp_path: Path, program: Program
) -> None:
    run = train(tmp_path, program, *flags)
    assert program("knn", str(run))[::2] == (0, "")
    a_class = next((tmp_path / "photos" / "train").iterdir())
    smooth_image().save(a_class / "new.png")
    status, _, err = program("knn", str(run), "--overwrite")
    assert status == 0 and "photos does not hold the images that the run had" in err
    assert err.count("\n") == 1
    # With one image more, others are held out, so this accuracy is no measure any more.
    assert ("may have been trained on" in err) == bool(flags)


def test_images_that_flags_choose_are_no_reason_to_warn(tmp_path: Path, program: Program) -> None:
    run = train(tmp_path, program)
    assert program("knn", str(run), "--train-images", "60")[::2] == (0, "")
    write_images(tmp_path / "others", patterns(60, split=2))
    write_images(tmp_path / "others", patterns(20, split=3), split="test")
    others = ["--data-dir", str(tmp_path / "others"), "--overwrite"]
    assert program("knn", str(run), *others)[::2] == (0, "")


def test_test_images_can_be_chosen_of_a_run_that_held_images_out(
    tmp_path: Path, program: Program
) -> None:
    run = train(tmp_path, program, *HELD_OUT)
    status, out, err = program("knn", str(run), "--test-images", "15")
    assert (status, err) == (0, "")
    assert "120 train and 15 test images" in out


@pytest.mark.parametrize(
    ("settings", "flag", "expected"),
    [
        ({"dataset": "folder", "pixel_range": "0:4095"}, None, (0, 4095)),
        ({"dataset": "arrays", "pixel_range": "-1:1"}, None, None),  # of floats
        ({"dataset": "arrays", "pixel_range": "-1:1"}, "0:4095", (0, 4095)),
    ],
)
def test_files_are_read_with_the_range_of_files(
    settings: dict[str, str], flag: str | None, expected: tuple[int, int] | None, trained: Path
) -> None:
    checkpoint = load_checkpoint(trained)
    metadata = checkpoint.metadata.model_copy(update={"settings": settings})
    config = Embed(
        checkpoint=CheckpointOptions(checkpoint=str(trained)),
        data=EvaluationDataOptions(pixel_range=flag),
    )
    conversion = find_conversion(config, replace(checkpoint, metadata=metadata))
    assert conversion.pixel_range == expected
