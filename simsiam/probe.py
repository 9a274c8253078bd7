"""What labels make of a backbone: a linear classifier on frozen features, and fine-tuning of the whole network."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.resnet import ResNet
from simsiam.augment import Policy, augment
from simsiam.config import Finetune, Linear
from simsiam.data import EpochOrder
from simsiam.datasets import Images
from simsiam.evaluation import (
    Results,
    Subject,
    accuracy,
    confusion,
    open_subject,
    per_class,
    print_classes,
    random_backbone,
    read_json,
)
from simsiam.record import Curves, ProgressLine, fit
from utils.device import choose_accelerator, choose_device, choose_precision
from utils.errors import RunFailure, check
from utils.export import BACKBONE, HEAD, write_weights
from utils.logistic import fit_logistic
from utils.philox import permutation
from utils.schedule import warmup_cosine
from utils.terminal import print_table, say

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of standardised features, the strongest first
CHOICE = 2**32 - 1  # the epoch whose order decides which images are held out, or keep their labels: none trains in it


class Classifier(pl.LightningModule):
    """A backbone and a linear head that learn labels: (B, 3, S, S) -> (B, C) logits.

    Args:
        backbone: (B, 3, S, S) -> (B, F).
        classes: C.
        head_rate: learning rate of the head, which starts at zero.
        backbone_rate: None freezes the backbone: no gradient, and eval mode, so that BN keeps its statistics too.
        momentum, weight_decay: of SGD. All rates fall to 0 along a cosine.
    """

    def __init__(
        self,
        backbone: ResNet,
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

    def words(self) -> str:
        """The epoch's figures, for people."""
        metrics = self.trainer.callback_metrics
        loss, right = (metrics[f"probe/train_{name}"].item() for name in ("loss", "accuracy"))
        return f"loss {loss:.4f}  train {right:.2f} %"


