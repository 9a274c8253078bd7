"""Choose the batch size and the k of the kNN monitor for a data set, where no flag gives them."""

from dataclasses import replace

from simsiam.commands.resume import check_batch_size, count_processes
from simsiam.config.commands import Pretrain
from simsiam.config.optimizer_options import DEFAULT_BATCH_SIZE
from simsiam.config.run_options import DEFAULT_KNN_K
from simsiam.config.run_state import find_fitted, find_unset, keep_fitted
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from simsiam.data.knn_labels import is_leave_one_out, knn_unavailable_reason
from utils.knn import choose_k
from utils.run_dir import RunDirectory

MIN_STEPS_PER_EPOCH = 4  # if the images allow batches of MIN_BATCH_SIZE
MIN_BATCH_SIZE = 8  # smaller batches make the statistics of batch normalisation too noisy


def resume_fit(config: Pretrain, run: RunDirectory, state: str) -> tuple[Pretrain, list[str]]:
    """Return the settings with the values that were fitted when the run was started, if it was.

    Args:
        state: of the run's folder, as `validate_run` returns it.

    Returns:
        The settings, and the names of the options that are or will be fitted to the data set.
    """
    fitted = find_unset(config)
    if state == "new" or config.run.overwrite:
        return config, fitted
    earlier = [name for name in find_fitted(run) if name not in fitted]
    return keep_fitted(config, run), fitted + earlier


def fit_to_data(config: Pretrain, data: ViewsDataModule) -> Pretrain:
    """Return the settings with a batch size and a k that fit the data set.

    Values that are given stay as they are. The datamodule gets the batch size too.

    Raises:
        UserError: the images are too few for the processes and `--accumulate`.
    """
    optimizer = config.optimizer
    if optimizer.batch_size is None:
        processes = count_processes(config.device, config.run.dry_run)
        smallest = 2 * processes * optimizer.accumulate  # BN needs two images in each part
        batch_size = choose_batch_size(len(data.train), max(smallest, MIN_BATCH_SIZE))
        config = replace(config, optimizer=replace(optimizer, batch_size=batch_size))
        check_batch_size(config.optimizer, processes)
        data.batch_size = batch_size
    if config.monitor.knn_k is None:
        k = fit_k(data.train, data.test)
        config = replace(config, monitor=replace(config.monitor, knn_k=k))
    return config


def choose_batch_size(images: int, smallest: int) -> int:
    """Return the largest power of two up to the default that gives an epoch enough steps.

    Args:
        images: number of train images.
        smallest: the result is at least this large, unless there are fewer images.
    """
    batch_size = DEFAULT_BATCH_SIZE
    while batch_size > images // MIN_STEPS_PER_EPOCH and batch_size // 2 >= smallest:
        batch_size //= 2
    while batch_size > images and batch_size > 2:  # batch normalisation needs two images
        batch_size //= 2
    return batch_size


def fit_k(train: ImageDataset, test: ImageDataset) -> int:
    """Return the k of the kNN monitor: the default, or less for classes with few images.

    On 140 to 2,000 images of CIFAR-10, accuracy was the same from a quarter of a class to all of
    it, and fell beyond.
    """
    if knn_unavailable_reason(train, test) is not None:
        return min(DEFAULT_KNN_K, len(train))
    bank_labels = train.labels
    if is_leave_one_out(train, test):
        bank_labels = test.labels[test.labelled_indices]
    return choose_k(bank_labels, DEFAULT_KNN_K)


def describe_fit(config: Pretrain, data: ViewsDataModule, fitted: list[str]) -> list[str]:
    """Return the lines about values that were chosen smaller than the defaults.

    Args:
        config: returned by `fit_to_data`.
        fitted: names of the options that were not given.
    """
    optimizer = config.optimizer
    monitor = config.monitor
    lines: list[str] = []
    if "batch_size" in fitted and optimizer.images_per_step < DEFAULT_BATCH_SIZE:
        lines.append(
            f"  batch     {optimizer.images_per_step} images instead of {DEFAULT_BATCH_SIZE}, "
            f"to fit {len(data.train):,} train images; learning rate {optimizer.peak_rate:g}"
        )
    is_measured = monitor.knn_every > 0 and knn_unavailable_reason(data.train, data.test) is None
    if is_measured and "knn_k" in fitted and monitor.neighbours < DEFAULT_KNN_K:
        lines.append(
            f"  kNN       k {monitor.neighbours} instead of {DEFAULT_KNN_K}: "
            "a typical class has as many images"
        )
    return lines
