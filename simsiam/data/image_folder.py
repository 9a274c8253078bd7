"""A folder of one's own images as a data set: torchvision's ImageFolder layout, or images without labels.

`DIR/train/CLASS/*` with `val/` or `test/` beside it, `DIR/CLASS/*`, or images alone, in `DIR/train/` or in `DIR/`.
They are decoded once, into a cache folder of two files:

- `images.uint8`: the pixels (N, 3, C, C) of the images that could be read, one after another, as NumPy maps them.
- `manifest.jsonl`: first the source files (path, size, time of change), C, labels and classes; then, as it is decoded,
  a line for each file: the SHA-256 of its content, or "unreadable".

An interrupted decoding goes on; when a source changes, all of them are decoded anew.
"""

import copy
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from simsiam.config.options import DataOptions
from simsiam.data.dataset import (
    ImageDataset,
    Splits,
    choose_held_out,
    make_blank_split,
    stored_side,
)
from simsiam.data.images import ImageFolder, read_images, report_bad, try_to_read
from utils.console import print_line, track_progress
from utils.errors import UserError, check
from utils.filesystem import lock_folder, write_text

DEFAULT_SIZE = 96  # side of the views: small enough for one GPU, and most images have as much to show
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
IMAGES, MANIFEST, UNREADABLE = "images.uint8", "manifest.jsonl", "unreadable"


def prepare_folder(options: DataOptions) -> None:
    """Decode what is not decoded yet, and print which images cannot be read: UserError, unless they are skipped."""
    root, splits = Path(os.path.abspath(options.path)), _find_splits(options)
    files = [folder.folder.relative_to(root) / file for folder in splits for file in folder.files]
    labels = torch.cat([folder.labels for folder in splits]).tolist()
    facts = {"train": len(splits[0]), "labels": labels, "classes": list(splits[0].classes)}
    cache, side = _find_cache(options)
    bad = decode_images(cache, root, files, side, facts)
    closed = {path: why for folder in splits for path, why in folder.closed.items()}
    report_bad({**closed, **bad}, len(files) - len(bad), root, options.skip_bad_images)


def load_folder(options: DataOptions) -> Splits:
    """Both splits, on disk, once they are prepared."""
    train, test = open_cache(_find_cache(options)[0])
    return train, replace(test, held_out=options.held_out_images > 0)


def make_placeholders(options: DataOptions) -> Splits:
    """As many images as would be decoded."""
    train, *more = _find_splits(options)
    labels, side = more[0].labels if more else train.labels[:0], _find_cache(options)[1]
    test = make_blank_split(side, labels, train.classes)
    test = replace(test, held_out=options.held_out_images > 0)
    return make_blank_split(side, train.labels, train.classes), test


def _find_splits(options: DataOptions) -> list[ImageFolder]:
    """The train and perhaps the test images, labelled alike; as many as are asked for, spread evenly over a split."""
    root = Path(os.path.abspath(options.path))
    parts = [root / name for name in ("train", "val", "test") if (root / name).is_dir()]
    used = parts[:2] if root / "train" in parts else [root]
    if options.held_out_images:
        used = used[:1]
    train, *_ = splits = [ImageFolder(part, "--data-dir") for part in used]
    classes = train.classes
    named = [name for name in classes if name.lower() in SPLIT_NAMES and root / "train" not in parts]
    check(not named, f"{root}: {', '.join(named)}: no class, it seems; a split is named train, val or test")
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
            check(n <= len(folder), f"--train-images or --test-images {n}: {folder.folder} has {len(folder)}")
            folder.keep([i * len(folder) // n for i in range(n)])
    if options.held_out_images:
        chosen = choose_held_out(train.labels, options.held_out_images).tolist()
        held_out = copy.copy(train)
        held_out.keep(chosen)
        train.keep(sorted(set(range(len(train))) - set(chosen)))
        splits = [train, held_out]
    return splits


def _find_cache(options: DataOptions) -> tuple[Path, int]:
    """The folder of the decoded images, and C, their side."""
    side = stored_side(options.image_size or DEFAULT_SIZE)
    what = f"{os.path.abspath(options.path)}\n{side}\n{options.train_images}\n{options.test_images}"
    if options.held_out_images:  # otherwise the name is that of caches made before this option
        what += f"\nheld out: {options.held_out_images}"
    name = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:16]
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    return Path(options.cache_dir or usual).expanduser() / name, side


# ---------------------------------------------------------------- the cache


def open_cache(folder: Path) -> Splits:
    """Both splits, of what `decode_images` has left in a folder; UserError if nothing complete is there."""
    manifest, done = _read_manifest(folder)
    complete = bool(done) and len(done) == len(manifest["sources"])
    check(complete, f"{folder}: no complete cache of images: run this again")
    decoded = [i for i, line in enumerate(done) if line != UNREADABLE]
    lines = "\n".join(f"{manifest['sources'][i][0]} {done[i]}" for i in decoded)
    digest = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]
    images = map_images(folder / IMAGES, len(decoded), manifest["side"])
    labels = torch.tensor(manifest["labels"])[decoded]
    both = ImageDataset(images, labels, tuple(manifest["classes"]), on_disk=True, digest=digest)
    first = sum(i < manifest["train"] for i in decoded)
    check(first > 0, f"{folder}: of the train images none can be read")
    return both.first(first), replace(both, images=images[first:], labels=labels[first:])


