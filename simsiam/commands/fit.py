"""Choose the batch size and the k of the kNN monitor for a data set, where no flag gives them."""

from dataclasses import replace

from simsiam.commands.resume import check_batch_size, count_processes, has_measured_knn
from simsiam.config.commands import Pretrain
from simsiam.config.optimizer_options import DEFAULT_BATCH_SIZE
from simsiam.config.run_options import DEFAULT_KNN_K
from simsiam.config.run_state import find_fitted, find_unset, keep_fitted
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from simsiam.data.knn_labels import choose_comparison
from utils.console import format_count
from utils.knn import choose_k
from utils.run_dir import RunDirectory

MIN_STEPS_PER_EPOCH = 16  # if the images allow batches of SMALL_BATCH_SIZE: docs/own_images.md
SMALL_BATCH_SIZE = 64
MIN_SMALL_STEPS = 4  # in an epoch of smaller batches, if the images allow MIN_BATCH_SIZE
MIN_BATCH_SIZE = 8  # smaller batches make the statistics of batch normalisation too noisy


def resume_fit(config: Pretrain, run: RunDirectory, state: str) -> tuple[Pretrain, list[str]]:
    """Return the settings with the values that were fitted when the run was started, if it was.

    If kNN accuracy was never measured, as in a run of a version that needed labelled test images
    for it, k is fitted again: that version had no labels to fit it to.

    Args:
        state: of the run's folder, as `validate_run` returns it.

    Returns:
        The settings, and the names of options fitted now or by an earlier start, even if a flag
        gives them now.
    """
    fitted = find_unset(config)
    if state in ("new", "discarded"):
        return config, fitted
    earlier = [name for name in find_fitted(run) if name not in fitted]
    config = keep_fitted(config, run)
    if "knn_k" in fitted and not has_measured_knn(run.rows()):
        config = replace(config, monitor=replace(config.monitor, knn_k=None))
    return config, fitted + earlier


def fit_to_data(config: Pretrain, data: ViewsDataModule) -> Pretrain:
    """Return the settings with a batch size and a k that fit the data set.

    Values that are given stay as they are. The datamodule gets the batch size too.

    Raises:
        UserError: the batch does not split among the processes and `--accumulate`, because the
            images are too few or because an earlier start has fitted it to other processes.
    """
    optimizer = config.optimizer
    processes = count_processes(config.device, config.run.dry_run)
    if optimizer.batch_size is None:
        batch_size = choose_batch_size(len(data.train), processes * optimizer.accumulate)
        config = replace(config, optimizer=replace(optimizer, batch_size=batch_size))
        data.batch_size = batch_size
    # A resumed run may have other processes now than when its batch size was fitted.
    check_batch_size(config.optimizer, processes)
    if config.monitor.knn_k is None:
        k = fit_k(data.train, data.test)
        config = replace(config, monitor=replace(config.monitor, knn_k=k))
    return config


def choose_batch_size(images: int, parts: int) -> int:
    """Return the largest power of two up to the default that gives an epoch enough steps.

    If it does not split into equal parts of at least two images, which BN needs, return the next
    smaller number that does, or else the smallest one.

    Args:
        images: number of train images. If they are too few for the parts, so is the result.
        parts: number of parts of a batch, for the processes and `--accumulate`.
    """
    smallest = max(2 * parts, MIN_BATCH_SIZE)
    batch_size = DEFAULT_BATCH_SIZE
    while has_few_steps(images, batch_size) and batch_size // 2 >= smallest:
        batch_size //= 2
    while batch_size > images and batch_size > 2:  # batch normalisation needs two images
        batch_size //= 2
    divisible = max(2, batch_size // parts) * parts
    return divisible if divisible <= images else batch_size


def has_few_steps(images: int, batch_size: int) -> bool:
    """Return whether an epoch has so few steps that smaller batches train a better network."""
    fewest = MIN_STEPS_PER_EPOCH if batch_size > SMALL_BATCH_SIZE else MIN_SMALL_STEPS
    return images // batch_size < fewest


def fit_k(train: ImageDataset, test: ImageDataset) -> int:
    """Return the k of the kNN monitor: the default, or less for classes with few images.

    On 140 to 2,000 images of CIFAR-10, accuracy was the same for each k from a quarter of the
    images per class to all of them, and fell for larger k.
    """
    comparison = choose_comparison(train, test)
    if comparison is None:
        return min(DEFAULT_KNN_K, len(train))
    bank_labels = comparison.labels if comparison.leave_one_out else train.labels
    return choose_k(bank_labels, DEFAULT_KNN_K)


def describe_fit(config: Pretrain, data: ViewsDataModule, fitted: list[str]) -> list[str]:
    """Return the lines about values that were chosen other than the defaults.

    Args:
        config: returned by `fit_to_data`.
        fitted: the names that `resume_fit` has returned.
    """
    optimizer = config.optimizer
    monitor = config.monitor
    lines: list[str] = []
    if "batch_size" in fitted and optimizer.images_per_step != DEFAULT_BATCH_SIZE:
        reason = f"to fit {len(data.train):,} train images"
        if choose_batch_size(len(data.train), parts=1) == DEFAULT_BATCH_SIZE:
            parts = count_processes(config.device, config.run.dry_run) * optimizer.accumulate
            reason = f"to split into {parts} equal parts"
        lines.append(
            f"  batch     {optimizer.images_per_step} images instead of {DEFAULT_BATCH_SIZE}, "
            f"{reason}; learning rate {optimizer.peak_rate:g}"
        )
    has_labels = choose_comparison(data.train, data.test) is not None
    is_measured = monitor.knn_every > 0 and has_labels
    if is_measured and "knn_k" in fitted and monitor.neighbours < DEFAULT_KNN_K:
        lines.append(
            f"  kNN       k {monitor.neighbours} instead of {DEFAULT_KNN_K}: "
            f"a typical class has only {format_count(monitor.neighbours, 'image')}"
        )
    return lines
