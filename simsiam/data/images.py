"""Image files as uint8 tensors of one size, decoded by Pillow: any folder of them, a chunk at a time."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.console import print_line
from utils.errors import check

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not EPS: Pillow would run Ghostscript on it
CHUNK_IMAGES, CHUNK_BYTES = 512, 2**26  # images that are decoded together: at most so many, or so large
Read = tuple[Tensor, str] | str


class ImageFolder:
    """The images in a folder and below it, sorted by path; names that begin with a dot are skipped.

    `files` are paths relative to `folder`, `classes` the names of the sub-folders with images, `labels` (N,) the class
    of each image, or -1 for those beside the sub-folders, `closed` the sub-folders that cannot be read, and why.
    """

    def __init__(self, folder: str | Path, flag: str = "--images") -> None:
        self.folder = Path(folder).expanduser()
        check(self.folder.is_dir(), f"{flag} {self.folder}: no such folder")
        self.files: list[Path] = []
        self.closed: dict[Path, str] = {}
        seen: set[str] = set()
        for where, subfolders, names in os.walk(self.folder, onerror=self._note_closed, followlinks=True):
            if (real := os.path.realpath(where)) in seen:  # by a link to a folder that contains it
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = Path(where).relative_to(self.folder)
            images = [below / name for name in names if not name.startswith(".")]
            self.files += [image for image in images if image.suffix.lower() in SUFFIXES]
        self.files.sort()
        report_bad(self.closed if not self.files else {}, 0, self.folder, skip=False)
        check(bool(self.files), f"{flag} {self.folder}: no image in it ({' '.join(sorted(SUFFIXES))})")
        names = [file.parts[0] if len(file.parts) > 1 else "" for file in self.files]
        self.classes = tuple(sorted({*names} - {""}))
        label = {name: i for i, name in enumerate(self.classes)} | {"": -1}
        self.labels = torch.tensor([label[name] for name in names])

    def _note_closed(self, error: OSError) -> None:
        self.closed[Path(error.filename)] = str(error.strerror)

    def __len__(self) -> int:
        return len(self.files)

    def keep(self, places: list[int]) -> None:
        """Drop all other files."""
        self.files, self.labels = [self.files[i] for i in places], self.labels[places]

    def read(self, size: int, skip_bad: bool = False) -> Iterator[Tensor]:
        """Chunks (B, 3, size, size) uint8, in order; afterwards `files` are those that could be read (`report_bad`)."""
        bad: dict[Path, str] = {}
        for chunk in read_images(self.folder, self.files, size):
            bad |= {file: read for file, read in chunk if isinstance(read, str)}
            images = [read[0] for _, read in chunk if not isinstance(read, str)]
            if images and (skip_bad or not (bad or self.closed)):
                yield torch.stack(images)
        report_bad({**self.closed, **bad}, len(self) - len(bad), self.folder, skip_bad)
        self.keep([i for i, file in enumerate(self.files) if file not in bad])


def report_bad(bad: dict[Path, str], good: int, folder: Path, skip: bool) -> None:
    """Print which images of a folder cannot be read, and why; UserError unless `skip` and there are `good` others."""
    if bad:
        shown = "; ".join([f"{file} ({why})" for file, why in bad.items()][:3]) + "; ..." * (len(bad) > 3)
        what = f"{len(bad)} of {len(bad) + good} images in {folder} cannot be read: {shown}"
        check(skip, f"{what}. Mend or remove them, or give --skip-bad-images")
        check(good > 0, what)
        print_line(f"left out: {what}")


def read_images(root: Path, files: Sequence[Path], size: int) -> Iterator[list[tuple[Path, Read]]]:
    """Each file below `root` and what `try_to_read` gives, in chunks."""
    chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (3 * size**2)))
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without the GIL
        for start in range(0, len(files), chunk):
            some = files[start : start + chunk]
            yield list(zip(some, pool.map(lambda file: try_to_read(root / file, size), some), strict=True))


def try_to_read(path: Path, size: int) -> Read:
    """`read_image` and the SHA-256 of the file, or why it cannot be read."""
    try:
        if not path.is_file() and path.exists():
            return "not a file"  # opening a pipe would block
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return read_image(file, size), digest
    except Image.UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # noqa: BLE001  (for damaged files Pillow raises whatever comes)
        return getattr(error, "strerror", None) or " ".join(str(error).split())[:80] or type(error).__name__


def read_image(path: Path | BinaryIO, size: int) -> Tensor:
    """An image file as RGB: the central square, resized to (3, size, size) uint8; some Exception if it is damaged."""
    with Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or float("inf")):  # Pillow only warns up to twice that
            raise ValueError("too large")
        image = ImageOps.exif_transpose(file)
        if image.mode == "F" or (image.mode == "I" and not 0 <= np.asarray(image).max() < 2**16):
            raise ValueError("32-bit pixels have no known scale")
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255 instead of scaling
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
