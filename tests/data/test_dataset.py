"""simsiam/data/__init__.py and dataset.py: the registry, options, statistics and devices."""

import os
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from simsiam.augment import normalize
from simsiam.config.options import CUSTOM_DATASETS, DataOptions, Dataset, EvaluationDataOptions
from simsiam.data import DATASETS, load_dataset, make_placeholders, prepare_dataset
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import channel_statistics, make_options, place_on_device
from simsiam.data.synthetic import make_patterns
from utils.device import free_memory
from utils.errors import UserError
from utils.option_group import get_help


def test_options_and_registry_have_the_same_data_sets() -> None:
    assert set(get_args(Dataset)) == DATASETS.keys()
    # All others than the user's own images are published or generated.
    others = DATASETS.keys() - set(CUSTOM_DATASETS)
    assert others == {"cifar10", "cifar100", "patterns"}
    with pytest.raises(UserError, match=r"--dataset mnist: should be 'cifar10', .*'arrays'"):
        make_options(dataset="mnist")


@pytest.mark.parametrize("options", [DataOptions, EvaluationDataOptions])
def test_the_help_names_every_data_set(options: type[DataOptions]) -> None:
    words = set(re.findall(r"\w+", get_help(options, "dataset") or ""))
    assert DATASETS.keys() <= words


def test_paths_of_any_kind_become_strings(tmp_path: Path) -> None:
    class Folder:
        def __fspath__(self) -> str:
            return str(tmp_path)

    not_utf8 = os.fsdecode(b"/caf\xe9")
    cases = ((tmp_path, str(tmp_path)), (Folder(), str(tmp_path)), (Path(not_utf8), not_utf8))
    for path, text in cases:
        options = DataOptions("folder", path, cache_dir=path)
        assert type(options.data_dir) is type(options.cache_dir) is str
        assert options.data_dir == options.cache_dir == text
        images = EvaluationDataOptions(data_dir=path, cache_dir=path)
        assert images.data_dir == images.cache_dir == text
    data = ViewsDataModule("patterns", data_dir=tmp_path, cache_dir=tmp_path, batch_size=8)
    assert data.options.data_dir == str(tmp_path)
    for value in (3, ["a"]):
        with pytest.raises(UserError, match=r"--data-dir .*should be a valid string"):
            make_options(data_dir=value)


def test_a_pair_of_numbers_is_a_range() -> None:
    for pair in ((0, 4095), [0, 4095], "0:4095"):
        options = DataOptions("folder", pixel_range=pair)
        assert options.pixel_range == "0:4095" and options.conversion.pixel_range == (0, 4095)


def test_placeholders_have_the_sizes_of_the_data_set(
    cifar10_dir: Path, photos: Path, tmp_path: Path
) -> None:
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        splits = make_placeholders(DataOptions(name, str(tmp_path), train_images=60))
        assert splits is not None
        train, test = splits
        assert (len(train), len(test), len(train.classes), train.side) == (60, 10_000, classes, 32)
    splits = make_placeholders(DataOptions("folder", str(photos), image_size=112))
    assert splits is not None
    train, test = splits
    assert (len(train), len(test), len(train.classes), train.side) == (200, 60, 10, 112)
    assert make_placeholders(DataOptions("cifar10", str(cifar10_dir))) is None
    with pytest.raises(UserError, match="has 50000"):
        make_placeholders(DataOptions("cifar10", str(tmp_path), train_images=50_001))


def test_statistics_of_many_images_use_an_even_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = make_patterns(1000)[0]
    exact = channel_statistics(images)
    monkeypatch.setattr("simsiam.data.dataset.STATISTICS_BYTES", 100 * 3 * 32 * 32)
    assert channel_statistics(images) == channel_statistics(images[::10])
    assert channel_statistics(images)[0] == pytest.approx(exact[0], abs=0.02)


def test_a_constant_channel_is_zero_after_normalisation_and_the_others_are_as_before() -> None:
    """Two stains saved as red and green have no blue."""
    images = make_patterns(20)[0]
    exact = channel_statistics(images)
    images[:, 2] = 7
    mean, std = channel_statistics(images)
    assert (mean[:2], std[:2]) == (exact[0][:2], exact[1][:2])
    assert std[2] == 1
    x = normalize(images / 255, torch.tensor(mean), torch.tensor(std))
    assert x.isfinite().all() and x[:, 2].abs().max() < 1e-6


def test_images_without_any_contrast_are_refused() -> None:
    colour = torch.tensor([10, 200, 50], dtype=torch.uint8)
    images = colour[:, None, None].expand(5, 3, 8, 8)
    with pytest.raises(UserError, match="nothing can be learned"):
        channel_statistics(images)


def test_free_memory_is_less_than_the_memory_of_the_machine() -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < free_memory(torch.device("cpu")) < machine


def test_images_that_do_not_fit_stay_on_disk(photos: Path, tmp_path: Path) -> None:
    cache_dir = str(tmp_path / "cache")
    data_options = DataOptions("folder", str(photos), image_size=32, cache_dir=cache_dir)
    prepare_dataset(data_options)
    cpu = torch.device("cpu")
    on_disk, _ = place_on_device(load_dataset(data_options), cpu, memory=0)
    in_memory, _ = place_on_device(load_dataset(data_options), cpu, memory=1)
    assert on_disk.on_disk and not in_memory.on_disk
    assert on_disk.images.data_ptr() != in_memory.images.data_ptr()
    assert torch.equal(on_disk.images, in_memory.images)
    indices = torch.tensor([3, 199, 0, 3])
    assert torch.equal(on_disk.images_at(indices), in_memory.images_at(indices))
