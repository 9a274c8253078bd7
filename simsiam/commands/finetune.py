"""The command `finetune`: the whole network trained on a share of the labels."""

import copy
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from simsiam.config.commands import Finetune
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
from simsiam.evaluation.context import EvaluationContext, open_context, random_backbone
from simsiam.evaluation.logistic_regression import fit_logistic
from simsiam.evaluation.results import Results, fingerprint, plain_settings, read_json
from utils.console import print_line, print_table
from utils.device import choose_device, choose_precision
from utils.errors import check
from utils.export import BACKBONE, write_weights
from utils.philox import permutation

HEAD_DECAY = 1e-2  # of the head that fine-tuning begins with: strong, since few labels choose one badly


def finetune(config: Finetune) -> None:
    """Fine-tune once for each seed; print and keep accuracies on all test images, their mean and their deviation.

    The head begins as the linear probe of the labelled images, so that its first steps do not distort the features
    (Kumar et al. 2022, arXiv 2202.10054); from scratch it begins at zero.
    """
    choose_precision(config.device.precision, config.device.accelerator)
    subject = open_context(config, choose_device(config.device.accelerator))
    subject.need_labels()
    fraction = config.finetune.label_fraction or 0.1
    amount = f"{config.finetune.label_count}_labels" if config.finetune.label_count else f"{fraction:g}"
    name = f"finetune_{amount}" + "_from_scratch" * config.finetune.from_scratch
    quotas = label_quotas(subject.train.labels, subject.classes, fraction, config.finetune.label_count)
    overall = Results(config, subject.trained, name, resumes=True)
    figures = {} if config.checkpoint.overwrite else earlier_seeds(config, subject, overall.path)
    subject.announce()
    with overall.alone():
        for seed in config.finetune.seeds:
            if seed in figures:
                print_line(f"seed {seed} is there already: {overall.path / f'seed_{seed}'}")
            else:
                results = Results(config, subject.trained, f"{name}/seed_{seed}", resumes=True)
                figures[seed] = finetune_once(config, subject, quotas, seed, results)
        report_seeds(config, subject, overall, figures)


def earlier_seeds(config: Finetune, subject: EvaluationContext, folder: Path) -> dict[int, dict[str, Any]]:
    """The figures of the seeds that were finished before.

    Raises:
        UserError: they were trained from other weights or with other settings, or are damaged.
    """
    free = {"seeds", "overwrite", "checkpoint", "results_dir", "data_dir", "data_url", "accelerator"}
    free |= {"cache_dir", "skip_bad_images", "data_memory"}
    now = {name: value for name, value in plain_settings(config).items() if name not in free}
    figures = {}
    for file in sorted(folder.glob("seed_*/summary.json")):
        content = read_json(file, ("seed", "labels", "settings", "weights", "test_accuracy"))
        changed = [name for name, value in now.items() if content["settings"].get(name) != value]
        changed += ["checkpoint"] * (content["weights"] != fingerprint(subject.trained.backbone))
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        check(not changed, f"{file} was made with another {flags}: give --overwrite, or another --results-dir")
        figures[int(content["seed"])] = content
    return figures


def report_seeds(
    config: Finetune, subject: EvaluationContext, overall: Results, figures: dict[int, dict[str, Any]]
) -> None:
    """Print and keep what all seeds that are there come to."""
    accuracies = {seed: figures[seed]["test_accuracy"] for seed in sorted(figures)}
    labels = figures[config.finetune.seeds[0]]["labels"]
    rows = [(f"seed {seed}", f"{labels:,}", f"{a:.2f}") for seed, a in accuracies.items()]
    average = mean(accuracies.values())
    spread = stdev(accuracies.values()) if len(accuracies) > 1 else None
    if spread is not None:
        rows.append(("mean, deviation", "", f"{average:.2f} +- {spread:.2f}"))
    print_table(
        title(subject), ("from scratch" if config.finetune.from_scratch else "fine-tuned", "labels", "accuracy %"), rows
    )
    whole = {"dataset": subject.dataset, "labels": labels, "test_accuracy": average, "deviation": spread}
    whole["seeds"] = {str(seed): a for seed, a in accuracies.items()}
    overall.write(whole, {"probe/test_accuracy": average})


def finetune_once(
    config: Finetune, subject: EvaluationContext, quotas: Sequence[int], seed: int, results: Results
) -> dict[str, Any]:
    """One training; its figures."""
    trained, model_ = subject.trained, subject.model
    backbone = random_backbone(trained, seed) if config.finetune.from_scratch else copy.deepcopy(trained.backbone)
    chosen = choose_labels(subject.train.labels, quotas, seed)
    rate = config.finetune.learning_rate or (0.3 if config.finetune.from_scratch else 0.03)
    head_rate = config.finetune.head_learning_rate or (0.1 if config.finetune.from_scratch else 0.03)
    classes = len(subject.classes)
    model = Classifier(backbone, classes, head_rate, rate, config.finetune.momentum, config.finetune.weight_decay)
    print_line(f"seed {seed}: {len(chosen):,} labels")
    if not config.finetune.from_scratch:
        x = subject.features(subject.train.at(chosen), "labelled images", unit=False)
        center, spread = standardise(x)
        probe = fit_logistic(x, subject.train.labels[chosen], classes, HEAD_DECAY)
        model.head.load_state_dict(for_raw_features(probe.weight, probe.bias, center, spread).state_dict())
    data = LabelledViews(
        subject.train,
        chosen,
        model_.mean,
        model_.std,
        batch_size=config.finetune.batch_size,
        crop_scale=config.finetune.crop_scale,
        seed=seed,
        size=trained.backbone.image_size,
    )
    steps = fit_classifier(config, model, data, config.finetune.epochs, results)
    tuned = subject._replace(model=model_._replace(trained=trained._replace(backbone=backbone.eval())))
    figures = {
        "seed": seed,
        "labels": len(chosen),
        "learning_rate": rate,
        "head_learning_rate": head_rate,
        "steps": steps,
    }
    figures |= measure(tuned, model.head.requires_grad_(False))
    about = {name: value for name, value in trained.about.items() if name != "row"}  # its kNN is not this one's
    tuning = {name: figures[name] for name in ("seed", "labels", "test_accuracy")}
    about["tuned"] = tuning | {"from_scratch": config.finetune.from_scratch, "settings": plain_settings(config)}
    write_weights(results.path / "backbone.safetensors", BACKBONE, backbone.state_dict(), about)
    keep_head(results, tuned, model.head, figures)
    return figures


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
