"""Data sets by name, images and their views. To add a data set, write a module and give it a line in `DATASETS`."""

from simsiam.config.options import DataOptions
from simsiam.data import cifar, image_folder, npz, synthetic
from simsiam.data.dataset import DatasetSource, Splits

DATASETS: dict[str, DatasetSource] = {
    "cifar10": cifar.SOURCE,
    "cifar100": cifar.SOURCE,
    "patterns": synthetic.SOURCE,
    "folder": image_folder.SOURCE,
    "arrays": npz.SOURCE,
}


def prepare_dataset(options: DataOptions) -> None:
    """Download or decode what is missing; UserError for damaged files (left as they are), bad images, no network."""
    DATASETS[options.dataset].prepare(options)


def load_dataset(options: DataOptions) -> Splits:
    """Both splits, once they are prepared; UserError for damaged files, or more images asked for than there are."""
    return DATASETS[options.dataset].load(options)


def make_placeholders(options: DataOptions) -> Splits | None:
    """For a dry run: blank splits of the sizes that a download or decoding would give; None if all is there."""
    return DATASETS[options.dataset].make_placeholders(options)
