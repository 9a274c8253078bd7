"""The command `finetune`: the whole network trained on a share of the labels."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from simsiam.config.commands import Finetune
from simsiam.evaluation.checkpoint import build_backbone, hash_weights
from simsiam.evaluation.classifier import CHOICE_EPOCH, Recipe, train_classifier
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.logistic_regression import (
    adapt_head,
    fit_logistic,
    make_head,
    standardise_features,
)
from simsiam.evaluation.results import Results
from utils.cli import CHANGEABLE_ON_RESUME, flatten, iterate_options, to_flag
from utils.console import print_line
from utils.device import choose_device, choose_precision
from utils.errors import UserError, require
from utils.philox import permutation
from utils.weights import BACKBONE, write_weights

HEAD_DECAY = (
    1e-2  # weight decay of the head at the start: strong, since few labels choose one badly
)
LARGEST_GRADIENT = (
    1.0  # its norm: 800 epochs leave small features, whose gradients would throw the backbone away
)


class SeedSummary(BaseModel):
    """What is read of a finished seed's summary.json."""

    seed: int
    settings: dict[str, Any]
    weights: str
    test_accuracy: float
    linear_accuracy: float | None = (
        None  # with the backbone frozen; not from scratch, nor of older calls
    )


def finetune(config: Finetune) -> None:
    """Fine-tune once for each seed; print and keep accuracies on all test images, their mean and their deviation.

    The head starts as the linear probe of the labelled images, so that its first steps do not distort the features
    (Kumar et al. 2022, arXiv 2202.10054); from scratch it starts at zero.
    """
    options, scratch = config.finetune, config.finetune.from_scratch
    choose_precision(
        config.device.precision, config.device.accelerator
    )  # an impossible one fails before any work
    context = open_context(config, choose_device(config.device.accelerator), labels=True)
    fraction = options.label_fraction or 0.1
    amount = f"{options.label_count}_labels" if options.label_count else f"{fraction:g}"
    name = f"finetune_{amount}" + "_from_scratch" * options.from_scratch
    quotas = label_quotas(context.train.labels, context.classes, fraction, options.label_count)
    results = Results(config, context.checkpoint, name, resumes=True)
    found = (
        {} if config.checkpoint.overwrite else read_finished_seeds(config, context, results.path)
    )
    context.announce()
    with results.lock():
        for seed in options.seeds:
            if seed in found:
                print_line(f"seed {seed} is there already: {results.path / f'seed_{seed}'}")
            else:
                found[seed] = finetune_seed(config, context, quotas, seed, f"{name}/seed_{seed}")
        found, labels = dict(sorted(found.items())), sum(quotas)
        linear = [one.linear_accuracy for one in found.values() if one.linear_accuracy is not None]
        tuned = {seed: one.test_accuracy for seed, one in found.items()}
        rows = []
        for seed, one in found.items():
            frozen = "-" if one.linear_accuracy is None else f"{one.linear_accuracy:.2f}"
            rows.append((f"seed {seed}", f"{labels:,}", frozen, f"{one.test_accuracy:.2f}"))
        if len(found) > 1:
            spread = (
                f"{mean(y):.2f} +- {stdev(y):.2f}" if len(y) > 1 else "-"
                for y in (linear, [*tuned.values()])
            )
            rows += [("mean, deviation", "", *spread)]
        context.print_accuracies(
            ("", "labels", "linear, frozen", "from scratch" if scratch else "fine-tuned"), rows
        )
        figures = {
            "dataset": context.dataset,
            "labels": labels,
            "test_accuracy": mean(tuned.values()),
        }
        figures |= {"deviation": stdev(tuned.values()) if len(tuned) > 1 else None}
        results.write(
            figures | {"linear_accuracy": mean(linear) if linear else None, "seeds": tuned}
        )


def read_finished_seeds(
    config: Finetune, context: EvaluationContext, folder: Path
) -> dict[int, SeedSummary]:
    """What earlier calls measured, by seed; UserError if they had other weights or settings, or are damaged."""
    fixed = {
        field.name for _, field, rule, _ in iterate_options(Finetune) if rule < CHANGEABLE_ON_RESUME
    }
    settings = {name: value for name, value in flatten(config).items() if name in fixed}
    finished = {}
    for file in sorted(folder.glob("seed_*/summary.json")):
        try:
            found = SeedSummary.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            raise UserError(f"{file} is damaged: give --overwrite to measure anew") from None
        changed = [name for name, value in settings.items() if found.settings.get(name) != value]
        changed += ["checkpoint"] * (found.weights != hash_weights(context.checkpoint.backbone))
        flags = ", ".join(map(to_flag, changed))
        require(
            not changed,
            f"{file} was made with another {flags}: give --overwrite, or another --results-dir",
        )
        finished[found.seed] = found
    return finished


