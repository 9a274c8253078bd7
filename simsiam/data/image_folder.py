"""A folder of one's own images as a data set: torchvision's ImageFolder layout, or images without labels.

`DIR/train/CLASS/*` with `val/` or `test/` beside it, `DIR/CLASS/*`, or images alone, in `DIR/train/` or in `DIR/`.
They are decoded once, into a cache (`image_cache.py`).
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import torch

from simsiam.config.options import DataOptions
from simsiam.data.dataset import ImageDataset, Splits, check_counts, make_blank_split, stored_side
from simsiam.data.image_cache import decode_images, open_cache
from simsiam.data.images import ImageFolder, report_bad
from utils.console import print_line
from utils.errors import check

DEFAULT_SIZE = 96  # side of the views: small enough for one GPU, and most images have as much to show


def find_splits(options: DataOptions) -> list[ImageFolder]:
    """The train and perhaps the test images, labelled alike; as many as are asked for, spread evenly over a split."""
    root = Path(os.path.abspath(options.path))
    parts = [root / name for name in ("train", "val", "test") if (root / name).is_dir()]
    used = parts[:2] if root / "train" in parts else [root]
    train, *more = splits = [ImageFolder(part, "--data-dir") for part in used]
    check_counts(options, len(train), sum(map(len, more)))
    classes = train.classes
    strange = [name for name in classes if not name.isprintable()]
    check(not strange, f"{train.folder}: {strange[:3]!a}: no text, which the name of a class is: rename it")
    if classes and (loose := int((train.labels < 0).sum())):
        print_line(f"{train.folder}: {loose} of {len(train)} images lie in no class's folder, so none has a label")
        classes = ()
    label = {name: i for i, name in enumerate(classes)}
    for folder, n in zip(splits, (options.train_images, options.test_images), strict=False):  # a test split or none
        strange = [name for name in folder.classes if classes and name not in label]
        check(not strange, f"{folder.folder}: {', '.join(strange[:3])} is no class of {train.folder}")
        folder.labels = torch.tensor([*(label.get(name, -1) for name in folder.classes), -1])[folder.labels]
        folder.classes = classes
        if n is not None:
            folder.keep([i * len(folder) // n for i in range(n)])
    return splits


def find_cache(options: DataOptions) -> tuple[Path, int]:
    """The folder where the decoded images are kept, and their side."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    side = stored_side(options.image_size or DEFAULT_SIZE)
    what = f"{os.path.abspath(options.path)}\n{side}\n{options.train_images}\n{options.test_images}"
    name = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:16]
    return Path(options.cache_dir or usual).expanduser() / name, side


def prepare_folder(options: DataOptions) -> None:
    """Decode what is not decoded yet, and print which images cannot be read: UserError, unless they are skipped."""
    root, splits = Path(os.path.abspath(options.path)), find_splits(options)
    files = [folder.folder.relative_to(root) / file for folder in splits for file in folder.files]
    labels = torch.cat([folder.labels for folder in splits]).tolist()
    facts = {"train": len(splits[0]), "labels": labels, "classes": list(splits[0].classes)}
    cache, side = find_cache(options)
    bad = decode_images(cache, root, files, side, facts)
    report_bad(bad, len(files) - len(bad), root, options.skip_bad_images)


def load_folder(options: DataOptions) -> Splits:
    """Both splits, on disk, of a cache that `prepare_folder` has made."""
    cache = open_cache(find_cache(options)[0])
    n = sum(i < cache.manifest["train"] for i in cache.decoded)
    labels, classes = torch.tensor(cache.manifest["labels"])[cache.decoded], tuple(cache.manifest["classes"])
    both = ImageDataset(cache.images, labels, classes, on_disk=True, digest=cache.digest)
    return both.first(n), replace(both, images=both.images[n:], labels=labels[n:])


def make_placeholders(options: DataOptions) -> Splits:
    """As many images as would be decoded."""
    train, *more = find_splits(options)
    labels, side = more[0].labels if more else train.labels[:0], find_cache(options)[1]
    return make_blank_split(side, train.labels, train.classes), make_blank_split(side, labels, train.classes)
