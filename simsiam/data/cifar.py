"""Download CIFAR-10 and CIFAR-100, check the files, and read them.

The files are pickles. They are read without running any code that they may contain.
"""

import hashlib
import io
import pickle
import tarfile
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from simsiam.config.options import DataOptions
from simsiam.data.dataset import ImageDataset, Splits, make_blank_split, take_first
from utils.console import show_progress
from utils.errors import UserError, require
from utils.filesystem import lock_folder, write_atomically
from utils.text import printable

# The classes of torchvision know the URL, the names of the files, and their MD5s.
PUBLICATIONS: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
SIDE = 32  # pixels
NUM_TRAIN = 50_000
NUM_TEST = 10_000
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}

DOWNLOAD_TIMEOUT = 30  # seconds without a byte
DOWNLOAD_CHUNK = 2**20  # bytes


def load_cifar(options: DataOptions) -> Splits:
    """Return both splits of CIFAR-10 or CIFAR-100.

    Raises:
        UserError: if a file is missing, or its checksum is not the published one.
    """
    publication = _get_publication(options)
    folder = _data_folder(options)
    meta = publication.meta
    missing = _find_missing(publication, folder)
    if missing:
        where = f"{options.dataset} is not in {options.data_dir}"
        raise UserError(f"{where}: {missing[0]} is missing.")
    try:
        metadata = _read_published(folder, meta["filename"], meta["md5"])
        classes = tuple(metadata[meta["key"]])
        train = _read_split(folder, publication.train_list, classes)
        test = _read_split(folder, publication.test_list, classes)
    except UserError:
        raise  # A UserError is a ValueError, but it has its own message already.
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder} is not readable ({_in_one_line(error)}).") from None
    return take_first(options, train, test)


def make_placeholders(options: DataOptions) -> Splits | None:
    """Return blank splits of the published sizes, or None if the folder of the data set exists.

    As in the data set, all classes occur in each split, and in its first images.
    """
    if _data_folder(options).is_dir():
        return None
    num_classes = NUM_CLASSES[options.dataset]
    classes = tuple(str(i) for i in range(num_classes))
    train = make_blank_split(SIDE, torch.arange(NUM_TRAIN) % num_classes, classes)
    test = make_blank_split(SIDE, torch.arange(NUM_TEST) % num_classes, classes)
    return take_first(options, train, test)


def download_cifar(options: DataOptions) -> None:
    """Download the data set, unless all its files exist.

    A lock keeps two processes from downloading at once. The archive's checksum is checked before
    any of its files is used. `load_cifar` checks the files, so files that exist are not read here
    unless others are missing.

    Raises:
        UserError: if the download fails, or if one file is missing and another is damaged.
    """
    publication = _get_publication(options)
    folder = _data_folder(options)
    url = options.data_url or publication.url
    missing = _find_missing(publication, folder)
    if not missing:
        return
    _check_existing(publication, folder)
    root = options.path
    waiting = f"Waiting for another process, which is downloading to {root}."
    try:
        # The lock is on a folder that exists, so that a failed download leaves no new folder.
        with (
            lock_folder(_nearest_existing(root), waiting, wait=True),
            tempfile.TemporaryDirectory(prefix="simsiam-") as temporary,
        ):
            # Another process may have downloaded the files while this one waited for the lock.
            missing = _find_missing(publication, folder)
            if not missing:
                return
            archive = Path(temporary) / publication.filename
            _fetch(url, archive)
            if not check_integrity(archive, publication.tgz_md5):
                raise ValueError("the archive's MD5 is not the published one")
            _extract(archive, missing, publication.base_folder, folder)
    except UserError:
        raise  # A UserError is a ValueError, but it has its own message already.
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        tarfile.TarError,
        zlib.error,
        HTTPException,
    ) as error:
        raise UserError(
            f"{folder}: {missing[0]} is missing, and the download failed ({_in_one_line(error)}). "
            "Pass --data-dir with the folder of the data, --data-url with a mirror of "
            f"{url} or with file:///PATH of the archive, or --dataset patterns, which needs no "
            "files."
        ) from None


def _get_publication(options: DataOptions) -> type[CIFAR10]:
    return PUBLICATIONS[options.dataset]


