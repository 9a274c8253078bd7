"""A backbone with a linear classifier, and the labelled images that it is trained on."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.resnet import ResNet
from simsiam.augment import Policy, augment
from simsiam.data.dataset import ImageDataset
from simsiam.data.sampler import EpochSampler
from simsiam.evaluation.logistic_regression import make_head
from utils.errors import RunFailure
from utils.schedule import warmup_cosine


class Classifier(pl.LightningModule):
    """A backbone and a linear head that learn labels: (B, 3, S, S) -> (B, C) logits.

    Args:
        backbone: (B, 3, S, S) -> (B, F).
        classes: C.
        head_rate: learning rate of the head, whose weights are zero at first.
        backbone_rate: None freezes the backbone: no gradient, and eval mode, so that BN keeps its statistics too.
        momentum, weight_decay: of SGD. All rates fall to 0 along a cosine.
        center, spread: (F,) of the features; the head gets (features - center) / spread.
    """

    def __init__(
        self,
        backbone: ResNet,
        classes: int,
        head_rate: float,
        backbone_rate: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        center: Tensor | float = 0.0,
        spread: Tensor | float = 1.0,
    ) -> None:
        super().__init__()
        tuned = backbone_rate is not None
        self.backbone = backbone.train(tuned).requires_grad_(tuned)
        self.head = make_head(backbone.num_features, classes)
        self.head_rate, self.backbone_rate = head_rate, backbone_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        self.register_buffer("center", torch.as_tensor(center))
        self.register_buffer("spread", torch.as_tensor(spread))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.backbone(x).float() - self.center) / self.spread)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, labels = batch
        logits = self(x).float()
        loss = cross_entropy(logits, labels)
        right = 100 * (logits.detach().argmax(dim=1) == labels).float().mean()
        metrics = {"probe/train_loss": loss.detach(), "probe/train_accuracy": right}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": self.head_rate}]
        if self.backbone_rate is not None:
            groups.append({"params": list(self.backbone.parameters()), "lr": self.backbone_rate})
        optimizer = torch.optim.SGD(groups, self.head_rate, self.momentum, weight_decay=self.weight_decay)
        schedule = warmup_cosine(optimizer, 0, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        """Raise RunFailure with status 4 for a loss or weights that are not finite."""
        values = (self.trainer.callback_metrics["probe/train_loss"], *self.parameters())
        if not all(bool(value.isfinite().all()) for value in values):
            message = "the loss or a weight is not finite: lower the learning rates; no figures were kept"
            raise RunFailure(message, status=4)

    def describe_epoch(self) -> str:
        """The figures that are shown as progress."""
        metrics = self.trainer.callback_metrics
        return f"loss {metrics['probe/train_loss']:.4f}  train {metrics['probe/train_accuracy']:.2f} %"


class LabelledViews(pl.LightningDataModule):
    """Crops and flips of labelled images, a pure function of (seed, epoch, index).

    Args:
        images: a split; of it, only the images at `chosen` (n,) are used.
        backbone: has the mean, std and side of the views.
        batch_size: at most; lowered so that the batches of an epoch are equal and hardly an image is left out.
    """

    def __init__(
        self, images: ImageDataset, chosen: Tensor, backbone: ResNet, batch_size: int, crop_scale: float, seed: int
    ) -> None:
        super().__init__()
        assert backbone.image_size is not None
        self.images, self.chosen, self.size = images, chosen, min(backbone.image_size, images.side)
        self.mean, self.std = (torch.tensor(x, device=chosen.device) for x in (backbone.mean, backbone.std))
        self.batch_size, self.seed = len(chosen) // math.ceil(len(chosen) / batch_size), seed
        self.policy = Policy(crop_scale=crop_scale, jitter=0, grayscale=0)

    def epoch(self) -> int:
        assert self.trainer is not None
        return self.trainer.current_epoch

    def train_dataloader(self) -> EpochSampler:
        return EpochSampler(len(self.chosen), self.batch_size, self.seed, self.epoch, self.chosen.device)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Positions (B,) -> views (B, 3, S, S), labels (B,)."""
        indices = self.chosen[batch]
        how: dict[str, Any] = {"policy": self.policy, "mean": self.mean, "std": self.std, "size": self.size}
        views = augment(self.images.at(indices), indices, seed=self.seed, epoch=self.epoch(), view=0, **how)
        return views, self.images.labels[indices]
