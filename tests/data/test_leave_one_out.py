"""kNN accuracy among images of one split (leave-one-out), where the other has no labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simsiam import KNNMonitor
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import Splits
from simsiam.data.knn_labels import choose_comparison, knn_unavailable_reason
from tests.callbacks.test_knn import trained
from tests.helpers import Program, read_rows, read_summary
from tests.images import patterns, write_images

Printed = pytest.CaptureFixture[str]


def load(folder: Path, **options: Any) -> Splits:
    cache = folder.parent / "cache"
    data = DataOptions("folder", folder, image_size=8, cache_dir=cache, **options)
    prepare_dataset(data)
    return load_dataset(data)


def load_arrays(tmp_path: Path, **arrays: Any) -> Splits:
    np.savez(tmp_path / "x.npz", **arrays)
    return load_dataset(DataOptions("arrays", tmp_path / "x.npz"))


def compare_by_hand(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy in percent of the nearest neighbour among all other images."""
    correct = 0
    for i in range(len(labels)):
        others = np.arange(len(labels)) != i
        classifier = KNeighborsClassifier(1, metric="cosine").fit(features[others], labels[others])
        correct += int(classifier.predict(features[i : i + 1])[0] == labels[i])
    return 100 * correct / len(labels)


# ---------------------------------------------------------------- among test images


@pytest.mark.parametrize("layout", ["train/{i}.png", "train/all/{i}.png", "train/_{name}/{i}.png"])
def test_labels_of_the_test_images_alone_are_enough(
    layout: str, tmp_path: Path, capsys: Printed
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(20), layout)
    write_images(photos, patterns(20, split=1), split="val")
    train, test = load(photos)
    comparison = choose_comparison(train, test)
    assert comparison is not None and comparison.leave_one_out and comparison.split is test
    assert len(train.classes) == 10 and test.labelled
    assert train.labels.tolist() == [-1] * 20
    out = capsys.readouterr().out
    reason = "" if "all" not in layout else "all images are of the class all"
    if "_" in layout:
        reason = "none of its classes is among those of"
    assert reason in out and ("are not used" in out) == bool(reason)


def test_arrays_may_have_test_labels_alone(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    comparison = choose_comparison(
        *load_arrays(tmp_path, x_train=x, x_test=x, y_test=np.arange(9) % 3)
    )
    assert comparison is not None and comparison.leave_one_out
    splits = load_arrays(tmp_path, x_train=x, x_test=x, y_test=np.zeros(9, int))
    assert knn_unavailable_reason(*splits) == "no labels"


def test_leave_one_out_is_that_of_scikit_learn(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(60), "train/{i}.png")
    write_images(photos, patterns(40, split=1), split="val")
    flags = ("--epochs", "2", "--knn-k", "200", "--pictures-every", "1")
    status, out, err = train_on_folder(photos, *flags)
    assert (status, err) == (0, "")
    assert "no labels of the train images: kNN is leave-one-out among" in out
    assert " 40 test images with labels" in out and "10 classes" in out
    assert " knn " in out.split("next ")[1].splitlines()[0]
    run = tmp_path / "runs" / "simsiam_folder"

    status, out, err = program("knn", str(run))
    assert (status, err) == (0, "") and "bank of the 39 others" in out
    summary = read_summary(run / "results" / "knn")
    assert summary["leave_one_out"] and sum(map(sum, summary["confusion"])) == 40
    assert program("embed", str(run), "--split", "test")[0] == 0
    with np.load(run / "results" / "embed" / "features.npz") as arrays:
        features = arrays["features"]
        labels = arrays["labels"]
    by_one = [row for row in summary["table"] if row["features"] == "backbone" and row["k"] == 1]
    assert {row["accuracy"] for row in by_one} == {compare_by_hand(features, labels)}

    # The monitor's k of 200 is all 39 others. The command has no k between 20 and 39.
    measured = read_rows(run)[-1]["kNN_accuracy"]
    unit = torch.nn.functional.normalize(torch.from_numpy(features))
    weights = (unit @ unit.T / 0.1).exp().fill_diagonal_(0)
    votes = weights @ torch.nn.functional.one_hot(torch.from_numpy(labels)).float()
    expected = 100 * (votes.argmax(dim=1).numpy() == labels).mean()
    assert measured == pytest.approx(expected, abs=2.6)  # at most one image may differ

    for command in ("linear", "finetune"):
        status, _, err = program(command, str(run))
        assert status == 2 and err.count("\n") == 1 and "no labels of the train images" in err
    for command in ("neighbours", "report", "export"):
        status, _, err = program(command, str(run))
        assert (status, err) == (0, ""), command


def measure_loaders(bank: Any, queries: Any) -> float:
    """Return the kNN accuracy that a Trainer has after an epoch, with one neighbour."""
    monitor = KNNMonitor(k=1, bank=bank, queries=queries, print_fn=lambda _: None)
    trainer, _, _ = trained(monitor, epochs=1, images=200)
    return trainer.callback_metrics["kNN_accuracy"].item()


def test_one_loader_as_bank_and_queries_is_leave_one_out() -> None:
    """Each image has a label of its own, so without itself no neighbour is right."""
    loader = [(torch.randn(20, 3, 8, 8), torch.arange(20))]
    assert measure_loaders(loader, loader) == 0
    assert measure_loaders(loader, list(loader)) == 100


def test_a_single_image_has_no_neighbour() -> None:
    loader = [(torch.randn(1, 3, 8, 8), torch.tensor([0]))]
    with pytest.raises(ValueError, match="a single image has no neighbour"):
        measure_loaders(loader, loader)


def test_a_csv_may_label_the_test_images_alone(tmp_path: Path) -> None:
    write_images(tmp_path, patterns(8), "{i}.png")
    lines = [f"{i}.png,,train" for i in range(4)] + ["4.png,a,val", "5.png,b,val", "6.png,b,val"]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,split", *lines, "7.png,,val"]))
    train, test = load(tmp_path / "l.csv")
    comparison = choose_comparison(train, test)
    assert comparison is not None and comparison.indices.tolist() == [0, 1, 2]
    assert test.labels.tolist() == [0, 1, 1, -1]


# ---------------------------------------------------------------- among train images


def test_a_csv_may_label_some_train_images(tmp_path: Path, capsys: Printed) -> None:
    write_images(tmp_path, patterns(6), "{i}.png")
    lines = ["0.png,a", "1.png,", "2.png,b", "3.png,a", "4.png,", "5.png,b"]
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *lines]))
    train, test = load(tmp_path / "l.csv")
    assert train.labels.tolist() == [0, -1, 1, 0, -1, 1] and train.classes == ("a", "b")
    comparison = choose_comparison(train, test)
    assert comparison is not None and comparison.indices.tolist() == [0, 2, 3, 5]
    message = "2 of 6 images have no label. They are trained on, but left out of kNN."
    assert message in capsys.readouterr().out