class LabelledViews(pl.LightningDataModule):
    """Crops and flips of labelled images, a pure function of (seed, epoch, index).

    Args:
        images: a split; of it, only the images at `chosen` (n,) are used.
        mean, std: (3,), of the normalisation.
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
    ) -> None:
        super().__init__()
        self.images, self.chosen, self.mean, self.std = images, chosen, mean, std
        self.batch_size, self.seed = min(batch_size, len(chosen)), seed
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
            self.images.images[indices],
            indices,
            seed=self.seed,
            epoch=epoch,
            view=0,
            policy=self.policy,
            mean=self.mean,
            std=self.std,
        )
        return views, self.images.labels[indices]


def fit_classifier(
    config: Linear | Finetune, model: Classifier, data: LabelledViews, epochs: int, results: Results
) -> None:
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
    fit(trainer, model, data)
    loss = trainer.callback_metrics["probe/train_loss"].item()
    if not math.isfinite(loss):
        raise RunFailure(f"the loss is {loss}: lower --learning-rate; no figures were kept", status=4)
    model.to(data.chosen.device).eval()  # Lightning takes it back to the CPU


# ---------------------------------------------------------------- the linear probe


def linear(config: Linear) -> None:
    """Train a linear classifier on frozen features; print and keep its accuracy on all test images, and its weights."""
    choose_precision(config.precision, config.accelerator)  # what cannot be is said before any work
    scratch = config.seed if config.from_scratch else None
    subject = open_subject(config, choose_device(config.accelerator), scratch)
    name = "linear" + "_augment" * config.augment + "_from_scratch" * config.from_scratch
    results = Results(config, subject.trained, name)
    held = round(config.held_out * len(subject.train))
    check(0 < held < len(subject.train), f"--held-out {config.held_out}: {held} of {len(subject.train)} train images")
    subject.announce()
    head, figures = (probe_by_sgd if config.augment else probe_by_solver)(config, subject, results)
    features = subject.features(subject.test.images, "test images", unit=False)
    counts = confusion(head(features).argmax(dim=1), subject.test.labels, len(subject.classes))
    figures = facts(subject, counts) | figures
    write_head(results, subject, head, figures["test_accuracy"])
    print_classes(figures["per_class"])
    way = "crops and flips, SGD" if config.augment else f"L-BFGS, weight decay {figures['weight_decay']:g}"
    row = (f"linear ({way})", f"{len(subject.train):,}", f"{figures['test_accuracy']:.2f}")
    print_table(title(subject), ("classifier", "labels", "accuracy %"), [row])
    results.write(figures, {"probe/test_accuracy": figures["test_accuracy"]})


def title(subject: Subject) -> str:
    return f"accuracy on {len(subject.test):,} test images of {subject.dataset}"


def facts(subject: Subject, counts: Tensor) -> dict[str, Any]:
    return {
        "dataset": subject.dataset,
        "train_images": len(subject.train),
        "test_images": len(subject.test),
        "test_accuracy": accuracy(counts),
        "per_class": per_class(counts, subject.classes),
        "confusion": counts.tolist(),
    }


def write_head(results: Results, subject: Subject, head: nn.Linear, test_accuracy: float) -> None:
    about = {"classes": list(subject.classes), "dataset": subject.dataset, "test_accuracy": test_accuracy}
    state = head.state_dict()
    write_weights(results.path / "head.safetensors", HEAD, state, about | {"checkpoint": str(subject.trained.file)})


@torch.no_grad()
def as_head(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head.requires_grad_(False)


def probe_by_solver(config: Linear, subject: Subject, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """Logistic regression on features of clean images, its weight decay chosen on a held-out part of train."""
    train, classes = subject.train, len(subject.classes)
    held = round(config.held_out * len(train))
    order = permutation(len(train), CHOICE, seed=config.seed, device=subject.device)
    labels = train.labels[order]
    x = subject.features(train.images, "train images", unit=False, order=order)
    center, spread = x.mean(dim=0), x.std(dim=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x.sub_(center).div_(spread)
    start, tried, started = None, {}, time.perf_counter()
    for decay in WEIGHT_DECAYS:
        start = fit_logistic(x[held:], labels[held:], classes, decay, start)
        right = (torch.addmm(start[1], x[:held], start[0].T).argmax(dim=1) == labels[:held]).float().mean().item()
        tried[decay] = (100 * right, start)
        say(f"weight decay {decay:g}: {100 * right:.2f} % of {held:,} held-out train images")
    decay = max(tried, key=lambda d: tried[d][0])  # of equals, the strongest
    say(f"weight decay {decay:g}: fitted to all {len(train):,} train images")
    weight, bias = fit_logistic(x, labels, classes, decay, tried[decay][1])
    weight = weight / spread  # a head for features as they are
    figures = {
        "weight_decay": decay,
        "held_out": {f"{d:g}": right for d, (right, _) in tried.items()},
        "fit_seconds": round(time.perf_counter() - started, 1),  # without the features
    }
    results.clear()
    return as_head(weight, bias - weight @ center), figures


def probe_by_sgd(config: Linear, subject: Subject, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """The papers' way: a head on a frozen backbone, trained on crops and flips (lr 30, no weight decay)."""
    model = Classifier(subject.trained.backbone, len(subject.classes), config.learning_rate or 30.0)
    everything = torch.arange(len(subject.train), device=subject.device)
    data = LabelledViews(
        subject.train,
        everything,
        subject.mean,
        subject.std,
        batch_size=config.batch_size or 256,
        crop_scale=config.crop_scale or 0.8,
        seed=config.seed,
    )
    fit_classifier(config, model, data, config.epochs or 100, results)
    return model.head.requires_grad_(False), {}


# ---------------------------------------------------------------- fine-tuning


def finetune(config: Finetune) -> None:
    """Fine-tune once for each seed; print and keep accuracies on all test images, their mean and their deviation."""
    choose_precision(config.precision, config.accelerator)
    subject = open_subject(config, choose_device(config.accelerator))
    amount = f"{config.label_count}_labels" if config.label_count else f"{config.label_fraction:g}"
    name = f"finetune_{amount}" + "_from_scratch" * config.from_scratch
    quotas = label_quotas(subject.train.labels, subject.classes, config.label_fraction, config.label_count)
    overall = Results(config, subject.trained, name, replace=True)
    subject.announce()
    if config.overwrite:
        overall.clear()
    figures = {}
    for seed in config.seeds:
        results = Results(config, subject.trained, f"{name}/seed_{seed}", replace=True)
        if results.summary.exists():
            figures[seed] = read_json(results.summary)
            check_same(figures[seed], config, subject, results)
            say(f"seed {seed} is there already: {results.summary}")
        else:
            figures[seed] = finetune_once(config, subject, quotas, seed, results)
    accuracies = [figures[seed]["test_accuracy"] for seed in config.seeds]
    rows = [(f"seed {seed}", f"{sum(quotas):,}", f"{a:.2f}") for seed, a in zip(config.seeds, accuracies, strict=True)]
    spread = stdev(accuracies) if len(accuracies) > 1 else None
    if spread is not None:
        rows.append(("mean, deviation", "", f"{mean(accuracies):.2f} +- {spread:.2f}"))
    print_table(title(subject), ("from scratch" if config.from_scratch else "fine-tuned", "labels", "accuracy %"), rows)
    whole = {
        "dataset": subject.dataset,
        "labels": sum(quotas),
        "test_accuracy": mean(accuracies),
        "deviation": spread,
        "seeds": dict(zip(map(str, config.seeds), accuracies, strict=True)),
    }
    overall.write(whole, {"probe/test_accuracy": mean(accuracies)})


