"""A linear classifier on a backbone, trained by SGD on crops and flips of labelled images."""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.resnet import ResNet
from simsiam.augment import Policy, augment
from simsiam.data.dataset import ImageDataset
from simsiam.data.sampler import EpochSampler
from utils.console import print_line, track_progress
from utils.errors import RunError
from utils.schedule import warmup_cosine

CHOICE_EPOCH = (
    2**32 - 1
)  # no training gets here: its order decides which images are held out or keep their labels
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
LINES = 10  # of a training's progress, about


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. All rates fall to 0 along a cosine."""

    epochs: int
    batch_size: int  # at most; lowered so that the batches of an epoch are equal and hardly an image is left out
    crop_scale: float
    seed: int  # of order and views
    precision: str  # Lightning's name
    head_lr: float
    backbone_lr: float | None = (
        None  # None freezes the backbone: no gradient, and BN keeps its statistics too
    )
    momentum: float = 0.9
    weight_decay: float = 0.0
    largest_gradient: float | None = None  # its norm is limited to this

    def sampler(self, n: int, epoch: int, device: torch.device) -> EpochSampler:
        """The batches of an epoch of n images."""
        return EpochSampler(
            n, n // math.ceil(n / self.batch_size), self.seed, lambda: epoch, device
        )


def train_classifier(
    backbone: ResNet,
    head: nn.Linear,
    images: ImageDataset,
    chosen: Tensor,
    recipe: Recipe,
    center: Tensor | float = 0.0,
    spread: Tensor | float = 1.0,
) -> int:
    """Train the head (F) -> (C), and a backbone that is not frozen, in place; the number of steps.

    Of the images only those at `chosen` (n,) are used; the head gets (features - center) / spread.
    Raises RunError with status 4 for a loss or weights that are not finite.
    """
    tuned, device = recipe.backbone_lr is not None, chosen.device
    backbone.train(tuned).requires_grad_(tuned)
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": recipe.head_lr}]
    if tuned:
        groups.append({"params": list(backbone.parameters()), "lr": recipe.backbone_lr})
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.SGD(
        groups, recipe.head_lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    samplers = [recipe.sampler(len(chosen), epoch, device) for epoch in range(recipe.epochs)]
    batches = len(samplers[0])  # of an epoch
    steps, n = batches * recipe.epochs, batches * recipe.epochs * samplers[0].batch_size
    schedule, dtype = warmup_cosine(optimizer, 0, steps), DTYPES[recipe.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    statistics = (
        torch.tensor(backbone.mean, device=device),
        torch.tensor(backbone.std, device=device),
    )
    figures = torch.zeros(
        2, device=device
    )  # sums over the epoch of the loss and of the train accuracy
    for step, places in enumerate(
        track_progress(chain.from_iterable(samplers), n, "images trained on")
    ):
        epoch, indices = step // batches, chosen[places]
        x = crop_and_flip(images, indices, *statistics, backbone.image_size, recipe, epoch)
        labels = images.labels[indices]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = head((backbone(x).float() - center) / spread).float()
            loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if recipe.largest_gradient is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.largest_gradient)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        figures += torch.stack(
            [loss.detach(), 100 * (logits.argmax(dim=1) == labels).float().mean()]
        )
        if (step + 1) % batches:
            continue
        if not all(bool(value.isfinite().all()) for value in (figures, *parameters)):
            raise RunError(
                "the loss or a weight is not finite: lower the learning rates; no figure of it is kept",
                4,
            )
        if (epoch + 1) % max(1, recipe.epochs // LINES) == 0:
            mean_loss, accuracy = (figures / batches).tolist()
            print_line(
                f"epoch {epoch + 1}/{recipe.epochs}  loss {mean_loss:.4f}  train {accuracy:.2f} %"
            )
        figures.zero_()
    backbone.eval()
    return steps


def crop_and_flip(
    images: ImageDataset,
    indices: Tensor,
    mean: Tensor,
    std: Tensor,
    size: int | None,
    recipe: Recipe,
    epoch: int,
) -> Tensor:
    """Views (B, 3, S, S) of the images at `indices` (B,), a pure function of (seed, epoch, index)."""
    policy = Policy(crop_scale=recipe.crop_scale, jitter=0, grayscale=0)
    how: dict[str, Any] = {
        "policy": policy,
        "mean": mean,
        "std": std,
        "size": min(size or images.side, images.side),
    }
    return augment(images.images_at(indices), indices, seed=recipe.seed, epoch=epoch, view=0, **how)
