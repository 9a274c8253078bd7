"""Measure what the index of many image files costs: bytes for each image, seconds for each million.

Run `python tests/benchmarks/image_index.py`. There are no images: the folders are simulated, so the
seconds are those of the program without the file system. Lists and the index of a cache are files.
Each part is measured in a process of its own, with one thread. "Peak" is the highest memory of the
process above what it was before. "Kept" is the memory that stays while the result is used, without
memory maps, which processes share.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timing import table

from simsiam.data.cache.index import read_index
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.cached_images import open_cache
from simsiam.data.files.selection import Selection, hash_files, read_selection, write_selection
from simsiam.data.files.size_table import SizeTable
from simsiam.data.held_out import choose_held_out
from simsiam.data.listing import folder as folder_listing
from simsiam.data.listing.folder import ImageFolder
from simsiam.data.listing.list_file import ListFile
from utils.philox import permutation, permutation_in_pieces

CLASSES = 1000
SIZED_FILES = 4096


class SimulatedEntry:
    """What os.scandir yields for a file or a folder."""

    def __init__(self, name: str, is_folder: bool) -> None:
        self.name = name
        self._is_folder = is_folder

    def is_dir(self) -> bool:
        return self._is_folder


class SimulatedFolders:
    """Takes the place of the module `os` in a listing: CLASSES folders with n files in all."""

    def __init__(self, root: Path, n: int) -> None:
        self.root = root
        self.n = n

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @contextmanager
    def scandir(self, folder: str) -> Iterator[Iterator[SimulatedEntry]]:
        if folder == str(self.root):
            yield (SimulatedEntry(f"n{i:08d}", True) for i in range(CLASSES))
            return
        number = int(os.path.basename(folder)[1:])
        files = range(number * self.n // CLASSES, (number + 1) * self.n // CLASSES)
        yield (SimulatedEntry(f"n{number:08d}_{i:09d}.jpeg", False) for i in files)


def list_simulated(n: int, root: Path) -> ImageFolder:
    folder_listing.os = SimulatedFolders(root, n)  # pyright: ignore[reportAttributeAccessIssue]
    return ImageFolder(root)


def make_selection(n: int, root: Path) -> Selection:
    images = list_simulated(n, root)
    return Selection(str(root), False, images.files, images.labels, images.classes, n, "0" * 16)


def prepare_listing(n: int, folder: Path) -> Callable[[], object]:
    return lambda: list_simulated(n, folder)


def prepare_csv(n: int, folder: Path) -> Callable[[], object]:
    path = folder / "list.csv"
    with open(path, "w") as file:
        file.write("path,label,split\n")
        for name in simulated_names(n):
            file.write(f"{name},{name[:9]},train\n")
    (folder / "n00000000").mkdir()
    (folder / "n00000000" / "n00000000_000000000.jpeg").touch()
    return lambda: ListFile(path, "--data-dir")


def write_cache_index(n: int, folder: Path) -> None:
    """Write the index of a cache, next to files that have the size of its pixels but no content."""
    header = {"source": "", "size": 2, "stored_side": 2, "conversion": [], "number": 0, "format": 3}
    with open(folder / "index.jsonl", "w") as file:
        file.write(json.dumps(header) + "\n")
        for i, name in enumerate(simulated_names(n)):
            digest = hashlib.sha256(name.encode()).hexdigest()
            line = [name, 110_000, 10**18 + i, digest, 375, 500, 2, 2, 12 * i, i, {}]
            file.write(json.dumps(line) + "\n")
    for name in ("whole.0.uint8", "clean.0.uint8"):
        with open(folder / name, "wb") as file:
            file.truncate(12 * n)


def prepare_cache_index(n: int, folder: Path) -> Callable[[], object]:
    write_cache_index(n, folder)
    return lambda: read_index(folder)


def prepare_cached_images(n: int, folder: Path) -> Callable[[], object]:
    write_cache_index(n, folder)
    files = FilePaths(simulated_names(n))

    def work() -> object:
        index = read_index(folder)
        return open_cache(folder, index, index.find(files))

    return work


def simulated_names(n: int) -> Iterator[str]:
    """Yield the paths of the simulated folders."""
    for i in range(n):
        number = i * CLASSES // n
        yield f"n{number:08d}/n{number:08d}_{i:09d}.jpeg"


def prepare_digest(n: int, folder: Path) -> Callable[[], object]:
    files = list_simulated(n, folder).files
    sizes: dict[int, object] = {i * n // SIZED_FILES: 100_000 for i in range(SIZED_FILES)}
    return lambda: hash_files(files, sizes)


def prepare_writing(n: int, folder: Path) -> Callable[[], object]:
    selection = make_selection(n, folder)
    return lambda: write_selection(folder / "selection", selection)


def prepare_reading(n: int, folder: Path) -> Callable[[], object]:
    write_selection(folder / "selection", make_selection(n, folder))
    return lambda: read_selection(folder / "selection")


def prepare_order(n: int, folder: Path) -> Callable[[], object]:
    def work() -> None:
        for _ in permutation_in_pieces(n, 0, seed=0):
            pass

    return work


def prepare_first_piece(n: int, folder: Path) -> Callable[[], object]:
    return lambda: next(permutation_in_pieces(n, 0, seed=0))


def prepare_whole_order(n: int, folder: Path) -> Callable[[], object]:
    return lambda: permutation(n, 0, seed=0)


def prepare_sizes(n: int, folder: Path) -> Callable[[], object]:
    def work() -> SizeTable:
        sizes = SizeTable(n)
        for i in range(0, n, 16):  # at least one in each page of memory
            sizes.set(i, 375, 500)
        return sizes

    return work


def prepare_held_out(n: int, folder: Path) -> Callable[[], object]:
    labels = torch.arange(CLASSES).repeat_interleave(n // CLASSES)
    return lambda: choose_held_out(labels, n // 20)


PARTS: dict[str, Callable[[int, Path], Callable[[], object]]] = {
    "list the folders: paths and labels": prepare_listing,
    "read a .csv: paths, labels and splits": prepare_csv,
    "read the index of a cache": prepare_cache_index,
    "open the images of a cache": prepare_cached_images,
    "digest": prepare_digest,
    "write the selection": prepare_writing,
    "map the selection": prepare_reading,
    "order of an epoch": prepare_order,
    "order up to the first batch": prepare_first_piece,
    "order at once, without pieces": prepare_whole_order,
    "sizes of images": prepare_sizes,
    "--held-out-images": prepare_held_out,
}


def read_status(key: str) -> int:
    """Return a number of bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(key)


def measure(part: str, n: int) -> dict[str, float]:
    """Measure a part in a fork of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with tempfile.TemporaryDirectory() as folder:
            work = PARTS[part](n, Path(folder))
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
            resident = read_status("VmRSS")
            anonymous = read_status("RssAnon")
            begin = time.process_time()
            result = work()
            seconds = time.process_time() - begin
            peak = read_status("VmHWM") - resident
            kept = read_status("RssAnon") - anonymous
            del result
        os.write(writer, json.dumps({"seconds": seconds, "peak": peak, "kept": kept}).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        measured = json.loads(pipe.read())
    os.waitpid(child, 0)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[10**6, 4 * 10**6])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process could not use threads of this one
    rows = []
    for part in args.parts:
        for n in args.images:
            measured = measure(part, n)
            rows.append(
                [
                    part,
                    f"{n:,}",
                    f"{measured['peak'] / n:,.1f}",
                    f"{max(0.0, measured['kept'] / n):,.1f}",
                    f"{measured['seconds'] / n * 1e6:,.2f}",
                ]
            )
    head = ("part", "images", "peak bytes an image", "kept", "CPU s per million")
    table("Index of image files", head, rows)


if __name__ == "__main__":
    main()
