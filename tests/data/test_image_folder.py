"""simsiam/data/image_folder.py: one's own images, and all that may be wrong with them."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.data.dataset import ImageDataset
from tests.at_steps import start_with_events
from tests.helpers import (
    ROOT,
    TINY,
    Program,
    Started,
    as_nobody,
    bad_folder,
    patterns,
    picture,
    rows,
    same_weights,
    start,
    write_images,
)

# ---------------------------------------------------------------- the same images are the same data set


@pytest.mark.slow(
    "writes and trains on 5,000 images three times; the golden of a streamed folder is a quick test"
)
def test_5000_real_images_as_files_train_as_the_same_images_as_arrays(
    cifar10_dir: Path, own: Program, program: Program, tmp_path: Path
) -> None:
    splits = load_dataset(
        DataOptions("cifar10", str(cifar10_dir), train_images=4000, test_images=1000)
    )
    ordered = []
    for images in splits:  # by class, as files are
        order = sorted(range(len(images)), key=lambda i, of=images: (of.classes[of.labels[i]], i))
        ordered.append(ImageDataset(images.images[order], images.labels[order], images.classes))
    arrays: dict[str, Any] = {"classes": np.array(ordered[0].classes)}
    for split, name, images in zip(("train", "val"), ("train", "test"), ordered, strict=True):
        write_images(tmp_path / "png", images, split=split)
        arrays |= {
            f"x_{name}": images.images.permute(0, 2, 3, 1).numpy(),
            f"y_{name}": images.labels.numpy(),
        }
    np.savez(tmp_path / "x.npz", **arrays)
    few = ("--batch-size", "500")
    assert own(tmp_path / "png", *few, "--exp-name", "files")[0] == 0
    assert own(tmp_path / "png", *few, "--exp-name", "streamed", "--data-memory", "0")[0] == 0
    given = ("--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--exp-name", "arrays")
    assert program(*TINY, *few, *given)[0] == 0
    runs = [tmp_path / "runs" / name for name in ("files", "streamed", "arrays")]
    assert rows(runs[0]) == rows(runs[1]) == rows(runs[2]) and rows(runs[0])[0]["kNN_accuracy"] > 10
    assert same_weights(runs[0], runs[1]) and same_weights(runs[0], runs[2])


def test_a_streamed_run_cut_off_in_the_middle_of_an_epoch_ends_as_one_left_alone(
    photos: Path, tmp_path: Path
) -> None:
    flags = [
        *TINY,
        "--dataset",
        "folder",
        "--data-dir",
        str(photos),
        "--image-size",
        "32",
        "--data-memory",
        "0",
    ]
    flags += [
        "--cache-dir",
        str(tmp_path / "cache"),
        "--train-images",
        "60",
        "--batch-size",
        "10",
        "--epochs",
        "4",
        "--knn-every",
        "2",
    ]
    flags += ["--save-dir", str(tmp_path / "runs")]

    alone = start(*flags, "--exp-name", "alone")
    cut = start_with_events(
        {9: ["SIGTERM"]}, *flags, "--exp-name", "cut"
    )  # waits for the decoding, or finds it
    _, err = cut.communicate()
    assert (
        cut.returncode == 143
        and err.count("\n") == 1
        and "in epoch 2, step 9" in err
        and "saved" in err
    )
    assert alone.communicate()[1] == ""
    out, err = start(*flags, "--exp-name", "cut").communicate()
    assert err == "" and "resumed from" in out
    runs = [tmp_path / "runs" / name for name in ("alone", "cut")]
    assert rows(runs[0]) == rows(runs[1]) and same_weights(*runs)


LIMITED = """
import sys
import numpy as np, pytorch_lightning as pl, torch
from simsiam import KNNMonitor, SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from tests.helpers import limit_memory

