"""The index of many image files: its memory, its order and its digest, in whatever form it is."""

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simsiam.data import sampler
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.files.selection import (
    Selection,
    hash_contents,
    hash_files,
    read_selection,
    write_selection,
)
from simsiam.data.files.size_table import SizeTable
from simsiam.data.held_out import HELD_OUT_EPOCH, choose_held_out
from simsiam.data.listing.folder import ImageFolder
from simsiam.data.sampler import EpochSampler
from tests.helpers import measure_alone
from utils.errors import UserError
from utils.philox import permutation, permutation_in_pieces

ODD_NAMES = ["a b.png", "\u5199\u771f.png", os.fsdecode(b"caf\xe9\xff.png"), "\U0001f431.png"]


def touch(root: Path, *names: str) -> None:
    """Create empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


# ---------------------------------------------------------------- listing

# Bytes of Python's table of interned strings. pathlib puts each name into it for a moment, so the
# table may grow at any time, but not in proportion to the names.
INTERNED = 9_000_000
READ_FOLDER = """
import pathlib, sys, tracemalloc
from simsiam.data.listing.folder import ImageFolder

tracemalloc.start()
images = ImageFolder(pathlib.Path(sys.argv[1]))
print(*tracemalloc.get_traced_memory(), len(images))
"""
READ_LIST = """
import pathlib, sys, tracemalloc
from simsiam.data.listing.list_file import ListFile

