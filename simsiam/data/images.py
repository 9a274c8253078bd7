"""Image files as uint8 tensors of one size, decoded by Pillow: any folder of them, a chunk at a time."""

import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.console import print_line
from utils.errors import check

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not EPS: Pillow would run Ghostscript on it
CHUNK = 256
Read = TypeVar("Read")
# what Pillow raises for damaged files
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)


class ImageFolder:
    """The images in a folder and below it, sorted by path; names that begin with a dot are skipped.

    `files` are paths relative to `folder`. `classes` are the names of the sub-folders with images, `labels` (N,) the
    class of each image, or -1 for those beside the sub-folders. `closed` names the sub-folders that cannot be read.

    Raises:
        UserError: no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path, flag: str = "--images") -> None:
        self.folder = Path(folder).expanduser()
        check(self.folder.is_dir(), f"{flag} {self.folder}: no such folder")
        found, seen = [], set()
        self.closed: list[str] = []

        def note(error: OSError) -> None:
            self.closed.append(f"{error.filename} ({error.strerror})")

        for where, subfolders, names in os.walk(self.folder, onerror=note, followlinks=True):
            real, below = os.path.realpath(where), Path(where).relative_to(self.folder)
            if real in seen:  # a link to a folder that contains it
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            found += [below / n for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
        self.files = sorted(found)
        why = "; ".join(self.closed[:3]) or " ".join(sorted(SUFFIXES))
        check(bool(found), f"{flag} {self.folder}: no image in it ({why})")
        top = [file.parts[0] if len(file.parts) > 1 else None for file in self.files]
        self.classes = tuple(sorted({name for name in top if name is not None}))
        label = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([-1 if name is None else label[name] for name in top])

    def __len__(self) -> int:
        return len(self.files)

    def keep(self, places: list[int]) -> None:
        """Drop all other files."""
        self.files = [self.files[i] for i in places]
        self.labels = self.labels[places]

    def read(self, size: int, skip_bad: bool = False) -> Iterator[Tensor]:
        """Chunks (B, 3, size, size) uint8, in order; afterwards `files` are those that could be read.

        Raises:
            UserError: images that cannot be read, once all have been tried, unless `skip_bad`; or none that can.
        """
        good, bad = [], list(self.closed)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.files), CHUNK):
                names = self.files[start : start + CHUNK]
                read = list(pool.map(lambda name: try_to_read(self.folder / name, size), names))
                images = [image for image in read if isinstance(image, Tensor)]
                good += [start + i for i, image in enumerate(read) if isinstance(image, Tensor)]
                bad += [f"{name} ({why})" for name, why in zip(names, read, strict=True) if isinstance(why, str)]
                if images and (skip_bad or not bad):
                    yield torch.stack(images)
        report_bad(bad, len(good), self.folder, skip_bad)
        self.keep(good)


def report_bad(bad: list[str], good: int, folder: Path, skip: bool) -> None:
    """Say which images of a folder cannot be read, "FILE (WHY)" of each, beside `good` others.

    Raises:
        UserError: there are some, unless `skip`; or there are no others.
    """
    if bad:
        shown = "; ".join(bad[:3]) + ("; ..." if len(bad) > 3 else "")
        what = f"{len(bad)} of {len(bad) + good} images in {folder} cannot be read: {shown}"
        check(skip, f"{what}. Mend or remove them, or give --skip-bad-images")
        check(good > 0, what)
        print_line(f"left out: {what}")


def read_image(path: Path | BinaryIO, size: int) -> Tensor:
    """An image file as RGB: the central square, resized to (3, size, size) uint8.

    Upright as its EXIF says, of an animation the first frame; grey, palette, CMYK and 16 bits become 8-bit RGB, and
    transparency is dropped.

    Raises:
        OSError, ValueError and others (`UNREADABLE`): not an image, or damaged.
    """
    with Image.open(path, formats=FORMATS) as file:
        limit = Image.MAX_IMAGE_PIXELS or float("inf")
        if file.width * file.height > limit:  # Pillow only warns up to twice that
            raise Image.DecompressionBombError
        image = ImageOps.exif_transpose(file)
        if image.mode == "F" or (image.mode == "I" and not 0 <= np.asarray(image).max() < 2**16):
            raise ValueError("32-bit pixels have no known scale")
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255 instead of scaling
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def try_to_read(path: Path, size: int, read: Callable[[Path, int], Read] = read_image) -> Read | str:
    """What `read` returns, or why the file cannot be read."""
    try:
        if not path.is_file() and path.exists():
            return "not a file"  # opening a pipe would block
        return read(path, size)
    except Image.DecompressionBombError:
        return "too large"
    except Image.UnidentifiedImageError:
        return "not an image"
    except UNREADABLE as error:
        return getattr(error, "strerror", None) or " ".join(str(error).split())[:80] or type(error).__name__
