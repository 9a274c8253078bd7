"""Find image files with the same content, which may be test images among the train images."""

from collections.abc import Sequence
from pathlib import Path

from utils.text import printable


def describe_duplicates(
    train: Sequence[tuple[Path, str]], test: Sequence[tuple[Path, str]], evaluation_name: str
) -> str | None:
    """Return a sentence about files with the same content, or None if there are none.

    Args:
        train, test: the path of each file and the digest of its content.
        evaluation_name: what messages call the test images.
    """
    first_path: dict[str, Path] = {}  # of each content
    num_copies = 0
    example = ""
    for path, digest in train:
        if digest in first_path:
            num_copies += 1
            example = example or f"{printable(path)} is {printable(first_path[digest])}"
        else:
            first_path[digest] = path

    train_contents = set(first_path)
    num_leaked = 0
    for path, digest in test:
        if digest in train_contents:
            num_leaked += 1
            if num_leaked == 1:  # the more important example
                example = f"{printable(path)} is {printable(first_path[digest])}"
        if digest in first_path:
            num_copies += 1
            example = example or f"{printable(path)} is {printable(first_path[digest])}"
        else:
            first_path[digest] = path

    if num_copies == 0:
        return None
    message = f"{num_copies:,} of {len(train) + len(test):,} images are copies of others"
    if num_leaked > 0:
        message += (
            f", and {num_leaked:,} of the {len(test):,} {evaluation_name} are also among the train "
            "images, which makes accuracies too high"
        )
    return f"{message} ({example})."
