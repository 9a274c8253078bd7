"""A data set of arrays: an .npz file of `x_train` and, if they are there, `y_train`, `x_test`, `y_test`, `classes`."""

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from simsiam.data.dataset import DatasetSource, DatasetSpec, ImageDataset, Splits, make_empty_split, take_first
from utils.errors import UserError, check

KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")
# what numpy and zipfile raise for damaged files
UNREADABLE = (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error, MemoryError, SyntaxError)


def load_arrays(spec: DatasetSpec) -> Splits:
    """Both splits of an .npz file, without running anything that it contains.

    Images: uint8, (N, S, S, 3), (N, 3, S, S) or grey (N, S, S). Labels: integers (N,), the class names' places.

    Raises:
        UserError: no such file, one that does not hold that, or more images asked for than there are.
    """
    file = spec.path
    check(file.is_file(), f"--data-dir {file}: no such file; --dataset arrays wants an .npz")
    try:
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        arrays = _read(file)
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: not an .npz file of plain arrays ({why})") from None
    check("x_train" in arrays, f"{file}: no x_train in it; there are {', '.join(arrays) or 'no arrays'}")
    pixels = {split: _pixels(file, f"x_{split}", arrays) for split in ("train", "test") if f"x_{split}" in arrays}
    labels = {split: _labels(file, split, arrays, len(images)) for split, images in pixels.items()}
    known = labels["train"] is not None
    classes = _classes(file, arrays, [y for y in labels.values() if y is not None]) if known else ()
    splits = []
    for split, images in pixels.items():
        y = labels[split] if known else None
        splits.append(ImageDataset(images, torch.full((len(images),), -1) if y is None else y, classes, digest=digest))
    train, test = splits if len(splits) == 2 else (splits[0], make_empty_split(splits[0]))
    check(train.side == test.side, f"{file}: x_train is {train.side} pixels wide, x_test {test.side}")
    strange = sorted(set(test.labels.unique().tolist()) - set(train.labels.unique().tolist()) - {-1})
    check(not strange, f"{file}: label {strange[:1]} of y_test is not in y_train")
    return take_first(spec, (train, test))


def _read(file: Path) -> dict[str, np.ndarray]:
    with open(file, "rb") as content:
        check(content.read(2) == b"PK", f"{file}: not an .npz file")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in KEYS}


def _pixels(file: Path, name: str, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """(N, 3, S, S)"""
    x = arrays[name]
    check(x.dtype == np.uint8, f"{file}: {name} is {x.dtype}: images are uint8, 0 to 255")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    right = x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] > 0
    check(right, f"{file}: {name} has shape {arrays[name].shape}: (N, S, S, 3), (N, 3, S, S) or (N, S, S) are images")
    check(len(x) > 0, f"{file}: {name} has no image")
    return torch.from_numpy(np.repeat(x, 3, axis=1) if x.shape[1] == 1 else np.ascontiguousarray(x))


def _labels(file: Path, split: str, arrays: dict[str, np.ndarray], n: int) -> torch.Tensor | None:
    y = arrays.get(f"y_{split}")
    if y is None:
        return None
    check(y.dtype.kind in "iu", f"{file}: y_{split} is {y.dtype}: labels are whole numbers")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # as Keras has them
    check(y.shape == (n,), f"{file}: y_{split} has shape {y.shape}, for {n} images")
    check(n == 0 or int(y.min()) >= 0, f"{file}: y_{split} has the label {y.min()}: they count from 0")
    check(int(y.max()) < 2**20, f"{file}: y_{split} has the label {y.max()}: too many classes")
    return torch.from_numpy(y.astype(np.int64))


def _classes(file: Path, arrays: dict[str, np.ndarray], labels: list[torch.Tensor]) -> tuple[str, ...]:
    most = max(int(y.max()) for y in labels) + 1
    names = arrays.get("classes")
    if names is None:
        return tuple(map(str, range(most)))
    check(names.dtype.kind == "U" and names.ndim == 1, f"{file}: classes are {names.dtype}: names are text, (C,)")
    check(len(names) >= most, f"{file}: the labels go to {most - 1}, and classes has {len(names)} names")
    return tuple(names.tolist())


SOURCE = DatasetSource(load_arrays, personal=True)
