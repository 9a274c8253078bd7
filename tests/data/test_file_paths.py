"""The paths of a folder's images stay with the images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import ImageDataset, place_on_device
from simsiam.data.file_paths import FilePaths
from tests.images import write_bad_images

NAMES = ["a.png", "", "folder/\u5199\u771f.png", os.fsdecode(b"caf\xe9\xff.jpg"), "\U0001f431 x"]


def test_paths_are_those_of_a_list() -> None:
    paths = FilePaths(NAMES)
    assert list(paths) == NAMES and len(paths) == 5 and paths[-1] == NAMES[-1]
    assert list(paths[1:4]) == NAMES[1:4]
    assert list(paths[1:4].subset(torch.tensor([2, 0, 0]))) == [NAMES[3], NAMES[1], NAMES[1]]
    with pytest.raises(IndexError):
        paths[5]


def file_pixels(root: Path, path: str) -> np.ndarray:
    with Image.open(root / path) as image:
        return np.array(image).transpose(2, 0, 1)


def check_paths(root: Path, split: ImageDataset) -> None:
    assert split.paths is not None and len(split.paths) == len(split)
    for image, path in zip(split.images, split.paths, strict=True):
        assert np.array_equal(image.numpy(), file_pixels(root, path)), path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_images": 50, "test_images": 7},
        {"held_out_images": 30},
    ],
)
def test_each_image_has_the_path_of_its_file(
    options: dict[str, int], photos: Path, tmp_path: Path
) -> None:
    data = DataOptions(
        "folder", str(photos), image_size=32, cache_dir=str(tmp_path / "cache"), **options
    )
    prepare_dataset(data)
    splits = load_dataset(data)
    for split in (*splits, *place_on_device(splits, torch.device("cpu"), None)):
        check_paths(photos, split)
        check_paths(photos, split.first(3))
        check_paths(photos, split.slice(2, 5))
        check_paths(photos, split.subset(torch.tensor([5, 1, 3])))
    assert splits[0].paths != splits[1].paths


def test_paths_of_unreadable_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_bad_images(tmp_path / "images")
    cache = str(tmp_path / "cache")
    data = DataOptions(
        "folder", str(tmp_path / "images"), cache_dir=cache, image_size=32, skip_bad_images=True
    )
    prepare_dataset(data)
    train, _ = load_dataset(data)
    assert train.paths is not None and list(train.paths) == ["good.png"]


def test_a_data_set_without_files_has_no_paths() -> None:
    train, _ = load_dataset(DataOptions("patterns", "", train_images=10, test_images=10))
    assert train.first(3).paths is None and train.subset(torch.tensor([1])).paths is None
