"""The command `linear`: a linear classifier on the frozen backbone."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from models.resnet import ResNet
from simsiam.config.commands import Linear
from simsiam.evaluation.classifier import (
    CHOICE,
    Classifier,
    LabelledViews,
    fit_classifier,
    for_raw_features,
    keep_head,
    measure,
    standardise,
    title,
)
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.logistic_regression import fit_logistic
from simsiam.evaluation.metrics import print_classes
from simsiam.evaluation.results import Results
from utils.console import print_table, track_progress
from utils.device import choose_device, choose_precision
from utils.errors import check
from utils.philox import permutation

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of standardised features, the strongest first


def linear(config: Linear) -> None:
    """Train a linear classifier on frozen features; print and keep its accuracy on all test images, and its weights."""
    choose_precision(config.device.precision, config.device.accelerator)  # what cannot be is said before any work
    scratch = config.linear.seed if config.linear.from_scratch else None
    subject = open_context(config, choose_device(config.device.accelerator), scratch)
    subject.need_labels()
    name = "linear" + "_augment" * config.linear.augment + "_from_scratch" * config.linear.from_scratch
    results = Results(config, subject.trained, name)
    held = round(config.linear.held_out * len(subject.train))
    check(
        0 < held < len(subject.train),
        f"--held-out {config.linear.held_out}: {held} of {len(subject.train)} train images",
    )
    subject.announce()
    with results.alone():
        head, figures = (probe_by_sgd if config.linear.augment else probe_by_solver)(config, subject, results)
        figures = measure(subject, head) | figures
        keep_head(results, subject, head, figures)
    print_classes(figures["per_class"])
    way = "crops and flips, SGD" if config.linear.augment else f"L-BFGS, weight decay {figures['weight_decay']:g}"
    row = (f"linear ({way})", f"{len(subject.train):,}", f"{figures['test_accuracy']:.2f}")
    print_table(title(subject), ("classifier", "labels", "accuracy %"), [row])


def probe_by_solver(config: Linear, subject: EvaluationContext, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """Logistic regression on features of clean images."""
    train = subject.train
    order = permutation(len(train), CHOICE, seed=config.linear.seed, device=subject.device)
    chunks = (train.at(i) for i in order.split(chunk_size(train.images)))
    x = subject.model.features(chunks, len(train), "train images", unit=False)
    head, figures = solve_head(x, train.labels[order], len(subject.classes), round(config.linear.held_out * len(train)))
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
    for (decay,) in track_progress([[decay] for decay in WEIGHT_DECAYS], len(WEIGHT_DECAYS), "weight decays tried"):
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


def probe_by_sgd(config: Linear, subject: EvaluationContext, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """The papers' way: a head on a frozen backbone, trained on crops and flips, without weight decay.

    The features are standardised first, by those of the clean train images, so that one learning rate suits every
    backbone (on raw features papers need 30, or .1, as their scale has it); the head that is kept takes them raw.
    """
    backbone = subject.trained.backbone
    x = subject.features(subject.train.images, "train images", unit=False)
    center, spread = standardise(x)
    model = Classifier(Standardised(backbone, center, spread), len(subject.classes), config.linear.learning_rate or 0.1)
    everything = torch.arange(len(subject.train), device=subject.device)
    data = LabelledViews(
        subject.train,
        everything,
        subject.model.mean,
        subject.model.std,
        batch_size=config.linear.batch_size or 256,
        crop_scale=config.linear.crop_scale or 0.8,
        seed=config.linear.seed,
        size=backbone.image_size,
    )
    steps = fit_classifier(config, model, data, config.linear.epochs or 100, results)
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
