"""Functions that the tests of the image cache share. They make images and decode them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from simsiam.data.files.image_cache import decode_images, open_cache
from simsiam.data.files.images import read_image

FILES = ["images.uint8", "manifest.jsonl"]
Printed = Callable[[], str]  # returns what was printed since the last call


def photos(folder: Path, n: int) -> list[Path]:
    """Make n different images, and return the names of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{i:04d}.png") for i in range(n)]
    for i, file in enumerate(files):
        Image.new("RGB", (10, 10), (i % 256, i // 256, 7)).save(folder / file)
    return files


def metadata(files: list[Path]) -> dict[str, Any]:
    """Return the manifest's entries for train images, where file i has the label i."""
    return {"train": len(files), "labels": list(range(len(files))), "classes": []}


def decode(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    """Decode the files in photos/ into cache/. Return the images (N, 3, side, side) uint8."""
    decode_images(tmp_path / "cache", tmp_path / "photos", files, side, metadata(files))
    return open_cache(tmp_path / "cache")[0].images


def expected(tmp_path: Path, files: list[Path], side: int = 8) -> torch.Tensor:
    """Return the images that `decode` should return, without a cache."""
    return torch.stack([read_image(tmp_path / "photos" / file, side) for file in files])