path = pathlib.Path(sys.argv[1])
ListFile(path, "--data-dir")  # what is allocated once
tracemalloc.start()
images = ListFile(path, "--data-dir")
print(*tracemalloc.get_traced_memory(), len(images), len(images.classes))
"""


def test_an_index_takes_few_bytes_for_each_image(tmp_path: Path) -> None:
    n = 4000
    names = [f"n{i % 8:08d}/n{i % 8:08d}_{i:08d}.jpeg" for i in range(n)]
    touch(tmp_path, *names)
    kept, peak, count = measure_alone(READ_FOLDER, tmp_path)
    length = len(names[0])
    assert count == n
    assert kept < n * (length + 20) + 20_000
    # Two copies of the text and the names of one folder may exist for a moment.
    assert peak < n * (2 * length + 40) + 200_000


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_a_list_takes_few_bytes_for_each_image(suffix: str, tmp_path: Path) -> None:
    n = 100_000
    touch(tmp_path, "n00000000/n00000000_00000000.jpeg")
    lines = [f"n{i % 8:08d}/n{i % 8:08d}_{i:08d}.jpeg" for i in range(n)]
    length = len(lines[0])
    if suffix == ".csv":
        lines = ["path,label,split", *(f"{line},{line[:9]},train" for line in lines)]
    path = tmp_path / f"list{suffix}"
    path.write_text("\n".join(lines))
    kept, peak, count, classes = measure_alone(READ_LIST, path)
    assert count == n and classes == (8 if suffix == ".csv" else 0)
    # 8 bytes for where a path begins; tensors are not traced. Meanwhile, there are the numbers of
    # the label, the split and the line, and a key that is sorted.
    assert kept < n * (length + 12) + INTERNED
    assert peak < n * (length + 90) + INTERNED + 6_000_000  # a chunk is searched for NUL


def test_files_have_the_order_of_their_paths(tmp_path: Path) -> None:
    names = [f"{folder}{name}" for name in ODD_NAMES for folder in ("", "b/", "b/a.png/", "b-/")]
    names += [
        "b.png",
        "z/0.png",
        "b/a.png0.png",
        "a/b/c/d.png",
        "a/b.png",
        os.fsdecode(b"\xff/x.png"),
    ]
    touch(tmp_path, *names)
    listed = list(ImageFolder(tmp_path).files)
    assert listed == [str(path) for path in sorted(Path(name) for name in names)]


def test_labels_follow_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "0.png", "b/0.png", "b/c/0.png", "b.png", "c/0.png", "z.png")
    images = ImageFolder(tmp_path)
    classes = ["" if label < 0 else images.classes[label] for label in images.labels.tolist()]
    folders = [file.rpartition("/")[0].partition("/")[0] for file in images.files]
    assert classes == folders == ["", "b", "b", "", "c", ""]


# ---------------------------------------------------------------- paths


def test_a_path_with_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        FilePaths(["a\0b"])


def test_paths_can_be_joined_and_moved_below_a_folder() -> None:
    train = FilePaths(ODD_NAMES)
    both = train.below("train") + train[1:3].below("val")
    expected = [f"train/{name}" for name in ODD_NAMES] + [f"val/{name}" for name in ODD_NAMES[1:3]]
    assert list(both) == expected and list(both[-3:]) == expected[-3:]
    assert list(both[::2]) == expected[::2] and list(FilePaths() + both) == expected


def test_paths_of_a_subset_can_be_read_together() -> None:
    paths = FilePaths(ODD_NAMES)
    chosen = [3, 0, 0, 2, 1]
    subset = paths.subset(torch.tensor(chosen))
    expected = [ODD_NAMES[i] for i in chosen]
    assert list(subset) == expected and list(subset[1:4]) == expected[1:4]
    assert list(FilePaths.from_arrays(*subset.to_arrays())) == expected
    assert list(paths.subset(torch.tensor([], dtype=torch.int64))) == []


@pytest.mark.parametrize("part", [slice(0, None), slice(3, 9), slice(None, None, -3), slice(5, 2)])
def test_arrays_of_paths_have_the_same_paths(part: slice) -> None:
    names = [f"{name}{i}" for i in range(5) for name in ODD_NAMES]
    paths = FilePaths(names)[part]
    assert list(FilePaths.from_arrays(*paths.to_arrays())) == list(paths) == names[part]


# ---------------------------------------------------------------- selection


def make_selection(names: Sequence[str], classes: tuple[str, ...] = ("a", "b")) -> Selection:
    labels = torch.arange(len(names)) % 3 - 1
    return Selection("/images", False, FilePaths(names), labels, classes, 2, "0123")


def test_a_selection_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "selection.x.files"
    for names in (ODD_NAMES, ODD_NAMES[:2], []):
        written = make_selection(names)
        write_selection(file, written)
        read = read_selection(file)
        assert list(read.files) == names and torch.equal(read.labels, written.labels)
        assert read.labels.dtype == torch.int64
        for name in ("root", "cached", "classes", "num_train", "digest"):
            assert getattr(read, name) == getattr(written, name)


def test_the_same_selection_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "selection.x.files"
    write_selection(file, make_selection(ODD_NAMES))
    first = file.stat().st_ino
    write_selection(file, make_selection(ODD_NAMES))
    assert file.stat().st_ino == first
    write_selection(file, make_selection(list(reversed(ODD_NAMES))))
    assert list(read_selection(file).files) == list(reversed(ODD_NAMES))


def test_a_selection_of_an_earlier_version_is_removed(tmp_path: Path) -> None:
    (tmp_path / "selection.x.json").write_text("{}")
    write_selection(tmp_path / "selection.x.files", make_selection(ODD_NAMES))
    assert [file.name for file in tmp_path.iterdir()] == ["selection.x.files"]


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "json", "none"])
def test_a_damaged_selection_is_refused(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "selection.x.files"
    write_selection(file, make_selection(ODD_NAMES))
    content = file.read_bytes()
    damaged = {
        "cut": content[:-1],
        "longer": content + b"\0",
        "empty": b"",
        "json": b'{"root": "/images", "files": []}',
        "none": content.replace(b'"format": 2', b'"format": 3'),
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(UserError, match="no complete list of the images"):
        read_selection(file)


def test_the_digest_of_known_contents_is_that_of_earlier_versions() -> None:
    digests = [hashlib.sha256(name.encode(errors="replace")) for name in ODD_NAMES]
    contents: dict[int, object] = {i: digest.hexdigest() for i, digest in enumerate(digests)}
    expected = hash_files(FilePaths(ODD_NAMES), contents)
    array = np.array([digest.digest() for digest in digests], "V32")
    assert hash_contents(FilePaths(ODD_NAMES), array) == expected


@pytest.mark.parametrize("sized", [(), (0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_the_digest_is_that_of_earlier_versions(sized: tuple[int, ...]) -> None:
    """It is the hash of lines "PATH CONTENT", in which the content of most files is None."""
    contents: dict[int, object] = {i: 10 * i for i in sized}
    lines = [f"{name} {contents.get(i)}" for i, name in enumerate(ODD_NAMES)]
    text = "\n".join(lines).encode(errors="surrogateescape")
    assert hash_files(FilePaths(ODD_NAMES), contents) == hashlib.sha256(text).hexdigest()[:16]


# ---------------------------------------------------------------- the order of an epoch


@pytest.mark.parametrize(
    ("n", "piece"), [(1, 1), (1000, 999), (1000, 300), (100_000, 9000), (700, 1)]
)
def test_pieces_of_an_order_are_the_order(n: int, piece: int) -> None:
    order = permutation(n, 3, seed=2**40 + 7)
    for skip in (0, n // 3, n):
        pieces = list(permutation_in_pieces(n, 3, seed=2**40 + 7, skip=skip, piece=piece))
        assert torch.equal(torch.cat([order[:0], *pieces]), order[skip:])
        assert max(map(len, pieces), default=0) < 1.3 * piece + 20


def batches_of(sampler: EpochSampler) -> list[list[int]]:
    return [batch.tolist() for batch in sampler]


@pytest.mark.parametrize("done", [0, 1, 7, 19, 20])
def test_batches_do_not_depend_on_the_pieces(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rank: int) -> EpochSampler:
        return EpochSampler(
            1009, 100, 5, lambda: 2, torch.device("cpu"), lambda: done, rank, 2, accumulate=2
        )

    # This is how the batches were defined before the order came in pieces.
    parts = permutation(1009, 2, seed=5)[:1000].split(50)[done:]
    for rank in (0, 1):
        expected = [part[rank::2].tolist() for part in parts]
        assert batches_of(make(rank)) == expected
        small_pieces = partial(permutation_in_pieces, piece=130)
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "permutation_in_pieces", small_pieces)
            assert batches_of(make(rank)) == expected


def held_out_one_class_at_a_time(labels: Tensor, n: int) -> Tensor:
    order = permutation(len(labels), HELD_OUT_EPOCH, seed=0)
    quantile = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        quantile[members] = (torch.arange(len(members)) + 0.5).double() / len(members)
    return order[torch.argsort(quantile[order], stable=True)[:n]].sort().values


def test_held_out_images_are_those_of_a_loop_over_classes() -> None:
    labels = torch.randint(-1, 7, (2000,), generator=torch.Generator().manual_seed(0))
    for n in (1, 100, 1999):
        assert torch.equal(choose_held_out(labels, n), held_out_one_class_at_a_time(labels, n))


# ---------------------------------------------------------------- other parts


def test_sizes_are_remembered_up_to_the_number_of_slots() -> None:
    table = SizeTable(10, slots=4)
    assert table.get(0) is None
    for i in range(10):
        table.set(i, i + 1, 2**20 - 1)
    known = [i for i in range(10) if table.get(i) is not None]
    assert known == [6, 7, 8, 9] and table.get(9) == (10, 2**20 - 1)
    table.set(9, 2**20, 1)  # too large for an entry
    assert table.get(9) == (10, 2**20 - 1)
    assert SizeTable(3).get(2) is None


def test_a_range_of_lazy_images_is_that_of_a_tensor() -> None:
    def read(indices: Sequence[int]) -> Tensor:
        return torch.tensor(list(indices)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    ranged = LazyImages(read, range(10), 2)[2:9]
    indexed = LazyImages(read, torch.arange(10), 2)[2:9]
    chosen = torch.tensor([3, 0, 6])
    assert ranged.shape == indexed.shape
    assert torch.equal(ranged.index_select(0, chosen), indexed.index_select(0, chosen))
    assert ranged[chosen].index_select(0, chosen[1:2]).flatten()[0] == 5
    for a, b in zip(ranged.split(3), indexed.split(3), strict=True):
        assert torch.equal(a, b)
