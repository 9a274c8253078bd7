"""The command that the end of a run advises can run on the images of the run."""

import shlex
from pathlib import Path

import pytest

from tests.helpers import Program
from tests.images import patterns, write_images


@pytest.mark.parametrize(
    ("images", "layout", "flags", "command"),
    [
        (40, "{name}/{i}.png", ("--held-out-images", "10"), "linear"),
        (40, "{name}/{i}.png", (), "knn"),  # leave-one-out
        (40, "{i}/{i}.png", (), "neighbours"),  # no two images of a class
        (20, "{i}.png", (), "neighbours"),
        (20, "{i}.png", ("--held-out-images", "10"), "neighbours"),
        (20, "one class/{i}.png", ("--held-out-images", "10"), "neighbours"),
        (10, "{i}.png", (), "embed"),  # fewer images than neighbours
        (
            14,
            "{name}/{i}.png",
            ("--held-out-images", "10", "--knn-k", "2"),
            "embed",
        ),  # too few for `linear`
    ],
)
def test_the_advised_command_can_run(
    images: int,
    layout: str,
    flags: tuple[str, ...],
    command: str,
    train_on_folder: Program,
    program: Program,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "photos", patterns(images), layout)
    status, out, _ = train_on_folder(tmp_path / "photos", "--batch-size", "4", *flags)
    assert status == 0
    (advice,) = [line for line in out.splitlines() if line.startswith("  next  ")]
    words = shlex.split(advice)
    assert words[-2] == command
    status, _, err = program(*words[-2:])
    assert (status, err) == (0, "")
