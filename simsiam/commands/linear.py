"""The command `linear`: a linear classifier on the frozen backbone."""

import copy
from dataclasses import asdict
from typing import Any, get_args

import torch
from torch import nn

from simsiam.config.evaluation_commands import Linear
from simsiam.config.linear_options import LinearOptions, LinearTraining
from simsiam.config.recipe_files import DEFAULT_RECIPE, RecipeName
from simsiam.evaluation.classifier import CHOICE_EPOCH, ClassifierTraining, train_classifier
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
from simsiam.evaluation.zoom import announce_zoom, choose_zoom, describe_zoom, zoomed_side
from utils.console import print_table, show_progress
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
    zoom = choose_zoom(config.zoom.test_zoom, context.image_size)
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
        options.augment or 0 < n_held_out < n,
        f"--held-out {options.held_out} would hold out {n_held_out} of {n} train images. At least "
        "one image must be held out, and one must remain",
    )
    context.announce()
    with results.lock():
        if options.augment:
            recipe = choose_recipe(options, context)
            settings = options.resolve(recipe, n)
            head, fit_summary = fit_on_crops(settings, options.seed, context, precision)
            fit_summary["recipe"] = recipe
            method = f"crops and flips, {settings.optimizer.upper()}"
        else:
            head, fit_summary = fit_by_solver(context, options.seed, n_held_out)
            method = describe_solver(fit_summary)
        summary = context.measure_accuracy(head) | fit_summary
        if zoom != 1:
            trained_head = head if options.augment else None
            zoomed = context.with_zoom(zoom)
            summary["zoomed"] = measure_zoomed(zoomed, trained_head, options.seed, n_held_out)
        results.save_head(context, head, summary)

    classifier = f"linear ({method})"
    print_classes(summary["per_class"], classifier)
    columns = ["classifier", "labels", "accuracy"]
    if "test_top5_accuracy" in summary:
        columns.append("top-5")
    rows = [make_row(classifier, n, summary)]
    if zoom != 1:
        if not options.augment:
            method = describe_solver(summary["zoomed"])
        zoomed_classifier = f"linear ({method}), {describe_zoom(context.image_size, zoom)}"
        rows.append(make_row(zoomed_classifier, n, summary["zoomed"]))
    context.print_accuracies(columns, rows)


def describe_solver(fit_summary: dict[str, Any]) -> str:
    return f"L-BFGS, weight decay {fit_summary['weight_decay']:g}"


def make_row(classifier: str, n: int, metrics: dict[str, Any]) -> list[str]:
    """Return a row of the table: the classifier, its number of labels and its accuracies."""
    row = [classifier, f"{n:,}", f"{metrics['test_accuracy']:.2f}"]
    if "test_top5_accuracy" in metrics:
        row.append(f"{metrics['test_top5_accuracy']:.2f}")
    return row


def measure_zoomed(
    context: EvaluationContext, trained_head: nn.Linear | None, seed: int, n_held_out: int
) -> dict[str, Any]:
    """Return test accuracies on zoomed images, for summary.json.

    Args:
        context: its images are zoomed.
        trained_head: a head that was trained on crops, which is measured as it is. None fits a head
            on zoomed train images, as `fit_by_solver` does.
        seed, n_held_out: arguments of `fit_by_solver`.
    """
    side = context.image_size
    summary: dict[str, Any] = {
        "test_zoom": context.zoom,
        "resized_side": zoomed_side(side, context.zoom),
    }
    if trained_head is not None:
        announce_zoom(side, context.zoom, context.test.evaluation_name)
        head = trained_head
    else:
        announce_zoom(side, context.zoom, "images")
        head, fit_summary = fit_by_solver(context, seed, n_held_out)
        summary.update(fit_summary)
    metrics = context.measure_accuracy(head)
    for name in ("test_accuracy", "test_top5_accuracy"):
        if name in metrics:
            summary[name] = metrics[name]
    return summary


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
    x = context.extract_chunks(chunks, len(train), "train images", unit=False)
    center, spread = standardise_in_place(x)
    labels = train.labels[order]

    # Fit with each weight decay. Each fit starts from the solution of the one before.
    head = make_head(x.shape[1], len(context.classes)).to(x.device)
    heads: dict[float, nn.Linear] = {}
    accuracies: dict[float, float] = {}
    # `show_progress` counts the items of chunks, so each candidate is a chunk with one item.
    candidates = [(weight_decay,) for weight_decay in WEIGHT_DECAYS]
    for (weight_decay,) in show_progress(candidates, len(candidates), "weight decays tried"):
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
    title = "on held-out train images"
    if context.zoom != 1:
        title += f", {describe_zoom(context.image_size, context.zoom)}"
    print_table(title, ("weight decay", "accuracy %"), rows)
    return head, {"weight_decay": best, "held_out": accuracy_by_name, "converged": converged}


def choose_recipe(options: LinearOptions, context: EvaluationContext) -> RecipeName:
    """Return the recipe of `--recipe`, else that of the checkpoint's run, else the default one."""
    if options.recipe is not None:
        return options.recipe
    of_run = context.checkpoint.metadata.settings.get("recipe")
    for name in get_args(RecipeName):
        if name == of_run:
            return name
    return DEFAULT_RECIPE


def fit_on_crops(
    settings: LinearTraining, seed: int, context: EvaluationContext, precision: str
) -> tuple[nn.Linear, dict[str, Any]]:
    """Train a head on crops and flips without weight decay, as papers do.

    Unless the features are taken as they are, they are standardised with the mean and deviation of
    the clean train images, so that one learning rate suits every backbone. On raw features papers
    need rates from 0.1 to 30, depending on the scale of the features.

    Args:
        seed: decides the order, the crops and the initial weights.

    Returns:
        The head for raw features, and a summary of the training.
    """
    train = context.train
    backbone = context.checkpoint.backbone
    head = make_head(
        context.checkpoint.num_features, len(context.classes), settings.initial_std, seed
    )
    head.to(context.device)
    training = ClassifierTraining(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        crop_scale=settings.crop_scale,
        seed=seed,
        precision=precision,
        head_lr=settings.learning_rate,
        optimizer=settings.optimizer,
    )
    all_images = torch.arange(len(train), device=context.device)
    preparation = context.checkpoint.preparation
    if settings.raw_features:
        steps = train_classifier(backbone, head, train, all_images, training, preparation)
    else:
        features = context.extract_features(train.images, "train images", unit=False)
        center, spread = standardise_in_place(features)
        del features  # they may take gigabytes, and only their mean and deviation are needed
        steps = train_classifier(
            backbone, head, train, all_images, training, preparation, center, spread
        )
        fold_standardisation(head, center, spread)
    return head, {"steps": steps, "training": asdict(settings)}
