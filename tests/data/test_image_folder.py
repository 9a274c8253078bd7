"""simsiam/data/image_folder.py and npz.py: one's own images, and all that may be wrong with them."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from simsiam.data.cifar import load
from simsiam.data.dataset import ImageDataset, channel_statistics, no_knn, settle
from simsiam.data.npz import read_arrays
from simsiam.data.synthetic import make_patterns
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
    wait_for_epochs,
    write_images,
)
from utils.device import _field, free_memory
from utils.errors import UserError

# ---------------------------------------------------------------- the same images are the same data set


@pytest.mark.slow("writes and trains on 5,000 images three times; the golden of a streamed folder is a quick test")
def test_5000_real_images_as_files_train_as_the_same_images_as_arrays(
    cifar10_dir: Path, own: Program, program: Program, tmp_path: Path
) -> None:
    splits = load("cifar10", str(cifar10_dir), 4000, 1000)
    ordered = []
    for images in splits:  # by class, as files are
        order = sorted(range(len(images)), key=lambda i, of=images: (of.classes[of.labels[i]], i))
        ordered.append(ImageDataset(images.images[order], images.labels[order], images.classes))
    arrays: dict[str, Any] = {"classes": np.array(ordered[0].classes)}
    for split, name, images in zip(("train", "val"), ("train", "test"), ordered, strict=True):
        write_images(tmp_path / "png", images, split=split)
        arrays |= {f"x_{name}": images.images.permute(0, 2, 3, 1).numpy(), f"y_{name}": images.labels.numpy()}
    np.savez(tmp_path / "x.npz", **arrays)
    few = ("--batch-size", "500")
    assert own(tmp_path / "png", *few, "--exp-name", "files")[0] == 0
    assert own(tmp_path / "png", *few, "--exp-name", "streamed", "--data-memory", "0")[0] == 0
    given = ("--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--exp-name", "arrays")
    assert program(*TINY, *few, *given)[0] == 0
    runs = [tmp_path / "runs" / name for name in ("files", "streamed", "arrays")]
    assert rows(runs[0]) == rows(runs[1]) == rows(runs[2]) and rows(runs[0])[0]["kNN_accuracy"] > 10
    assert same_weights(runs[0], runs[1]) and same_weights(runs[0], runs[2])


def test_a_streamed_run_cut_off_in_the_middle_of_an_epoch_ends_as_one_left_alone(photos: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--dataset", "folder", "--data-dir", str(photos), "--image-size", "32", "--data-memory", "0"]
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

    def begin(name: str) -> Started:
        return start(*flags, "--exp-name", name)

    alone, cut = begin("alone"), begin("cut")  # at once: the second waits for the decoding of the first, or finds it
    wait_for_epochs(cut, tmp_path / "runs" / "cut", 1)
    cut.send_signal(signal.SIGTERM)
    _, err = cut.communicate(timeout=60)
    assert cut.returncode == 143 and err.count("\n") == 1 and "saved" in err
    assert alone.communicate(timeout=120)[1] == ""
    out, err = begin("cut").communicate(timeout=120)
    assert err == "" and "resumed from" in out
    runs = [tmp_path / "runs" / name for name in ("alone", "cut")]
    assert rows(runs[0]) == rows(runs[1]) and same_weights(*runs)


LIMITED = """
import resource, sys
import pytorch_lightning as pl, torch
from simsiam import KNNMonitor, SimSiam
from simsiam.data import ViewsDataModule
from simsiam.splits import ImageDataset
from utils.device import _field
from utils.stored import MemmapImages

