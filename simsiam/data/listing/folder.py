"""List the image files in a folder and its sub-folders, and describe what is left out."""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from simsiam.data.dataset import name_class
from simsiam.data.file_paths import FilePaths, PathsBuilder
from simsiam.data.files.images import SUFFIXES
from simsiam.data.listing.image_list import ImageList
from simsiam.data.listing.messages import (
    describe_folders,
    describe_suffixes,
    raise_or_print_unreadable,
)
from utils.console import format_count
from utils.errors import UserError, require
from utils.text import printable

# Folders and files that file managers, archives and storage systems create, in lower case.
SYSTEM_FOLDERS = {
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "__macosx",
    "lost+found",
    "system volume information",
}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".directory"}


class ImageFolder(ImageList):
    """The image files in a folder and its sub-folders, sorted by path.

    Hidden files and folders (their names begin with a dot) and folders of the operating system are
    skipped. Links to folders are followed, except links to a folder that contains them.

    Args:
        root: the folder to list.
        flag: the option that named the folder, for error messages.

    Attributes:
        root, source: the folder, with ~ expanded.
        files: paths relative to `root`.
        classes: names of the folders directly in `root` that contain images, see `name_class`.
        labels: (N,) int64, the class of each image, or -1 for an image directly in `root`.
        unreadable_folders: full paths of folders that cannot be read, each with the reason.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """

    unlabelled = "are in no class's folder"

    def __init__(self, root: str | Path, flag: str = "--images") -> None:
        root = Path(root).expanduser()
        where = f"{flag} {printable(root)}"
        require(root.is_dir(), f"{where}: no such folder")
        super().__init__(root, FilePaths(), classes=(), labels=torch.empty(0), source=root)
        self._other_suffixes: Counter[str] = Counter()
        self._hidden_images = 0
        self._hidden_folders: list[Path] = []
        self._system_folders: list[Path] = []
        self._folders_without_image: list[Path] = []

        # Runs of successive files in the same folder of `root`, or in none: its name and their
        # number. A folder may have millions of files.
        self._runs: list[tuple[str, int]] = []
        self._found = PathsBuilder()
        class_folders = self._visit(str(root), "", ())
        self.files = self._found.build()
        self._folders_without_image = self._find_folders_without_image(class_folders)
        if not self.files:
            self._raise_no_image(where)
        self.classes, self.labels = _label_runs(self._runs)
        del self._found

    def _visit(self, folder: str, relative: str, ancestors: tuple[str, ...]) -> list[str]:
        """Add the images in a folder and its sub-folders, and note what is skipped.

        Args:
            folder: the folder.
            relative: its path relative to `root`, with a slash at the end; "" for `root`.
            ancestors: the folders that contain it, up to `root`, with links resolved.

        Returns:
            The names of its sub-folders, sorted, without those that are skipped.
        """
        real_path = os.path.realpath(folder)
        if real_path in ancestors:
            return []  # a link to one of the folders that contain it
        files: list[str] = []
        found_subfolders: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        found_subfolders.append(entry.name)
                    elif self._accept_file(entry.name):
                        files.append(entry.name)
        except OSError as error:
            self.unreadable_folders[Path(error.filename)] = str(error.strerror)
            return []
        subfolders = self._choose_subfolders(Path(relative), found_subfolders)

        # Files and sub-folders follow in the order of their names, so that all paths are sorted.
        files.sort()
        start = 0
        for name in subfolders:
            stop = bisect_left(files, name, lo=start)
            self._add_files(files[start:stop], relative)
            start = stop
            self._visit(os.path.join(folder, name), f"{relative}{name}/", (*ancestors, real_path))
        self._add_files(files[start:], relative)
        return subfolders

    def _add_files(self, names: Sequence[str], relative: str) -> None:
        """Append the files of a folder."""
        if names:
            self._found.add(names, prefix=relative)
            self._runs.append((relative.partition("/")[0], len(names)))

    def _choose_subfolders(self, relative: Path, names: Iterable[str]) -> list[str]:
        """Return the sub-folders to visit, sorted, and note the others."""
        chosen = []
        for name in sorted(names):
            if name.startswith("."):
                self._hidden_folders.append(relative / name)
            elif name.lower() in SYSTEM_FOLDERS:
                self._system_folders.append(relative / name)
            else:
                chosen.append(name)
        return chosen

    def _accept_file(self, name: str) -> bool:
        """Return whether a file is an image to read. Count other files that somebody may miss."""
        suffix = os.path.splitext(name)[1].lower()
        has_image_suffix = suffix in SUFFIXES
        is_hidden = name.startswith(".")
        if has_image_suffix and not is_hidden:
            return True
        if name.lower() in SYSTEM_FILES or name.startswith("._"):
            return False  # The operating system made it, so nobody misses it.
        if has_image_suffix:
            self._hidden_images += 1
        elif not is_hidden:
            self._other_suffixes[suffix] += 1
        return False

    def _raise_no_image(self, where: str) -> None:
        """Raise UserError for a folder without an image, with the likely reason."""
        # If a folder cannot be read, that is the likely reason. This call raises an error then.
        raise_or_print_unreadable(self.unreadable_folders, 0, self.root, skip=False)
        formats = " ".join(sorted(SUFFIXES))
        skipped = self.describe_skipped()
        message = f"{where}: no image in it"
        if skipped:
            message += f", but {skipped}"
        raise UserError(f"{message}. Images end in {formats}.")

    def _find_folders_without_image(self, class_folders: Sequence[str]) -> list[Path]:
        """Return the sub-folders in which there is neither an image nor an unreadable folder."""
        not_empty = {name for name, _ in self._runs}
        for path in self.unreadable_folders:
            if path != self.root:
                not_empty.add(path.relative_to(self.root).parts[0])
        return [Path(name) for name in class_folders if name not in not_empty]

    def describe_skipped(self) -> str:
        """Return text that lists what is skipped, or "" if nothing is."""
        parts = []
        if self._other_suffixes:
            parts.append(describe_suffixes(self._other_suffixes))
        if self._hidden_images > 0:
            parts.append(format_count(self._hidden_images, "hidden image"))
        if self._hidden_folders:
            parts.append(describe_folders(self._hidden_folders, "hidden folder"))
        if self._system_folders:
            parts.append(describe_folders(self._system_folders, "system folder"))
        if self._folders_without_image:
            folders = describe_folders(self._folders_without_image, "folder")
            parts.append(f"{folders} without an image")
        return "; ".join(parts)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _label_runs(runs: Sequence[tuple[str, int]]) -> tuple[tuple[str, ...], Tensor]:
    """Return the classes of image files, and their labels (N,) int64.

    Args:
        runs: numbers of successive files with the same label. The class of a file is the first
            folder of its path. A file without a folder, whose run has the name "", has the label
            -1.
    """
    class_of_folder: dict[str, str] = {}
    for folder, _ in runs:
        if folder and folder not in class_of_folder:
            class_of_folder[folder] = name_class(folder)
    classes = tuple(sorted(set(class_of_folder.values())))
    index_of_class = {name: i for i, name in enumerate(classes)}

    labels: list[int] = []
    counts: list[int] = []
    for folder, count in runs:
        labels.append(index_of_class[class_of_folder[folder]] if folder else -1)
        counts.append(count)
    return classes, torch.tensor(labels).repeat_interleave(torch.tensor(counts))
