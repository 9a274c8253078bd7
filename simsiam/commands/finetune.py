"""The command `finetune`: train the whole network on a share of the labels."""

import copy
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pydantic import BaseModel
from torch import Tensor, nn

from simsiam.config.evaluation_commands import Finetune
from simsiam.config.evaluation_options import FinetuneOptions
from simsiam.evaluation.classifier import ClassifierTraining, train_classifier
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.label_subset import choose_labels, compute_label_quotas, hash_indices
from simsiam.evaluation.logistic_regression import (
    fit_logistic,
    fold_standardisation,
    make_head,
    standardise_in_place,
)
from simsiam.evaluation.networks import build_backbone, hash_weights
from simsiam.evaluation.results import Results
from utils.console import format_count, print_line
from utils.device import choose_device, choose_precision
from utils.errors import UserError, require
from utils.option_group import Rule, to_flag
from utils.run_dir import BACKBONE_FILE, SUMMARY_FILE, seed_folder
from utils.settings import flatten, iterate_options
from utils.weights import BACKBONE, write_weights

# Weight decay of the linear probe from which the head starts. With few labels it cannot be chosen
# by an accuracy on held-out images, so it is fixed, and strong.
HEAD_WEIGHT_DECAY = 1e-2
# 800 epochs of pre-training leave small features. Without this limit, their large gradients would
# destroy the backbone in the first steps.
MAX_GRADIENT_NORM = 1.0
# Options with defaults that depend on others. Two calls agree if they use the same rates; the share
# of the labels is in the name of the folder.
RESOLVED = ("label_fraction", "learning_rate", "head_learning_rate")


class SeedResult(NamedTuple):
    """Accuracies of one seed in percent.

    `linear_accuracy` is that of the frozen backbone. It is None for a training from scratch, and
    in results of older versions.
    """

    test_accuracy: float
    linear_accuracy: float | None


class SavedSeed(BaseModel):
    """The values that are read from the summary.json of a finished seed."""

    seed: int
    settings: dict[str, Any]
    weights: str
    learning_rate: float
    head_learning_rate: float
    test_accuracy: float
    linear_accuracy: float | None = None
    images: str | None = None  # digest of your own images


def finetune(config: Finetune) -> None:
    """Fine-tune once for each seed; print and save the test accuracies, their mean and deviation.

    Seeds that an earlier call has finished are not trained again.
    """
    options = config.finetune
    # Chosen first, because a precision that the device does not have must fail before any work.
    precision = choose_precision(config.device.precision, config.device.accelerator)
    context = open_context(config, choose_device(config.device.accelerator), labels=True)

    if options.label_count:
        name = f"finetune_{options.label_count}_labels"
    else:
        name = f"finetune_{options.fraction:g}"
    if options.from_scratch:
        name += "_from_scratch"
    labels = context.train.labels
    quotas = compute_label_quotas(labels, context.classes, options.fraction, options.label_count)
    results = Results(config, context.checkpoint, name, resumes=True)

    with results.lock():
        results_by_seed: dict[int, SeedResult] = {}
        if not config.checkpoint.overwrite:
            results_by_seed = read_finished_seeds(config, context, results.path)
        context.announce()
        for seed in options.seeds:
            if seed in results_by_seed:
                print_line(f"seed {seed} is finished already: {results.path / seed_folder(seed)}")
                continue
            # Each seed has a folder of its own in the folder of the command.
            seed_results = Results(
                config, context.checkpoint, f"{name}/{seed_folder(seed)}", resumes=True
            )
            results_by_seed[seed] = finetune_seed(
                config, context, seed_results, quotas, seed, precision
            )

        results_by_seed = dict(sorted(results_by_seed.items()))
        print_seeds(context, results_by_seed, sum(quotas), options)
        results.write(summarise_seeds(context, results_by_seed, sum(quotas)))


def summarise_seeds(
    context: EvaluationContext, results_by_seed: dict[int, SeedResult], labels: int
) -> dict[str, Any]:
    """Return the results of all seeds for summary.json."""
    test = {seed: result.test_accuracy for seed, result in results_by_seed.items()}
    linear = get_linear_accuracies(results_by_seed)
    return {
        "dataset": context.dataset,
        "labels": labels,
        "test_accuracy": mean(test.values()),
        "deviation": stdev(test.values()) if len(test) > 1 else None,
        "linear_accuracy": mean(linear) if linear else None,
        "seeds": test,
    }


def print_seeds(
    context: EvaluationContext,
    results_by_seed: dict[int, SeedResult],
    labels: int,
    options: FinetuneOptions,
) -> None:
    """Print a table with a line for each seed, and their mean and deviation."""
    rows: list[tuple[str, str, str, str]] = []
    for seed, result in results_by_seed.items():
        linear = "-"
        if result.linear_accuracy is not None:
            linear = f"{result.linear_accuracy:.2f}"
        rows.append((f"seed {seed}", f"{labels:,}", linear, f"{result.test_accuracy:.2f}"))

    if len(results_by_seed) > 1:
        linear = format_mean(get_linear_accuracies(results_by_seed))
        test = format_mean([result.test_accuracy for result in results_by_seed.values()])
        rows.append(("mean, deviation", "", linear, test))
    method = "from scratch" if options.from_scratch else "fine-tuned"
    last_column = f"{method}, {format_count(options.epochs, 'epoch')}"
    context.print_accuracies(("", "labels", "linear, frozen", last_column), rows)


