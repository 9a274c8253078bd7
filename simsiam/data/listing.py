"""List the images in a folder and its sub-folders, and say what in it is no image."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from simsiam.data.dataset import name_class
from simsiam.data.images import SUFFIXES, PixelRange, read_images, suggest_pixel_range
from utils.console import plural, print_line
from utils.errors import require
from utils.text import printable

# What file managers, archives and storage systems leave among images, in lower case.
SYSTEM_FOLDERS = {"@eadir", "#recycle", "@recycle", "__macosx", "$recycle.bin", "lost+found"}
SYSTEM_FOLDERS |= {"system volume information", "@recently-snapshot", "#snapshot"}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".directory"}
# Images in formats that are not read: whoever has them should know that they can be converted.
OTHER_IMAGES = {".heic", ".heif", ".jxl", ".avif", ".jp2", ".webp", ".dng", ".cr2", ".cr3", ".nef"}
OTHER_IMAGES |= {".arw", ".orf", ".raw", ".psd", ".svg", ".tga", ".exr", ".eps", ".dcm", ".ico"}
SHOWN = 5  # most names of a kind that a line lists


class ImageFolder:
    """The images in a folder and below it, sorted by path.

    Hidden files and folders (their names begin with a dot) and folders that an operating system
    makes are skipped. Links to folders are followed, except back to a folder that contains them.

    Attributes:
        files: paths relative to `folder`.
        classes: names of the sub-folders with images, see `name_class`.
        labels: (N,) the class of each image, or -1 for images outside the sub-folders.
        closed: sub-folders that cannot be read, with the reason.
    """

    def __init__(self, folder: str | Path, flag: str = "--images") -> None:
        self.folder = Path(folder).expanduser()
        require(self.folder.is_dir(), f"{flag} {printable(self.folder)}: no such folder")
        self.files: list[Path] = []
        self.closed: dict[Path, str] = {}
        self._other_suffixes: Counter[str] = Counter()
        self._hidden_images = 0
        self._hidden_folders: list[Path] = []
        self._system_folders: list[Path] = []
        self._folders_without_image: list[Path] = []
        self._scan()
        if not self.files:
            report_bad(self.closed, 0, self.folder, skip=False)
        others = f", but {self.describe_skipped()}" if self.describe_skipped() else ""
        formats = " ".join(sorted(SUFFIXES))
        missing = f"no image in it{others}. Images end in {formats}"
        require(bool(self.files), f"{flag} {printable(self.folder)}: {missing}")
        folders = [file.parts[0] if len(file.parts) > 1 else "" for file in self.files]
        class_of = {folder: name_class(folder) for folder in {*folders}}
        self.classes = tuple(sorted({*class_of.values()} - {""}))
        label = {name: i for i, name in enumerate(self.classes)} | {"": -1}
        self.labels = torch.tensor([label[class_of[folder]] for folder in folders])

    def _scan(self) -> None:
        real_paths: dict[str, str] = {}  # of the folders that were entered
        class_folders: list[str] = []
        walk = os.walk(self.folder, onerror=self._note_closed, followlinks=True)
        for where, subfolders, names in walk:
            real_paths[where] = os.path.realpath(where)
            if self._is_loop(where, real_paths):
                subfolders.clear()
                continue
            below = Path(where).relative_to(self.folder)
            subfolders[:] = self._choose_subfolders(below, subfolders)
            if not below.parts:
                class_folders = list(subfolders)
            for name in names:
                if self._is_image(name):
                    self.files.append(below / name)
        self.files.sort()
        known = {file.parts[0] for file in self.files}
        known |= {part for path in self.closed for part in path.relative_to(self.folder).parts[:1]}
        self._folders_without_image = [Path(name) for name in class_folders if name not in known]

    def _note_closed(self, error: OSError) -> None:
        self.closed[Path(error.filename)] = str(error.strerror)

    def _is_loop(self, where: str, real_paths: dict[str, str]) -> bool:
        """Return whether a folder is, by a link, one of those that contain it."""
        above = where
        while above != str(self.folder):
            above = os.path.dirname(above)
            if real_paths[above] == real_paths[where]:
                return True
        return False

    def _choose_subfolders(self, below: Path, names: Iterable[str]) -> list[str]:
        chosen = []
        for name in sorted(names):
            if name.startswith("."):
                self._hidden_folders.append(below / name)
            elif name.lower() in SYSTEM_FOLDERS:
                self._system_folders.append(below / name)
            else:
                chosen.append(name)
        return chosen

    def _is_image(self, name: str) -> bool:
        """Return whether a file is to be read, by its name; others are counted."""
        suffix = os.path.splitext(name)[1].lower()
        hidden = name.startswith(".")
        if suffix in SUFFIXES and not hidden:
            return True
        if name.lower() in SYSTEM_FILES or name.startswith("._"):
            return False  # nobody has put it there, so nobody misses it
        if not hidden:
            self._other_suffixes[suffix] += 1
        elif suffix in SUFFIXES:
            self._hidden_images += 1
        return False

    def __len__(self) -> int:
        return len(self.files)

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all other files."""
        self.files = [self.files[i] for i in indices]
        self.labels = self.labels[indices]

    def describe_skipped(self) -> str:
        """Return in words what is skipped; "" if there is nothing."""
        parts = []
        if self._other_suffixes:
            parts.append(_describe_suffixes(self._other_suffixes))
        if self._hidden_images:
            parts.append(plural(self._hidden_images, "hidden image"))
        if self._hidden_folders:
            parts.append(_describe_folders(self._hidden_folders, "hidden folder"))
        if self._system_folders:
            parts.append(_describe_folders(self._system_folders, "system folder"))
        if self._folders_without_image:
            folders = _describe_folders(self._folders_without_image, "folder")
            parts.append(f"{folders} without an image")
        return "; ".join(parts)

    def report_skipped(self) -> None:
        """Print what `describe_skipped` returns."""
        skipped = self.describe_skipped()
        if skipped:
            print_line(f"{printable(self.folder)}: left out {skipped}")

    def read(
        self,
        size: int,
        skip_bad: bool = False,
        pixel_range: PixelRange = None,
    ) -> Iterator[Tensor]:
        """Yield all images in order, in chunks (B, 3, size, size) uint8.

        At the end `files` are those that could be read.

        Raises:
            UserError: at the end, if some cannot be read (see `report_bad`).
        """
        bad: dict[Path, str] = {}
        ranges = []
        for chunk in read_images(self.folder, self.files, size, pixel_range):
            images = []
            for file, result in chunk:
                if isinstance(result, str):
                    bad[file] = result
                else:
                    images.append(result.pixels)
                    ranges.append(result.deep_range)
            if images and (skip_bad or not (bad or self.closed)):
                yield torch.stack(images)
        report_bad({**self.closed, **bad}, len(self) - len(bad), self.folder, skip_bad)
        warn_of_unused_bits(ranges, self.folder)
        self.keep([i for i, file in enumerate(self.files) if file not in bad])


