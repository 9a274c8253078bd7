"""Find image files with the same content, which may be test images among the train images."""

import numpy as np

from simsiam.data.file_paths import FilePaths
from utils.text import printable


def describe_duplicates(
    files: FilePaths,
    digests: np.ndarray,
    num_train: int,
    evaluation_name: str,
    is_compared: np.ndarray,
) -> str | None:
    """Return a sentence about files with the same content, or None if there are none.

    Args:
        files: the path of each file, those of the train images first.
        digests: (N,) of 32 bytes, the SHA-256 of each file.
        num_train: the number of train images.
        evaluation_name: what messages call the test images.
        is_compared: (N,) bool, which images kNN compares with each other (leave-one-out).
    """
    first = find_first_copies(digests)
    indices = np.arange(len(files))
    copies = np.flatnonzero(first != indices)
    if len(copies) == 0:
        return None
    leaked = copies[(copies >= num_train) & (first[copies] < num_train)]
    message = f"{len(copies):,} of {len(files):,} images are copies of others"
    example = int(copies[0])
    if len(leaked) > 0:
        num_test = len(files) - num_train
        message += (
            f", and {len(leaked):,} of the {num_test:,} {evaluation_name} are also among the train "
            "images, which makes accuracies too high"
        )
        example = int(leaked[0])  # the more important example
    compared = np.flatnonzero(is_compared)
    num_repeated = len(compared) - len(np.unique(first[compared]))
    if num_repeated > 0:
        message += (
            f", and {num_repeated:,} of the {len(compared):,} images that kNN compares with each "
            "other are, which makes accuracies too high"
        )
    original = files[int(first[example])]
    return f"{message} ({printable(files[example])} is {printable(original)})."


def find_first_copies(digests: np.ndarray) -> np.ndarray:
    """Return for each file the index (N,) int64 of the first file with the same content.

    Args:
        digests: (N,) of 32 bytes each.
    """
    parts = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 4)
    order = np.lexsort(parts.T)  # stable, so that copies stay in the order of the files
    # Whether the content is another one than that of the file before it, in this order.
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = digests[order[1:]] != digests[order[:-1]]
    begins = np.flatnonzero(is_new)
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[begins], np.diff(begins, append=len(order)))
    return first