def finetune_once(
    config: Finetune, subject: Subject, quotas: Sequence[int], seed: int, results: Results
) -> dict[str, Any]:
    trained = subject.trained
    backbone = random_backbone(trained, seed) if config.from_scratch else copy.deepcopy(trained.backbone)
    chosen = choose_labels(subject.train.labels, quotas, seed)
    rate = config.learning_rate or (0.1 if config.from_scratch else 0.02)
    classes = len(subject.classes)
    model = Classifier(backbone, classes, config.head_learning_rate, rate, config.momentum, config.weight_decay)
    data = LabelledViews(
        subject.train,
        chosen,
        subject.mean,
        subject.std,
        batch_size=config.batch_size,
        crop_scale=config.crop_scale,
        seed=seed,
    )
    say(f"seed {seed}: {len(chosen):,} labels")
    fit_classifier(config, model, data, config.epochs, results)
    tuned = subject._replace(trained=trained._replace(backbone=backbone.eval()))
    features = tuned.features(subject.test.images, "test images", unit=False)
    counts = confusion(model.head.requires_grad_(False)(features).argmax(dim=1), subject.test.labels, classes)
    figures = facts(subject, counts) | {"seed": seed, "labels": len(chosen), "learning_rate": rate}
    write_weights(results.path / "backbone.safetensors", BACKBONE, backbone.state_dict(), trained.about)
    write_head(results, subject, model.head, figures["test_accuracy"])
    results.write(figures, {"probe/test_accuracy": figures["test_accuracy"]})
    return figures


SEED_FREE = {"seeds", "overwrite", "checkpoint", "results_dir", "data_dir", "data_url", "accelerator", "precision"}


def check_same(figures: dict[str, Any], config: Finetune, subject: Subject, results: Results) -> None:
    """Raise UserError unless an earlier seed was trained from these weights with these settings."""
    now = {name: value for name, value in asdict(config).items() if name not in SEED_FREE}
    changed = [f"--{name.replace('_', '-')}" for name, value in now.items() if figures["settings"].get(name) != value]
    if (figures["checkpoint"], figures["epoch"]) != (str(subject.trained.file), results.epoch):
        changed.append("--checkpoint")
    check(
        not changed,
        f"{results.summary} was made with another {', '.join(changed)}: give --overwrite, or another --results-dir",
    )


def label_quotas(labels: Tensor, classes: tuple[str, ...], fraction: float, count: int | None) -> list[int]:
    """How many labels each class keeps: a share of its own, or an equal part of `count`.

    Their sum is `count`, or the share of all labels, to the nearest whole number; what does not divide goes to the
    classes with the largest remainders.

    Raises:
        UserError: a class would have none, or has fewer than that.
    """
    there = labels.bincount(minlength=len(classes)).tolist()
    ideal = [fraction * n for n in there] if count is None else [count / len(there)] * len(there)
    quotas = [int(x) for x in ideal]
    by_remainder = sorted(range(len(there)), key=lambda c: quotas[c] - ideal[c])
    for c in by_remainder[: (round(sum(ideal)) if count is None else count) - sum(quotas)]:
        quotas[c] += 1
    asked = f"--label-fraction {fraction:g}" if count is None else f"--label-count {count}"
    for name, quota, n in zip(classes, quotas, there, strict=True):
        check(quota >= 1, f"{asked}: that leaves class {name} without a label")
        check(quota <= n, f"{asked}: that is {quota} of class {name}, which has {n}")
    return quotas


def choose_labels(labels: Tensor, quotas: Sequence[int], seed: int) -> Tensor:
    """(n,) indices, ascending: of each class as many as its quota, and a larger quota holds the smaller one's."""
    order = permutation(len(labels), CHOICE, seed=seed, device=labels.device)
    chosen = [order[labels[order] == c][:quota] for c, quota in enumerate(quotas)]
    return torch.cat(chosen).sort().values
