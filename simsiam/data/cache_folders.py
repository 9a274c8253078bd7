"""Where the caches of decoded images are, and which of them are of an earlier version."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from simsiam.config.options import FOLDER_IMAGE_SIZE, DataOptions
from simsiam.data.cache.entries import FORMAT
from simsiam.data.files.resizing import resized_side
from simsiam.data.listing.list_file import hash_list

OLD_MANIFEST = "manifest.jsonl"  # of formats 1 and 2
OLD_IMAGES = "images.uint8"


def cache_parent(cache_dir: str | None) -> Path:
    """Return the folder of all caches.

    Args:
        cache_dir: the value of `--cache-dir`, or None for the default.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    return Path(cache_dir or default).expanduser()


def find_cache_folder(options: DataOptions) -> Path:
    """Return the folder of the decoded images, which may not exist yet.

    Its name is a hash of the options that decide what an image looks like. All runs on a folder of
    images with the same options share it, whichever part of the images they use.
    """
    size = options.image_size or FOLDER_IMAGE_SIZE
    key = [
        f"format {FORMAT}",
        os.path.abspath(options.path),
        str(size),
        str(options.stored_side or 2 * size),
        str(options.conversion),
    ]
    return cache_parent(options.cache_dir) / _hash(key)


def name_selection(options: DataOptions) -> str:
    """Return the name of the file with the images of a run, in the cache's folder."""
    key = [
        str(options.train_images),
        str(options.test_images),
        str(options.held_out_images),
        options.image_cache,
    ]
    return f"selection.{_hash(key)}.files"


def _hash(key: list[str]) -> str:
    # A path may have bytes that are not UTF-8, which Python holds as surrogates.
    text = "\n".join(key)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


# ---------------------------------------------------------------- caches of earlier versions


@dataclass(frozen=True)
class OldCache:
    """A cache of square images, which this version does not read."""

    path: Path

    def delete(self) -> None:
        """Delete it. A run of an earlier version that has mapped it can still read it."""
        shutil.rmtree(self.path, ignore_errors=True)


def find_old_caches(options: DataOptions) -> list[OldCache]:
    """Return the cache that an earlier version has made for these options, if there is one."""
    path = Path(os.path.abspath(options.path))
    key = [
        str(path),
        str(resized_side(options.image_size or FOLDER_IMAGE_SIZE)),
        str(options.train_images),
        str(options.test_images),
    ]
    if options.held_out_images > 0:
        key.append(f"held out: {options.held_out_images}")
    if options.pixel_range is not None:
        key.append(options.pixel_range)
    default = DataOptions().conversion
    if options.conversion.background != default.background:
        key.append(f"background: {options.conversion.background}")
    if path.is_file():
        key.append(f"list: {hash_list(path)}")
    folder = cache_parent(options.cache_dir) / _hash(key)
    is_old = (folder / OLD_MANIFEST).is_file() and (folder / OLD_IMAGES).is_file()
    return [OldCache(folder)] if is_old else []
