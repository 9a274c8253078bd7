"""A data set of arrays: an .npz file of `x_train` and, if they are there, `y_train`, `x_test`, `y_test`, `classes`.

Images are uint8, (N, S, S, 3), (N, 3, S, S) or grey (N, S, S); labels are integers (N,), places in `classes`.
"""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch

from simsiam.config.options import DataOptions
from simsiam.data.dataset import ImageDataset, Splits, take_first
from utils.errors import UserError, check

KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")


def load_arrays(options: DataOptions) -> Splits:
    """Both splits, without running anything that the file contains."""
    file = options.path
    check(file.is_file(), f"--data-dir {file}: no such file; --dataset arrays wants an .npz")
    try:
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
            check(zipfile.is_zipfile(content), "no zip archive")  # numpy would advise to load it as a pickle
            content.seek(0)
            with np.load(content, allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files if name in KEYS}
    except Exception as error:  # noqa: BLE001  (for damaged files numpy and zipfile raise whatever comes)
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: not an .npz file of plain arrays ({why})") from None
    check("x_train" in arrays, f"{file}: no x_train in it; there are {', '.join(arrays) or 'no arrays'}")
    x_train = _read_images(file, "x_train", arrays["x_train"])
    check(len(x_train) > 0, f"{file}: x_train has no image")
    images = [x_train, _read_images(file, "x_test", arrays["x_test"]) if "x_test" in arrays else x_train[:0]]
    labels = [_read_labels(file, name, arrays, len(x)) for name, x in zip(("y_train", "y_test"), images, strict=True)]
    count = int(labels[0].max()) + 1
    names = arrays.get("classes", np.arange(count).astype(np.str_))
    check(names.dtype.kind == "U" and names.ndim == 1, f"{file}: classes are {names.dtype}: names are text, (C,)")
    check(len(names) >= count, f"{file}: the labels go to {count - 1}, and classes has {len(names)} names")
    classes = tuple(names.tolist()) if count else ()
    train, test = (ImageDataset(x, y, classes, digest=digest) for x, y in zip(images, labels, strict=True))
    check(train.side == test.side, f"{file}: x_train is {train.side} pixels wide, x_test {test.side}")
    strange = sorted({*test.labels.tolist()} - {*train.labels.tolist(), -1})
    check(not strange, f"{file}: label {strange[:1]} of y_test is not in y_train")
    return take_first(options, train, test)


def _read_images(file: Path, name: str, x: np.ndarray) -> torch.Tensor:
    """(N, 3, S, S)"""
    shape = x.shape
    check(x.dtype == np.uint8, f"{file}: {name} is {x.dtype}: images are uint8, 0 to 255")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    right = x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] > 0
    check(right, f"{file}: {name} has shape {shape}: (N, S, S, 3), (N, 3, S, S) or (N, S, S) are images")
    return torch.from_numpy(np.repeat(x, 3, axis=1) if x.shape[1] == 1 else np.ascontiguousarray(x))


def _read_labels(file: Path, name: str, arrays: dict[str, np.ndarray], n: int) -> torch.Tensor:
    """(N,), -1 where there are none; labels of the test images alone are of no use."""
    if name not in arrays or "y_train" not in arrays:
        return torch.full((n,), -1)
    y = arrays[name]
    check(y.dtype.kind in "iu", f"{file}: {name} is {y.dtype}: labels are whole numbers")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # as Keras has them
    check(y.shape == (n,), f"{file}: {name} has shape {y.shape}, for {n} images")
    low, high = int(y.min(initial=0)), int(y.max(initial=0))
    check(0 <= low <= high < 2**20, f"{file}: {name} goes from {low} to {high}: labels count from 0, up to a million")
    return torch.from_numpy(y.astype(np.int64))