def format_mean(accuracies: list[float]) -> str:
    if len(accuracies) < 2:
        return "-"
    return f"{mean(accuracies):.2f} +- {stdev(accuracies):.2f}"


def get_linear_accuracies(results_by_seed: dict[int, SeedResult]) -> list[float]:
    """Return the linear accuracies of the seeds that have one."""
    accuracies: list[float] = []
    for result in results_by_seed.values():
        if result.linear_accuracy is not None:
            accuracies.append(result.linear_accuracy)
    return accuracies


def read_finished_seeds(
    config: Finetune, context: EvaluationContext, folder: Path
) -> dict[int, SeedResult]:
    """Return the results of earlier calls in the same folder, by seed.

    Raises:
        UserError: they are damaged, or were made with other weights, settings or images.
    """
    settings = flatten(config)
    fixed_names: list[str] = []
    for option in iterate_options(Finetune):
        # An option of RESOLVED may be given in one call and left to its default in another.
        if option.rule == Rule.PLAIN and option.field.name not in RESOLVED:
            fixed_names.append(option.field.name)
    weights = hash_weights(context.checkpoint.backbone)
    rates = config.finetune.rates

    results_by_seed: dict[int, SeedResult] = {}
    for file in sorted(folder.glob(f"{seed_folder('*')}/{SUMMARY_FILE}")):
        try:
            saved = SavedSeed.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            raise UserError(f"{file} is damaged. Use --overwrite to measure again") from None

        changed = [name for name in fixed_names if saved.settings.get(name) != settings[name]]
        if saved.weights != weights:
            changed.append("checkpoint")
        if saved.learning_rate != rates.backbone:
            changed.append("learning_rate")
        if saved.head_learning_rate != rates.head:
            changed.append("head_learning_rate")
        advice = "Use --overwrite to measure again, or another --results-dir"
        flags = ", ".join(to_flag(name) for name in changed)
        require(not changed, f"{file} was made with another {flags}. {advice}")
        require(
            saved.images in (None, context.train.digest),
            f"{file} was made with other images than there are now. {advice}",
        )
        results_by_seed[saved.seed] = SeedResult(saved.test_accuracy, saved.linear_accuracy)
    return results_by_seed


def finetune_seed(
    config: Finetune,
    context: EvaluationContext,
    results: Results,
    quotas: Sequence[int],
    seed: int,
    precision: str,
) -> SeedResult:
    """Train a backbone and a head on labels that the seed chooses; save both with their accuracies.

    The head starts as the linear probe of the labelled images, so that its first steps do not
    distort the features (Kumar et al. 2022, arXiv 2202.10054). From scratch it starts at zero.
    """
    options = config.finetune
    metadata = context.checkpoint.metadata
    chosen = choose_labels(context.train.labels, quotas, seed)
    print_line(f"seed {seed}: {len(chosen):,} labels")

    head = make_head(context.checkpoint.num_features, len(context.classes))
    head.to(context.device)
    if options.from_scratch:
        backbone = build_backbone(metadata, seed).to(context.device)
        linear_accuracy = None
        max_gradient_norm = None
    else:
        backbone = copy.deepcopy(context.checkpoint.backbone)
        fit_probe(head, context, chosen)
        linear_accuracy = context.measure_accuracy(head)["test_accuracy"]
        max_gradient_norm = MAX_GRADIENT_NORM

    training = ClassifierTraining(
        epochs=options.epochs,
        batch_size=options.batch_size,
        crop_scale=options.crop_scale,
        seed=seed,
        precision=precision,
        head_lr=options.rates.head,
        backbone_lr=options.rates.backbone,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        max_gradient_norm=max_gradient_norm,
    )
    preparation = context.checkpoint.preparation
    steps = train_classifier(backbone, head, context.train, chosen, training, preparation)
    tuned = context.with_backbone(backbone)
    summary = {
        "seed": seed,
        "labels": len(chosen),
        "learning_rate": training.backbone_lr,
        "head_learning_rate": training.head_lr,
        "steps": steps,
        "linear_accuracy": linear_accuracy,
        "labels_digest": hash_indices(chosen),
        "images": context.train.digest,
    }
    summary.update(tuned.measure_accuracy(head))

    # `row` is left out, because its kNN accuracy is that of the backbone before fine-tuning.
    tuned_metadata = metadata.model_dump(exclude_unset=True, exclude={"row"})
    tuned_metadata["tuned"] = {
        "seed": seed,
        "labels": len(chosen),
        "test_accuracy": summary["test_accuracy"],
        "from_scratch": options.from_scratch,
        "settings": flatten(config),
    }
    # The summary.json of an earlier call does not belong to the new backbone.
    results.summary_file.unlink(missing_ok=True)
    backbone_file = results.path / BACKBONE_FILE
    write_weights(backbone_file, BACKBONE, backbone.state_dict(), tuned_metadata)
    results.save_head(tuned, head, summary)
    return SeedResult(summary["test_accuracy"], linear_accuracy)


def fit_probe(head: nn.Linear, context: EvaluationContext, chosen: Tensor) -> None:
    """Fit the head to features of the chosen images by logistic regression, in place."""
    images = context.train.images_at(chosen)
    x = context.extract_features(images, "labelled images", unit=False)
    center, spread = standardise_in_place(x)
    fit_logistic(head, x, context.train.labels[chosen], HEAD_WEIGHT_DECAY)
    fold_standardisation(head, center, spread)
