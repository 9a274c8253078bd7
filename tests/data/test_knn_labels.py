"""simsiam/data/knn_labels.py: which images kNN compares."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from simsiam.data import knn_labels
from simsiam.data.dataset import ImageDataset, make_blank_split
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.knn_labels import (
    choose_bank,
    choose_comparison,
    describe_leave_one_out,
    knn_unavailable_reason,
)


def make_split(labels: Sequence[int]) -> ImageDataset:
    return make_blank_split(8, torch.tensor(labels, dtype=torch.int64), ("cat", "dog"))


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([0, 1], [0, 1, -1], ("test images", [0, 1], False)),
        ([0, 1], [1], ("test images", [0], False)),
        ([-1, -1], [0, 1, -1, 1], ("test images", [0, 1, 3], True)),
        ([0, 1, -1], [0, 1, 1], ("test images", [0, 1, 2], True)),
        ([0, 1, -1, 0], [1, 1], ("train images", [0, 1, 3], True)),
        ([0, -1, 1, 1], [-1], ("train images", [0, 2, 3], True)),
        ([0, 1, 0], [], ("train images", [0, 1, 2], True)),
        ([0, 1], [], None),
        ([0, -1, 0], [], None),
        ([0, 0], [0], ("test images", [0], False)),
        ([-1, -1], [0], None),
        ([-1], [], None),
    ],
)
def test_labelled_images_are_compared(
    train: list[int], test: list[int], expected: tuple[str, list[int], bool] | None
) -> None:
    comparison = choose_comparison(make_split(train), make_split(test))
    found = None
    if comparison is not None:
        found = (comparison.name, comparison.indices.tolist(), comparison.leave_one_out)
    assert found == expected


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([-1, -1], [0, 1, 1], "no labels of the train images"),
        ([0, 1, -1], [0, 1, 1], "no labels of some train images"),
        ([0, 1, 1], [], "no test images"),
        ([0, 1, 1, -1], [-1], "no labels of the test images"),
        ([0, 1, 1, -1], [1, 1], "test images of one class only"),
    ],
)
def test_the_reason_for_leave_one_out_is_true(
    train: list[int], test: list[int], reason: str
) -> None:
    splits = (make_split(train), make_split(test))
    comparison = choose_comparison(*splits)
    assert comparison is not None
    first_line, _ = describe_leave_one_out(comparison, *splits)
    assert first_line == f"{reason}: kNN is leave-one-out among"


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([-1, -1], [-1], "no labels"),
        ([0, 0], [], "one class only"),
        ([0, 1], [], "no class has two images"),
        ([-1], [0, 1], "no class has two images"),
        ([0, 1, 1], [], None),
    ],
)
def test_the_reason_for_no_knn(train: list[int], test: list[int], reason: str | None) -> None:
    """Of images in a folder each, no neighbour has the same class: the accuracy would stay 0."""
    assert knn_unavailable_reason(make_split(train), make_split(test)) == reason


def test_many_train_images_are_compared_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_labels, "MAX_COMPARED_TRAIN_IMAGES", 3)
    comparison = choose_comparison(make_split([-1, 0, 1, 0, 1, 0, 1]), make_split([]))
    assert comparison is not None and comparison.indices.tolist() == [1, 4, 5]


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_part_of_alternating_classes_has_all_classes(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 51,200 images whose classes alternate, each second one would be of the same class."""
    monkeypatch.setattr(knn_labels, "MAX_COMPARED_TRAIN_IMAGES", 12)
    monkeypatch.setattr(knn_labels, "RANKME_IMAGES", 12)
    train = make_split([i % 2 for i in range(12 * parts)])
    comparison = choose_comparison(train, make_split([]))
    assert comparison is not None and comparison.labels.bincount().tolist() == [6, 6]
    bank = choose_bank(train, comparison)
    assert bank is not None and torch.equal(bank, comparison.indices)


def test_no_more_images_than_a_chunk_are_read_at_once() -> None:
    """The compared images of a large folder may take gigabytes."""
    numbers: list[int] = []

    def read(indices: Sequence[int]) -> torch.Tensor:
        numbers.append(len(indices))
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)

    train = replace(make_split([0, -1, 1, 0, 1, 1]), images=LazyImages(read, range(6), 8))
    comparison = choose_comparison(train, make_split([]))
    assert comparison is not None
    images = torch.cat(list(comparison.read_chunks(2)))
    assert images[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5] and numbers == [2, 2, 1]
