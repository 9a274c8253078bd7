"""Estimate how long a pre-training takes on a CPU, and which of its costs pay."""

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Collection

import torch

from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.knn_labels import count_measured_images
from simsiam.evaluation.features import extract_features
from simsiam.module import SimSiam

MIN_CALL_SECONDS = 0.1  # a shorter call is disturbed too easily to be a good measurement
REPEATED_CALL_SECONDS = 0.6  # a call that takes longer is not repeated
MAX_IMAGES = 128  # in a measured call

FEW_IMAGES = 10_000  # whose features take little time in any case
MAX_PART_OF_TRAINING = 0.1  # that kNN before training may take
PASSES_OF_A_STEP = 3  # a step computes forward, and backward for inputs and weights; kNN forward

# Compiled augmentation on two cores of an AMD EPYC, see docs/speed.md.
COMPILE_SECONDS = 10  # for each size of views
SAVED_SECONDS_PER_VIEW = 12e-6
SAVED_SECONDS_PER_PIXEL = 20e-9  # of a view
SAVED_PART = 0.6  # of the time of the augmentation
# What must be saved for each second of compilation. More cores save less and compile no faster.
MIN_GAIN = 2


def choose_compiled_sizes(data: ViewsDataModule, epochs: int) -> list[int]:
    """Return the sizes of views for which a CPU should compile the augmentation.

    Compiled and eager views differ in the last digits. The choice is counted and not measured, for
    the complete run, so that a run computes the same on each machine and after it was resumed.
    """
    sizes: list[int] = []
    for size, count in _count_epochs_by_size(data, epochs).items():
        views = count * len(data.train) * data.views
        saved = views * (SAVED_SECONDS_PER_VIEW + SAVED_SECONDS_PER_PIXEL * size**2)
        if saved >= MIN_GAIN * COMPILE_SECONDS:
            sizes.append(size)
    return sizes


def _count_epochs_by_size(data: ViewsDataModule, epochs: int) -> Counter[int]:
    """Return the number of epochs with each size of views."""
    return Counter(data.view_size(epoch) for epoch in range(epochs))


def measures_before_training(data: ViewsDataModule, epochs: int) -> bool:
    """Return whether kNN before training takes less than a tenth of the training.

    It is counted and not measured, so that it is the same on each machine.
    """
    measured = count_measured_images(data.train, data.test)
    if measured <= FEW_IMAGES:
        return True
    if data.train.image_cache == "off":
        # Decoding takes the most time: one file for each image, whatever its number of views.
        trained = float(epochs * len(data.train))
    else:
        trained = 0.0
        views = data.view_maker.views_in_all
        for epoch in range(epochs):
            pixels = (data.view_size(epoch) / data.size) ** 2
            trained += PASSES_OF_A_STEP * views * len(data.train) * pixels
    return measured <= MAX_PART_OF_TRAINING * trained


def estimate_seconds(
    model: SimSiam,
    data: ViewsDataModule,
    bf16: bool,
    epochs: int,
    knn_every: int,
    compiled_sizes: Collection[int] = (),
) -> float:
    """Return about how many seconds a run of one process takes on this CPU.

    A copy of `model` trains on a few images of each size of the views, and extracts the features of
    a few images.

    Args:
        bf16: whether the run computes in bf16.
        epochs: length of the run.
        knn_every: epochs between kNN measurements; 0 for none.
        compiled_sizes: sizes of views for which the augmentation will be compiled.
    """
    model = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        seconds = _estimate_training(model, data, epochs, compiled_sizes)
        if knn_every:
            measurements = math.ceil(epochs / knn_every)
            if measures_before_training(data, epochs):
                measurements += 1
            seconds += measurements * _estimate_feature_extraction(model, data)
    return seconds


def _estimate_training(
    model: SimSiam, data: ViewsDataModule, epochs: int, compiled_sizes: Collection[int]
) -> float:
    steps_per_epoch = len(data.train) // data.batch_size
    first_epochs: dict[int, int] = {}  # size of the views -> the first epoch that has it
    for epoch in range(epochs):
        first_epochs.setdefault(data.view_size(epoch), epoch)
    epochs_by_size = _count_epochs_by_size(data, epochs)

    seconds = 0.0
    for size, epoch in first_epochs.items():

        def take_step(n: int, epoch: int = epoch) -> None:
            views = data.make_views(torch.arange(n), epoch)
            model.training_step(views, 0)["loss"].backward()

        def make_views(n: int, epoch: int = epoch) -> None:
            data.make_views(torch.arange(n), epoch)

        steps = epochs_by_size[size] * steps_per_epoch
        seconds += steps * measure_seconds(take_step, data.batch_size)
        # To decode files and to cut crops takes the same time as before.
        if size in compiled_sizes and data.train.whole is None:
            eager_seconds = steps * measure_seconds(make_views, data.batch_size)
            seconds += COMPILE_SECONDS - SAVED_PART * eager_seconds
    return seconds


def _estimate_feature_extraction(model: SimSiam, data: ViewsDataModule) -> float:
    """Return the seconds that the features of a measurement of kNN take."""
    images = count_measured_images(data.train, data.test)
    sample = min(images, MAX_IMAGES)

    def extract(n: int) -> None:
        extract_features(model.backbone, data.train.images[:n], data.mean, data.std, size=data.size)

    return measure_seconds(extract, sample) * images / sample


def measure_seconds(step: Callable[[int], object], count: int) -> float:
    """Return about how many seconds `step(count)` takes, measured by calls with fewer images.

    A call takes a fixed time and a time per image. Two numbers of images give both: 2, which batch
    normalisation needs at least, and a larger one for which a call takes MIN_CALL_SECONDS.

    Args:
        step: computes on the given number of images.
        count: the number of images whose time is returned.
    """

    def time_step(n: int) -> float:
        started = time.perf_counter()
        started_computing = time.process_time()
        step(n)
        # The elapsed time is too long if other programs hold up the step. The processor time is too
        # long if there are several threads, because it is their sum.
        return min(time.perf_counter() - started, time.process_time() - started_computing)

    def time_again(n: int, first: float) -> float:
        """Return the shorter of two times, since the first call also compiled kernels."""
        if first >= REPEATED_CALL_SECONDS:
            return first
        return min(first, time_step(n))

    few = min(2, count)
    seconds_for_few = time_again(few, time_step(few))

    # Take more images, at least once, until a call takes long enough to be measured well.
    images = few
    seconds = seconds_for_few
    while images < min(count, MAX_IMAGES) and (images == few or seconds < MIN_CALL_SECONDS):
        images = min(4 * images, count, MAX_IMAGES)
        seconds = time_step(images)
    if images == few:
        return seconds * count / few
    seconds = time_again(images, seconds)

    # More images cannot take less time: another program has disturbed the calls with few images.
    if seconds <= seconds_for_few:
        return seconds * count / images
    seconds_per_image = (seconds - seconds_for_few) / (images - few)
    # This cannot be more than an image took in the calls with few images, unless a call was
    # disturbed.
    seconds_per_image = min(seconds_per_image, seconds_for_few / few)
    return seconds_for_few + seconds_per_image * (count - few)


def format_duration(seconds: float) -> str:
    """Return a duration such as "about 3 hours", in the largest unit that it has at least twice."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {max(1, round(seconds))} s"
