"""Data sets by name: the images of each split, with labels and class names."""

import fcntl
import hashlib
import os
import pickle
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from simsiam.data.dataset import ImageDataset
from simsiam.data.image_cache import open_cache
from simsiam.data.image_folder import blanks, cache_folder, find, open_folder, prepare
from simsiam.data.npz import read_arrays
from simsiam.data.restricted_pickle import read_plain_pickle
from simsiam.data.synthetic import CLASSES, make_patterns
from utils.console import print_line, track_progress
from utils.errors import UserError, check
from utils.filesystem import write_atomically

DOWNLOAD_TIMEOUT = 30  # seconds without a byte
NOT_FETCHED = ("patterns", "folder", "arrays")  # generated, or a person's own
PUBLISHED = {"cifar10": (50_000, 10_000, 10), "cifar100": (50_000, 10_000, 100)}  # train and test images, classes


SHA256 = {  # of CIFAR-10's files whose MD5 is the published one; MD5 alone can be forged
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}


def load(
    name: str,
    data_dir: str,
    train_images: int | None,
    test_images: int | None,
    image_size: int | None = None,
    cache_dir: str | None = None,
) -> tuple[ImageDataset, ImageDataset]:
    """The train and the test split, which may be empty; what `fetch` provides must be there.

    Args:
        image_size: of the views for which images of a folder were stored.
        cache_dir: where they were; None for the usual place.

    Raises:
        UserError: unknown name, missing or damaged files, more images asked for than there are.
    """
    if name == "folder":
        return open_folder(cache_folder(cache_dir, data_dir, image_size, train_images, test_images))
    if name == "arrays":
        return _firsts(data_dir, read_arrays(data_dir), train_images, test_images)
    if name == "patterns":
        sizes = (train_images or 10_000, test_images or 2_000)
        train, test = (ImageDataset(*make_patterns(n, split), classes=CLASSES) for split, n in enumerate(sizes))
        return train, test
    source, root = _source(name), Path(data_dir).expanduser()
    problem = _problem(source, root)
    check(problem is None, f"{problem}")
    try:
        names = read_plain_pickle(root / source.base_folder / source.meta["filename"])[source.meta["key"]]
        splits = [_read(source, root, files, names) for files in (source.train_list, source.test_list)]
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{root / source.base_folder}: not readable ({' '.join(str(error).split())})") from None
    return _firsts(name, (splits[0], splits[1]), train_images, test_images)


def _firsts(
    name: str, splits: tuple[ImageDataset, ImageDataset], train_images: int | None, test_images: int | None
) -> tuple[ImageDataset, ImageDataset]:
    """The first images of each split.

    Raises:
        UserError: more than there are.
    """
    _check_count(name, "train", train_images, len(splits[0]))
    _check_count(name, "test", test_images, len(splits[1]))
    return splits[0].first(train_images), splits[1].first(test_images)


def origin(
    name: str,
    data_dir: str,
    train_images: int | None,
    test_images: int | None,
    image_size: int | None = None,
    cache_dir: str | None = None,
) -> str | None:
    """What tells a person's own images from others: a hash of their names and contents. Arguments as of `load`."""
    if name == "folder":
        return open_cache(cache_folder(cache_dir, data_dir, image_size, train_images, test_images)).digest
    file = Path(data_dir).expanduser()
    return _sha256(file)[:16] if name == "arrays" and file.is_file() else None


def _read(source: type[CIFAR10], root: Path, files: list[list[str]], names: list[str]) -> ImageDataset:
    """The images of some of the published files: pickles, whose checksums were looked at first."""
    entries = [read_plain_pickle(root / source.base_folder / file) for file, _ in files]
    pixels = torch.from_numpy(np.concatenate([entry["data"] for entry in entries])).reshape(-1, 3, 32, 32)
    key = "labels" if "labels" in entries[0] else "fine_labels"
    return ImageDataset(pixels, torch.tensor([label for entry in entries for label in entry[key]]), tuple(names))


def _check_count(name: str, split: str, asked: int | None, there: int) -> None:
    check(asked is None or asked <= there, f"--{split}-images {asked}: {name} has {there}")


def absent(name: str, data_dir: str) -> bool:
    """Whether a data set would have to be downloaded: no file of it is there."""
    return name not in NOT_FETCHED and not (Path(data_dir).expanduser() / _source(name).base_folder).is_dir()


def at_hand(name: str, data_dir: str) -> bool:
    """Whether a data set can be loaded as it lies: all files are there and whole. Of one's own, `load` finds out."""
    return name in NOT_FETCHED or not _missing(_source(name), Path(data_dir).expanduser())


