"""A list of image files with their labels, wherever the list comes from."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from simsiam.config.value_types import PixelConversion
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.image_notes import ImageNotes
from simsiam.data.files.notes_table import NotesTable
from simsiam.data.files.reading import read_images
from simsiam.data.listing.messages import raise_or_print_unreadable, warn_of_unused_bits
from utils.console import print_line
from utils.text import printable


class ImageList:
    """Image files in their order, each with a label or without one.

    Args:
        root: the folder to which relative paths refer.
        files: paths relative to `root`, or absolute paths.
        classes: the names of the classes.
        labels: (N,) int64, the class of each image, or -1 for an image without a label.
        source: what messages call the list: the folder, or the file with the list.

    Attributes:
        title: what messages call these images: the printable source, and the split of a list.
        unreadable_folders: full paths of folders that cannot be read, each with the reason.
    """

    unlabelled = "have no label"  # what messages say of images without a label

    def __init__(
        self,
        root: Path,
        files: FilePaths,
        classes: tuple[str, ...],
        labels: Tensor,
        source: Path,
    ) -> None:
        self.root = root
        self.files = files
        self.classes = classes
        self.labels = labels
        self.source = source
        self.title = printable(source)
        self.unreadable_folders: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def keep(self, indices: Sequence[int] | Tensor) -> None:
        """Drop all files but those at `indices`, (n,) int64. The classes stay."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        self.files = self.files.subset(indices)
        self.labels = self.labels[indices]

    def subset(self, indices: Sequence[int] | Tensor) -> "ImageList":
        """Return a copy that has only the files at `indices`."""
        copied = copy.copy(self)
        copied.keep(indices)
        return copied

    def describe_skipped(self) -> str:
        """Return text that lists what is skipped, or "" if nothing is."""
        return ""

    def report_skipped(self) -> None:
        """Print what is skipped, if anything is."""
        skipped = self.describe_skipped()
        if skipped:
            print_line(f"{printable(self.source)}: left out {skipped}")

    def read(
        self,
        image_size: int,
        skip_unreadable: bool = False,
        conversion: PixelConversion = PixelConversion(),
    ) -> Iterator[Tensor]:
        """Yield all images in the order of `files`, clean, in chunks (B, 3, S, S) uint8.

        At the end, files that cannot be read are dropped from `files` and a message lists them.
        Other messages say what was done to images that are not plain RGB, see `NotesTable`.

        Args:
            image_size: S, the side in pixels.
            skip_unreadable: continue with the other images if one cannot be read.
            conversion: how pixels become RGB of 8 bits.

        Raises:
            UserError: at the end, if an image cannot be read, unless `skip_unreadable` is set and
                there are other images.
        """
        unreadable = dict(self.unreadable_folders)
        readable_indices: list[int] = []
        notes: list[ImageNotes] = []
        index = 0
        for chunk in read_images(self.root, self.files, image_size, conversion):
            images = []
            for file, result in chunk:
                if isinstance(result, str):
                    unreadable[Path(file)] = result
                else:
                    images.append(result.pixels)
                    notes.append(result.notes)
                    readable_indices.append(index)
                index += 1
            # If an error will be raised, the rest is read only to list all unreadable images in it.
            will_raise = bool(unreadable) and not skip_unreadable
            if images and not will_raise:
                yield torch.stack(images)

        raise_or_print_unreadable(unreadable, len(readable_indices), self.source, skip_unreadable)
        table = NotesTable.of(notes)
        warn_of_unused_bits(table, self.source)
        self.keep(readable_indices)
        for line in table.describe(image_size, conversion):
            print_line(f"{printable(self.source)}: {line}")
