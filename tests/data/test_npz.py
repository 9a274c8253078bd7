"""simsiam/data/npz.py and array_conversion.py: images as arrays, and bad arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simsiam.config.options import DataOptions
from simsiam.data.dataset import Splits
from simsiam.data.knn_labels import classifier_unavailable_reason, knn_unavailable_reason
from simsiam.data.npz import load_arrays
from tests.helpers import TINY, Program, read_summary
from utils.errors import UserError

X = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
Y = np.arange(30) % 3


def read(tmp_path: Path, **arrays: Any) -> Splits:
    np.savez(tmp_path / "x.npz", **arrays)
    return load_arrays(DataOptions("arrays", str(tmp_path / "x.npz")))


def test_each_order_of_axes_gives_the_same_images(tmp_path: Path) -> None:
    train, test = read(tmp_path, x_train=X, y_train=Y, x_test=X.transpose(0, 3, 1, 2), y_test=Y)
    assert train.images.shape == (30, 3, 12, 12) and torch.equal(train.images[:], test.images[:])
    assert train.classes == ("0", "1", "2") and knn_unavailable_reason(train, test) is None
    grey, _ = read(tmp_path, x_train=X[..., 0])
    assert all(torch.equal(grey.images[:][:, c], torch.from_numpy(X[..., 0])) for c in range(3))
    names = np.array(["a", "b", "c", "d"])  # No image has the last label.
    named, _ = read(tmp_path, x_train=X, y_train=Y[:, None], classes=names)
    assert named.classes == ("a", "b", "c")


def test_medmnist_names_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = (Y[:, None] % 2).astype(np.uint8)  # (N, 1)
    for images in (X, X[..., 0]):
        arrays = {}
        for split, n in (("train", 30), ("val", 20), ("test", 10)):
            arrays |= {f"{split}_images": images[:n], f"{split}_labels": labels[:n]}
        train, test = read(tmp_path, **arrays)
        assert (len(train), len(test), train.classes) == (30, 20, ("0", "1"))
        assert test.labels.tolist() == labels[:20, 0].tolist()
        used = "training on train_images, testing on val_images; not used: test_images, test_labels"
        assert f"x.npz: {used}\n" in capsys.readouterr().out
        del arrays["val_images"], arrays["val_labels"]
        assert len(read(tmp_path, **arrays)[1]) == 10
        assert "training on train_images, testing on test_images\n" in capsys.readouterr().out


def test_several_labels_per_image_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = np.zeros((30, 14), np.uint8)  # as in MedMNIST's chest data set
    splits = read(tmp_path, x_train=X, y_train=several, x_test=X, y_test=several)
    assert knn_unavailable_reason(*splits) == "no labels"
    assert "y_train has 14 labels for each image" in capsys.readouterr().out


def test_only_labels_that_occur_are_classes(program: Program, tmp_path: Path) -> None:
    """Labels may be any numbers. Memory is only needed for those that occur."""
    numbers = np.array([0, 5000, 10**15])
    train, test = read(tmp_path, x_train=X, y_train=numbers[Y], x_test=X[:9], y_test=numbers[Y[:9]])
    assert train.classes == test.classes == ("0", "5000", "1000000000000000")
    assert train.labels.tolist() == Y.tolist() and test.labels.tolist() == Y[:9].tolist()
    flags = ("--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--batch-size", "10")
    assert program(*TINY, *flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_arrays"
    finetune = ("finetune", "--epochs", "1", "--label-fraction", "1")
    for command, *flags in (("knn",), ("linear",), finetune, ("report",), ("embed",)):
        status, _, err = program(command, str(run), *flags)
        assert (status, err) == (0, "")
    assert read_summary(run / "results" / "knn")["per_class"].keys() == {*train.classes}


def test_class_names_are_indexed_by_label(tmp_path: Path) -> None:
    names = np.array([f"class {i}" for i in range(5001)])
    labels = np.where(Y == 0, 5000, Y)
    train, _ = read(tmp_path, x_train=X, y_train=labels, classes=names)
    assert train.classes == ("class 1", "class 2", "class 5000")
    assert train.names(train.labels.tolist()) == names[labels].tolist()


def test_missing_arrays_turn_knn_off(tmp_path: Path) -> None:
    assert knn_unavailable_reason(*read(tmp_path, x_train=X)) == "no labels"
    splits = read(tmp_path, x_train=X, y_train=0 * Y, x_test=X, y_test=0 * Y)
    assert knn_unavailable_reason(*splits) == "one class only"


def test_missing_test_labels_turn_classifiers_off(tmp_path: Path) -> None:
    splits = read(tmp_path, x_train=X, y_train=Y)
    assert classifier_unavailable_reason(*splits) == "no test images"
    splits = read(tmp_path, x_train=X, y_train=Y, x_test=X)
    assert classifier_unavailable_reason(*splits) == "no labels of the test images"


def test_a_fourth_channel_is_opacity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opacity = np.full((30, 12, 12, 1), 255, np.uint8)
    opacity[:10, :, 6:] = 0
    rgba = np.concatenate([X, opacity], axis=3)
    expected = torch.from_numpy(np.where(opacity > 0, X, 255)).permute(0, 3, 1, 2)
    for images in (rgba, rgba.transpose(0, 3, 1, 2)):
        train, _ = read(tmp_path, x_train=images)
        assert torch.equal(train.images, expected)
        line = "the last of the 4 channels of x_train is taken as opacity. 10 of 30 images have"
        assert line in capsys.readouterr().out
    grey, _ = read(tmp_path, x_train=rgba[..., [0, 3]])
    assert torch.equal(grey.images, expected[:, :1].expand(-1, 3, -1, -1))
    options = DataOptions("arrays", str(tmp_path / "x.npz"), background="black")
    assert load_arrays(options)[0].images[0, :, 0, -1].tolist() == [0, 0, 0]


OPACITY = np.tile([[0, 64], [191, 255]], (4, 4))  # of the pixels of an image


@pytest.mark.parametrize(
    ("dtype", "limits", "opaque"),
    [
        (np.float32, (-1, 1), 1.0),
        (np.float64, (0, 1), 1.0),
        (np.uint16, (0, 4095), 65535),
        (np.uint8, (0, 16), 255),
        (np.uint8, (0, 4095), 255),  # a range that is for other arrays than of 8 bits
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixel_range_is_that_of_the_colours_and_not_of_opacity(
    channels: int, dtype: type[np.generic], limits: tuple[int, int], opaque: float, tmp_path: Path
) -> None:
    """Black pixels on white are white if they are transparent."""
    images = np.full((3, 8, 8, channels + 1), limits[0], dtype)
    images[..., -1] = (OPACITY / 255 * opaque).astype(dtype)
    np.savez(tmp_path / "x.npz", x_train=images)
    pixel_range = f"{limits[0]}:{limits[1]}"
    train, _ = load_arrays(DataOptions("arrays", tmp_path / "x.npz", pixel_range=pixel_range))
    for channel in train.images[0]:
        np.testing.assert_allclose(channel, 255 - OPACITY, atol=1)
        assert channel[0, 0] == 255 and channel[1, 1] == 0


def test_opacity_without_a_known_scale_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=np.zeros((2, 8, 8, 4), np.int64))
    with pytest.raises(UserError, match="opacity, which has no known scale as int64"):
        load_arrays(DataOptions("arrays", tmp_path / "x.npz", pixel_range="0:255"))


@pytest.mark.parametrize("pixel_range", [None, "0:1", "0:4095"])
def test_booleans_are_black_and_white(pixel_range: str | None, tmp_path: Path) -> None:
    masks = X[..., 0] > 127
    np.savez(tmp_path / "x.npz", x_train=masks, x_test=np.stack([masks] * 4, axis=-1))
    options = DataOptions("arrays", tmp_path / "x.npz", pixel_range=pixel_range)
    train, test = load_arrays(options)
    expected = torch.from_numpy(255 * masks)
    assert all(torch.equal(train.images[:][:, c], expected.to(torch.uint8)) for c in range(3))
    assert bool((test.images == 255).all())  # white where it is opaque, on white


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X.astype(np.complex64)}, "is complex64, but images are numbers"),
        ({"images": X, "labels": Y}, "no x_train or train_images in it; there are images, labels"),
        ({"x_train": X, "y_train": Y, "classes": np.array(["a", "b", "a"])}, "more than once"),
        ({"x_train": X.astype(np.float32)}, "is float32, but images are uint8"),
        ({"x_train": X[:, :8]}, r"shape \(30, 8, 12, 3\)"),
        ({"x_train": X[0, 0]}, "shape"),
        ({"x_train": X[:0]}, "has no image"),
        ({"x_train": X, "y_train": Y[:-1]}, r"shape \(29,\), for 30 images"),
        ({"x_train": X, "y_train": Y / 2}, "labels are whole numbers"),
        ({"x_train": X, "y_train": Y - 1}, "count from 0"),
        ({"x_train": X, "y_train": Y, "classes": np.array(["a"])}, "1 names"),
        ({"x_train": X, "y_train": Y, "classes": np.arange(3)}, "names are text"),
        ({"x_train": X[..., [0, 1, 2, 0, 1]]}, "Of images with more channels, save the three"),
        ({"x_train": X, "x_test": X[:, :8, :8]}, "x_test 8"),
        ({"x_train": np.array([X, None], dtype=object)}, "plain arrays"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, **arrays)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more", None])
def test_other_files_than_npz_are_refused(
    content: bytes | None, program: Program, tmp_path: Path
) -> None:
    if content is None:
        np.save(tmp_path / "x.npy", X)
        content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npz").write_bytes(content)
    status, _, err = program(*TINY, "--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"))
    assert status == 2 and err.count("\n") == 1 and "not an .npz" in err
    assert program(*TINY, "--dataset", "arrays", "--data-dir", str(tmp_path))[0] == 2


def test_image_size_may_not_exceed_the_images(program: Program, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=X)
    flags = ("--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--batch-size", "10")
    status, _, err = program(*TINY, *flags, "--image-size", "32")
    assert status == 2 and "12 pixels wide" in err
    status, out, err = program(*TINY, *flags, "--image-size", "8")
    assert (status, err) == (0, "") and "views of 8 x 8 pixels from 12 x 12" in out
