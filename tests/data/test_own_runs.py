"""Runs on your own images: a run keeps a hash of its images, and refuses other images."""

import errno
import math
import os
from pathlib import Path

import pytest
import torch

from simsiam import SimSiam, load_backbone
from simsiam.config.options import DataOptions
from simsiam.evaluation import context
from tests.helpers import TINY, Program, read_rows, read_summary
from tests.images import patterns, write_images
from tests.processes import Started, start, start_pair


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images than `photos`, in the same layout."""
    where = tmp_path_factory.mktemp("others")
    write_images(where, patterns(120, split=3))
    write_images(where, patterns(40, split=4), split="val")
    return where


def test_a_finished_run_on_other_images_is_refused(
    photos: Path,
    others: Path,
    train_on_folder: Program,
) -> None:
    assert train_on_folder(photos)[0] == 0 and "finished already" in train_on_folder(photos)[1]
    status, _, err = train_on_folder(others)
    assert status == 2 and err.count("\n") == 1
    assert f"a finished run on the images in {photos}" in err


def test_a_checkpoint_of_other_images_is_refused(
    photos: Path,
    others: Path,
    train_on_folder: Program,
    tmp_path: Path,
) -> None:
    flags = ("--epochs", "2", "--checkpoint-every", "1")
    assert train_on_folder(photos, *flags)[0] == 0
    last = tmp_path / "runs" / "simsiam_folder" / "checkpoints" / "last.previous.ckpt"
    status, _, err = train_on_folder(others, *flags, "--exp-name", "other", "--ckpt-dir", str(last))
    assert status == 2 and err.count("\n") == 1 and "other images" in err


def test_images_of_two_stains_are_trained_on_and_measured(
    train_on_folder: Program, tmp_path: Path
) -> None:
    images = patterns(40)
    assert isinstance(images.images, torch.Tensor)
    images.images[:, 2] = 0  # blue
    write_images(tmp_path / "stains", images)
    status, _, err = train_on_folder(tmp_path / "stains", "--batch-size", "10")
    assert (status, err) == (0, "")
    run = tmp_path / "runs" / "simsiam_folder"
    assert load_backbone(run).std[2] == 1
    row = read_rows(run)[-1]
    assert math.isfinite(row["train_loss"]) and math.isfinite(row["rankme"])


@pytest.mark.slow("two runs and a page for one line in it")
def test_a_report_tells_runs_on_different_images_apart(
    photos: Path,
    others: Path,
    train_on_folder: Program,
    program: Program,
    tmp_path: Path,
) -> None:
    assert train_on_folder(photos, "--exp-name", "a", "--seed", "0")[0] == 0
    assert train_on_folder(others, "--exp-name", "b", "--seed", "1")[0] == 0
    runs = [str(tmp_path / "runs" / name) for name in ("a", "b")]
    status, out, _ = program("report", *runs, "--no-pictures")
    assert status == 0 and "seeds)" not in out
    assert f"images of {photos.name}" in out and f"images of {others.name}" in out


def test_an_evaluation_uses_the_images_of_the_run(
    folder_run: Path,
    others: Path,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").symlink_to(others)
    monkeypatch.chdir(tmp_path)
    results = ("--results-dir", str(tmp_path / "results"))
    _, out, _ = program("knn", "--checkpoint", str(folder_run), *results)
    assert "200 train and 60 test images" in out


@pytest.mark.parametrize("command", ["export", "report"])
def test_images_that_a_user_may_not_read_are_no_reason_to_fail(
    command: str,
    folder_run: Path,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_without_permission(options: DataOptions) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(options.path))

    monkeypatch.setattr(context, "load_dataset", load_without_permission)
    flags = ["--results-dir", str(tmp_path)] if command == "export" else ["--output", str(tmp_path)]
    status, out, err = program(command, str(folder_run), *flags)
    assert (status, err) == (0, "")
    if command == "report":
        out = (tmp_path / "index.html").read_text()
    assert "Permission denied" in out


@pytest.mark.parametrize("format", ["safetensors", "torch-export"])
def test_a_run_is_exported_after_its_photos_have_moved(
    format: str, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", patterns(60))
    assert train_on_folder(tmp_path / "photos")[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    (tmp_path / "photos").rename(tmp_path / "moved")
    status, out, err = program("export", str(run), "--format", format)
    assert (status, err) == (0, "")
    assert "without the images of the run" in out and "comparing it on generated images" in out
    assert read_summary(run / "results" / f"export_{format}")["compared_on"] == "generated images"
    backbone = load_backbone(run)
    if format == "safetensors":
        file = run / "results" / f"export_{format}" / "backbone.safetensors"
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(load_backbone(file)(images), backbone(images))
    # A folder that is given explicitly must exist.
    arguments = ("--data-dir", str(tmp_path / "nowhere"), "--overwrite")
    status, _, err = program("export", str(run), *arguments)
    assert status == 2 and err.count("\n") == 1 and "no such folder" in err


def test_an_export_downloads_nothing(
    cifar10_run: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataOptions, "path", tmp_path / "nowhere")  # as on another machine
    flags = ("--results-dir", str(tmp_path / "results"))
    status, out, err = program("export", str(cifar10_run), *flags)
    assert (status, err) == (0, "") and "data_batch_1 is missing" in out
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["embed", "report"])
def test_commands_without_train_images_do_not_need_them(
    command: str, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", patterns(60))
    assert train_on_folder(tmp_path / "photos")[0] == 0
    (tmp_path / "photos").rename(tmp_path / "moved")
    flags = ("--images", str(tmp_path / "moved")) if command == "embed" else ()
    status, _, err = program(command, str(tmp_path / "runs" / "simsiam_folder"), *flags)
    assert (status, err) == (0, "")


def test_a_file_name_may_be_any_bytes(train_on_folder: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(60))
    first = next((tmp_path / "photos" / "train").rglob("*.png"))
    os.rename(first, os.fsencode(first.parent) + b"/\xff\xfe.png")
    assert train_on_folder(tmp_path / "photos")[0] == 0


def test_a_run_needs_a_readable_train_image(train_on_folder: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20), "val/{name}/{i}.png")
    for folder in (tmp_path / "photos" / "val").iterdir():
        (tmp_path / "photos" / "train" / folder.name).mkdir(parents=True)
        (tmp_path / "photos" / "train" / folder.name / "1.png").write_text("no image")
    status, _, err = train_on_folder(tmp_path / "photos", "--skip-bad-images")
    assert status == 2 and err.count("\n") == 1 and "None of the train images" in err


def test_a_run_does_not_write_its_pictures_among_the_images(
    train_on_folder: Program, tmp_path: Path
) -> None:
    write_images(tmp_path, patterns(60), "{i}.png")
    status, _, err = train_on_folder(tmp_path)
    assert status == 2 and err.count("\n") == 1 and "its pictures would be taken for images" in err


def test_two_processes_share_a_streamed_folder(photos: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--dataset", "folder", "--data-dir", str(photos), "--image-size", "32"]
    flags += ["--learning-rate", "0.001"]
    flags += ["--cache-dir", str(tmp_path / "cache"), "--save-dir", str(tmp_path / "runs")]
    alone = start(*flags, "--exp-name", "one")
    for process in (alone, *start_pair(*flags, "--exp-name", "two", "--data-memory", "0")):
        assert process.communicate()[1] == "" and process.returncode == 0
    (one,) = read_rows(tmp_path / "runs" / "one")
    (two,) = read_rows(tmp_path / "runs" / "two")
    assert one["step"] == two["step"]
    assert one["train_loss"] == pytest.approx(two["train_loss"], abs=5e-4)
    assert one["kNN_accuracy"] == pytest.approx(two["kNN_accuracy"], abs=4)  # of 60 test images


def test_a_dry_run_prints_the_number_of_devices(program: Program) -> None:
    flags = ["--dataset", "patterns", "--train-images", "100", "--test-images", "10"]
    flags += ["--knn-k", "5", *TINY[:-4]]
    flags += ["--devices", "2", "--epochs", "1", "--dry-run", "--accelerator", "cpu"]
    status, out, err = program(*flags)
    assert (status, err) == (0, "") and "2 x cpu" in out


def train_narrow(args: list[str]) -> int:
    net = SimSiam(
        "resnet10", width=int(args[0]), out_dim=8, h_dim=4, image_size=224, stem="imagenet"
    )
    for _ in range(2):
        net.training_step([torch.randn(8, 3, 224, 224) for _ in range(2)], 0)["loss"].backward()
    return 0


def test_a_narrow_network_takes_large_images() -> None:
    """In channels_last, oneDNN's backward of a 1x1 convolution of stride 2 corrupts memory.

    This happens with few channels.
    """
    for process in [Started(train_narrow, [width]) for width in ("4", "8")]:
        process.communicate()
        assert process.returncode == 0
