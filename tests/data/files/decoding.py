"""Functions that the tests of the image cache share. They make images and decode them."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from simsiam.data.cache.index import read_index
from simsiam.data.cache.table import Index
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.cached_images import open_cache
from simsiam.data.files.image_cache import decode_images
from simsiam.data.files.reading import read_image

FILES = ["clean.0.uint8", "index.jsonl", "whole.0.uint8"]
Printed = Callable[[], str]  # returns what was printed since the last call


def photos(folder: Path, n: int) -> list[Path]:
    """Make n different images, and return the names of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{i:04d}.png") for i in range(n)]
    for i, file in enumerate(files):
        Image.new("RGB", (10, 10), (i % 256, i // 256, 7)).save(folder / file)
    return files


def decode(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    """Decode the files in photos/ into cache/. Return the images (N, 3, side, side) uint8."""
    decode_all(tmp_path / "cache", tmp_path / "photos", files, side)
    return read_cache(tmp_path / "cache", files)


def decode_all(cache: Path, folder: Path, files: list[Path], side: int = 8) -> Index:
    """Decode files of a folder into a cache, with whole images of at most twice the side."""
    return decode_images(cache, folder, FilePaths(map(str, files)), side, 2 * side)


def read_cache(cache: Path, files: list[Path]) -> torch.Tensor:
    """Return the clean images (N, 3, side, side) uint8 of files in a cache."""
    index = read_index(cache)
    images, _ = open_cache(cache, index, index.find(FilePaths(map(str, files))))
    return images.to(torch.device("cpu"))


def expected(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    """Return the images that `decode` should return, without a cache."""
    return torch.stack([read_image(tmp_path / "photos" / file, side) for file in files])