data = ViewsDataModule("folder", batch_size=8, image_size=32, data_memory=0)
images = torch.from_numpy(np.load(sys.argv[1], mmap_mode="r"))
n, labels = len(images), torch.arange(len(images)) % 2
train = ImageDataset(images, labels, ("a", "b"), on_disk=True)
data.set_splits((train, train.first(50)))
model = SimSiam("resnet10", width=4, out_dim=16, h_dim=8)
limit_memory(int(sys.argv[2]))
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[KNNMonitor(5)], **quiet)
trainer.fit(model, datamodule=data)
assert data.train.on_disk and trainer.global_step == n // 8
"""


@pytest.mark.slow("786 MB are written and read; that images stay on disk is a quick test")
def test_images_several_times_larger_than_the_memory_train_within_it(tmp_path: Path) -> None:
    """The kernel sets the limit: on what the program may take beyond what it is before it has seen an image."""
    n, room = 1000, 200 * 2**20
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (n, 3, 512, 512))
    images[:] = np.random.default_rng(0).integers(0, 256, (3, 512, 512), dtype=np.uint8)
    images.flush()
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        LIMITED,
        str(tmp_path / "images.npy"),
        str(room),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert images.nbytes > 3.7 * room


# ---------------------------------------------------------------- layouts


def test_without_labels_a_run_goes_to_its_end_and_says_that_knn_is_off(
    own: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "flat", patterns(60), "é {i}.png")
    status, out, err = own(tmp_path / "flat")
    assert (status, err) == (0, "") and "no labels: kNN is off" in out and "0 classes" in out
    run = tmp_path / "runs" / "simsiam_folder"
    assert json.loads((run / "summary.json").read_text())["kNN_accuracy"] is None
    assert (run / "views.png").exists()


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("{split}/{name}/{i}.png", "no test images: kNN is off"),
        ("{name}/{i}.png", "no test images: kNN is off"),
        ("train/{i}.png", "no labels: kNN is off"),
        ("train/one class/{i}.png", "one class only: kNN is off"),
    ],
)
def test_each_layout_is_known_and_what_it_lacks_is_said(
    layout: str, said: str, own: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", patterns(20), layout)
    status, out, err = own(tmp_path / "photos", "--batch-size", "10", "--dry-run")
    assert (status, err) == (0, "") and said in out and "20 images would be decoded" in out
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


def test_images_beside_classes_have_no_labels_and_that_is_said(
    own: Program, tmp_path: Path
) -> None:
    write_images(tmp_path, patterns(20))
    picture().save(tmp_path / "train" / "loose.png")
    status, out, _ = own(tmp_path, "--batch-size", "10", "--dry-run")
    assert (
        status == 0
        and "1 of 21 images lie in no class's folder" in out
        and "no labels: kNN is off" in out
    )


def test_a_part_of_a_folder_is_spread_over_its_classes(
    photos: Path, own: Program, tmp_path: Path
) -> None:
    status, out, _ = own(photos, "--train-images", "100", "--test-images", "30")
    assert status == 0 and "100 train and 30 test images, 10 classes" in out
    train, test = load_dataset(
        DataOptions("folder", str(photos), None, 100, 30, 32, str(tmp_path / "cache"))
    )
    assert (
        train.labels.bincount().tolist() == [10] * 10
        and test.labels.bincount().tolist() == [3] * 10
    )


def test_large_images_are_stored_with_a_margin_and_take_the_imagenet_stem(
    own: Program, tmp_path: Path
) -> None:
    for i in range(12):
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture((150, 130)).rotate(10 * i).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg")
    status, out, err = own(tmp_path, "--image-size", "96", "--batch-size", "4")
    assert (
        (status, err) == (0, "")
        and "96 x 96 pixels from 110 x 110" in out
        and "imagenet stem" in out
    )
    from simsiam import load_backbone

    backbone = load_backbone(tmp_path / "runs" / "simsiam_folder")
    assert backbone.image_size == 96 and backbone.conv1.kernel_size == (7, 7)


# ---------------------------------------------------------------- what was learned is used as with any other data set


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
    command: str, memory: list[str], own_run: Path, program: Program, tmp_path: Path
) -> None:
    results = ["--results-dir", str(tmp_path / "results"), *memory]
    status, out, err = program(*command.split(), "--checkpoint", str(own_run), *results)
    told = (
        "260 images" if command.startswith("embed") else "200 train and 60 test images, 10 classes"
    )
    assert (status, err) == (0, "") and told in out and "decoded" not in out


@pytest.mark.parametrize("command", ["knn", "linear", "finetune", "embed", "neighbours", "export"])
def test_of_images_without_labels_each_command_does_what_can_be_done(
    command: str, own_run: Path, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "flat", patterns(30), "{i}.png")
    given = [
        "--dataset",
        "folder",
        "--data-dir",
        str(tmp_path / "flat"),
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    given += ["--results-dir", str(tmp_path / "results")]
    status, out, err = program(command, "--checkpoint", str(own_run), *given)
    if command in ("knn", "linear", "finetune"):
        assert status == 2 and err.count("\n") == 1 and "folder: no labels" in err
    else:
        told = "of folder, train, 30 images" if command == "embed" else "30 train and 0 test images"
        assert (status, err) == (0, "") and told in out


# ---------------------------------------------------------------- bad folders


def spoil(folder: Path, what: str) -> None:
    """Make a good folder (200 images in train/, 60 in val/) a bad one."""
    train = folder / "train"
    if what == "val is empty":
        (folder / "val").mkdir()
    elif what == "a class of val alone":
        (folder / "val" / "cats").mkdir(parents=True)
        picture().save(folder / "val" / "cats" / "a.png")
    elif what == "a text file":
        (train / "dots" / "a b é.jpg").write_text("hello")
    elif what == "a broken link":
        (train / "dots" / "a.jpg").symlink_to("nowhere.jpg")
    elif what == "a pipe":
        os.mkfifo(train / "dots" / "a.jpg")


BAD = {
    "val is empty": r"--data-dir .*val: no image in it",
    "a class of val alone": r"val: cats is no class of .*train",
    "a text file": r"1 of 21 images in .* cannot be read: train/dots/a b é.jpg \(not an image\).*--skip-bad-images",
    "a broken link": r"1 of 21 images in .* cannot be read: train/dots/a.jpg \(No such file or directory\)",
    "a pipe": r"1 of 21 images in .* cannot be read: train/dots/a.jpg \(not a file\)",
}


@pytest.mark.parametrize("what", BAD)
def test_each_bad_folder_is_answered_in_one_line(what: str, own: Program, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_images(folder, patterns(20))
    spoil(folder, what)
    status, out, err = own(folder, "--batch-size", "10")
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "runs").exists(), out + err
    assert re.search(BAD[what], err), err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as somebody else")
def test_a_class_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as where:
        Path(where).chmod(0o777)
        write_images(Path(where, "photos"), patterns(20))
        Path(where, "photos", "train", "zigzag").chmod(0)
        flags = [
            "--dataset",
            "folder",
            "--data-dir",
            f"{where}/photos",
            "--cache-dir",
            f"{where}/cache",
        ]
        flags += ["--image-size", "32", "--save-dir", f"{where}/runs", *TINY, "--batch-size", "10"]
        process = Started(as_nobody, flags)
        _, err = process.communicate()
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert "zigzag (Permission denied). Mend or remove them" in err


def test_no_folder_and_an_empty_one_are_answered_in_one_line(own: Program, tmp_path: Path) -> None:
    assert "no such folder" in own(tmp_path / "none")[2]
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "no image in it" in own(tmp_path / "empty")[2]
    (tmp_path / "photo.jpg").write_text("")
    assert "no such folder" in own(tmp_path / "photo.jpg")[2]


def test_bad_images_are_left_out_if_asked_and_counted(own: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20))
    bad = bad_folder(tmp_path / "photos" / "train" / "dots")
    status, out, err = own(tmp_path / "photos", "--batch-size", "10", "--skip-bad-images")
    assert (
        (status, err) == (0, "")
        and f"left out: {len(bad)} of {21 + len(bad)}" in out
        and "21 train" in out
    )


def test_a_run_does_not_go_on_with_other_images(own: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20))
    assert own(tmp_path / "photos", "--batch-size", "10")[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    (run / "summary.json").unlink()  # as if it had not been finished
    picture().save(tmp_path / "photos" / "train" / "dots" / "new.png")
    status, _, err = own(tmp_path / "photos", "--batch-size", "10")
    assert status == 2 and err.count("\n") == 1 and "on other images than are in" in err
    assert yaml.safe_load((run / "config.yaml").read_text())["resolved"]["stem"] == "cifar"
