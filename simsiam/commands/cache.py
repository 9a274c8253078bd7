"""The command `cache`: list the caches of decoded images, or remove them."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from simsiam.config.evaluation_commands import Cache
from simsiam.data.cache.entries import FORMAT, INDEX
from simsiam.data.cache_folders import OLD_MANIFEST, cache_parent
from utils.console import format_count, print_line, print_table
from utils.errors import require
from utils.filesystem import lock_folder
from utils.text import printable

ALL = "all"
SECONDS_PER_DAY = 86_400
SELECTIONS = "selection.*"  # .files, or .json of an earlier version


class CacheFolder(NamedTuple):
    """What is known about a cache.

    Attributes:
        source: the folder or the list of its images, or "" if the cache does not say.
        kind: what it holds.
        bytes: the space that it takes.
        used: when a run used it last, in seconds since 1970.
    """

    path: Path
    source: str
    kind: str
    bytes: int
    used: float


def cache(config: Cache) -> None:
    """Print a table of all caches, or remove those that `--clear` names."""
    options = config.cache
    parent = cache_parent(options.cache_dir)
    caches = find_caches(parent)
    if not caches:
        print_line(f"There is no cache in {printable(parent)}.")
        return
    if options.clear is not None:
        clear(caches, options.clear)
        return
    rows: list[Sequence[str]] = []
    for found in caches:
        size = f"{found.bytes / 2**30:.2f}"
        source = printable(found.source) or "unknown"
        rows.append((found.path.name, source, size, _describe_age(found.used), found.kind))
    print_table(f"caches in {printable(parent)}", ("name", "of", "GiB", "used", "holds"), rows)
    total = sum(found.bytes for found in caches) / 2**30
    print_line(f"{total:.2f} GiB in all. --clear NAME removes one, --clear all removes all.")


def find_caches(parent: Path) -> list[CacheFolder]:
    """Return the caches below a folder, sorted by name. Other folders are left out."""
    found: list[CacheFolder] = []
    if not parent.is_dir():
        return found
    for folder in sorted(parent.iterdir()):
        if not folder.is_dir():
            continue
        selections = list(folder.glob(SELECTIONS))
        if (folder / INDEX).is_file():
            kind = "images"
        elif (folder / OLD_MANIFEST).is_file():
            kind = "images of an earlier version"
        elif selections:
            kind = "list of files"
        else:
            continue
        states = [file.stat() for file in folder.iterdir() if file.is_file()]
        size = sum(state.st_size for state in states)
        used = max(state.st_mtime for state in states)
        found.append(CacheFolder(folder, _read_source(folder, selections), kind, size, used))
    return found


def _read_source(folder: Path, selections: Sequence[Path]) -> str:
    """Return the folder or the list of the images of a cache, or "" if that is not known."""
    try:
        if (folder / INDEX).is_file():
            with open(folder / INDEX, encoding="utf-8") as file:
                header = json.loads(file.readline())
            return str(header["source"]) if header["format"] == FORMAT else ""
        if selections:
            with open(selections[0], "rb") as file:
                return str(json.loads(file.readline())["root"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return ""


def _describe_age(used: float) -> str:
    days = int((time.time() - used) / SECONDS_PER_DAY)
    return "today" if days < 1 else f"{format_count(days, 'day')} ago"


def clear(caches: Sequence[CacheFolder], name: str) -> None:
    """Remove caches.

    Args:
        name: of a cache, or "all".

    Raises:
        UserError: there is no such cache, or images are being decoded into it.
    """
    chosen = [found for found in caches if name in (ALL, found.path.name)]
    names = ", ".join(found.path.name for found in caches)
    require(len(chosen) > 0, f"--clear {name}: no such cache. There are {names}.")
    for found in chosen:
        where = printable(found.path)
        # A run that has mapped the files can still read them after they are removed.
        with lock_folder(found.path, f"{where} is in use: a process decodes images into it."):
            shutil.rmtree(found.path)
        print_line(f"removed {where}, {found.bytes / 2**30:.2f} GiB")
