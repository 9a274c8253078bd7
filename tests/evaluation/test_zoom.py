"""`--test-zoom`: knn, linear and embed on magnified images, compared with torchvision's crops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_image, to_pil_image

from simsiam import load_backbone
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset
from simsiam.data.dataset import ImageDataset
from simsiam.data.files.lazy_images import LazyImages
from simsiam.evaluation.logistic_regression import (
    fit_logistic,
    fold_standardisation,
    make_head,
    standardise_in_place,
)
from simsiam.evaluation.zoom import choose_zoom, zoom_in, zoomed_side
from simsiam.report.records import read_accuracies
from tests.helpers import Program, read_summary
from tests.images import patterns
from utils.knn import knn_predict


@pytest.mark.parametrize(("side", "resized"), [(32, 36), (32, 40), (32, 37), (32, 39), (28, 32)])
def test_a_zoom_is_torchvisions_resize_and_centre_crop(side: int, resized: int) -> None:
    images = patterns(20).images
    assert isinstance(images, Tensor)
    images = images[..., :side, :side]
    prepare = v2.Compose([v2.Resize(resized), v2.CenterCrop(side)])
    expected = torch.stack([to_image(prepare(to_pil_image(image))) for image in images])
    zoomed = 255 * zoom_in(images.float() / 255, resized / side)
    assert zoomed.shape == images.shape
    difference = (zoomed - expected).abs()
    assert difference.max() < 1.1  # PIL rounds to whole levels after each of the two axes
    assert difference.mean() < 0.35


def test_a_zoom_of_1_returns_the_images() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert zoom_in(images, 1.0) is images


def test_only_images_without_a_margin_are_zoomed_by_default() -> None:
    assert zoomed_side(32, choose_zoom(None, 32)) == 36
    assert choose_zoom(None, 64) == 1.125
    assert choose_zoom(None, 65) == 1.0
    assert choose_zoom(1.25, 224) == 1.25


# ---------------------------------------------------------------- knn


def load_patterns() -> tuple[ImageDataset, ImageDataset]:
    """Return the images that the run `trained` had."""
    return load_dataset(DataOptions("patterns", "", train_images=200, test_images=100))


@torch.no_grad()
def torchvision_features(run: Path, images: Tensor | LazyImages, resized: int) -> Tensor:
    """Return the features (N, F) of images that torchvision has resized and cropped."""
    assert isinstance(images, Tensor)
    backbone = load_backbone(run)
    mean = torch.tensor(backbone.mean).tolist()
    std = torch.tensor(backbone.std).tolist()
    prepare = v2.Compose([v2.Resize(resized), v2.CenterCrop(32), v2.Normalize(mean, std)])
    return backbone(prepare(images.float() / 255))


def test_knn_has_a_second_table_of_zoomed_images(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    status, out, err = program("knn", str(trained), "--results-dir", str(tmp_path))
    assert (status, err) == (0, "")
    zoomed = read_summary(tmp_path / "knn")["zoomed"]
    assert (zoomed["test_zoom"], zoomed["resized_side"]) == (1.125, 36)
    assert "resized to 36 pixels" in " ".join(out.split())

    train, test = load_patterns()
    bank, queries = (
        nn.functional.normalize(torchvision_features(trained, split.images, 36))
        for split in (train, test)
    )
    for row in zoomed["table"]:
        assert row["features"] == "backbone"
        predicted = knn_predict(queries, bank, train.labels, 10, row["k"], row["temperature"])
        expected = 100 * (predicted == test.labels).float().mean().item()
        assert row["accuracy"] == pytest.approx(expected, abs=1.01)  # an image, by rounding
        assert f"{row['accuracy']:.2f}" in out
    accuracies = [row["accuracy"] for row in zoomed["table"]]
    assert zoomed["kNN_accuracy"] in accuracies
    assert "backbone, zoom 36" in out


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in summary.keys() - {"seconds", "settings", "zoomed"}}


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_without_a_zoom_nothing_else_changes(
    command: str, trained: Path, program: Program, tmp_path: Path
) -> None:
    summaries: list[dict[str, Any]] = []
    outputs: list[str] = []
    for flags in ([], ["--test-zoom", "1"], ["--test-zoom", "1.5"]):
        folder = tmp_path / str(len(summaries))
        status, out, _ = program(command, str(trained), *flags, "--results-dir", str(folder))
        assert status == 0
        summaries.append(read_summary(folder / command))
        outputs.append(out)
    usual, unzoomed, magnified = summaries
    assert "zoomed" not in unzoomed
    assert "zoom " not in outputs[1]
    assert without_times(usual) == without_times(unzoomed) == without_times(magnified)
    assert magnified["zoomed"]["resized_side"] == 48
    assert magnified["zoomed"] != usual["zoomed"]
    if command == "linear":
        heads = [load_file(tmp_path / str(i) / "linear" / "head.safetensors") for i in range(3)]
        assert torch.equal(heads[0]["weight"], heads[1]["weight"])
        assert torch.equal(heads[0]["weight"], heads[2]["weight"])


# ---------------------------------------------------------------- linear


def measure_head(weights: dict[str, Tensor], features: Tensor, labels: Tensor) -> float:
    predicted = (features @ weights["weight"].T + weights["bias"]).argmax(dim=1)
    return 100 * (predicted == labels).float().mean().item()


def test_linear_on_crops_measures_the_same_head_on_zoomed_images(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--augment", "--epochs", "2", "--results-dir", str(tmp_path)]
    status, out, err = program("linear", str(trained), *flags)
    assert (status, err) == (0, "")
    summary = read_summary(tmp_path / "linear_augment")
    head = load_file(tmp_path / "linear_augment" / "head.safetensors")
    _, test = load_patterns()
    expected = measure_head(head, torchvision_features(trained, test.images, 36), test.labels)
    assert summary["zoomed"]["test_accuracy"] == pytest.approx(expected, abs=1.01)
    assert f"{summary['zoomed']['test_accuracy']:.2f}" in out
    assert "zoom 36" in out
    # Only the test images are encoded a second time.
    assert "zoom 36: test images are encoded twice" in " ".join(out.split())


def test_the_linear_solver_fits_a_head_of_its_own_to_zoomed_images(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--test-zoom", "2", "--results-dir", str(tmp_path)]
    status, out, _ = program("linear", str(trained), *flags)
    assert status == 0
    summary = read_summary(tmp_path / "linear")
    zoomed = summary["zoomed"]
    assert zoomed["held_out"] != summary["held_out"]
    assert set(zoomed["held_out"]) == {"0.1", "0.01", "0.001", "0.0001", "1e-05"}
    assert f"weight decay {zoomed['weight_decay']:g}), zoom 64" in " ".join(out.split())

    train, test = load_patterns()
    x = torchvision_features(trained, train.images, 64)
    center, spread = standardise_in_place(x)
    head = make_head(x.shape[1], 10)
    fit_logistic(head, x, train.labels, zoomed["weight_decay"])
    fold_standardisation(head, center, spread)
    queries = torchvision_features(trained, test.images, 64)
    expected = measure_head(head.state_dict(), queries, test.labels)
    assert zoomed["test_accuracy"] == pytest.approx(expected, abs=3)  # a few images, by rounding
    assert zoomed["test_top5_accuracy"] >= zoomed["test_accuracy"]


# ---------------------------------------------------------------- embed, flags, report


def test_embed_writes_features_of_zoomed_images(
    trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--test-zoom", "1.25", "--split", "test", "--results-dir", str(tmp_path)]
    assert program("embed", str(trained), *flags)[0] == 0
    _, test = load_patterns()
    with np.load(tmp_path / "embed" / "features.npz") as arrays:
        expected = torchvision_features(trained, test.images, 40).numpy()
        np.testing.assert_allclose(arrays["features"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("zoom", "answer"),
    [("1.01", "at least 1.031"), ("0.9", "greater than or equal to 1"), ("3", "2"), ("big", "big")],
)
@pytest.mark.parametrize("command", ["knn", "linear", "embed"])
def test_an_impossible_zoom_is_an_error_of_one_line(
    command: str, zoom: str, answer: str, trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ["--test-zoom", zoom, "--results-dir", str(tmp_path)]
    status, _, err = program(command, str(trained), *flags)
    assert status == 2
    assert err.count("\n") == 1
    assert "--test-zoom" in err
    assert answer in err
    assert not list(tmp_path.iterdir())


def test_a_report_shows_the_zoomed_results() -> None:
    row = {"features": "backbone", "k": 20, "temperature": 0.1}
    knn = {
        "table": [{**row, "accuracy": 50.0}],
        "zoomed": {"resized_side": 36, "table": [{**row, "accuracy": 51.0}]},
    }
    assert read_accuracies("knn", knn) == {
        "kNN, backbone features, k 20, T 0.1": [50.0],
        "kNN, backbone features, k 20, T 0.1, zoom 36": [51.0],
    }
    linear = {
        "train_images": 200,
        "test_accuracy": 60.0,
        "zoomed": {"resized_side": 36, "test_accuracy": 61.0},
    }
    assert read_accuracies("linear", linear) == {
        "linear, 200 labels": [60.0],
        "linear, 200 labels, zoom 36": [61.0],
    }
