"""simsiam/data/npz.py: images as arrays, and all that may be wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simsiam.config.options import DataOptions
from simsiam.data.dataset import Splits, why_no_knn
from simsiam.data.npz import load_arrays
from tests.helpers import TINY, Program
from utils.errors import UserError

X, Y = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8), np.arange(30) % 3


def read(tmp_path: Path, **arrays: Any) -> Splits:
    np.savez(tmp_path / "x.npz", **arrays)
    return load_arrays(DataOptions("arrays", str(tmp_path / "x.npz")))


def test_every_order_of_the_axes_is_the_same_picture(tmp_path: Path) -> None:
    train, test = read(tmp_path, x_train=X, y_train=Y, x_test=X.transpose(0, 3, 1, 2), y_test=Y)
    assert train.images.shape == (30, 3, 12, 12) and torch.equal(train.images[:], test.images[:])
    assert train.classes == ("0", "1", "2") and why_no_knn(train, test) is None
    grey, _ = read(tmp_path, x_train=X[..., 0])
    assert all(torch.equal(grey.images[:][:, c], torch.from_numpy(X[..., 0])) for c in range(3))
    names = read(tmp_path, x_train=X, y_train=Y[:, None], classes=np.array(["a", "b", "c", "d"]))[0].classes
    assert names == ("a", "b", "c", "d")


def test_what_arrays_lack_is_said(tmp_path: Path) -> None:
    assert why_no_knn(*read(tmp_path, x_train=X)) == "no labels"
    assert why_no_knn(*read(tmp_path, x_train=X, y_train=Y)) == "no test images"
    assert why_no_knn(*read(tmp_path, x_train=X, y_train=Y, x_test=X)) == "no labels of the test images"
    assert why_no_knn(*read(tmp_path, x_train=X, y_train=0 * Y, x_test=X, y_test=0 * Y)) == "one class only"


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
