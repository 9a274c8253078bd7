"""A classifier on a backbone: what is frozen stays, and views are crops and flips alone."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from models import resnet10
from models.resnet import ResNet
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.classifier import Classifier, LabelledViews


def small_backbone(size: int = 32) -> ResNet:
    backbone = resnet10(4, zero_init_residual=False)
    backbone.statistics, backbone.image_size = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), size
    return backbone


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")  # that is the point
def test_frozen_means_that_nothing_of_the_backbone_changes_and_tuned_that_all_does() -> None:
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    images = ImageDataset(pixels, torch.arange(64) % 4, tuple("abcd"))
    for rate in (None, 0.1):
        backbone = small_backbone()
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        model = Classifier(backbone, 4, head_rate=1.0, backbone_rate=rate, weight_decay=1e-3)
        data = LabelledViews(images, torch.arange(64), backbone, batch_size=16, crop_scale=0.5, seed=0)
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
        after = backbone.state_dict()
        same = [torch.equal(before[name], after[name]) for name in before]
        assert all(same) if rate is None else not any(same)  # BN statistics and counters included
        assert model.head.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("labels", "batch", "expected"), [(500, 256, 250), (511, 256, 255), (100, 256, 100), (5000, 256, 250)]
)
def test_hardly_a_labelled_image_is_left_over_in_an_epoch(labels: int, batch: int, expected: int) -> None:
    images = ImageDataset(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1), ("a",))
    data = LabelledViews(images, torch.arange(labels), small_backbone(), batch_size=batch, crop_scale=0.5, seed=0)
    assert data.batch_size == expected and labels - labels // expected * expected < labels / 100


def test_views_are_crops_and_flips_alone_normalised_as_the_checkpoint_says() -> None:
    pixels = torch.randint(0, 256, (200, 1, 1, 1), dtype=torch.uint8).expand(200, 3, 16, 16)  # of one grey each
    images, backbone = ImageDataset(pixels, torch.arange(200), ("a",)), small_backbone(16)
    data = LabelledViews(images, torch.arange(200), backbone, batch_size=200, crop_scale=0.2, seed=0)
    data.trainer = SimpleNamespace(current_epoch=3)
    order = torch.arange(200).flip(0)
    views, labels = data.on_after_batch_transfer(order, 0)
    assert torch.equal(labels, order)  # no jitter and no grayscale: a grey image stays what it is, whatever the crop
    mean, std = (torch.tensor(x)[:, None, None] for x in (backbone.mean, backbone.std))
    torch.testing.assert_close(views, (pixels[order] / 255 - mean) / std)
