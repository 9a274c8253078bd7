"""CIFAR-10 and CIFAR-100: downloaded once, checked, and read from pickles without running what these contain."""

import os
import pickle
import tarfile
import tempfile
import urllib.request
import zlib
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from simsiam.config.options import DataOptions
from simsiam.data.dataset import DatasetSource, ImageDataset, Splits, make_blank_split, take_first
from utils.console import plural, print_line, track_progress
from utils.errors import UserError, check
from utils.filesystem import lock_folder, write_atomically

DOWNLOAD_TIMEOUT = 30  # seconds without a byte
PUBLISHED = {"cifar10": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}  # torchvision's description; number of classes


def load_cifar(options: DataOptions) -> Splits:
    """Both splits, from files whose checksums are the published ones; UserError if they are not."""
    source, folder = _locate(options)
    check(folder.is_dir(), f"{options.dataset} is not in {options.data_dir}")
    problems = _find_problems(source, folder)
    check(not problems, _describe(folder, problems))
    try:
        names = tuple(read_plain_pickle(folder / source.meta["filename"])[source.meta["key"]])
        splits = []
        for files in (source.train_list, source.test_list):
            batches = [read_plain_pickle(folder / file) for file, _ in files]
            pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in batches])).reshape(-1, 3, 32, 32)
            key = "labels" if "labels" in batches[0] else "fine_labels"
            labels = torch.tensor([label for batch in batches for label in batch[key]])
            splits.append(ImageDataset(pixels, labels, names))
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: not readable ({' '.join(str(error).split())})") from None
    return take_first(options, *splits)


def make_placeholders(options: DataOptions) -> Splits | None:
    """Blank splits of the published sizes, if nothing is downloaded yet."""
    if _locate(options)[1].is_dir():
        return None
    names = tuple(map(str, range(PUBLISHED[options.dataset][1])))
    labels = (torch.zeros(n, dtype=torch.long) for n in (50_000, 10_000))
    return take_first(options, *(make_blank_split(32, y, names) for y in labels))


# ---------------------------------------------------------------- files


def _locate(options: DataOptions) -> tuple[type[CIFAR10], Path]:
    """torchvision's description of the data set, and the folder of its files."""
    source, _ = PUBLISHED[options.dataset]
    return source, options.path / source.base_folder


def _find_problems(source: type[CIFAR10], folder: Path) -> dict[str, str]:
    """What is wrong with each file that is not as published."""
    found = {}
    for file, md5 in [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]:
        path = folder / file
        if not os.path.exists(path):  # an unreadable folder counts as empty
            found[file] = "missing"
        elif not check_integrity(path, md5):
            found[file] = "damaged (its MD5 is not the published one)"
    return found


def _describe(folder: Path, problems: dict[str, str]) -> str:
    """The first problem, and how many there are."""
    first, others = "".join(f"{file} is {why}" for file, why in [*problems.items()][:1]), len(problems) - 1
    return f"{folder}: {first}" + f", and {plural(others, 'file')} more" * (others > 0)


def download_cifar(options: DataOptions) -> None:
    """Download the data set unless it is there: under a lock, into a temporary folder, checked, then put in place.

    Raises UserError for damaged files (they are left as they are), or if the download failed.
    """
    root, (source, folder) = options.path, _locate(options)
    if not (problems := _find_problems(source, folder)):
        return
    again = "delete the folder to have it downloaded anew, or name another with --data-dir"
    check({*problems.values()} == {"missing"}, f"{_describe(folder, problems)}: {again}")
    made = [part for part in (root, *root.parents) if not part.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock_folder(root, f"another process is downloading to {root}: waiting for it", wait=True):
            if missing := _find_problems(source, folder):
                _download(options, list(missing))
    except (OSError, ValueError, KeyError, tarfile.TarError, zlib.error, EOFError, HTTPException) as error:
        for empty in made:
            with suppress(OSError):  # somebody has put something into it
                empty.rmdir()
        raise UserError(
            f"{_describe(folder, problems)}; the download failed ({' '.join(str(error).split())}): put "
            f"{options.data_url or source.url} into {root}, name the data's folder with --data-dir or a mirror with "
            "--data-url, or go without files by --dataset patterns"
        ) from None


def _download(options: DataOptions, missing: list[str]) -> None:
    """Fetch the archive, check it, and put the missing files in place; nothing else that it contains is unpacked."""
    source, folder = _locate(options)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=options.path) as temporary:
        archive = options.path / source.filename  # downloaded by hand, perhaps
        if not check_integrity(archive, source.tgz_md5):
            archive = Path(temporary) / source.filename
            _fetch_archive(options.data_url or source.url, archive)
            if not check_integrity(archive, source.tgz_md5):
                raise ValueError("the archive's MD5 is not the published one")
        with tarfile.open(archive) as tar:
            for file in missing:
                content = tar.extractfile(f"{source.base_folder}/{file}")
                if content is None:
                    raise ValueError(f"{file} in the archive is not a file")
                write_atomically(folder / file, lambda partial, data=content.read(): partial.write_bytes(data))


def _fetch_archive(url: str, path: Path) -> None:
    """Not torchvision's `download_url`: that has no timeout, and falls back from https to http without a word."""
    request = urllib.request.Request(url, headers={"User-Agent": "simsiam"})  # noqa: S310  (any URL the person names)
    with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as reply, open(path, "wb") as file:  # noqa: S310  (likewise)
        if not reply.url.startswith(("https:", "file:")):
            print_line(f"warning: {reply.url} is not encrypted: the download is checked by its MD5 alone")
        size = int(reply.headers.get("Content-Length") or 0)
        for chunk in track_progress(iter(lambda: reply.read(2**20), b""), size, f"downloading {url}, bytes"):
            file.write(chunk)


# ---------------------------------------------------------------- pickles

ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}  # what an array of numbers consists of
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # of old and of new numpy
    ALLOWED[_module, "_reconstruct"] = np.zeros(0).__reduce__()[0]


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every function and class but numpy's arrays."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is not plain data")
        return ALLOWED[module_name, global_name]


def read_plain_pickle(path: Path) -> Any:
    """Containers, numbers, strings and numpy arrays; strings of Python 2 as latin-1.

    Raises pickle.UnpicklingError if anything else is in it, of which nothing is run; OSError, EOFError, ValueError,
    LookupError or TypeError if it is no pickle.
    """
    with open(path, "rb") as file:
        return _PlainUnpickler(file, encoding="latin1").load()


SOURCE = DatasetSource(load_cifar, download_cifar, make_placeholders)
