"""The registry of data sets, and the functions that load one by its name.

To add a data set, write a module with a function `load` and give it an entry in `DATASETS`. Add its
name to `Dataset` in `simsiam/config/options.py` too. A test compares the two lists.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from simsiam.config.options import DataOptions
from simsiam.data import cifar, image_folder, npz, synthetic
from simsiam.data.dataset import ImageDataset, Splits
from simsiam.data.held_out import hold_out


def _prepare_nothing(options: DataOptions) -> None:
    pass


def _need_no_placeholders(options: DataOptions) -> None:
    return None


class Source(NamedTuple):
    """The functions of a data set.

    Attributes:
        load: returns the train and the test split.
        prepare: downloads or decodes what is missing.
        make_placeholders: returns blank splits of the same sizes, or None if nothing has to be
            downloaded or decoded.
        holds_out: whether `load` and `make_placeholders` apply `--held-out-images` themselves.
        list_train: returns a blank train split, as `list_train_images` does. It is None if the
            images can be loaded just as fast.
    """

    load: Callable[[DataOptions], Splits]
    prepare: Callable[[DataOptions], None] = _prepare_nothing
    make_placeholders: Callable[[DataOptions], Splits | None] = _need_no_placeholders
    holds_out: bool = False
    list_train: Callable[[DataOptions], ImageDataset] | None = None


CIFAR_SOURCE = Source(
    load=cifar.load_cifar,
    prepare=cifar.download_cifar,
    make_placeholders=cifar.make_placeholders,
)
DATASETS = {
    "cifar10": CIFAR_SOURCE,
    "cifar100": CIFAR_SOURCE,
    "patterns": Source(load=synthetic.load_patterns),
    "folder": Source(
        load=image_folder.load_folder,
        prepare=image_folder.prepare_folder,
        make_placeholders=image_folder.make_placeholders,
        holds_out=True,
        list_train=image_folder.list_train,
    ),
    "arrays": Source(load=npz.load_arrays),
}


def prepare_dataset(options: DataOptions) -> None:
    """Download or decode what is missing of a data set.

    Raises:
        UserError: if a file is damaged, an image cannot be read, or the download fails. A damaged
            file is left as it is.
    """
    DATASETS[options.dataset].prepare(options)


def load_dataset(options: DataOptions) -> Splits:
    """Return the train and the test split of a data set, after `prepare_dataset`.

    Raises:
        UserError: if a file is damaged, or the options ask for more images than there are.
    """
    source = DATASETS[options.dataset]
    train, test = source.load(options)
    if options.held_out_images > 0 and not source.holds_out:
        return hold_out(train, options.held_out_images)
    return train, test


def make_placeholders(options: DataOptions) -> Splits | None:
    """Return blank splits of the sizes that `load_dataset` would return, for a dry run.

    Returns:
        None if nothing needs to be downloaded or decoded.
    """
    source = DATASETS[options.dataset]
    splits = source.make_placeholders(options)
    if splits is None:
        return None
    if options.held_out_images > 0 and not source.holds_out:
        train, _ = splits
        return hold_out(train, options.held_out_images)
    return splits


def list_train_images(options: DataOptions) -> ImageDataset:
    """Return the train split with all images that could be held out, for its size and its labels.

    Its images may be blank: nothing is downloaded or decoded for it, and nothing is printed.

    Raises:
        UserError: see `load_dataset`.
    """
    options = replace(options, held_out_images=0)
    source = DATASETS[options.dataset]
    if source.list_train is not None:
        return source.list_train(options)
    train, _ = source.make_placeholders(options) or source.load(options)
    return train
