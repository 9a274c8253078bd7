"""A folder of one's own images as a data set: torchvision's ImageFolder layout, or images without labels.

`DIR/train/CLASS/*` with `val/` or `test/` beside it, `DIR/CLASS/*`, or images alone, in `DIR/train/` or in `DIR/`.
They are decoded once, into a cache (`image_cache.py`).
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch

from simsiam.data.dataset import (
    DatasetSource,
    DatasetSpec,
    ImageDataset,
    Splits,
    check_counts,
    make_blank_split,
    stored_side,
)
from simsiam.data.image_cache import decode_images, open_cache
from simsiam.data.images import SUFFIXES, ImageFolder, report_bad
from utils.console import print_line
from utils.errors import check

DEFAULT_SIZE = 96  # side of the views: small enough for one GPU, and most images have as much to show
TEST_FOLDERS = ("val", "test")
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


class Layout(NamedTuple):
    """What a folder holds, before anything of it is decoded."""

    root: Path
    files: list[Path]  # relative to root, those of the train split first
    labels: list[int]  # of the files, -1 for none
    train: int  # how many files are of the train split
    classes: tuple[str, ...]
    closed: list[str]  # sub-folders that cannot be read, and why


def find_images(spec: DatasetSpec) -> Layout:
    """Look at what a folder holds; of a split, take as many images as are asked for, spread evenly over it.

    Raises:
        UserError: no such folder, no images, or classes of the test images that the train images do not have.
    """
    root = Path(os.path.abspath(spec.path))
    split = (root / "train").is_dir()
    train = ImageFolder(root / "train" if split else root, "--data-dir")
    named = [name for name in train.classes if name.lower() in SPLIT_NAMES]
    check(split or not named, f"{root}: {', '.join(named)}: no class, it seems; a split is named train, val or test")
    strange = [name for name in train.classes if not name.isprintable()]
    check(not strange, f"{train.folder}: {strange[:3]!a}: no text, which the name of a class is: rename it")
    known = ("train", *TEST_FOLDERS)
    beside = sorted(path for path in root.iterdir() if split and path.name not in known and path.is_dir())
    if unused := [path.name for path in beside if any(file.suffix.lower() in SUFFIXES for file in path.iterdir())]:
        print_line(f"{root}: only train/, and val/ or test/, are used; not {', '.join(unused[:5])}")
    classes, loose = train.classes, int((train.labels < 0).sum())
    if classes and loose:
        print_line(f"{train.folder}: {loose} of {len(train)} images lie in no class's folder, so none has a label")
        classes = ()
    files, labels = _select_images(root, train, classes, spec.train_images)
    found = Layout(root, files, labels, len(files), classes, train.closed)
    tests = [name for name in TEST_FOLDERS if split and (root / name).is_dir()]
    if not tests:
        check_counts(spec, len(train), 0)
        return found
    test = ImageFolder(root / tests[0], "--data-dir")
    check_counts(spec, len(train), len(test))
    strange = sorted(set(test.classes) - set(train.classes)) if train.classes else []
    check(not strange, f"{test.folder}: {', '.join(strange[:3])} is no class of {train.folder}")
    more, theirs = _select_images(root, test, classes, spec.test_images)
    return found._replace(files=files + more, labels=labels + theirs, closed=train.closed + test.closed)


def _select_images(
    root: Path, folder: ImageFolder, classes: tuple[str, ...], n: int | None
) -> tuple[list[Path], list[int]]:
    """Files and labels of n images of a split."""
    label = {name: i for i, name in enumerate(classes)}
    labels = [label.get(folder.classes[i], -1) if i >= 0 else -1 for i in folder.labels.tolist()]
    kept = range(len(folder)) if n is None else [i * len(folder) // n for i in range(n)]
    below = folder.folder.relative_to(root)
    return [below / folder.files[i] for i in kept], [labels[i] for i in kept]


def find_cache(spec: DatasetSpec) -> Path:
    """The folder where the decoded images are kept."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    side = stored_side(spec.image_size or DEFAULT_SIZE)
    what = f"{os.path.abspath(spec.path)}\n{side}\n{spec.train_images}\n{spec.test_images}"
    name = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:16]
    return Path(spec.cache_dir or usual).expanduser() / name


def prepare_folder(spec: DatasetSpec) -> None:
    """Decode what is not decoded yet, and say which images cannot be read.

    Raises:
        UserError: among others, bad images, unless they are to be skipped.
    """
    found, side = find_images(spec), stored_side(spec.image_size or DEFAULT_SIZE)
    facts = {"train": found.train, "labels": found.labels, "classes": list(found.classes)}
    bad = decode_images(find_cache(spec), found.root, found.files, side, facts)
    report_bad(found.closed + bad, len(found.files) - len(bad), found.root, spec.skip_bad_images)


def load_folder(spec: DatasetSpec) -> Splits:
    """Both splits, on disk, of a cache that `prepare_folder` has made.

    Raises:
        UserError: no train image could be read.
    """
    cache = open_cache(find_cache(spec))
    labels = torch.tensor(cache.manifest["labels"], dtype=torch.long)[cache.decoded]
    n = sum(i < cache.manifest["train"] for i in cache.decoded)
    check(n > 0, f"{spec.data_dir}: no train image can be read")
    classes = tuple(cache.manifest["classes"])
    train, test = (
        ImageDataset(cache.images[part], labels[part], classes, on_disk=True, digest=cache.digest)
        for part in (slice(0, n), slice(n, None))
    )
    return train, test if len(test) else make_blank_split(train.side, test.labels, classes)


def make_placeholders(spec: DatasetSpec) -> Splits:
    """As many images as would be decoded: zeros, which take no memory."""
    found, side = find_images(spec), stored_side(spec.image_size or DEFAULT_SIZE)
    train, test = (
        torch.tensor(x, dtype=torch.long) for x in (found.labels[: found.train], found.labels[found.train :])
    )
    return make_blank_split(side, train, found.classes), make_blank_split(side, test, found.classes)


SOURCE = DatasetSource(load_folder, prepare_folder, make_placeholders, personal=True)