data = ViewsDataModule("folder", batch_size=8, image_size=32)
n = int(sys.argv[2])
images = MemmapImages(sys.argv[1], 512, n)
labels = torch.arange(n) % 2
data.use((ImageDataset(images, labels, ("a", "b")), ImageDataset(images.part(0, 50), labels[:50], ("a", "b"))))
data.ready = True
model = SimSiam("resnet10", width=4, out_dim=16, h_dim=8)
limit = _field("/proc/self/status", "VmData:") + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[KNNMonitor(5)], **quiet)
trainer.fit(model, datamodule=data)
assert data.streamed and trainer.global_step == n // 8
"""


@pytest.mark.slow("786 MB are written and read; that images stay on disk is a quick test")
def test_images_several_times_larger_than_the_memory_train_within_it(tmp_path: Path) -> None:
    """The kernel sets the limit: on what the program may take beyond what it is before it has seen an image."""
    block = torch.randint(0, 256, (50, 3, 512, 512), dtype=torch.uint8).numpy().tobytes()
    with open(tmp_path / "images.u8", "wb") as file:
        for _ in range(20):
            file.write(block)
    n, room = 1000, 200 * 2**20
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path / "images.u8"), str(n), str(room)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert n * 3 * 512**2 > 3.7 * room


# ---------------------------------------------------------------- layouts


def test_without_labels_a_run_goes_to_its_end_and_says_that_knn_is_off(own: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", patterns(60), "é {i}.png")
    status, out, err = own(tmp_path / "flat")
    assert (status, err) == (0, "") and "no labels: kNN is off" in out and "0 classes" in out
    run = tmp_path / "runs" / "simsiam_folder"
    assert json.loads((run / "summary.json").read_text())["kNN_accuracy"] is None
    assert (run / "views.png").exists() and list((run / "tensorboard").glob("*/embedding/sprite.png"))


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("{split}/{name}/{i}.png", "no test images: kNN is off"),
        ("{name}/{i}.png", "no test images: kNN is off"),
        ("train/{i}.png", "no labels: kNN is off"),
        ("train/one class/{i}.png", "one class only: kNN is off"),
    ],
)
def test_each_layout_is_known_and_what_it_lacks_is_said(layout: str, said: str, own: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20), layout)
    status, out, err = own(tmp_path / "photos", "--batch-size", "10", "--dry-run")
    assert (status, err) == (0, "") and said in out and "20 images would be decoded" in out
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


def test_images_beside_classes_have_no_labels_and_that_is_said(own: Program, tmp_path: Path) -> None:
    write_images(tmp_path, patterns(20))
    picture().save(tmp_path / "train" / "loose.png")
    status, out, _ = own(tmp_path, "--batch-size", "10", "--dry-run")
    assert status == 0 and "1 of 21 images lie in no class's folder" in out and "no labels: kNN is off" in out


def test_a_part_of_a_folder_is_spread_over_its_classes(photos: Path, own: Program, tmp_path: Path) -> None:
    status, out, _ = own(photos, "--train-images", "100", "--test-images", "30")
    assert status == 0 and "100 train and 30 test images, 10 classes" in out
    train, test = load("folder", str(photos), 100, 30, 32, str(tmp_path / "cache"))
    assert train.labels.bincount().tolist() == [10] * 10 and test.labels.bincount().tolist() == [3] * 10


def test_large_images_are_stored_with_a_margin_and_take_the_imagenet_stem(own: Program, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture((150, 130)).rotate(10 * i).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg")
    status, out, err = own(tmp_path, "--image-size", "96", "--batch-size", "4")
    assert (status, err) == (0, "") and "96 x 96 pixels from 110 x 110" in out and "imagenet stem" in out
    from simsiam import load_backbone

    backbone = load_backbone(tmp_path / "runs" / "simsiam_folder")
    assert backbone.image_size == 96 and backbone.conv1.kernel_size == (7, 7)


# ---------------------------------------------------------------- what was learned is used as with any other data set


@pytest.mark.parametrize(
    "command", ["knn", "linear", "linear --augment --epochs 1", "finetune --epochs 1", "embed", "neighbours", "export"]
)
@pytest.mark.parametrize(
    "memory",
    [["--data-memory", "0"], pytest.param([], marks=pytest.mark.slow("as from the disk, in the case beside it"))],
)
def test_each_command_finds_the_images_of_the_run(
    command: str, memory: list[str], own_run: Path, program: Program, tmp_path: Path
) -> None:
    results = ["--results-dir", str(tmp_path / "results"), *memory]
    status, out, err = program(*command.split(), "--checkpoint", str(own_run), *results)
    assert (status, err) == (0, "") and "200 train and 60 test images, 10 classes" in out and "decoded" not in out


@pytest.mark.parametrize("command", ["knn", "linear", "finetune", "embed", "neighbours", "export"])
def test_of_images_without_labels_each_command_does_what_can_be_done(
    command: str, own_run: Path, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "flat", patterns(30), "{i}.png")
    given = ["--dataset", "folder", "--data-dir", str(tmp_path / "flat"), "--cache-dir", str(tmp_path / "cache")]
    given += ["--results-dir", str(tmp_path / "results")]
    status, out, err = program(command, "--checkpoint", str(own_run), *given)
    if command in ("knn", "linear", "finetune"):
        assert status == 2 and err.count("\n") == 1 and "folder: no labels" in err
    else:
        assert (status, err) == (0, "") and "30 train and 0 test images" in out


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
        flags = ["--dataset", "folder", "--data-dir", f"{where}/photos", "--cache-dir", f"{where}/cache"]
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
    assert (status, err) == (0, "") and f"left out: {len(bad)} of {21 + len(bad)}" in out and "21 train" in out


def test_a_run_does_not_go_on_with_other_images(own: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(20))
    assert own(tmp_path / "photos", "--batch-size", "10")[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    (run / "summary.json").unlink()  # as if it had not been finished
    picture().save(tmp_path / "photos" / "train" / "dots" / "new.png")
    status, _, err = own(tmp_path / "photos", "--batch-size", "10")
    assert status == 2 and err.count("\n") == 1 and "on other images than are in" in err
    assert yaml.safe_load((run / "config.yaml").read_text())["resolved"]["stem"] == "cifar"


# ---------------------------------------------------------------- arrays


X, Y = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8), np.arange(30) % 3


def read(tmp_path: Path, **arrays: Any) -> tuple[ImageDataset, ImageDataset]:
    np.savez(tmp_path / "x.npz", **arrays)
    return read_arrays(str(tmp_path / "x.npz"))


def test_every_order_of_the_axes_is_the_same_picture(tmp_path: Path) -> None:
    train, test = read(tmp_path, x_train=X, y_train=Y, x_test=X.transpose(0, 3, 1, 2), y_test=Y)
    assert train.images.shape == (30, 3, 12, 12) and torch.equal(train.images[:], test.images[:])
    assert train.classes == ("0", "1", "2") and no_knn(train, test) is None
    grey, _ = read(tmp_path, x_train=X[..., 0])
    assert all(torch.equal(grey.images[:][:, c], torch.from_numpy(X[..., 0])) for c in range(3))
    names = read(tmp_path, x_train=X, y_train=Y[:, None], classes=np.array(["a", "b", "c", "d"]))[0].classes
    assert names == ("a", "b", "c", "d")


def test_what_arrays_lack_is_said(tmp_path: Path) -> None:
    assert no_knn(*read(tmp_path, x_train=X)) == "no labels"
    assert no_knn(*read(tmp_path, x_train=X, y_train=Y)) == "no test images"
    assert no_knn(*read(tmp_path, x_train=X, y_train=Y, x_test=X)) == "no labels of the test images"
    assert no_knn(*read(tmp_path, x_train=X, y_train=0 * Y, x_test=X, y_test=0 * Y)) == "one class only"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": X}, "no x_train"),
        ({"x_train": X.astype(np.float32)}, "is float32: images are uint8"),
        ({"x_train": X[:, :8]}, r"shape \(30, 8, 12, 3\)"),
        ({"x_train": X[0, 0]}, "shape"),
        ({"x_train": X[:0]}, "has no image"),
        ({"x_train": X, "y_train": Y[:-1]}, r"shape \(29,\), for 30 images"),
        ({"x_train": X, "y_train": Y / 2}, "labels are whole numbers"),
        ({"x_train": X, "y_train": Y - 1}, "count from 0"),
        ({"x_train": X, "y_train": Y, "classes": np.array(["a"])}, "1 names"),
        ({"x_train": X, "y_train": Y, "classes": np.arange(3)}, "names are text"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "label .* of y_test is not in y_train"),
        ({"x_train": X, "x_test": X[:, :8, :8]}, "x_test 8"),
        ({"x_train": np.array([X, None], dtype=object)}, "plain arrays"),
    ],
)
def test_bad_arrays_are_answered_in_one_line(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path, **arrays)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more", None])
def test_what_is_no_npz_is_said(content: bytes | None, program: Program, tmp_path: Path) -> None:
    if content is None:
        np.save(tmp_path / "x.npy", X)
        content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npz").write_bytes(content)
    status, _, err = program(*TINY, "--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"))
    assert status == 2 and err.count("\n") == 1 and "not an .npz" in err
    assert program(*TINY, "--dataset", "arrays", "--data-dir", str(tmp_path))[0] == 2


def test_views_larger_than_the_images_are_refused_and_smaller_ones_are_crops(program: Program, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=X)
    given = ("--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--batch-size", "10")
    status, _, err = program(*TINY, *given, "--image-size", "32")
    assert status == 2 and "12 pixels wide" in err
    status, out, err = program(*TINY, *given, "--image-size", "8")
    assert (status, err) == (0, "") and "views of 8 x 8 pixels from 12 x 12" in out


# ---------------------------------------------------------------- memory


def test_statistics_of_many_images_are_those_of_some_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_patterns(1000)[0]
    exact = channel_statistics(images)
    monkeypatch.setattr("simsiam.data.dataset.COUNTED", 100 * 3 * 32 * 32)
    assert channel_statistics(images) == channel_statistics(images[::10])
    assert channel_statistics(images)[0] == pytest.approx(exact[0], abs=0.02)


def print_free_memory(args: list[str]) -> int:
    """What is free once the kernel has been told to give 128 MiB more and nothing beyond."""
    limit = _field("/proc/self/status", "VmData:") + 2**27
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(free_memory(torch.device("cpu")))
    return 0


def test_free_memory_knows_the_limits_of_the_process() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    out, err = Started(print_free_memory, []).communicate()
    assert 0 < int(out) <= 2**27, err


def test_images_that_do_not_fit_stay_where_they_are(photos: Path, own: Program, tmp_path: Path) -> None:
    assert own(photos, "--dry-run")[0] == 0
    from simsiam.data.cifar import fetch

    fetch("folder", str(photos), image_size=32, cache_dir=str(tmp_path / "cache"))
    splits = load("folder", str(photos), None, None, 32, str(tmp_path / "cache"))
    stays, comes = (settle(splits, torch.device("cpu"), gib)[0] for gib in (0, 1))
    assert not isinstance(stays.images, torch.Tensor) and isinstance(comes.images, torch.Tensor)
    places = torch.tensor([[3, 199], [0, 3]])
    assert torch.equal(stays.at(places), comes.at(places)) and torch.equal(stays.images[5:7], comes.images[5:7])
    assert torch.equal(torch.cat(list(stays.images.split(70))), comes.images)
