"""Images for tests: generated ones, links to CIFAR-10, and files that cannot be read."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from simsiam.data.dataset import ImageDataset
from simsiam.data.synthetic import CLASSES, make_patterns

CIFAR_FOLDER = "cifar-10-batches-py"
PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def patterns(n: int, split: int = 0) -> ImageDataset:
    """Return generated images. Split 0 is train and 1 is test; further numbers give others."""
    return ImageDataset(*make_patterns(n, split), classes=CLASSES)


def write_images(
    folder: Path,
    images: ImageDataset,
    layout: str = "{split}/{name}/{i:05d}.png",
    split: str = "train",
) -> None:
    """Write each image to a PNG file.

    Args:
        layout: format of the path of a file below `folder`. It may use `split`, `name` (of the
            class) and `i` (index of the image).
    """
    names = images.names(images.labels.tolist())
    for i, (image, name) in enumerate(zip(images.images, names, strict=True)):
        file = folder / layout.format(split=split, name=name, i=i)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, compress_level=1)


def smooth_image(size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Return a smooth image, which lossy formats hardly change. Its corners and channels differ."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    return Image.fromarray((255 * np.stack([x, y, 1 - x], axis=2)).astype(np.uint8))


def write_bad_images(folder: Path) -> dict[str, str]:
    """Fill a folder with bad files and one good image.

    Returns:
        The name of each bad file, and a part of the message about it.
    """
    smooth_image().save(folder / "good.png")
    good = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"not an image at all")
    (folder / "page.webp").write_bytes(b"<!DOCTYPE html><html></html>")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    (folder / "script.png").write_bytes(postscript)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.png").mkdir()
    pixels = np.random.default_rng(0).random((9, 9)).astype(np.float32)
    Image.fromarray(pixels).save(folder / "float.tif")
    return {
        "truncated.png": "truncated",
        "empty.png": "not an image",
        "text.jpg": "not an image",
        "page.webp": "not an image",
        "script.png": "not an image",
        "dangling.png": "No such file",
        "float.tif": "no known scale",
    }


def link_cifar10(cifar10_dir: Path, root: Path, without: tuple[str, ...] = ()) -> Path:
    """Make a data folder with links to the files of CIFAR-10, except for those in `without`."""
    (root / CIFAR_FOLDER).mkdir(parents=True)
    for file in (cifar10_dir / CIFAR_FOLDER).iterdir():
        if file.name not in without:
            (root / CIFAR_FOLDER / file.name).symlink_to(file)
    return root


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch HACKED",)


def flip_bit(raw: bytes, at: int) -> bytes:
    """Return the bytes with one bit of byte `at` flipped."""
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
