"""What labels make of a backbone: a classifier on top of it, and the command `linear`, which leaves it frozen."""

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.resnet import ResNet
from simsiam.augment import Policy, augment
from simsiam.config import Finetune, Linear
from simsiam.data import EpochOrder
from simsiam.evaluation import (
    Results,
    Subject,
    accuracy,
    confusion,
    open_subject,
    per_class,
    print_classes,
)
from simsiam.features import chunk_size
from simsiam.record import Curves, ProgressLine
from simsiam.splits import Images
from utils.device import choose_accelerator, choose_device, choose_precision
from utils.errors import RunFailure, check
from utils.export import HEAD, write_weights
from utils.logistic import fit_logistic
from utils.philox import permutation
from utils.schedule import warmup_cosine
from utils.terminal import print_table, tracked

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of standardised features, the strongest first
CHOICE = 2**32 - 1  # the epoch whose order decides which images are held out, or keep their labels: none trains in it


class Classifier(pl.LightningModule):
    """A backbone and a linear head that learn labels: (B, 3, S, S) -> (B, C) logits.

    Args:
        backbone: (B, 3, S, S) -> (B, F).
        classes: C.
        head_rate: learning rate of the head, which is zero until somebody fills it.
        backbone_rate: None freezes the backbone: no gradient, and eval mode, so that BN keeps its statistics too.
        momentum, weight_decay: of SGD. All rates fall to 0 along a cosine.
    """

    def __init__(
        self,
        backbone: "ResNet | Standardised",
        classes: int,
        head_rate: float,
        backbone_rate: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.num_features, classes)
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
        loss = self.trainer.callback_metrics["probe/train_loss"].item()
        if not math.isfinite(loss):
            raise RunFailure(f"the loss is {loss}: lower the learning rates; no figures were kept", status=4)

    def words(self) -> str:
        """The epoch's figures, for people."""
        metrics = self.trainer.callback_metrics
        loss, right = (metrics[f"probe/train_{name}"].item() for name in ("loss", "accuracy"))
        return f"loss {loss:.4f}  train {right:.2f} %"


