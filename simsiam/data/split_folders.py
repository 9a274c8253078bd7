"""Find out which sub-folders of a folder of images hold the train and the test images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from simsiam.data.images import SUFFIXES
from simsiam.data.listing import SYSTEM_FOLDERS
from utils.console import plural, print_line
from utils.text import printable

# Usual names of the sub-folders, in the order of preference. Upper and lower case are the same.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test", "testing")

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

    train = _choose_folder(folders, TRAIN_NAMES)
    if train is None:
        return only_root
    test = None
    if with_test:
        test = _choose_folder(folders, TEST_NAMES)

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
        unused.append(f"{plural(num_images, 'image')} next to these folders")

    test_folder = root / test if test is not None else None
    return SplitFolders(root / train, test_folder, unused)


def _choose_folder(folders: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the folder with the first of these names. A name in lower case is preferred."""
    for name in names:
        matches = [folder for folder in folders if folder.lower() == name]
        if name in matches:
            return name
        if matches:
            return matches[0]
    return None


def print_split_folders(root: Path, folders: SplitFolders) -> None:
    """Print which sub-folders are used, and what is not used.

    If everything is used, nothing is printed for train/ and val/, or for train images alone.
    """
    if folders.test is None:
        is_obvious = True
    else:
        is_obvious = folders.train.name == "train" and folders.test.name == "val"
    if is_obvious and not folders.unused:
        return
    message = f"training on {printable(folders.train.name)}/"
    if folders.test is not None:
        message += f", testing on {printable(folders.test.name)}/"
    if folders.unused:
        listed = folders.unused[:MAX_LISTED_UNUSED]
        if len(folders.unused) > MAX_LISTED_UNUSED:
            listed.append("...")
        message += f"; not used: {', '.join(listed)}"
    print_line(f"{printable(root)}: {message}")
