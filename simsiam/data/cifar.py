"""CIFAR-10 and CIFAR-100: downloaded once, checked, and read from pickles without running what these contain."""

import os
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
from utils.console import track_progress
from utils.errors import UserError, require
from utils.filesystem import lock_folder, write_atomically


def load_cifar(options: DataOptions) -> Splits:
    """Both splits, from files whose checksums are the published ones."""
    source, folder = _locate(options)
    missing = _find_missing(source, folder)
    require(
        not missing,
        f"{options.dataset} is not in {options.data_dir}: {''.join(missing[:1])} is missing",
    )
    try:
        names = tuple(read_plain_pickle(folder / source.meta["filename"])[source.meta["key"]])
        splits = []
        for files in (source.train_list, source.test_list):
            batches = [read_plain_pickle(folder / file) for file, _ in files]
            pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in batches])).reshape(
                -1, 3, 32, 32
            )
            key = "labels" if "labels" in batches[0] else "fine_labels"
            labels = torch.tensor([label for batch in batches for label in batch[key]])
            splits.append(ImageDataset(pixels, labels, names))
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: not readable ({' '.join(str(error).split())})") from None
    train, test = splits
    return take_first(options, train, test)


def make_placeholders(options: DataOptions) -> Splits | None:
    """Blank splits of the published sizes, if nothing is downloaded yet."""
    if _locate(options)[1].is_dir():
        return None
    names = tuple(map(str, range(10 if options.dataset == "cifar10" else 100)))
    train, test = (
        make_blank_split(32, torch.zeros(n, dtype=torch.long), names) for n in (50_000, 10_000)
    )
    return take_first(options, train, test)


def _locate(options: DataOptions) -> tuple[type[CIFAR10], Path]:
    """torchvision's description of the data set, and the folder of its files."""
    source = CIFAR10 if options.dataset == "cifar10" else CIFAR100
    return source, options.path / source.base_folder


def _find_missing(source: type[CIFAR10], folder: Path) -> list[str]:
    """The files that are not there; UserError if one is not as published: it is left as it is."""
    missing = []
    for file, md5 in [
        *source.train_list,
        *source.test_list,
        (source.meta["filename"], source.meta["md5"]),
    ]:
        if os.path.exists(folder / file):
            why = f"{folder}: {file} is damaged (its MD5 is not the published one)"
            how = "delete the folder to have it downloaded anew, or name another with --data-dir"
            require(check_integrity(folder / file, md5), f"{why}: {how}")
        else:
            missing.append(file)
    return missing


def download_cifar(options: DataOptions) -> None:
    """Download the data set unless it is there: under a lock, checked, and only then put in place."""
    root, (source, folder) = options.path, _locate(options)
    url, waiting = (
        options.data_url or source.url,
        f"another process is downloading to {root}: waiting for it",
    )
    if not (missing := _find_missing(source, folder)):
        return
    try:
        above = next(
            part for part in (root, *root.parents) if part.exists()
        )  # a failure leaves no new folder
        with (
            lock_folder(above, waiting, wait=True),
            tempfile.TemporaryDirectory(prefix="simsiam-") as new,
        ):
            if not (missing := _find_missing(source, folder)):
                return
            archive = Path(new) / source.filename
            _fetch(url, archive)
            if not check_integrity(archive, source.tgz_md5):
                raise ValueError("the archive's MD5 is not the published one")
            with tarfile.open(archive) as tar:
                for file in missing:  # and nothing else that the archive contains
                    content = tar.extractfile(f"{source.base_folder}/{file}")
                    if content is None:
                        raise ValueError(f"{file} in the archive is not a file")
                    write_atomically(
                        folder / file,
                        lambda partial, data=content.read(): partial.write_bytes(data),
                    )
    except UserError:
        raise
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
            f"{folder}: {missing[0]} is missing; the download failed ({' '.join(str(error).split())}): name the data's "
            f"folder with --data-dir, or by --data-url a mirror of {url} or the archive as file:///PATH, or go without "
            "files by --dataset patterns"
        ) from None


def _fetch(url: str, path: Path) -> None:
    """Download a file. Not by torchvision's `download_url`, which has no timeout; here, 30 seconds without a byte."""
    request = urllib.request.Request(url, headers={"User-Agent": "simsiam"})
    with urllib.request.urlopen(request, timeout=30) as reply, open(path, "wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        for chunk in track_progress(
            iter(lambda: reply.read(2**20), b""), size, f"downloading {url}, bytes"
        ):
            file.write(chunk)


ALLOWED = {  # what an array consists of, as the numpy of CIFAR's days wrote it
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
}


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every other function and class."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which is not plain data"
            )
        return ALLOWED[module_name, global_name]


def read_plain_pickle(path: Path) -> Any:
    """Containers, numbers, strings (Python 2's as latin-1) and numpy arrays; of anything else nothing is run."""
    with open(path, "rb") as file:
        return _PlainUnpickler(file, encoding="latin1").load()
