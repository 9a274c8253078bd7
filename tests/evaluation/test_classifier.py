"""A classifier on a backbone: what is frozen stays, and views are crops and flips alone."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from models import resnet10
from models.resnet import ResNet
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.classifier import ClassifierTraining, crop_and_flip, train_classifier
from simsiam.evaluation.features import Preparation
from simsiam.evaluation.logistic_regression import make_head

PREPARATION = Preparation(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7]), 32)


def small_backbone() -> ResNet:
    return resnet10(4, zero_init_residual=False)


def training(
    batch_size: int, crop_scale: float = 0.5, backbone_lr: float | None = None
) -> ClassifierTraining:
    rates = {"head_lr": 1.0, "backbone_lr": backbone_lr, "weight_decay": 1e-3}
    return ClassifierTraining(
        epochs=2, batch_size=batch_size, crop_scale=crop_scale, seed=0, precision="32-true", **rates
    )


def test_all_of_the_backbone_changes_unless_it_is_frozen() -> None:
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    images = ImageDataset(pixels, torch.arange(64) % 4, tuple("abcd"))
    for rate in (None, 0.1):
        backbone, head = small_backbone(), make_head(32, 4)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        steps = train_classifier(
            backbone, head, images, torch.arange(64), training(16, backbone_lr=rate), PREPARATION
        )
        after = backbone.state_dict()
        same = [torch.equal(before[name], after[name]) for name in before]
        assert all(same) if rate is None else not any(same)  # BN statistics and counters included
        assert head.weight.abs().sum() > 0 and steps == 8 and not backbone.training


def test_a_frozen_backbone_takes_a_large_batch_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    images = ImageDataset(pixels, torch.arange(64) % 4, tuple("abcd"))
    heads = []
    for part in (512, 24):
        monkeypatch.setattr("simsiam.evaluation.classifier.FROZEN_PART", part)
        torch.manual_seed(0)
        backbone, head = small_backbone(), make_head(32, 4)
        sizes: list[int] = []
        backbone.register_forward_pre_hook(lambda _, x, sizes=sizes: sizes.append(len(x[0])))
        steps = train_classifier(
            backbone, head, images, torch.arange(64), training(64), PREPARATION
        )
        assert steps == 2
        assert max(sizes) == min(part, 64)
        heads.append(head.weight)
    torch.testing.assert_close(heads[0], heads[1])


def test_a_training_is_sgd_on_views_of_the_chosen_images() -> None:
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    images = ImageDataset(pixels, torch.arange(64) % 4, tuple("abcd"))
    chosen = torch.randperm(64)[:24]
    settings = training(12, backbone_lr=0.1)  # two steps in each of two epochs
    center, spread = torch.rand(32), 1 + torch.rand(32)
    backbone, head = small_backbone(), make_head(32, 4)
    twin, other = copy.deepcopy(backbone).train(), copy.deepcopy(head)
    assert (
        train_classifier(backbone, head, images, chosen, settings, PREPARATION, center, spread) == 4
    )

    groups = [{"params": other.parameters(), "lr": 1.0}, {"params": twin.parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(
        groups, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / 4)) / 2
    )
    statistics = PREPARATION.mean, PREPARATION.std
    for epoch in range(2):
        for batch in settings.sampler(24, epoch, torch.device("cpu")):
            indices = chosen[batch]
            views = crop_and_flip(images, indices, *statistics, 32, settings, epoch)
            logits = other((twin(views) - center) / spread)
            optimizer.zero_grad()
            cross_entropy(logits, images.labels[indices]).backward()
            optimizer.step()
            schedule.step()
    for ours, theirs in ((head, other), (backbone, twin)):
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("labels", "batch", "expected"),
    [(500, 256, 250), (511, 256, 255), (100, 256, 100), (5000, 256, 250), (129, 2, 2), (9, 1, 1)],
)
def test_hardly_a_labelled_image_is_left_over_in_an_epoch(
    labels: int, batch: int, expected: int
) -> None:
    sampler = training(batch).sampler(labels, 0, torch.device("cpu"))
    assert sampler.batch_size == expected and labels - len(sampler) * expected < labels / 100


def test_views_are_crops_and_flips_alone_normalised_as_the_checkpoint_says() -> None:
    pixels = torch.randint(0, 256, (200, 1, 1, 1), dtype=torch.uint8).expand(
        200, 3, 16, 16
    )  # of one grey each
    images = ImageDataset(pixels, torch.arange(200), ("a",))
    order = torch.arange(200).flip(0)
    mean, std, _ = PREPARATION
    views = crop_and_flip(images, order, mean, std, 16, training(200, crop_scale=0.2), epoch=3)
    # no jitter and no grayscale: a grey image stays what it is, whatever the crop
    torch.testing.assert_close(
        views, (pixels[order] / 255 - mean[:, None, None]) / std[:, None, None]
    )


def test_a_view_shows_a_share_of_its_image_and_half_are_flipped() -> None:
    """Of images whose red tells the column and whose green tells the row."""
    ramp = torch.arange(32, dtype=torch.uint8) * 8
    pixels = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)])
    images = ImageDataset(
        pixels.expand(500, 3, 32, 32), torch.zeros(500, dtype=torch.int64), ("a",)
    )
    statistics = torch.zeros(3), torch.ones(3)
    views = crop_and_flip(
        images, torch.arange(500), *statistics, 32, training(500, crop_scale=0.2), epoch=0
    )
    red = views[:, 0, 0, :] * 255 / 8  # columns of the pixels
    green = views[:, 1, :, 0] * 255 / 8  # rows of the pixels
    area = (red[:, -1] - red[:, 0]).abs() * (green[:, -1] - green[:, 0]) / 31**2
    assert 0.1 < area.min() < 0.3
    assert area.max() > 0.9
    assert area.mean().item() == pytest.approx(0.58, abs=0.05)
    assert (red[:, -1] < red[:, 0]).float().mean().item() == pytest.approx(0.5, abs=0.1)
