"""A classifier on a backbone: what is frozen stays, and views are crops and flips alone."""

import pytest
import torch

from models import resnet10
from models.resnet import ResNet
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.classifier import Recipe, crop_and_flip, train_classifier
from simsiam.evaluation.logistic_regression import make_head


def small_backbone(size: int = 32) -> ResNet:
    backbone = resnet10(4, zero_init_residual=False)
    backbone.statistics, backbone.image_size = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), size
    return backbone


def recipe(batch_size: int, crop_scale: float = 0.5, backbone_rate: float | None = None) -> Recipe:
    rates = {"head_rate": 1.0, "backbone_rate": backbone_rate, "weight_decay": 1e-3}
    return Recipe(epochs=2, batch_size=batch_size, crop_scale=crop_scale, seed=0, precision="32-true", **rates)


def test_frozen_means_that_nothing_of_the_backbone_changes_and_tuned_that_all_does() -> None:
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    images = ImageDataset(pixels, torch.arange(64) % 4, tuple("abcd"))
    for rate in (None, 0.1):
        backbone, head = small_backbone(), make_head(32, 4)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        steps = train_classifier(backbone, head, images, torch.arange(64), recipe(16, backbone_rate=rate))
        after = backbone.state_dict()
        same = [torch.equal(before[name], after[name]) for name in before]
        assert all(same) if rate is None else not any(same)  # BN statistics and counters included
        assert head.weight.abs().sum() > 0 and steps == 8 and not backbone.training


@pytest.mark.parametrize(
    ("labels", "batch", "expected"), [(500, 256, 250), (511, 256, 255), (100, 256, 100), (5000, 256, 250)]
)
def test_hardly_a_labelled_image_is_left_over_in_an_epoch(labels: int, batch: int, expected: int) -> None:
    sampler = recipe(batch).sampler(labels, 0, torch.device("cpu"))
    assert sampler.batch_size == expected and labels - len(sampler) * expected < labels / 100


def test_views_are_crops_and_flips_alone_normalised_as_the_checkpoint_says() -> None:
    pixels = torch.randint(0, 256, (200, 1, 1, 1), dtype=torch.uint8).expand(200, 3, 16, 16)  # of one grey each
    images, backbone = ImageDataset(pixels, torch.arange(200), ("a",)), small_backbone(16)
    order = torch.arange(200).flip(0)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    views = crop_and_flip(images, order, mean, std, backbone.image_size, recipe(200, crop_scale=0.2), epoch=3)
    # no jitter and no grayscale: a grey image stays what it is, whatever the crop
    torch.testing.assert_close(views, (pixels[order] / 255 - mean[:, None, None]) / std[:, None, None])