def map_images(file: Path, n: int, side: int) -> Tensor:
    """n images (3, side, side), read only when they are indexed: a memory map, not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(file, np.uint8, "r", shape=(n, 3, side, side)))


def decode_images(folder: Path, root: Path, files: Sequence[Path], side: int, facts: dict[str, Any]) -> dict[Path, str]:
    """Make `folder` the cache of `files` below `root`, if it is not; returns those that cannot be read, and why."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, f"another process is decoding the images of {root}: waiting for it", wait=True):
            return _update(folder, root, files, side, facts)
    except OSError as error:
        where = os.fsdecode(error.filename or folder)
        raise UserError(f"{where}: {error.strerror}: mend that, or give another --cache-dir") from None


def _update(folder: Path, root: Path, files: Sequence[Path], side: int, facts: dict[str, Any]) -> dict[Path, str]:
    """`decode_images`, by the one process that holds the lock."""
    manifest = {"side": side, "sources": [_stat(root, file) for file in files], **facts}
    old, done = _read_manifest(folder)
    if old != manifest:
        done = []
    recorded = zip(files, done, strict=False)  # of an interrupted decoding, the first files alone
    unreadable = [file for file, line in recorded if line == UNREADABLE]
    bad = {file: why for file in unreadable if isinstance(why := try_to_read(root / file, side), str)}
    if not done or len(bad) < len(unreadable):  # one can be read now, as after a chmod, which changes no time of it
        done, bad = [], {}
        for file in folder.iterdir():
            file.unlink()  # rather than overwritten: a run that reads it may go on
    if len(done) == len(files):
        return bad
    need, free = (len(files) - len(done)) * 3 * side**2 / 2**30, shutil.disk_usage(folder).free / 2**30
    what = f"{folder}: the decoded images take {need:.1f} GiB, and {free:.1f} are free"
    check(need <= free, f"{what}: make room, or give another --cache-dir")
    if done:
        print_line(f"{len(done):,} of {len(files):,} images are decoded already")
    write_text(folder / MANIFEST, "\n".join([json.dumps(manifest), *done, ""]))
    with open(folder / IMAGES, "ab") as pixels, open(folder / MANIFEST, "a") as lines:
        pixels.truncate((len(done) - len(bad)) * 3 * side**2)  # without what was not recorded
        left = files[len(done) :]
        for chunk in track_progress(read_images(root, left, side), len(left), f"decoding images of {root}"):
            for file, read in chunk:
                if isinstance(read, str):
                    bad[file] = read
                else:
                    pixels.write(read[0].numpy().data)
            _sync(pixels)  # before they are recorded as decoded, whatever is cut off when
            lines.writelines(f"{UNREADABLE if isinstance(read, str) else read[1]}\n" for _, read in chunk)
            _sync(lines)
    print_line(f"decoded {len(files):,} images to {side} x {side} pixels, in {folder}")
    return bad


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _stat(root: Path, file: Path) -> list[str | int]:
    """[path, size in bytes, time of change in ns]"""
    try:
        state = os.stat(root / file)
    except OSError:
        return [str(file), -1, 0]
    return [str(file), state.st_size, state.st_mtime_ns]


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest and its lines for the files that are decoded; nothing if it or the images are missing or damaged."""
    try:
        first, *done = (folder / MANIFEST).read_text().split("\n")[:-1]  # without a line that was cut off
        manifest, good = json.loads(first), len(done) - done.count(UNREADABLE)
        whole = os.stat(folder / IMAGES).st_size >= good * 3 * manifest["side"] ** 2
        return (manifest, done) if whole else ({}, [])
    except (OSError, ValueError, LookupError, TypeError):
        return {}, []