def placeholders(
    name: str, data_dir: str, train_images: int | None, test_images: int | None, image_size: int | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """As many images and classes as `load` will return once the data set is there: zeros, which take no memory."""
    if name == "folder":
        return blanks(find(data_dir, train_images, test_images), image_size)
    *sizes, classes = PUBLISHED[name]
    _check_count(name, "train", train_images, sizes[0])
    _check_count(name, "test", test_images, sizes[1])
    blank, label = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    names = tuple(map(str, range(classes)))
    train, test = (ImageDataset(blank.expand(n, -1, -1, -1), label.expand(n), names) for n in sizes)
    return train.first(train_images), test.first(test_images)


# ---------------------------------------------------------------- CIFAR, by torchvision


def _source(name: str) -> type[CIFAR10]:
    sources = {"cifar10": CIFAR10, "cifar100": CIFAR100}
    check(name in sources, f"unknown data set {name!r}: there are {', '.join((*sources, *NOT_FETCHED))}")
    return sources[name]


def _missing(source: type[CIFAR10], root: Path) -> dict[str, str]:
    """What is wrong with each file that is not as published."""
    meta = (source.meta["filename"], source.meta["md5"])
    found = {}
    for file, md5 in [*source.train_list, *source.test_list, meta]:
        path = root / source.base_folder / file
        if not os.path.exists(path):  # an unreadable folder counts as empty
            found[file] = "missing"
        elif not check_integrity(str(path), md5):
            found[file] = "damaged (its MD5 is not the published one)"
        elif file in SHA256 and source is CIFAR10 and _sha256(path) != SHA256[file]:
            found[file] = "forged (its MD5 is the published one, its SHA-256 is not)"
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(source: type[CIFAR10], root: Path) -> str | None:
    found = _missing(source, root)
    listed = ", ".join(f"{file} is {why}" for file, why in found.items())
    return f"{root / source.base_folder}: {listed}" if found else None


def fetch(
    name: str,
    data_dir: str,
    url: str | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    image_size: int | None = None,
    cache_dir: str | None = None,
    skip_bad_images: bool = False,
) -> None:
    """Download a data set unless it is there: under a lock, into a temporary folder, checked, then put in place.

    A folder's images are decoded instead, unless they are.

    Raises:
        UserError: damaged files (they are left as they are), or no way to the publisher.
    """
    if name == "folder":
        cache = cache_folder(cache_dir, data_dir, image_size, train_images, test_images)
        prepare(find(data_dir, train_images, test_images), cache, image_size, skip_bad_images)
    if name in NOT_FETCHED:
        return
    source, root = _source(name), Path(data_dir).expanduser()
    folder = root / source.base_folder
    if not _missing(source, root):
        return
    by_hand = (
        f"Download {url or source.url} (MD5 {source.tgz_md5}) by hand and unpack it: "
        f"tar -xzf {source.filename} -C {root}; or name another folder with --data-dir, or a mirror with --data-url; "
        "or go on without files: --dataset patterns"
    )
    damaged = [why for why in _missing(source, root).values() if why != "missing"]
    check(not damaged, f"{_problem(source, root)}. Delete {folder} and run this again to download it anew. {by_hand}")
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        with _lock(root):
            if _missing(source, root):  # another process may have been faster
                _download(source, root, url)
    except (OSError, ValueError, KeyError, tarfile.TarError, zlib.error, EOFError, HTTPException) as error:
        problem = _problem(source, root)
        for empty in made:
            with suppress(OSError):  # not ours alone any more
                empty.rmdir()
        raise UserError(f"{problem}; the download failed: {' '.join(str(error).split())}. {by_hand}") from None


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One process at a time. The folder itself is locked: no file to leave behind, and a dead process holds nothing."""
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _download(source: type[CIFAR10], root: Path, url: str | None) -> None:
    """Fetch the archive, check it, and put the published files in place: those alone, wherever it would put others."""
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
        archive = root / source.filename  # fetched by hand, perhaps
        if not check_integrity(str(archive), source.tgz_md5):
            archive = Path(temporary) / source.filename
            _fetch_archive(url or source.url, archive)
            if not check_integrity(str(archive), source.tgz_md5):
                raise ValueError("the archive's MD5 is not the published one")
        folder = root / source.base_folder
        with tarfile.open(archive) as tar:
            for file in _missing(source, root):
                content = tar.extractfile(f"{source.base_folder}/{file}")
                if content is None:
                    raise ValueError(f"{file} in the archive is not a file")
                write_atomically(folder / file, lambda partial, data=content.read(): partial.write_bytes(data))


def _fetch_archive(url: str, path: Path) -> None:
    """Download; where plain http is asked for or led to, say so: the checksum is all that protects it then."""
    request = urllib.request.Request(url, headers={"User-Agent": "simsiam"})  # noqa: S310  (whatever the person names)
    with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as reply, open(path, "wb") as file:  # noqa: S310  (likewise)
        if not reply.url.startswith(("https:", "file:")):
            print_line(f"warning: {reply.url} is not encrypted: the download is checked by its MD5 alone")
        size = int(reply.headers.get("Content-Length") or 0)
        for chunk in track_progress(iter(lambda: reply.read(2**20), b""), size, f"downloading {url}, bytes"):
            file.write(chunk)