def report_bad(bad: dict[Path, str], good: int, folder: Path, skip: bool) -> None:
    """Print which images of a folder cannot be read, and why.

    Raises:
        UserError: unless `skip` is set and there are `good` others.
    """
    if not bad:
        return
    listed = [f"{printable(file)} ({reason})" for file, reason in bad.items()][:3]
    if len(bad) > 3:
        listed.append("...")
    count = f"{len(bad)} of {len(bad) + good} images in {printable(folder)} cannot be read"
    message = f"{count}: {'; '.join(listed)}"
    require(skip, f"{message}. Mend or remove them, or give --skip-bad-images")
    require(good > 0, message)
    print_line(f"left out: {message}")


def warn_of_unused_bits(ranges: Sequence[tuple[int, int] | None], folder: Path) -> bool:
    """Print a warning if all 16-bit images use only a small part of their range.

    Args:
        ranges: lowest and highest value of each image of a folder; None for 8 bits.

    Returns:
        Whether there was a reason to warn.
    """
    deep = [values for values in ranges if values is not None]
    if not deep:
        return False
    low = min(low for low, _ in deep)
    high = max(high for _, high in deep)
    suggested = suggest_pixel_range(low, high)
    if suggested is None:
        return False
    print_line(
        f"warning: {len(deep)} of {len(ranges)} images in {printable(folder)} have 16 bits, but "
        f"use only the values {low} to {high}, which leaves them hardly any contrast. "
        "--pixel-range {0:g}:{1:g} makes {0:g} black and {1:g} white".format(*suggested)
    )
    return True


def _describe_suffixes(counts: Counter[str]) -> str:
    """Such as "12 .heic (not a format that is read here: convert them), 3 .txt"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = []
    for suffix, count in ordered[:SHOWN]:
        kind = printable(suffix) if suffix else "without a suffix"
        advice = " (not a format that is read here: convert them)"
        listed.append(f"{count:,} {kind}{advice if suffix in OTHER_IMAGES else ''}")
    rest = sum(count for _, count in ordered[SHOWN:])
    if rest:
        listed.append(f"{plural(rest, 'file')} of other kinds")
    return ", ".join(listed)


def _describe_folders(folders: Sequence[Path], kind: str) -> str:
    """Such as "2 hidden folders (a/.b, .c)"."""
    names = [printable(folder) for folder in folders[:SHOWN]]
    if len(folders) > SHOWN:
        names.append("...")
    return f"{plural(len(folders), kind)} ({', '.join(names)})"
