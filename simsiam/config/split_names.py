"""The names of the sub-folders, or of the splits in a list, with the train and the test images."""

from collections.abc import Sequence

# In the order of preference. Upper and lower case are the same.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test", "testing")


def choose_name(available: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the available name that comes first in `names`. One in lower case is preferred."""
    for name in names:
        matches = [candidate for candidate in available if candidate.lower() == name]
        if name in matches:
            return name
        if matches:
            return matches[0]
    return None


def choose_splits(available: Sequence[str], with_test: bool) -> tuple[str | None, str | None]:
    """Return the names of the train and the test split. Both are None without a train split.

    Args:
        with_test: whether test images are wanted. If not, the second name is None.
    """
    train = choose_name(available, TRAIN_NAMES)
    if train is None or not with_test:
        return train, None
    return train, choose_name(available, TEST_NAMES)