def finetune_seed(
    config: Finetune, context: EvaluationContext, quotas: Sequence[int], seed: int, name: str
) -> SeedSummary:
    """One training, its networks and figures kept in the results folder `name`."""
    options, checkpoint, scratch = config.finetune, context.checkpoint, config.finetune.from_scratch
    results = Results(config, checkpoint, name, resumes=True)
    chosen = choose_labels(context.train.labels, quotas, seed)
    print_line(f"seed {seed}: {len(chosen):,} labels")
    backbone = (
        build_backbone(checkpoint.facts, seed) if scratch else copy.deepcopy(checkpoint.backbone)
    )
    head, linear = make_head(backbone.num_features, len(context.classes)).to(context.device), None
    if not scratch:
        x = context.extract_features(context.train.images_at(chosen), "labelled images", unit=False)
        scale = standardise_features(x)
        fit_logistic(head, x, context.train.labels[chosen], HEAD_DECAY)
        adapt_head(head, *scale)
        linear = context.measure_accuracy(head)["test_accuracy"]
    recipe = Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        crop_scale=options.crop_scale,
        seed=seed,
        precision=choose_precision(config.device.precision, config.device.accelerator),
        head_lr=options.head_learning_rate or (0.1 if scratch else 0.03),
        backbone_lr=options.learning_rate or (0.3 if scratch else 0.03),
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        largest_gradient=None if scratch else LARGEST_GRADIENT,
    )
    steps = train_classifier(backbone.to(context.device), head, context.train, chosen, recipe)
    tuned = context.with_backbone(backbone)
    figures = {"seed": seed, "labels": len(chosen), "learning_rate": recipe.backbone_lr}
    figures |= {"head_learning_rate": recipe.head_lr, "steps": steps, "linear_accuracy": linear}
    figures |= {"labels_digest": digest_of(chosen), **tuned.measure_accuracy(head)}
    tuned_on = {key: figures[key] for key in ("seed", "labels", "test_accuracy")}
    tuned_on |= {"from_scratch": scratch, "settings": flatten(config)}
    facts = checkpoint.facts.model_dump(
        exclude_unset=True, exclude={"row"}
    )  # the row's kNN is the old backbone's
    results.summary.unlink(missing_ok=True)  # an earlier one is not of this backbone
    write_weights(
        results.path / "backbone.safetensors",
        BACKBONE,
        backbone.state_dict(),
        facts | {"tuned": tuned_on},
    )
    results.save_head(tuned, head, figures)
    return SeedSummary.model_validate_json(results.summary.read_bytes())


def label_quotas(
    labels: Tensor, classes: tuple[str, ...], fraction: float, count: int | None
) -> list[int]:
    """How many labels each class keeps: a share of its own, or an equal part of `count`.

    Their sum is `count`, or the share of all labels, to the nearest whole number; what does not divide goes to the
    classes with the largest remainders. Raises UserError if a class would have none, or has fewer than that.
    """
    there = labels.bincount(minlength=len(classes)).tolist()
    ideal = [fraction * n for n in there] if count is None else [count / len(there)] * len(there)
    quotas = [int(x) for x in ideal]
    by_remainder = sorted(range(len(there)), key=lambda c: quotas[c] - ideal[c])
    for c in by_remainder[: (round(sum(ideal)) if count is None else count) - sum(quotas)]:
        quotas[c] += 1
    asked = f"--label-fraction {fraction:g}" if count is None else f"--label-count {count}"
    for name, quota, n in zip(classes, quotas, there, strict=True):
        require(quota >= 1, f"{asked}: that leaves class {name} without a label")
        require(quota <= n, f"{asked}: that is {quota} of class {name}, which has {n}")
    return quotas


def choose_labels(labels: Tensor, quotas: Sequence[int], seed: int) -> Tensor:
    """(n,) indices, ascending: of each class as many as its quota, and a larger quota holds the smaller one's."""
    order = permutation(len(labels), CHOICE_EPOCH, seed=seed, device=labels.device)
    chosen = [order[labels[order] == c][:quota] for c, quota in enumerate(quotas)]
    return torch.cat(chosen).sort().values


def digest_of(indices: Tensor) -> str:
    """16 hexadecimal digits of the SHA-256 of int32 numbers: docs/splits has those of published choices."""
    return hashlib.sha256(indices.cpu().numpy().astype("<i4").tobytes()).hexdigest()[:16]