class LabelledViews(pl.LightningDataModule):
    """Crops and flips of labelled images, a pure function of (seed, epoch, index).

    Args:
        images: a split; of it, only the images at `chosen` (n,) are used.
        batch_size: at most; so many fewer that hardly an image is left over in an epoch.
        mean, std: (3,), of the normalisation.
        size: S, the side of the crops; None for that of the images.
    """

    def __init__(
        self,
        images: Images,
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

    def train_dataloader(self) -> EpochOrder:
        assert self.trainer is not None
        trainer, device = self.trainer, self.chosen.device
        return EpochOrder(len(self.chosen), self.batch_size, self.seed, lambda: trainer.current_epoch, device)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Positions (B,) -> views (B, 3, S, S), labels (B,)."""
        assert self.trainer is not None
        indices, epoch = self.chosen[batch], self.trainer.current_epoch
        views = augment(
            self.images.at(indices),
            indices,
            seed=self.seed,
            epoch=epoch,
            view=0,
            policy=self.policy,
            mean=self.mean,
            std=self.std,
            size=self.size,
        )
        return views, self.images.labels[indices]


def fit_classifier(
    config: Linear | Finetune, model: Classifier, data: LabelledViews, epochs: int, results: Results
) -> int:
    """Train; the number of steps taken.

    Raises:
        RunFailure: status 4, if a weight is no longer finite.
    """
    results.clear()
    trainer = pl.Trainer(
        accelerator=choose_accelerator(config.accelerator),
        devices=1,
        precision=choose_precision(config.precision, config.accelerator),
        max_epochs=epochs,
        logger=Curves(results.path, name="", version="", default_hp_metric=False),
        callbacks=[ProgressLine(model.words)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,  # epoch means are logged at each epoch's end
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    if not finite:
        raise RunFailure("a weight is not finite: lower the learning rates; no figures were kept", status=4)
    model.to(data.chosen.device).eval()  # Lightning takes it back to the CPU
    return trainer.global_step


# ---------------------------------------------------------------- the linear probe


def linear(config: Linear) -> None:
    """Train a linear classifier on frozen features; print and keep its accuracy on all test images, and its weights."""
    choose_precision(config.precision, config.accelerator)  # what cannot be is said before any work
    scratch = config.seed if config.from_scratch else None
    subject = open_subject(config, choose_device(config.accelerator), scratch)
    subject.need_labels()
    name = "linear" + "_augment" * config.augment + "_from_scratch" * config.from_scratch
    results = Results(config, subject.trained, name)
    held = round(config.held_out * len(subject.train))
    check(0 < held < len(subject.train), f"--held-out {config.held_out}: {held} of {len(subject.train)} train images")
    subject.announce()
    with results.alone():
        head, figures = (probe_by_sgd if config.augment else probe_by_solver)(config, subject, results)
        figures = measure(subject, head) | figures
        keep_head(results, subject, head, figures)
    print_classes(figures["per_class"])
    way = "crops and flips, SGD" if config.augment else f"L-BFGS, weight decay {figures['weight_decay']:g}"
    row = (f"linear ({way})", f"{len(subject.train):,}", f"{figures['test_accuracy']:.2f}")
    print_table(title(subject), ("classifier", "labels", "accuracy %"), [row])


def title(subject: Subject) -> str:
    return f"accuracy on {len(subject.test):,} test images of {subject.dataset}"


def measure(subject: Subject, head: nn.Linear) -> dict[str, Any]:
    """Accuracy of the subject's backbone and this head on clean images: all test images."""
    features = subject.features(subject.test.images, "test images", unit=False)
    counts = confusion(head(features).argmax(dim=1), subject.test.labels, len(subject.classes))
    return {
        "dataset": subject.dataset,
        "train_images": len(subject.train),
        "test_images": len(subject.test),
        "test_accuracy": accuracy(counts),
        "per_class": per_class(counts, subject.classes),
        "confusion": counts.tolist(),
    }


def keep_head(results: Results, subject: Subject, head: nn.Linear, figures: dict[str, Any]) -> None:
    """Write `head.safetensors`, then the figures, which are what makes a measurement finished."""
    results.path.mkdir(parents=True, exist_ok=True)
    if not results.cleared:
        results.clear()
    about = {"classes": list(subject.classes), "dataset": subject.dataset, "checkpoint": str(subject.trained.file)}
    about["test_accuracy"] = figures["test_accuracy"]
    write_weights(results.path / "head.safetensors", HEAD, head.state_dict(), about)
    results.write(figures, {"probe/test_accuracy": figures["test_accuracy"]}, step=figures.get("steps"))


def probe_by_solver(config: Linear, subject: Subject, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """Logistic regression on features of clean images."""
    train = subject.train
    order = permutation(len(train), CHOICE, seed=config.seed, device=subject.device)
    chunks = (train.at(i) for i in order.split(chunk_size(train.images)))
    x = subject.model.features(chunks, len(train), "train images", unit=False)
    head, figures = solve_head(x, train.labels[order], len(subject.classes), round(config.held_out * len(train)))
    rows = [(f"{decay}", f"{right:.2f}") for decay, right in figures["held_out"].items()]
    print_table("on held-out train images", ("weight decay", "accuracy %"), rows)
    return head, figures


def solve_head(x: Tensor, labels: Tensor, classes: int, held: int) -> tuple[nn.Linear, dict[str, Any]]:
    """The linear classifier of features, its weight decay chosen on the first `held` of them, then fitted to all.

    Args:
        x: (N, F), in random order; standardised where it lies, to save its copy.
        labels: (N,).
    """
    started = time.perf_counter()
    center, spread = standardise(x)
    start, tried = None, {}
    for (decay,) in tracked([[decay] for decay in WEIGHT_DECAYS], len(WEIGHT_DECAYS), "weight decays tried"):
        start = fit_logistic(x[held:], labels[held:], classes, decay, start)
        right = (torch.addmm(start.bias, x[:held], start.weight.T).argmax(dim=1) == labels[:held]).sum().item()
        tried[decay] = (100 * right / held, start)
    decay = max(tried, key=lambda d: tried[d][0])  # of equals, the strongest
    weight, bias, converged = fit_logistic(x, labels, classes, decay, tried[decay][1])
    figures = {
        "weight_decay": decay,
        "held_out": {f"{d:g}": right for d, (right, _) in tried.items()},
        "converged": converged,
        "fit_seconds": round(time.perf_counter() - started, 1),  # without the features
    }
    return for_raw_features(weight, bias, center, spread), figures


def probe_by_sgd(config: Linear, subject: Subject, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """The papers' way: a head on a frozen backbone, trained on crops and flips, without weight decay.

    The features are standardised first, by those of the clean train images, so that one learning rate suits every
    backbone (on raw features papers need 30, or .1, as their scale has it); the head that is kept takes them raw.
    """
    backbone = subject.trained.backbone
    x = subject.features(subject.train.images, "train images", unit=False)
    center, spread = standardise(x)
    model = Classifier(Standardised(backbone, center, spread), len(subject.classes), config.learning_rate or 0.1)
    everything = torch.arange(len(subject.train), device=subject.device)
    data = LabelledViews(
        subject.train,
        everything,
        subject.model.mean,
        subject.model.std,
        batch_size=config.batch_size or 256,
        crop_scale=config.crop_scale or 0.8,
        seed=config.seed,
        size=backbone.image_size,
    )
    steps = fit_classifier(config, model, data, config.epochs or 100, results)
    return for_raw_features(model.head.weight, model.head.bias, center, spread), {"steps": steps}


class Standardised(nn.Module):
    """A backbone whose features have mean 0 and deviation 1: (B, 3, S, S) -> (B, F)."""

    def __init__(self, backbone: ResNet, center: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.backbone, self.num_features = backbone, backbone.num_features
        self.register_buffer("center", center)
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        return (self.backbone(x).float() - self.center) / self.spread


def standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give each column of (N, F) mean 0 and deviation 1, where it lies; what was taken away, and divided by."""
    center, spread = x.mean(dim=0), x.std(dim=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x.sub_(center).div_(spread)
    return center, spread


@torch.no_grad()
def for_raw_features(weight: Tensor, bias: Tensor, center: Tensor, spread: Tensor) -> nn.Linear:
    """The head that does with raw features what `weight` and `bias` do with standardised ones."""
    head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    head.weight.copy_(weight / spread)
    head.bias.copy_(bias - head.weight @ center)
    return head.requires_grad_(False)
