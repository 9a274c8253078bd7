"""Data sets by name, images and their views. To add a data set, write a module and give it a line in `DATASETS`."""

from simsiam.data import cifar, image_folder, npz, synthetic
from simsiam.data.dataset import DatasetSource, DatasetSpec, Splits

DATASETS: dict[str, DatasetSource] = {
    "cifar10": cifar.SOURCE,
    "cifar100": cifar.SOURCE,
    "patterns": synthetic.SOURCE,
    "folder": image_folder.SOURCE,
    "arrays": npz.SOURCE,
}


def prepare_dataset(spec: DatasetSpec) -> None:
    """Download or decode what is missing: once for each machine, before any process loads it.

    Raises:
        UserError: damaged files (they are left as they are), bad images, no network, no space.
    """
    DATASETS[spec.dataset].prepare(spec)


def load_dataset(spec: DatasetSpec) -> Splits:
    """The train and the test split, which may be empty; what `prepare_dataset` provides must be there.

    Raises:
        UserError: missing or damaged files, more images asked for than there are.
    """
    return DATASETS[spec.dataset].load(spec)


def make_placeholders(spec: DatasetSpec) -> Splits | None:
    """For a dry run: blank splits of the sizes that a download or a decoding would give; None if there is none to do.

    Raises:
        UserError: more images asked for than there will be.
    """
    return DATASETS[spec.dataset].make_placeholders(spec)
