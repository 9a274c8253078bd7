"""Messages about the files in a folder of images: what is left out, and what cannot be read."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from simsiam.data.files.notes_table import NotesTable
from simsiam.data.pixel_range import suggest_pixel_range
from utils.console import format_count, print_line
from utils.errors import require
from utils.text import printable

# Suffixes of images in formats that are not read here. A message advises to convert the files.
# Only some builds of Pillow read .avif, .jp2 and .webp. With these builds no message names them.
OTHER_IMAGE_SUFFIXES = {
    ".arw",
    ".avif",
    ".cr2",
    ".cr3",
    ".dcm",
    ".dng",
    ".eps",
    ".exr",
    ".heic",
    ".heif",
    ".ico",
    ".jp2",
    ".jxl",
    ".nef",
    ".orf",
    ".psd",
    ".raw",
    ".svg",
    ".tga",
    ".webp",
}
MAX_LISTED = 5  # names of one kind in a message
MAX_LISTED_UNREADABLE = 3  # unreadable files in a message, each with its reason


def describe_suffixes(counts: Counter[str]) -> str:
    """Return text such as "12 .heic (not a format that is read here: convert them), 3 .txt"."""
    most_frequent_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = []
    for suffix, count in most_frequent_first[:MAX_LISTED]:
        kind = printable(suffix) or "without a suffix"
        text = f"{count:,} {kind}"
        if suffix in OTHER_IMAGE_SUFFIXES:
            text += " (not a format that is read here: convert them)"
        listed.append(text)
    num_others = sum(count for _, count in most_frequent_first[MAX_LISTED:])
    if num_others > 0:
        listed.append(f"{format_count(num_others, 'file')} of other kinds")
    return ", ".join(listed)


def describe_folders(folders: Sequence[Path], noun: str) -> str:
    """Return text such as "2 hidden folders (a/.b, .c)"."""
    names = [printable(folder) for folder in folders[:MAX_LISTED]]
    if len(folders) > MAX_LISTED:
        names.append("...")
    return f"{format_count(len(folders), noun)} ({', '.join(names)})"


def raise_or_print_unreadable(
    unreadable: dict[Path, str],
    num_readable: int,
    folder: Path,
    skip: bool,
) -> None:
    """Raise an error that lists the unreadable images of a folder, or print it if `skip` is set.

    Args:
        unreadable: files and sub-folders that cannot be read, each with the reason.
        num_readable: the number of the other images.
        skip: whether to continue with the other images.

    Raises:
        UserError: if anything is unreadable, unless `skip` is set and there are other images.
    """
    if not unreadable:
        return
    listed = []
    for file, reason in list(unreadable.items())[:MAX_LISTED_UNREADABLE]:
        listed.append(f"{printable(file)} ({reason})")
    if len(unreadable) > MAX_LISTED_UNREADABLE:
        listed.append("...")
    total = len(unreadable) + num_readable
    count = f"{len(unreadable)} of {total} images in {printable(folder)} cannot be read"
    message = f"{count}: {'; '.join(listed)}"
    require(skip, f"{message}. Repair or remove them, or pass --skip-bad-images.")
    require(num_readable > 0, message)
    print_line(f"left out: {message}")


def warn_of_unused_bits(notes: NotesTable, folder: Path) -> bool:
    """Print a warning if all 16-bit images of a folder use only a small part of their range.

    Args:
        notes: those of all images.

    Returns:
        Whether the warning was printed.
    """
    value_range = notes.range_16_bit()
    if value_range is None:
        return False
    lowest, highest = value_range
    suggestion = suggest_pixel_range(lowest, highest)
    if suggestion is None:
        return False
    black, white = suggestion
    count = f"{notes.count_16_bit()} of {len(notes)} images in {printable(folder)}"
    print_line(
        f"warning: {count} have 16 bits, but use only the values {lowest} to {highest}, which "
        f"leaves them hardly any contrast. --pixel-range {black}:{white} makes {black} black and "
        f"{white} white."
    )
    return True
