"""The command `linear`: a linear classifier on the frozen backbone."""

import copy
from typing import Any

import torch
from torch import nn

from simsiam.config.evaluation_commands import Linear
from simsiam.config.evaluation_options import LinearOptions
from simsiam.evaluation.classifier import CHOICE_EPOCH, Recipe, train_classifier
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import choose_chunk_size
from simsiam.evaluation.logistic_regression import (
    fit_logistic,
    fold_standardisation,
    make_head,
    standardise_in_place,
)
from simsiam.evaluation.metrics import print_classes
from simsiam.evaluation.networks import build_backbone
from simsiam.evaluation.results import Results
from utils.console import print_table, track_progress
from utils.device import choose_device, choose_precision
from utils.errors import require
from utils.philox import permutation

# Candidates for standardised features, the strongest first.
WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def linear(config: Linear) -> None:
    """Train a linear classifier on frozen features; print and save its test accuracy.

    The classifier is saved too.
    """
    options = config.linear
    precision = choose_precision(config.device.precision, config.device.accelerator)
    context = open_context(config, choose_device(config.device.accelerator), labels=True)
    name = "linear"
    if options.augment:
        name += "_augment"
    if options.from_scratch:
        name += "_from_scratch"
        backbone = build_backbone(context.checkpoint.metadata, options.seed)
        context = context.with_backbone(backbone.to(context.device))
    results = Results(config, context.checkpoint, name)

    n = len(context.train)
    n_held_out = round(options.held_out * n)
    require(
        0 < n_held_out < n,
        f"--held-out {options.held_out} would hold out {n_held_out} of {n} train images. At least "
        "one image must be held out, and one must remain",
    )
    context.announce()
    with results.lock():
        if options.augment:
            method = "crops and flips, SGD"
            head, fit_summary = fit_by_sgd(options, context, precision)
        else:
            head, fit_summary = fit_by_solver(context, options.seed, n_held_out)
            method = f"L-BFGS, weight decay {fit_summary['weight_decay']:g}"
        summary = context.measure_accuracy(head) | fit_summary
        results.save_head(context, head, summary)

    print_classes(summary["per_class"])
    row = (f"linear ({method})", f"{n:,}", f"{summary['test_accuracy']:.2f}")
    context.print_accuracies(("classifier", "labels", "accuracy"), [row])


def fit_by_solver(
    context: EvaluationContext, seed: int, n_held_out: int
) -> tuple[nn.Linear, dict[str, Any]]:
    """Fit logistic regression on features of clean images.

    The weight decay is the one with the best accuracy on held-out train images. The returned head
    is then fitted on all train images.

    Args:
        seed: decides which images are held out.
        n_held_out: the number of these images.

    Returns:
        The head for raw features, and a summary of the fit.
    """
    # Put the images into a random order, of which the first ones are held out.
    train = context.train
    order = permutation(len(train), CHOICE_EPOCH, seed=seed, device=context.device)
    chunks = (train.images_at(indices) for indices in order.split(choose_chunk_size(train.images)))
    x = context.checkpoint.extract_features(chunks, len(train), "train images", unit=False)
    center, spread = standardise_in_place(x)
    labels = train.labels[order]

    # Fit with each weight decay. Each fit starts from the solution of the one before.
    head = make_head(x.shape[1], len(context.classes)).to(x.device)
    heads: dict[float, nn.Linear] = {}
    accuracies: dict[float, float] = {}
    # `track_progress` counts the items of chunks, so each candidate is a chunk with one item.
    candidates = [(weight_decay,) for weight_decay in WEIGHT_DECAYS]
    for (weight_decay,) in track_progress(candidates, len(candidates), "weight decays tried"):
        fit_logistic(head, x[n_held_out:], labels[n_held_out:], weight_decay)
        predicted = head(x[:n_held_out]).argmax(dim=1)
        correct = (predicted == labels[:n_held_out]).sum().item()
        accuracies[weight_decay] = 100 * correct / n_held_out
        heads[weight_decay] = copy.deepcopy(head)

    # Of several weight decays with the same accuracy, `max` returns the first, the strongest.
    best = max(WEIGHT_DECAYS, key=lambda weight_decay: accuracies[weight_decay])
    head = heads[best]
    converged = fit_logistic(head, x, labels, best)
    fold_standardisation(head, center, spread)

    accuracy_by_name = {f"{decay:g}": accuracy for decay, accuracy in accuracies.items()}
    rows = [(name, f"{accuracy:.2f}") for name, accuracy in accuracy_by_name.items()]
    print_table("on held-out train images", ("weight decay", "accuracy %"), rows)
    return head, {"weight_decay": best, "held_out": accuracy_by_name, "converged": converged}


def fit_by_sgd(
    options: LinearOptions, context: EvaluationContext, precision: str
) -> tuple[nn.Linear, dict[str, Any]]:
    """Train a head on crops and flips by SGD without weight decay, as papers do.

    The features are standardised with the mean and deviation of the clean train images, so that
    one learning rate suits every backbone. On raw features papers need rates from 0.1 to 30,
    depending on the scale of the features.

    Returns:
        The head for raw features, and a summary of the training.
    """
    train = context.train
    backbone = context.checkpoint.backbone
    features = context.extract_features(train.images, "train images", unit=False)
    center, spread = standardise_in_place(features)
    del features  # they may take gigabytes, and only their mean and deviation are needed
    head = make_head(context.checkpoint.num_features, len(context.classes)).to(context.device)
    recipe = Recipe(
        epochs=options.sgd.epochs,
        batch_size=options.sgd.batch_size,
        crop_scale=options.sgd.crop_scale,
        seed=options.seed,
        precision=precision,
        head_lr=options.sgd.learning_rate,
    )
    all_images = torch.arange(len(train), device=context.device)
    preparation = context.checkpoint.preparation
    steps = train_classifier(backbone, head, train, all_images, recipe, preparation, center, spread)
    fold_standardisation(head, center, spread)
    return head, {"steps": steps}
