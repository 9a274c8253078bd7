"""The size at which an evaluation measures images: it takes the whole image, not its centre."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from simsiam import load_backbone
from simsiam.evaluation.features import extract_features, resize_to
from tests.helpers import TINY, Program
from tests.images import smooth_image


@pytest.mark.parametrize(("side", "size", "shorter_side"), [(32, 16, 16), (128, 96, 110)])
def test_larger_images_are_resized_as_torchvisions_evaluation_resizes_them(
    side: int, size: int, shorter_side: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, side, side), generator=generator, dtype=torch.uint8)
    expected = torchvision.resize(images, [shorter_side, shorter_side], antialias=True)
    expected = torchvision.center_crop(expected, [size, size])
    difference = resize_to(images, size).int() - expected.int()
    assert difference.abs().max() <= 1


def test_images_of_their_own_size_are_not_changed() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert resize_to(images, None) is images
    assert resize_to(images, 32) is images


def test_a_run_with_smaller_views_measures_whole_images(tmp_path: Path, program: Program) -> None:
    """The classes differ only at the border, which a crop of the centre would not show."""
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(100, 130, (60, 32, 32, 3), dtype=np.uint8)
    for border in (images[:, :6], images[:, -6:]):
        border[labels == 1] += 100
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "x.npz", **arrays)
    data = ["--dataset", "arrays", "--data-dir", str(tmp_path / "x.npz"), "--image-size", "16"]
    assert program(*TINY, *data, "--exp-name", "run", "--knn-k", "5")[0] == 0
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["kNN_untrained"] == summary["kNN_accuracy"] == 100


def test_image_size_of_an_evaluation_is_the_size_that_the_network_sees(
    trained: Path, tmp_path: Path, program: Program
) -> None:
    (tmp_path / "images").mkdir()
    image = smooth_image((64, 64))
    image.save(tmp_path / "images" / "x.png")
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "images" / "x.png")))
    backbone = load_backbone(trained)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    expected = extract_features(backbone, pixels.permute(2, 0, 1)[None], mean, std, unit=False)

    output = tmp_path / "features.npz"
    where = ["--output", str(output), "--results-dir", str(tmp_path / "results")]
    size = ["--images", str(tmp_path / "images"), "--image-size", "64"]
    assert program("embed", str(trained), *size, *where)[::2] == (0, "")
    with np.load(output, allow_pickle=False) as file:
        np.testing.assert_allclose(file["features"], expected, atol=1e-4)