def test_no_test_image_is_opened_if_none_is_wanted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(20))
    (photos / "test" / "0").mkdir(parents=True)
    (photos / "test" / "0" / "damaged.png").write_bytes(b"not an image")
    train, test = load(photos, test_images=0)
    assert (len(train), len(test)) == (20, 0)
    comparison = choose_comparison(train, test)
    assert comparison is not None and comparison.split is train


@pytest.mark.parametrize("loose", [0, 7])
def test_train_images_with_labels_are_compared_with_each_other(
    loose: int, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(60), "{name}/{i}.png")
    if loose:
        write_images(photos, patterns(loose, split=1), "loose {i}.png")
    flags = ("--epochs", "2", "--knn-k", "1", "--pictures-every", "1")
    status, out, err = train_on_folder(photos, *flags)
    assert (status, err) == (0, "")
    assert "no test images: kNN is leave-one-out among" in out
    assert " 60 train images with labels" in out
    assert " knn " in out.split("next ")[1].splitlines()[0]
    run = tmp_path / "runs" / "simsiam_folder"

    assert program("embed", str(run), "--split", "train")[0] == 0
    with np.load(run / "results" / "embed" / "features.npz") as arrays:
        labelled = arrays["labels"] >= 0
        features = arrays["features"][labelled]
        labels = arrays["labels"][labelled]
    assert len(labels) == 60
    expected = compare_by_hand(features, labels)
    assert read_rows(run)[-1]["kNN_accuracy"] == pytest.approx(expected, abs=2.6)

    status, out, err = program("knn", str(run))
    assert (status, err) == (0, "") and "60 train images of folder, bank of the 59 others" in out
    summary = read_summary(run / "results" / "knn")
    assert summary["leave_one_out"] and summary["query_source"] == "train images"
    by_one = [row for row in summary["table"] if row["features"] == "backbone" and row["k"] == 1]
    assert {row["accuracy"] for row in by_one} == {expected}

    for command in ("linear", "finetune"):
        status, _, err = program(command, str(run))
        assert status == 2 and err.count("\n") == 1
        assert ("no labels of some train images" if loose else "no test images") in err
    status, out, err = program("report", str(run))
    assert (status, err) == (0, "")
    page = (run / "report" / "index.html").read_text()
    assert "kNN is top-1 on the train images (leave-one-out)" in page
    assert "Accuracy of each class: kNN, leave-one-out among 60 train images, k 1" in page
    assert "kNN, backbone features, k 1, leave-one-out among train images" in page
    for command in ("neighbours", "export"):
        status, _, err = program(command, str(run))
        assert (status, err) == (0, ""), command


def test_report_fits_k_if_the_run_has_measured_no_accuracy(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    """Runs of earlier versions without labelled test images took k for the number of images."""
    photos = tmp_path / "photos"
    write_images(photos, patterns(60), "{name}/{i}.png")
    assert train_on_folder(photos, "--epochs", "1", "--knn-every", "0", "--knn-k", "60")[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    assert program("report", str(run))[0] == 0
    page = (run / "report" / "index.html").read_text()
    assert "leave-one-out among 60 train images, k 6, T 0.1" in page


@pytest.mark.parametrize(("copied", "count"), [("a/0.png", 1), ("loose.png", 0)])
def test_copies_of_images_that_are_compared_are_named(
    copied: str, count: int, tmp_path: Path, capsys: Printed
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(4), "a/{i}.png")
    write_images(photos, patterns(4, split=1), "b/{i}.png")
    write_images(photos, patterns(1, split=2), "loose.png")
    target = photos / ("b" if count else "") / "copy.png"
    target.write_bytes((photos / copied).read_bytes())
    load(photos)
    out = capsys.readouterr().out
    assert "1 of 10 images are copies of others" in out
    too_high = f", and {count} of the 9 images that kNN compares with each other are, which makes"
    assert (too_high in out) == (count > 0)
