"""simsiam/data/image_folder.py: a bad folder is refused with one line on stderr."""

import os
import re
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.helpers import TINY, Program
from tests.images import patterns, smooth_image, write_bad_images, write_images
from tests.processes import Started, run_as_nobody


def spoil(folder: Path, problem: str) -> None:
    """Add a problem to a folder that has images in train/."""
    train = folder / "train"
    if problem == "val is empty":
        (folder / "val").mkdir()
    elif problem == "a text file":
        (train / "dots" / "a b é.jpg").write_text("hello")
    elif problem == "a broken link":
        (train / "dots" / "a.jpg").symlink_to("nowhere.jpg")
    elif problem == "a pipe":
        os.mkfifo(train / "dots" / "a.jpg")


CANNOT_BE_READ = "1 of 21 images in .* cannot be read: train/dots/"
MESSAGES = {
    "val is empty": r"--data-dir .*val: no image in it",
    "a text file": rf"{CANNOT_BE_READ}a b é.jpg \(not an image\).*--skip-bad-images",
    "a broken link": rf"{CANNOT_BE_READ}a.jpg \(No such file or directory\)",
    "a pipe": rf"{CANNOT_BE_READ}a.jpg \(not a file\)",
}


@pytest.mark.parametrize("problem", MESSAGES)
def test_bad_folders_are_refused_in_one_line(
    problem: str, train_on_folder: Program, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    write_images(folder, patterns(20))
    spoil(folder, problem)
    status, out, err = train_on_folder(folder, "--batch-size", "10")
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "runs").exists(), out + err
    assert re.search(MESSAGES[problem], err), err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_class_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as where:
        Path(where).chmod(0o777)
        write_images(Path(where, "photos"), patterns(20))
        Path(where, "photos", "train", "zigzag").chmod(0)
        flags = ["--dataset", "folder", "--data-dir", f"{where}/photos"]
        flags += ["--cache-dir", f"{where}/cache", "--image-size", "32"]
        flags += ["--save-dir", f"{where}/runs", *TINY, "--batch-size", "10"]
        process = Started(run_as_nobody, flags)
        _, err = process.communicate()
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert "zigzag (Permission denied). Repair or remove them" in err


def test_missing_and_empty_folders_are_refused(train_on_folder: Program, tmp_path: Path) -> None:
    assert "no such folder" in train_on_folder(tmp_path / "none")[2]
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "no image in it" in train_on_folder(tmp_path / "empty")[2]
    (tmp_path / "photo.jpg").write_text("")
    assert "Pass the folder of the image" in train_on_folder(tmp_path / "photo.jpg")[2]


def test_skip_bad_images_leaves_them_out(train_on_folder: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20))
    bad = write_bad_images(tmp_path / "photos" / "train" / "dots")
    status, out, err = train_on_folder(
        tmp_path / "photos", "--batch-size", "10", "--skip-bad-images"
    )
    assert (status, err) == (0, "")
    assert f"left out: {len(bad)} of {21 + len(bad)}" in out and "21 train" in out


def test_a_run_does_not_resume_on_other_images(train_on_folder: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20))
    assert train_on_folder(tmp_path / "photos", "--batch-size", "10")[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    (run / "summary.json").unlink()  # as if it had not been finished
    smooth_image().save(tmp_path / "photos" / "train" / "dots" / "new.png")
    status, _, err = train_on_folder(tmp_path / "photos", "--batch-size", "10")
    assert status == 2 and err.count("\n") == 1 and "on other images than are in" in err
    assert yaml.safe_load((run / "config.yaml").read_text())["resolved"]["stem"] == "cifar"
