"""A backbone with a linear classifier, and how it is trained: shared by `linear` and `finetune`."""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from simsiam.augment import Policy, augment
from simsiam.callbacks.progress import ProgressCallback
from simsiam.callbacks.tensorboard import ResilientTensorBoardLogger
from simsiam.config.commands import Finetune, Linear
from simsiam.data.dataset import ImageDataset
from simsiam.data.sampler import EpochSampler
from simsiam.evaluation.context import EvaluationContext
from simsiam.evaluation.metrics import accuracy, confusion, per_class
from simsiam.evaluation.results import Results
from utils.console import print_table
from utils.device import choose_accelerator, choose_precision
from utils.errors import RunFailure
from utils.export import HEAD, write_weights
from utils.schedule import warmup_cosine

CHOICE_EPOCH = 2**32 - 1  # no training gets here: its order decides which images are held out or keep their labels


class Classifier(pl.LightningModule):
    """A backbone and a linear head that learn labels: (B, 3, S, S) -> (B, C) logits.

    Args:
        backbone: (B, 3, S, S) -> (B, F).
        classes: C.
        head_rate: learning rate of the head, whose weights are zero at first.
        backbone_rate: None freezes the backbone: no gradient, and eval mode, so that BN keeps its statistics too.
        momentum, weight_decay: of SGD. All rates fall to 0 along a cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        head_rate: float,
        backbone_rate: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.num_features), classes)  # pyright: ignore[reportArgumentType]
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.head_rate, self.backbone_rate = head_rate, backbone_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        self.backbone.train(mode and self.backbone_rate is not None)
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_rate is not None):
            features = self.backbone(x)
        return self.head(features)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, labels = batch
        logits = self(x)
        loss = cross_entropy(logits.float(), labels)
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        metrics = {"probe/train_loss": loss.detach(), "probe/train_accuracy": 100 * right}
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
        loss = self.trainer.callback_metrics["probe/train_loss"].item()
        finite = all(bool(parameter.isfinite().all()) for parameter in self.parameters())
        if not (math.isfinite(loss) and finite):
            what = "a weight is not finite" if math.isfinite(loss) else f"the loss is {loss}"
            raise RunFailure(f"{what}: lower the learning rates; no figures were kept", status=4)

    def describe_epoch(self) -> str:
        """The figures that are shown as progress."""
        metrics = self.trainer.callback_metrics
        loss, right = (metrics[f"probe/train_{name}"].item() for name in ("loss", "accuracy"))
        return f"loss {loss:.4f}  train {right:.2f} %"


class LabelledViews(pl.LightningDataModule):
    """Crops and flips of labelled images, a pure function of (seed, epoch, index).

    Args:
        images: a split; of it, only the images at `chosen` (n,) are used.
        mean, std: (3,), of the normalisation.
        batch_size: at most; lowered so that the batches of an epoch are equal and hardly an image is left out.
        size: S, the side of the crops; None for that of the images.
    """

    def __init__(
        self,
        images: ImageDataset,
        chosen: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        batch_size: int,
        crop_scale: float,
        seed: int,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.size = None if size is None else min(size, images.side)
        self.images, self.chosen, self.mean, self.std = images, chosen, mean, std
        self.batch_size, self.seed = len(chosen) // math.ceil(len(chosen) / batch_size), seed
        self.policy = Policy(crop_scale=crop_scale, jitter=0, grayscale=0)

    def train_dataloader(self) -> EpochSampler:
        return EpochSampler(len(self.chosen), self.batch_size, self.seed, self.current_epoch, self.chosen.device)

    def current_epoch(self) -> int:
        assert self.trainer is not None
        return self.trainer.current_epoch

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Positions (B,) -> views (B, 3, S, S), labels (B,)."""
        indices = self.chosen[batch]
        how: dict[str, Any] = {"policy": self.policy, "mean": self.mean, "std": self.std, "size": self.size}
        views = augment(self.images.at(indices), indices, seed=self.seed, epoch=self.current_epoch(), view=0, **how)
        return views, self.images.labels[indices]


def train_classifier(
    config: Linear | Finetune, model: Classifier, data: LabelledViews, epochs: int, results: Results
) -> int:
    """Train, with the curves in the results folder, and return the number of steps taken.

    Raises:
        RunFailure: status 4 for a loss or weights that are not finite.
    """
    results.clear()
    trainer = pl.Trainer(
        accelerator=choose_accelerator(config.device.accelerator),
        devices=1,
        precision=choose_precision(config.device.precision, config.device.accelerator),
        max_epochs=epochs,
        logger=ResilientTensorBoardLogger(results.tensorboard, name="", version="", default_hp_metric=False),
        callbacks=[ProgressCallback(model.describe_epoch)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,  # epoch means are logged at each epoch's end
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    model.to(data.chosen.device).eval()  # Lightning takes it back to the CPU
    return trainer.global_step


def measure_accuracy(context: EvaluationContext, head: nn.Linear) -> dict[str, Any]:
    """Accuracy of backbone and head on all test images, clean."""
    features = context.extract_features(context.test.images, "test images", unit=False)
    counts = confusion(head(features).argmax(dim=1), context.test.labels, len(context.classes))
    return {
        "dataset": context.dataset,
        "train_images": len(context.train),
        "test_images": len(context.test),
        "test_accuracy": accuracy(counts),
        "per_class": per_class(counts, context.classes),
        "confusion": counts.tolist(),
    }


def print_accuracies(context: EvaluationContext, kind: str, rows: Sequence[Sequence[str]]) -> None:
    """A table of classifiers, the labels that each has learned from, and its accuracy."""
    title = f"accuracy on {len(context.test):,} test images of {context.dataset}"
    print_table(title, (kind, "labels", "accuracy %"), rows)


def save_head(results: Results, context: EvaluationContext, head: nn.Linear, figures: dict[str, Any]) -> None:
    """Write `head.safetensors`, then the figures: `summary.json` marks a measurement as finished."""
    results.clear()
    about = {"classes": list(context.classes), "dataset": context.dataset, "checkpoint": str(context.checkpoint.file)}
    about["test_accuracy"] = figures["test_accuracy"]
    write_weights(results.path / "head.safetensors", HEAD, head.state_dict(), about)
    results.write(figures, {"probe/test_accuracy": figures["test_accuracy"]}, step=figures.get("steps"))


def standardise_features(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give each column of (N, F) mean 0 and deviation 1, in place; return the means and deviations (F,) it had."""
    center, spread = x.mean(dim=0), x.std(dim=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x.sub_(center).div_(spread)
    return center, spread


@torch.no_grad()
def head_for_raw_features(weight: Tensor, bias: Tensor, center: Tensor, spread: Tensor) -> nn.Linear:
    """The head that gives for raw features the logits that `weight` and `bias` give for standardised ones."""
    head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    head.weight.copy_(weight / spread)
    head.bias.copy_(bias - head.weight @ center)
    return head.requires_grad_(False)
