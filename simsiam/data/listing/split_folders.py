"""Find out which sub-folders of a folder of images hold the train and the test images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from simsiam.config.split_names import choose_splits
from simsiam.data.files.images import SUFFIXES
from simsiam.data.listing.folder import SYSTEM_FOLDERS
from utils.console import format_count, print_line
from utils.text import printable

MAX_LISTED_UNUSED = 5  # unused sub-folders that a message names


class SplitFolders(NamedTuple):
    """The folders of the train and the test images, and names of what else is next to them."""

    train: Path
    test: Path | None
    unused: list[str]  # such as "extra/" or "3 images next to these folders"


def find_split_folders(root: Path, with_test: bool = True) -> SplitFolders:
    """Find the sub-folders of the train and, if `with_test` is set, of the test images.

    If no sub-folder has a name in `TRAIN_NAMES`, all images below `root` are train images.
    """
    only_root = SplitFolders(root, None, [])
    try:
        with os.scandir(root) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
    except OSError:
        return only_root  # `ImageFolder` will raise the error that describes the problem.
    folders = sorted(name for name in is_folder if is_folder[name])

    train, test = choose_splits(folders, with_test)
    if train is None:
        return only_root

    # List what else is in the folder: other folders, and images that are in none.
    unused = []
    for name in folders:
        is_system_folder = name.startswith(".") or name.lower() in SYSTEM_FOLDERS
        if name not in (train, test) and not is_system_folder:
            unused.append(f"{printable(name)}/")
    num_images = 0
    for name in is_folder:
        if not is_folder[name] and Path(name).suffix.lower() in SUFFIXES:
            num_images += 1
    if num_images > 0:
        unused.append(f"{format_count(num_images, 'image')} next to these folders")

    test_folder = root / test if test is not None else None
    return SplitFolders(root / train, test_folder, unused)


def print_splits(source: Path, train: str, test: str | None, unused: Sequence[str]) -> None:
    """Print which splits are used, and what is not used.

    If everything is used, nothing is printed for train and val, or for train images alone.

    Args:
        source: the folder or the list with the splits.
        train, test: names of the splits, with a slash if they are folders.
        unused: names of what else there is.
    """
    if test is None:
        is_obvious = True
    else:
        is_obvious = train.rstrip("/") == "train" and test.rstrip("/") == "val"
    if is_obvious and not unused:
        return
    message = f"training on {printable(train)}"
    if test is not None:
        message += f", testing on {printable(test)}"
    if unused:
        listed = list(unused[:MAX_LISTED_UNUSED])
        if len(unused) > MAX_LISTED_UNUSED:
            listed.append("...")
        message += f"; not used: {', '.join(listed)}"
    print_line(f"{printable(source)}: {message}")