def _data_folder(options: DataOptions) -> Path:
    require(
        not options.path.is_file(),
        f"--data-dir {printable(options.path)} is a file, but {options.dataset} is in a folder. "
        "For a list of your own images pass --dataset folder, for an .npz file --dataset arrays.",
    )
    return options.path / _get_publication(options).base_folder


def _nearest_existing(path: Path) -> Path:
    """Return the path itself if it exists, else its nearest parent that does."""
    while not path.exists():
        path = path.parent
    return path


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _list_files(publication: type[CIFAR10]) -> list[tuple[str, str]]:
    """Return the name and the published MD5 of each file."""
    files = [(name, md5) for name, md5 in (*publication.train_list, *publication.test_list)]
    files.append((publication.meta["filename"], publication.meta["md5"]))
    return files


def _find_missing(publication: type[CIFAR10], folder: Path) -> list[str]:
    """Return the names of the files that do not exist."""
    return [name for name, _ in _list_files(publication) if not (folder / name).exists()]


def _check_existing(publication: type[CIFAR10], folder: Path) -> None:
    """Check the files that exist.

    Raises:
        UserError: if a file's checksum is not the published one. The file is left as it is.
    """
    for name, md5 in _list_files(publication):
        if (folder / name).exists():
            require(check_integrity(folder / name, md5), _describe_damage(folder, name))


def _describe_damage(folder: Path, name: str) -> str:
    return (
        f"{folder}: {name} is damaged (its MD5 is not the published one). Delete the folder to "
        "download it again, or pass another --data-dir."
    )


def _fetch(url: str, path: Path) -> None:
    """Download a file.

    Unlike torchvision's `download_url`, this gives up after 30 seconds without a byte.
    """
    # S310 warns of file:/// URLs, which are allowed: the URL is the publisher's or the user's own.
    request = urllib.request.Request(url, headers={"User-Agent": "simsiam"})  # noqa: S310
    with (
        urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as reply,  # noqa: S310
        open(path, "wb") as file,
    ):
        size = int(reply.headers.get("Content-Length") or 0)
        chunks = iter(lambda: reply.read(DOWNLOAD_CHUNK), b"")  # until it returns b""
        for chunk in show_progress(chunks, size, f"downloading {url}, bytes"):
            file.write(chunk)


def _extract(archive: Path, names: list[str], base_folder: str, folder: Path) -> None:
    """Write files of an archive into `folder`. Ignore all other files of the archive."""
    with tarfile.open(archive) as tar:
        for name in names:
            member = tar.extractfile(f"{base_folder}/{name}")
            if member is None:
                raise ValueError(f"{name} in the archive is not a file")
            content = member.read()
            write_atomically(
                folder / name, lambda partial, content=content: partial.write_bytes(content)
            )


def _read_split(folder: Path, files: list[list[str]], classes: tuple[str, ...]) -> ImageDataset:
    """Return the images and labels of batch files.

    Args:
        files: [name, MD5] of each file.
    """
    batches = [_read_published(folder, name, md5) for name, md5 in files]
    pixels = np.concatenate([batch["data"] for batch in batches])  # (N, 3072)
    images = torch.from_numpy(pixels).reshape(-1, 3, SIDE, SIDE)
    if "labels" in batches[0]:
        key = "labels"  # CIFAR-10
    else:
        key = "fine_labels"  # CIFAR-100
    labels = []
    for batch in batches:
        labels += batch[key]
    return ImageDataset(images, torch.tensor(labels), classes)


def _read_published(folder: Path, name: str, md5: str) -> Any:
    """Read a pickle once into memory, check its MD5, and unpickle the bytes that were checked.

    Raises:
        UserError: if the checksum is not the published one.
        UnpicklingError: see `read_plain_pickle`; also OSError.
    """
    content = (folder / name).read_bytes()
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    require(checksum == md5, _describe_damage(folder, name))
    return read_plain_pickle(content)


# The classes and functions that a pickled array needs, under the names that numpy had in 2009.
ARRAY_GLOBALS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and arrays. Refuses all other classes and functions."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in ARRAY_GLOBALS:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"it names {name}, which is not plain data")
        return ARRAY_GLOBALS[module_name, global_name]


def read_plain_pickle(content: bytes) -> Any:
    """Read a pickle of containers, numbers, strings and numpy arrays.

    Strings of Python 2 are decoded as Latin-1.

    Raises:
        UnpicklingError: if the pickle needs any other class or function. None of them is called.
    """
    return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
