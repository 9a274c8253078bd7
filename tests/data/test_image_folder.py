"""simsiam/data/image_folder.py: layouts of folders, and what each command does with them."""

import json
from pathlib import Path

import pytest

from simsiam import load_backbone
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from tests.helpers import Program
from tests.images import patterns, smooth_image, write_images

# ---------------------------------------------------------------- layouts


def test_a_run_without_labels_has_no_knn(train_on_folder: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", patterns(60), "é {i}.png")
    status, out, err = train_on_folder(tmp_path / "flat")
    assert (status, err) == (0, "") and "no labels: kNN is off" in out and "0 classes" not in out
    run = tmp_path / "runs" / "simsiam_folder"
    assert json.loads((run / "summary.json").read_text())["kNN_accuracy"] is None
    assert (run / "views.png").exists()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("{split}/{name}/{i}.png", "no test images: kNN is leave-one-out among"),
        ("{name}/{i}.png", "no test images: kNN is leave-one-out among"),
        ("train/{i}.png", "no labels: kNN is off"),
        ("train/one class/{i}.png", "one class only: kNN is off"),
    ],
)
def test_each_layout_is_recognised(
    layout: str, message: str, train_on_folder: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", patterns(20), layout)
    status, out, err = train_on_folder(tmp_path / "photos", "--batch-size", "10", "--dry-run")
    assert (
        (status, err) == (0, "")
        and message in out
        and "20 images are decoded once, into 0.00 GiB" in out
    )
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


def test_an_image_outside_the_classes_has_no_label(
    train_on_folder: Program, tmp_path: Path
) -> None:
    write_images(tmp_path, patterns(20))
    smooth_image().save(tmp_path / "train" / "loose.png")
    status, out, _ = train_on_folder(tmp_path, "--batch-size", "10", "--dry-run")
    assert status == 0
    assert "1 of 21 images are in no class's folder" in out
    assert "They are trained on, but left out of kNN" in out
    assert " 20 train images with labels" in out


def test_a_part_of_a_folder_is_spread_over_its_classes(
    photos: Path, train_on_folder: Program, tmp_path: Path
) -> None:
    status, out, _ = train_on_folder(photos, "--train-images", "100", "--test-images", "30")
    assert status == 0 and "100 train and 30 test images, 10 classes" in out
    train, test = load_dataset(
        DataOptions("folder", str(photos), None, 100, 30, 32, str(tmp_path / "cache"))
    )
    assert train.labels.bincount().tolist() == [10] * 10
    assert test.labels.bincount().tolist() == [3] * 10


def test_large_images_have_the_imagenet_stem(train_on_folder: Program, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        smooth_image((150, 130)).rotate(10 * i).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg")
    status, out, err = train_on_folder(tmp_path, "--image-size", "96", "--batch-size", "4")
    assert (status, err) == (0, "")
    assert "the full 96 x 96 pixels" in out and "imagenet stem" in out
    backbone = load_backbone(tmp_path / "runs" / "simsiam_folder")
    assert backbone.image_size == 96 and backbone.conv1.kernel_size == (7, 7)


# ---------------------------------------------------------------- commands that use a run


@pytest.mark.parametrize(
    "command",
    [
        "knn",
        "linear",
        "linear --augment --epochs 1",
        "finetune --epochs 1",
        "embed",
        "neighbours",
        "export",
    ],
)
@pytest.mark.parametrize(
    "memory",
    [
        ["--data-memory", "0"],
        pytest.param([], marks=pytest.mark.slow("as from the disk, in the case beside it")),
    ],
)
def test_each_command_finds_the_images_of_the_run(
    command: str, memory: list[str], folder_run: Path, program: Program, tmp_path: Path
) -> None:
    results = ["--results-dir", str(tmp_path / "results"), *memory]
    status, out, err = program(*command.split(), "--checkpoint", str(folder_run), *results)
    line = "200 train and 60 test images, 10 classes"
    if command.startswith("embed"):
        line = "260 images"
    assert (status, err) == (0, "") and line in out and "decoded" not in out


@pytest.mark.parametrize("command", ["knn", "linear", "finetune", "embed", "neighbours", "export"])
def test_commands_that_need_labels_refuse_images_without_them(
    command: str, folder_run: Path, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "flat", patterns(30), "{i}.png")
    flags = ["--dataset", "folder", "--data-dir", str(tmp_path / "flat")]
    flags += ["--cache-dir", str(tmp_path / "cache"), "--results-dir", str(tmp_path / "results")]
    status, out, err = program(command, "--checkpoint", str(folder_run), *flags)
    if command in ("knn", "linear", "finetune"):
        assert status == 2 and err.count("\n") == 1 and "folder: no labels" in err
    else:
        line = "of folder, train, 30 images" if command == "embed" else "30 train and 0 test images"
        assert (status, err) == (0, "") and line in out
