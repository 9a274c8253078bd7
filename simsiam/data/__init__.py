"""Data sets by name, images and their views. To add a data set, write a module and give it a line in `DATASETS`."""

from collections.abc import Callable
from typing import NamedTuple

from simsiam.config.options import DataOptions
from simsiam.data import cifar, image_folder, npz, synthetic
from simsiam.data.dataset import Splits, hold_out


class Source(NamedTuple):
    """How a data set is loaded; see the functions below."""

    load: Callable[[DataOptions], Splits]
    prepare: Callable[[DataOptions], None] = lambda options: None
    make_placeholders: Callable[[DataOptions], Splits | None] = lambda options: None
    holds_out: bool = False  # whether these functions apply --held-out-images themselves


CIFAR = Source(cifar.load_cifar, cifar.download_cifar, cifar.make_placeholders)
DATASETS = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "patterns": Source(synthetic.load_patterns),
    "folder": Source(
        image_folder.load_folder, image_folder.prepare_folder, image_folder.make_placeholders, True
    ),
    "arrays": Source(npz.load_arrays),
}


def prepare_dataset(options: DataOptions) -> None:
    """Download or decode what is missing; UserError for damaged files (left as they are), bad images, no network."""
    DATASETS[options.dataset].prepare(options)


def load_dataset(options: DataOptions) -> Splits:
    """Both splits, once they are prepared; UserError for damaged files, or more images asked for than there are."""
    source = DATASETS[options.dataset]
    train, test = source.load(options)
    if options.held_out_images and not source.holds_out:
        return hold_out(train, options.held_out_images)
    return train, test


def make_placeholders(options: DataOptions) -> Splits | None:
    """For a dry run: blank splits of the sizes that a download or decoding would give; None if all is there."""
    source = DATASETS[options.dataset]
    splits = source.make_placeholders(options)
    if splits and options.held_out_images and not source.holds_out:
        return hold_out(splits[0], options.held_out_images)
    return splits
