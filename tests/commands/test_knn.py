"""`python main.py knn` on real CIFAR-10: equal to lightly and to the run's own monitor."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict as lightly_knn_predict
from torch.nn.functional import normalize

import main
from simsiam import SimSiam, load_backbone
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.metrics import MAX_CONFUSION_CLASSES
from tests.helpers import Program, read_summary
from utils.knn import choose_k

FIRST_CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
LAST_CLASSES = ["dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def figures(cifar10_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    results = tmp_path_factory.mktemp("results")
    assert main.main(["knn", "--checkpoint", str(cifar10_run), "--results-dir", str(results)]) == 0
    return json.loads((results / "knn" / "summary.json").read_text())


def test_its_table_has_what_the_monitor_measured_in_that_epoch(
    figures: dict, cifar10_run: Path
) -> None:
    last = json.loads((cifar10_run / "metrics.jsonl").read_text().splitlines()[-1])
    monitor = {"features": "backbone", "k": 200, "temperature": 0.1}
    assert {**monitor, "accuracy": last["kNN_accuracy"]} in figures["table"]
    assert figures["epoch"] == last["epoch"]
    assert figures["dataset"] == "cifar10"
    assert (figures["train_images"], figures["test_images"]) == (1000, 500)


@pytest.mark.parametrize(
    ("images", "k", "ks"), [("200", 20, {1, 20, 200}), ("150", 15, {1, 15, 20})]
)
def test_its_headline_has_a_k_that_fits_the_classes(
    images: str, k: int, ks: set[int], trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--train-images", images, "--results-dir", str(tmp_path)]
    status, out, _ = program("knn", str(trained), *flags)
    summary = read_summary(tmp_path / "knn")
    assert (status, summary["knn_k"], summary["knn_t"]) == (0, k, 0.1)
    assert {row["k"] for row in summary["table"]} == ks
    headline = {"features": "backbone", "k": k, "temperature": 0.1}
    assert {**headline, "accuracy": summary["kNN_accuracy"]} in summary["table"]
    assert f"each class, by kNN, k {k}, T 0.1, backbone features" in out
    assert f"k {k} instead of 200" in out


def test_its_table_is_lightlys(figures: dict, cifar10_run: Path, cifar10_dir: Path) -> None:
    train, test = load_dataset(
        DataOptions("cifar10", str(cifar10_dir), train_images=1000, test_images=500)
    )
    backbone = load_backbone(cifar10_run)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    bank, queries = (
        extract_features(backbone, split.images, mean, std, unit=False) for split in (train, test)
    )
    module = SimSiam.load_from_checkpoint(cifar10_run / "checkpoints" / "last.ckpt").eval()
    with torch.no_grad():
        features = {
            "backbone": (bank, queries),
            "projector": (module.projector(bank), module.projector(queries)),
        }
    assert figures["knn_k"] == choose_k(train.labels, 200) < 200
    assert {row["k"] for row in figures["table"]} == {1, 20, figures["knn_k"], 200}
    assert len(figures["table"]) == 2 * 4 * 3
    for row in figures["table"]:
        bank, queries = (normalize(x, dim=1) for x in features[row["features"]])
        k, t = row["k"], row["temperature"]
        theirs = lightly_knn_predict(queries, bank.T, train.labels, 10, knn_k=k, knn_t=t)[:, 0]
        assert row["accuracy"] == pytest.approx(
            100 * (theirs == test.labels).float().mean().item(), abs=1e-4
        ), row


def test_classes_add_up_to_the_whole(figures: dict) -> None:
    counts = torch.tensor(figures["confusion"])
    assert counts.sum() == 500 and list(figures["per_class"]) == FIRST_CLASSES + LAST_CLASSES
    assert 100 * counts.diagonal().sum().item() / 500 == pytest.approx(figures["kNN_accuracy"])
    shares = counts.sum(dim=1) / 500
    whole = sum(
        share * a for share, a in zip(shares.tolist(), figures["per_class"].values(), strict=True)
    )
    assert whole == pytest.approx(figures["kNN_accuracy"], abs=1e-4)


def test_of_a_backbone_alone_there_are_no_projector_features(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    alone = shutil.copy(trained / "backbone.safetensors", tmp_path)
    status, out, _ = program("knn", "--checkpoint", str(alone), "--train-images", "150")
    assert status == 0 and "projector" not in out
    summary = json.loads((tmp_path / "backbone_results" / "knn" / "summary.json").read_text())
    assert {row["k"] for row in summary["table"]} == {1, 15, 20}  # 200 are more than the images


def test_of_many_classes_no_confusion_matrix_is_saved(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    """There are 24 protocols. Matrices of 10,000 classes would take 19 GB, and a GB in the file."""
    classes = MAX_CONFUSION_CLASSES + 1
    images = np.random.default_rng(0).integers(0, 256, (classes, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(classes)
    file = tmp_path / "many.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    flags = ["--dataset", "arrays", "--data-dir", str(file), "--image-size", "8"]
    status, _, err = program("knn", str(trained), *flags, "--results-dir", str(tmp_path))
    assert (status, err) == (0, "")
    summary = read_summary(tmp_path / "knn")
    assert "confusion" not in summary
    assert (summary["knn_k"], summary["kNN_accuracy"]) == (1, 100)
    assert list(summary["per_class"].values()) == [100] * 9 + [None] * (classes - 9)
