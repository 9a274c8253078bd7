"""Which images a measurement of kNN and RankMe reads, and when the first one is made."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simsiam import KNNMonitor
from simsiam.callbacks.sharded_features import (
    LabelledFeatures,
    choose_rank_rows,
    extract_split,
)
from simsiam.commands import estimate
from simsiam.commands.estimate import measures_before_training
from simsiam.config.value_types import parse_image_schedule
from simsiam.data import knn_labels
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset, make_blank_split
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.files.source_files import SourceFiles
from simsiam.data.files.whole_images import ImageFiles
from simsiam.data.knn_labels import (
    RANKME_IMAGES,
    choose_bank,
    choose_comparison,
    count_measured_images,
)
from tests.callbacks.test_knn import trained
from tests.helpers import Program, read_rows
from tests.images import patterns, write_images
from utils import distributed


def make_split(n: int, num_classes: int) -> ImageDataset:
    labels = torch.arange(n) % num_classes if num_classes else torch.full((n,), -1)
    return make_blank_split(8, labels, tuple(str(i) for i in range(num_classes)))


def test_without_kNN_only_the_images_of_rankme_are_read_evenly_spread() -> None:
    train = make_split(3 * RANKME_IMAGES, 0)
    bank = choose_bank(train, None)
    assert bank is not None and torch.equal(bank, torch.arange(RANKME_IMAGES) * 3)
    assert count_measured_images(train, make_split(0, 0)) == RANKME_IMAGES


def test_knn_reads_all_train_and_test_images() -> None:
    train = make_split(3 * RANKME_IMAGES, 2)
    test = make_split(100, 2)
    assert choose_bank(train, choose_comparison(train, test)) is None
    assert count_measured_images(train, make_split(100, 2)) == 3 * RANKME_IMAGES + 100


def test_leave_one_out_reads_the_test_images_and_those_of_rankme() -> None:
    train = make_split(3 * RANKME_IMAGES, 0)
    assert count_measured_images(train, make_split(100, 2)) == RANKME_IMAGES + 100


def test_among_train_images_no_more_are_read_than_for_rankme() -> None:
    train = make_split(3 * RANKME_IMAGES, 2)
    no_test_images = make_split(0, 2)
    comparison = choose_comparison(train, no_test_images)
    bank = choose_bank(train, comparison)
    assert comparison is not None and bank is not None and torch.equal(comparison.indices, bank)
    assert count_measured_images(train, no_test_images) == RANKME_IMAGES


def choose_rows(n: int, rank: int, world_size: int) -> Tensor:
    """Return the indices of the images that one of several processes measures the rank of."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world_size)
        features = torch.arange(n)[distributed.shard(n), None]
        labels = torch.zeros(n, dtype=torch.int64)
        return choose_rank_rows(LabelledFeatures(features, labels))[:, 0]


@pytest.mark.parametrize("n", [100, RANKME_IMAGES + 1, 2 * RANKME_IMAGES - 1, 10 * RANKME_IMAGES])
def test_the_rank_is_that_of_rows_from_all_classes(n: int) -> None:
    """The images of a folder are sorted by class: each tenth of them has its share of the rows."""
    rows = choose_rows(n, rank=0, world_size=1)
    assert len(rows) == min(n, RANKME_IMAGES)
    edges = torch.linspace(0, n, 11)
    parts = torch.bucketize(rows.float(), edges[1:-1], right=True)
    counts = parts.bincount(minlength=10)
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("n", [100, 30_000, 60_001])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_rank_is_that_of_the_same_rows_on_any_number_of_devices(
    n: int, world_size: int
) -> None:
    parts = [choose_rows(n, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), choose_rows(n, rank=0, world_size=1))


@pytest.mark.parametrize("indices", [None, torch.tensor([2])])
def test_a_process_may_have_no_image_of_a_small_split(
    indices: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes, only the second one has the only image."""

    def read(chosen: Sequence[int]) -> Tensor:
        return torch.stack([torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in chosen])

    n = 1 if indices is None else 4
    split = replace(make_split(n, 2), images=LazyImages(read, range(n), 8))
    data = make_data(10)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank, shape in ((0, (0, 192)), (1, (1, 192))):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        features = extract_split(torch.nn.Flatten(), data, split, indices=indices)
        assert features.features.shape == shape and features.labels.shape == (1,)


def test_a_monitor_can_leave_out_the_measurement_before_training() -> None:
    monitor = KNNMonitor(k=5, every=10, before_training=False)
    trained(monitor, epochs=2, images=40, batch_size=20)
    assert monitor.initial is None and "kNN_accuracy" in monitor.epoch_metrics


# ---------------------------------------------------------------- whether it pays


def make_data(n: int, from_files: bool = False) -> ViewsDataModule:
    """Return a datamodule of n images of 8 pixels, perhaps decoded from files in each epoch."""
    data = ViewsDataModule("patterns", batch_size=2)
    train = make_split(n, 2)
    if from_files:
        train = replace(train, whole=ImageFiles(SourceFiles(Path(), [""] * n)))
    data.set_splits((train, make_split(n // 5, 2)))
    return data


@pytest.mark.parametrize(
    ("n", "epochs", "pays"), [(5000, 1, True), (50_000, 1, False), (50_000, 2, True)]
)
def test_knn_before_training_takes_less_than_a_tenth_of_it(n: int, epochs: int, pays: bool) -> None:
    assert measures_before_training(make_data(n), epochs) == pays


def test_small_views_are_cheaper_than_the_images_of_knn() -> None:
    data = make_data(50_000)
    data.phases = parse_image_schedule(["4:3"])
    assert not measures_before_training(data, 3)
    assert measures_before_training(data, 5)  # its last two epochs have views of full size


@pytest.mark.parametrize(("epochs", "pays"), [(11, False), (12, True)])
def test_of_files_the_decoding_counts(epochs: int, pays: bool) -> None:
    assert measures_before_training(make_data(50_000, from_files=True), epochs) == pays


# ---------------------------------------------------------------- a run on files


def test_a_run_says_that_nothing_is_measured_before_training(
    train_on_folder: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "FEW_IMAGES", 10)
    monkeypatch.setattr(knn_labels, "RANKME_IMAGES", 15)
    write_images(tmp_path / "photos", patterns(20), "{i}.png")
    status, out, err = train_on_folder(
        tmp_path / "photos", "--batch-size", "10", "--epochs", "1", "--image-cache", "off"
    )
    assert (status, err) == (0, "")
    assert "each measurement decodes 15 files: see --knn-every" in out
    assert "nothing is measured before training: it would take over a tenth of the run" in out
    row = read_rows(next((tmp_path / "runs").iterdir()))[0]
    assert row["epoch"] == 1 and f"rankme {row['rankme']:.1f}" in out
