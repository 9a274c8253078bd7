"""Train a linear classifier on a backbone by SGD, on random crops and flips of labelled images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from simsiam.augment import augment, crop_and_flip_policy
from simsiam.data.dataset import ImageDataset
from simsiam.data.sampler import EpochSampler
from simsiam.data.view_maker import ViewMaker
from simsiam.evaluation.features import Preparation
from utils.console import print_line, show_progress
from utils.errors import NOT_FINITE_STATUS, RunError
from utils.lars import LARS
from utils.schedule import warmup_cosine

# A random order of images is a function of a seed and an epoch. This number stands for an epoch
# that no training reaches: its order decides which images are held out or keep their labels, so
# that this choice does not depend on the order of any training.
CHOICE_EPOCH = 2**32 - 1
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
FROZEN_PART = 512  # images that a frozen backbone encodes at once; 4,096 would not fit into memory
PROGRESS_LINES = 10  # about this many lines are printed during a training


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained. Both learning rates fall to 0 along a cosine.

    Attributes:
        epochs: passes over the images.
        batch_size: largest size of a batch. All batches of an epoch have the same size, which is
            chosen so that few images are left out.
        crop_scale: smallest area of a crop, as a share of the image.
        seed: decides the order of the images and their crops and flips.
        precision: Lightning's name for it, a key of DTYPES.
        head_lr: initial learning rate of the head.
        backbone_lr: initial learning rate of the backbone. None freezes the backbone: it gets no
            gradient, and its BN statistics do not change.
        optimizer: "sgd" or "lars".
        momentum, weight_decay: arguments of the optimizer. LARS has no weight decay.
        max_gradient_norm: gradients are clipped to this norm; None does not clip them.
    """

    epochs: int
    batch_size: int
    crop_scale: float
    seed: int
    precision: str
    head_lr: float
    backbone_lr: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_gradient_norm: float | None = None

    def sampler(self, n: int, epoch: int, device: torch.device) -> EpochSampler:
        """Return the batches of indices of an epoch of n images."""
        batches = math.ceil(n / self.batch_size)
        # Not 1 of an odd number of images in batches of 2: batch normalisation may need two.
        batch_size = max(n // batches, min(2, self.batch_size))
        return EpochSampler(n, batch_size, self.seed, lambda: epoch, device)


def train_classifier(
    backbone: nn.Module,
    head: nn.Linear,
    images: ImageDataset,
    chosen: Tensor,
    training: ClassifierTraining,
    preparation: Preparation,
    center: Tensor | float = 0.0,
    spread: Tensor | float = 1.0,
) -> int:
    """Train a head, and a backbone that is not frozen, in place.

    Args:
        backbone: (B, 3, S, S) -> (B, F). In eval mode afterwards.
        head: (B, F) -> (B, C). Its input is (features - center) / spread.
        images: images and labels.
        chosen: (n,) indices of the images that are used.
        training: settings of the training.
        preparation: of the images, as the backbone expects it.
        center, spread: (F,) each, or numbers.

    Returns:
        The number of optimizer steps.

    Raises:
        RunError: with NOT_FINITE_STATUS, if the loss or a weight is not finite at the end of an
            epoch.
    """
    device = chosen.device
    trains_backbone = training.backbone_lr is not None
    backbone.train(trains_backbone).requires_grad_(trains_backbone)

    parameters = list(head.parameters())
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": training.head_lr}]
    if trains_backbone:
        parameters += backbone.parameters()
        groups.append({"params": list(backbone.parameters()), "lr": training.backbone_lr})
    optimizer = _make_optimizer(groups, training)

    samplers = [training.sampler(len(chosen), epoch, device) for epoch in range(training.epochs)]
    steps_per_epoch = len(samplers[0])
    total_steps = steps_per_epoch * training.epochs
    total_images = total_steps * samplers[0].batch_size
    schedule = warmup_cosine(optimizer, 0, total_steps)

    # Only float16 needs its loss scaled; for other dtypes the scaler does nothing.
    dtype = DTYPES[training.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    mean, std, size = preparation

    def make_views(indices: Tensor, epoch: int) -> Iterator[Tensor]:
        """Yield the views of a batch: in parts if the backbone is frozen, else all at once."""
        part = len(indices) if trains_backbone else FROZEN_PART
        for some in indices.split(part):
            yield crop_and_flip(images, some, mean, std, size, training, epoch)

    # Sums over the batches of an epoch: the loss, and the accuracy on the train images in percent.
    sums = torch.zeros(2, device=device)
    batches = show_progress(chain.from_iterable(samplers), total_images, "images trained on")
    for step, batch in enumerate(batches):
        epoch = step // steps_per_epoch
        indices = chosen[batch]
        labels = images.labels[indices]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            raw = torch.cat([backbone(views).float() for views in make_views(indices, epoch)])
            features = (raw - center) / spread
            logits = head(features).float()
            loss = cross_entropy(logits, labels)

        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if training.max_gradient_norm is not None:
            scaler.unscale_(optimizer)  # `scaler.step` does this if nothing is clipped
            nn.utils.clip_grad_norm_(parameters, training.max_gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()

        accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean()
        sums += torch.stack([loss.detach(), accuracy])
        if (step + 1) % steps_per_epoch == 0:
            # Check only once an epoch, because reading a value waits for the device.
            _require_finite(sums, parameters)
            if (epoch + 1) % max(1, training.epochs // PROGRESS_LINES) == 0:
                _print_epoch(epoch + 1, training.epochs, sums / steps_per_epoch)
            sums.zero_()
    backbone.eval()
    return total_steps


def _make_optimizer(groups: list[dict[str, Any]], training: ClassifierTraining) -> torch.optim.SGD:
    if training.optimizer == "lars":
        assert training.weight_decay == 0
        return LARS(groups, training.head_lr, training.momentum)
    return torch.optim.SGD(
        groups, training.head_lr, training.momentum, weight_decay=training.weight_decay
    )


def _require_finite(sums: Tensor, parameters: list[nn.Parameter]) -> None:
    for tensor in (sums, *parameters):
        if not bool(tensor.isfinite().all()):
            raise RunError(
                "the loss or a weight is not finite, so no result is saved. Choose lower learning "
                "rates",
                NOT_FINITE_STATUS,
            )


def _print_epoch(epoch: int, epochs: int, means: Tensor) -> None:
    loss, accuracy = means.tolist()
    print_line(f"epoch {epoch}/{epochs}  loss {loss:.4f}  train {accuracy:.2f} %")


def crop_and_flip(
    images: ImageDataset,
    indices: Tensor,
    mean: Tensor,
    std: Tensor,
    size: int | None,
    training: ClassifierTraining,
    epoch: int,
) -> Tensor:
    """Return views (B, 3, S, S) of some images, a pure function of seed, epoch and index.

    Args:
        indices: (B,) indices of the images.
        mean, std: (3,) each, for the normalisation.
        size: S. None, or a size above the side of the images, means their side.
        training: its seed and crop_scale are used.
        epoch: from 0.
    """
    if size is None:
        size = images.side
    policy = crop_and_flip_policy(training.crop_scale)
    if images.whole is not None:
        maker = ViewMaker(1, training.seed, policy, compile=False)
        crops = maker.cut_crops(images.whole, indices, epoch, min(size, images.side))
        (view,) = maker.finish_crops(crops, indices, epoch, mean, std)
        return view
    return augment(
        images.images_at(indices),
        indices,
        seed=training.seed,
        epoch=epoch,
        view=0,
        policy=policy,
        mean=mean,
        std=std,
        size=min(size, images.side),
    )
