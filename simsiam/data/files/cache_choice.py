"""Choose between a cache of decoded images and decoding the files in each epoch."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from simsiam.data.files.images import read_size
from simsiam.data.spread import evenly_spaced
from utils.text import printable

SAMPLED_FILES = 256  # whose sizes are read to estimate the size of a cache
MAX_CACHE_GIB = 64.0
MAX_PART_OF_DISK = 0.25  # of the free space

Mode = Literal["on", "off"]


class Choice(NamedTuple):
    """How views are made, and the reason.

    Attributes:
        bytes_per_image: how much space an image would take in a cache.
    """

    mode: Mode
    reason: str
    bytes_per_image: float


def choose_mode(
    wanted: str, folder: Path, num_missing: int, num_files: int, bytes_per_image: float
) -> Choice:
    """Choose between a cache and decoding the files in each epoch.

    Args:
        wanted: the value of `--image-cache`: auto, on or off.
        folder: of the cache, which may not exist yet.
        num_missing: how many images are not in the cache yet.
        num_files: how many images there are.
        bytes_per_image: from `estimate_bytes`.
    """
    gib = num_files * bytes_per_image / 2**30
    free_gib = free_space(folder) / 2**30
    missing_gib = num_missing * bytes_per_image / 2**30
    if wanted == "off":
        return Choice("off", "the files are decoded in each epoch", bytes_per_image)
    if num_missing == 0:
        return Choice("on", f"the images are decoded already, in {printable(folder)}", 0.0)
    decoding = f"{num_missing:,} images are decoded once, into {missing_gib:.2f} GiB"
    if wanted == "on":
        return Choice("on", f"{decoding} in {printable(folder)}", bytes_per_image)

    cost = f"a cache would take {gib:.0f} GiB"
    files = "the files are decoded in each epoch"
    advice = "--image-cache on makes one"
    if gib > MAX_CACHE_GIB:
        reason = f"{files}, because {cost}, more than {MAX_CACHE_GIB:.0f}; {advice}"
        return Choice("off", reason, bytes_per_image)
    if missing_gib > MAX_PART_OF_DISK * free_gib:
        reason = f"{files}, because {cost}, and only {free_gib:.0f} GiB are free; {advice}"
        return Choice("off", reason, bytes_per_image)
    reason = (
        f"{decoding} in {printable(folder)}, less than a quarter of the free space; "
        "--image-cache off decodes them in each epoch"
    )
    return Choice("on", reason, bytes_per_image)


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder that may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def choose_sample(files: Sequence[str]) -> list[str]:
    """Return some of the files, spread evenly over all."""
    n = min(len(files), SAMPLED_FILES)
    indices: list[int] = evenly_spaced(n, len(files)).tolist()
    return [files[i] for i in indices]


def estimate_bytes(root: Path, sample: Sequence[str], size: int, stored_side: int) -> float:
    """Return how many bytes an image takes in a cache: the mean over some files.

    Args:
        sample: paths relative to `root`. Files that cannot be read do not count.
        size: S, the side of the clean images.
        stored_side: the largest shorter side of the whole images.
    """
    whole_bytes: list[float] = []
    for file in sample:
        try:
            height, width = read_size(root / file)
        except Exception:  # noqa: BLE001, S112  (for a damaged file Pillow raises any exception)
            continue
        ratio = min(1.0, stored_side / min(height, width))
        whole_bytes.append(3 * height * width * ratio**2)
    mean = sum(whole_bytes) / len(whole_bytes) if whole_bytes else 0.0
    return mean + 3 * size**2
