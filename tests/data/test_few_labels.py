"""simsiam/data/class_choice.py and knn_labels.py: data sets of which only a part has labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import Splits
from simsiam.data.knn_labels import choose_comparison, knn_unavailable_reason
from tests.helpers import Program, read_rows, read_summary
from tests.images import patterns, write_images

Printed = pytest.CaptureFixture[str]


def load(folder: Path) -> Splits:
    options = DataOptions("folder", folder, image_size=8, cache_dir=folder.parent / "cache")
    prepare_dataset(options)
    return load_dataset(options)


def load_arrays(tmp_path: Path, **arrays: Any) -> Splits:
    np.savez(tmp_path / "x.npz", **arrays)
    return load_dataset(DataOptions("arrays", tmp_path / "x.npz"))


def kept_classes(images: Path, split: str, *classes: str) -> None:
    """Remove the folders of all other classes from a split."""
    for folder in (images / split).iterdir():
        if folder.name not in classes:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


# ---------------------------------------------------------------- classes of one split only


def test_test_images_of_unknown_classes_are_left_out_of_knn(
    tmp_path: Path, capsys: Printed
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(20))
    write_images(photos, patterns(30, split=1), split="val")
    kept_classes(photos, "train", "dots", "rings")
    kept_classes(photos, "val", "dots", "rings", "net", "zigzag")
    train, test = load(photos)
    message = "left out of kNN 6 images of 2 classes (net, zigzag) that the train images"
    assert f"photos/val: {message}" in capsys.readouterr().out
    assert train.classes == ("dots", "rings") and len(test) == 12
    assert len(test.labelled_indices) == 6 and not test.labelled
    comparison = choose_comparison(train, test)
    assert comparison is not None and not comparison.leave_one_out and len(comparison) == 6
    part = test.labelled_part()
    assert part.names(part.labels.tolist()) == ["dots"] * 3 + ["rings"] * 3


def test_a_single_class_of_the_test_images_alone_is_left_out(
    train_on_folder: Program, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(20))
    write_images(photos, patterns(2, split=1), "val/cats/{i}.png")
    status, out, err = train_on_folder(photos, "--batch-size", "10", "--dry-run")
    assert (status, err) == (0, "")
    assert "left out of kNN 2 images of 1 class (cats)" in out
    assert "no labels of the test images: kNN is leave-one-out among" in out


def test_a_class_of_the_train_images_alone_is_no_problem(tmp_path: Path, capsys: Printed) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(20))
    write_images(photos, patterns(20, split=1), split="val")
    kept_classes(photos, "val", "dots", "rings")
    train, test = load(photos)
    assert len(train.classes) == 10 and test.labelled
    assert "left out" not in capsys.readouterr().out


def test_arrays_may_have_unknown_test_labels(tmp_path: Path, capsys: Printed) -> None:
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    y = np.arange(9) % 3
    train, test = load_arrays(tmp_path, x_train=x, y_train=y, x_test=x, y_test=y + 1)
    assert train.classes == ("0", "1", "2")
    assert test.labels.tolist() == [1, 2, -1] * 3
    message = "y_test: left out of kNN 3 images of 1 class (3) that the train images"
    assert message in capsys.readouterr().out


def test_a_run_with_an_unknown_class_is_measured_on_the_others(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(200))
    write_images(photos, patterns(60, split=1), split="val")
    for file in (photos / "train" / "net").iterdir():
        file.unlink()
    status, out, err = train_on_folder(photos, "--exp-name", "more", "--pictures-every", "1")
    assert (status, err) == (0, "") and "left out of kNN 6 images of 1 class (net)" in out
    run = tmp_path / "runs" / "more"
    results = {}
    for command in ("knn", "linear", "finetune --epochs 1", "report", "neighbours"):
        name, *flags = command.split()
        status, out, err = program(name, str(run), *flags)
        assert (status, err) == (0, ""), command
    for name in ("knn", "linear", "finetune_0.1"):
        results[name] = read_summary(run / "results" / name)
    assert results["knn"]["test_images"] == 54 and sum(map(sum, results["knn"]["confusion"])) == 54

    # Without the class in val/, all is the same.
    for file in (photos / "val" / "net").iterdir():
        file.unlink()
    status, out, err = train_on_folder(photos, "--exp-name", "same")
    assert (status, err) == (0, "") and "left out of kNN" not in out
    assert read_rows(run) == read_rows(tmp_path / "runs" / "same")
    assert program("linear", str(tmp_path / "runs" / "same"))[0] == 0
    same = read_summary(tmp_path / "runs" / "same" / "results" / "linear")
    assert same["test_accuracy"] == results["linear"]["test_accuracy"]


# ---------------------------------------------------------------- missing labels


def test_partly_labelled_test_images_are_measured(tmp_path: Path, capsys: Printed) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(20))
    write_images(photos, patterns(20, split=1), split="val")
    write_images(photos, patterns(3, split=2), "val/{i}.png")
    train, test = load(photos)
    assert knn_unavailable_reason(train, test) is None and len(test.labelled_part()) == 20
    assert "photos/val: left out of kNN 3 images without a label\n" in capsys.readouterr().out
