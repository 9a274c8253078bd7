"""The command `linear`: a linear classifier on the frozen backbone."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from models.resnet import ResNet
from simsiam.config.commands import Linear
from simsiam.evaluation.checkpoint import build_backbone
from simsiam.evaluation.classifier import (
    CHOICE_EPOCH,
    Classifier,
    LabelledViews,
    head_for_raw_features,
    measure_accuracy,
    print_accuracies,
    save_head,
    standardise_features,
    train_classifier,
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

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # for standardised features, the strongest first


def linear(config: Linear) -> None:
    """Train a linear classifier on frozen features; print and keep its accuracy on all test images, and its weights."""
    options = config.linear
    choose_precision(config.device.precision, config.device.accelerator)  # an impossible one fails before any work
    context = open_context(config, choose_device(config.device.accelerator))
    context.check_labels()
    if options.from_scratch:
        context = context.with_backbone(build_backbone(context.checkpoint.facts, options.seed).to(context.device))
    name = "linear" + "_augment" * options.augment + "_from_scratch" * options.from_scratch
    results = Results(config, context.checkpoint, name)
    held_out, n = round(options.held_out * len(context.train)), len(context.train)
    check(0 < held_out < n, f"--held-out {options.held_out}: {held_out} of {n} train images")
    context.announce()
    with results.lock():
        if options.augment:
            head, figures = fit_head_by_sgd(config, context, results)
            way = "crops and flips, SGD"
        else:
            head, figures = fit_head_by_solver(context, options.seed, held_out)
            way = f"L-BFGS, weight decay {figures['weight_decay']:g}"
        figures = measure_accuracy(context, head) | figures
        save_head(results, context, head, figures)
    print_classes(figures["per_class"])
    print_accuracies(context, "classifier", [(f"linear ({way})", f"{n:,}", f"{figures['test_accuracy']:.2f}")])


def fit_head_by_solver(context: EvaluationContext, seed: int, held_out: int) -> tuple[nn.Linear, dict[str, Any]]:
    """Logistic regression on features of clean images, with the weight decay that does best on held-out ones."""
    train = context.train
    order = permutation(len(train), CHOICE_EPOCH, seed=seed, device=context.device)
    chunks = (train.at(places) for places in order.split(chunk_size(train.images)))
    x = context.checkpoint.extract_features(chunks, len(train), "train images", unit=False)
    head, figures = choose_head(x, train.labels[order], len(context.classes), held_out)
    rows = [(decay, f"{right:.2f}") for decay, right in figures["held_out"].items()]
    print_table("on held-out train images", ("weight decay", "accuracy %"), rows)
    return head, figures


def choose_head(x: Tensor, labels: Tensor, classes: int, held_out: int) -> tuple[nn.Linear, dict[str, Any]]:
    """The linear classifier of features: its weight decay chosen on the first `held_out`, then fitted to all.

    Args:
        x: (N, F), in random order; standardised in place, which saves a copy.
        labels: (N,).
    """
    started = time.perf_counter()
    center, spread = standardise_features(x)
    fit, tried = None, {}
    for (decay,) in track_progress([[decay] for decay in WEIGHT_DECAYS], len(WEIGHT_DECAYS), "weight decays tried"):
        fit = fit_logistic(x[held_out:], labels[held_out:], classes, decay, start=fit)
        predicted = torch.addmm(fit.bias, x[:held_out], fit.weight.T).argmax(dim=1)
        tried[decay] = (100 * (predicted == labels[:held_out]).sum().item() / held_out, fit)
    decay = max(tried, key=lambda d: tried[d][0])  # the strongest of equals
    weight, bias, converged = fit_logistic(x, labels, classes, decay, start=tried[decay][1])
    figures = {
        "weight_decay": decay,
        "held_out": {f"{d:g}": right for d, (right, _) in tried.items()},
        "converged": converged,
        "fit_seconds": round(time.perf_counter() - started, 1),  # without the features
    }
    return head_for_raw_features(weight, bias, center, spread), figures


def fit_head_by_sgd(config: Linear, context: EvaluationContext, results: Results) -> tuple[nn.Linear, dict[str, Any]]:
    """A head on a frozen backbone, trained on crops and flips without weight decay, as papers do.

    The features are standardised by those of the clean train images, so that one learning rate suits every backbone
    (on raw features papers need 30 or 0.1, depending on their scale); the head that is kept takes raw features.
    """
    options, backbone, train = config.linear, context.checkpoint.backbone, context.train
    x = context.extract_features(train.images, "train images", unit=False)
    center, spread = standardise_features(x)
    model = Classifier(Standardised(backbone, center, spread), len(context.classes), options.learning_rate or 0.1)
    data = LabelledViews(
        train,
        torch.arange(len(train), device=context.device),
        *context.checkpoint.statistics,
        batch_size=options.batch_size or 256,
        crop_scale=options.crop_scale or 0.8,
        seed=options.seed,
        size=backbone.image_size,
    )
    steps = train_classifier(config, model, data, options.epochs or 100, results)
    return head_for_raw_features(model.head.weight, model.head.bias, center, spread), {"steps": steps}


class Standardised(nn.Module):
    """A backbone whose features have mean 0 and deviation 1: (B, 3, S, S) -> (B, F)."""

    def __init__(self, backbone: ResNet, center: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.backbone, self.num_features = backbone, backbone.num_features
        self.register_buffer("center", center)
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        return (self.backbone(x).float() - self.center) / self.spread
