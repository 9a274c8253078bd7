"""The command `linear`: a linear classifier on the frozen backbone."""

import copy
from typing import Any

import torch
from torch import nn

from simsiam.config.commands import Linear
from simsiam.config.evaluation_options import LinearOptions
from simsiam.evaluation.checkpoint import build_backbone
from simsiam.evaluation.classifier import CHOICE_EPOCH, Recipe, train_classifier
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.logistic_regression import (
    adapt_head,
    fit_logistic,
    make_head,
    standardise_features,
)
from simsiam.evaluation.metrics import print_classes
from simsiam.evaluation.results import Results
from utils.console import print_table, track_progress
from utils.device import choose_device, choose_precision
from utils.errors import require
from utils.philox import permutation

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # for standardised features, the strongest first


def linear(config: Linear) -> None:
    """Train a linear classifier on frozen features; print and keep its accuracy on all test images, and its weights."""
    options = config.linear
    precision = choose_precision(config.device.precision, config.device.accelerator)
    context = open_context(config, choose_device(config.device.accelerator), labels=True)
    if options.from_scratch:
        context = context.with_backbone(
            build_backbone(context.checkpoint.facts, options.seed).to(context.device)
        )
    name = "linear" + "_augment" * options.augment + "_from_scratch" * options.from_scratch
    results = Results(config, context.checkpoint, name)
    held_out, n = round(options.held_out * len(context.train)), len(context.train)
    require(0 < held_out < n, f"--held-out {options.held_out}: {held_out} of {n} train images")
    context.announce()
    with results.lock():
        if options.augment:
            way, (head, figures) = "crops and flips, SGD", fit_by_sgd(options, context, precision)
        else:
            head, figures = fit_by_solver(context, options.seed, held_out)
            way = f"L-BFGS, weight decay {figures['weight_decay']:g}"
        figures = context.measure_accuracy(head) | figures
        results.save_head(context, head, figures)
    print_classes(figures["per_class"])
    context.print_accuracies(
        ("classifier", "labels", "accuracy"),
        [(f"linear ({way})", f"{n:,}", f"{figures['test_accuracy']:.2f}")],
    )


def fit_by_solver(
    context: EvaluationContext, seed: int, held_out: int
) -> tuple[nn.Linear, dict[str, Any]]:
    """Logistic regression on features of clean images, with the weight decay that does best on held-out ones."""
    train = context.train
    order = permutation(len(train), CHOICE_EPOCH, seed=seed, device=context.device)
    chunks = (train.images_at(places) for places in order.split(chunk_size(train.images)))
    x = context.checkpoint.extract_features(chunks, len(train), "train images", unit=False)
    labels, scale, tried = train.labels[order], standardise_features(x), {}
    head = make_head(x.shape[1], len(context.classes)).to(x.device)
    for (decay,) in track_progress(zip(WEIGHT_DECAYS), len(WEIGHT_DECAYS), "weight decays tried"):
        fit_logistic(head, x[held_out:], labels[held_out:], decay)
        right = (head(x[:held_out]).argmax(dim=1) == labels[:held_out]).sum().item()
        tried[decay] = (100 * right / held_out, copy.deepcopy(head))
    decay = max(tried, key=lambda d: tried[d][0])  # the strongest of equals
    head = tried[decay][1]
    converged = fit_logistic(head, x, labels, decay)
    adapt_head(head, *scale)
    accuracies = {f"{d:g}": accuracy for d, (accuracy, _) in tried.items()}
    rows = [(name, f"{accuracy:.2f}") for name, accuracy in accuracies.items()]
    print_table("on held-out train images", ("weight decay", "accuracy %"), rows)
    return head, {"weight_decay": decay, "held_out": accuracies, "converged": converged}


def fit_by_sgd(
    options: LinearOptions, context: EvaluationContext, precision: str
) -> tuple[nn.Linear, dict[str, Any]]:
    """A head on a frozen backbone, trained on crops and flips without weight decay, as papers do.

    The features are standardised by those of the clean train images, so that one learning rate suits every backbone
    (on raw features papers need 30 or 0.1, depending on their scale); the head that is kept takes raw features.
    """
    backbone, train = context.checkpoint.backbone, context.train
    scale = standardise_features(context.extract_features(train.images, "train images", unit=False))
    head = make_head(backbone.num_features, len(context.classes)).to(context.device)
    recipe = Recipe(
        epochs=options.epochs or 100,
        batch_size=options.batch_size or 256,
        crop_scale=options.crop_scale or 0.8,
        seed=options.seed,
        precision=precision,
        head_lr=options.learning_rate or 0.1,
    )
    steps = train_classifier(
        backbone, head, train, torch.arange(len(train), device=context.device), recipe, *scale
    )
    adapt_head(head, *scale)
    return head, {"steps": steps}
