"""The choice of labels for fine-tuning: shares are exact, and seeds reproducible."""

import json
from pathlib import Path

import pytest
import torch

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.evaluation.label_subset import choose_labels, compute_label_quotas, hash_indices
from tests.helpers import ROOT
from utils.errors import UserError

TEN_CLASSES = tuple("abcdefghij")
UNEVEN_LABELS = torch.tensor([0] * 700 + [1] * 200 + [2] * 95)
UNEVEN_CLASSES = ("a", "b", "c")


@pytest.mark.parametrize(("fraction", "each"), [(0.01, 5), (0.1, 50), (0.37, 185), (1.0, 500)])
def test_a_fraction_is_exactly_that_share_of_every_class(fraction: float, each: int) -> None:
    labels = torch.arange(5000) % 10
    quotas = compute_label_quotas(labels, TEN_CLASSES, fraction, count=None)
    chosen = choose_labels(labels, quotas, seed=0)
    assert len(chosen.unique()) == len(chosen) == 10 * each
    assert labels[chosen].bincount().tolist() == [each] * 10


def test_quotas_of_uneven_classes_are_in_proportion_and_add_up() -> None:
    quotas = compute_label_quotas(UNEVEN_LABELS, UNEVEN_CLASSES, 0.1, count=None)
    assert quotas == [70, 20, 10]  # the third share is 9.5, and the sum 99.5 is rounded to 100
    quotas = compute_label_quotas(UNEVEN_LABELS, UNEVEN_CLASSES, 0.123, count=None)
    assert sum(quotas) == round(0.123 * 995)


def test_a_count_is_divided_equally() -> None:
    quotas = compute_label_quotas(UNEVEN_LABELS, UNEVEN_CLASSES, 0.1, count=30)
    assert quotas == [10, 10, 10]
    quotas = compute_label_quotas(UNEVEN_LABELS, UNEVEN_CLASSES, 0.1, count=31)
    assert sorted(quotas) == [10, 10, 11]
    with pytest.raises(UserError, match="100 labels of class c, which has 95"):
        compute_label_quotas(UNEVEN_LABELS, UNEVEN_CLASSES, 0.1, count=300)


def test_the_choice_depends_on_the_seed_alone() -> None:
    labels = torch.randint(0, 10, (5000,), generator=torch.Generator().manual_seed(0))
    quotas = compute_label_quotas(labels, TEN_CLASSES, 0.1, count=None)
    first = choose_labels(labels, quotas, seed=0)
    assert torch.equal(first, choose_labels(labels, quotas, seed=0))
    assert not torch.equal(first, choose_labels(labels, quotas, seed=1))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_larger_choice_includes_a_smaller_one(seed: int) -> None:
    labels = torch.randint(0, 10, (5000,), generator=torch.Generator().manual_seed(0))
    few = compute_label_quotas(labels, TEN_CLASSES, 0.01, count=None)
    many = compute_label_quotas(labels, TEN_CLASSES, 0.1, count=None)
    smaller = set(choose_labels(labels, few, seed).tolist())
    larger = set(choose_labels(labels, many, seed).tolist())
    assert smaller < larger


def test_ten_percent_of_cifar10_are_500_of_each_class(cifar10_dir: Path) -> None:
    train, _ = load_dataset(DataOptions("cifar10", str(cifar10_dir), test_images=1))
    quotas = compute_label_quotas(train.labels, train.classes, 0.1, count=None)
    chosen = choose_labels(train.labels, quotas, seed=3)
    assert train.labels[chosen].bincount().tolist() == [500] * 10


def test_the_published_choices_are_those_of_the_seeds(cifar10_dir: Path) -> None:
    """With docs/splits/cifar10.json others can use the same labels; summary.json has the digest."""
    train, _ = load_dataset(DataOptions("cifar10", str(cifar10_dir), test_images=1))
    published = json.loads((ROOT / "docs" / "splits" / "cifar10.json").read_text())
    assert published.keys() == {f"{percent}%-{seed}" for percent in (1, 10) for seed in range(5)}
    for name, choice in published.items():
        percent, seed = name.split("%-")
        quotas = compute_label_quotas(train.labels, train.classes, int(percent) / 100, count=None)
        chosen = choose_labels(train.labels, quotas, int(seed))
        assert chosen.tolist() == choice["indices"]
        assert hash_indices(chosen) == choice["digest"]
