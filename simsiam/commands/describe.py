"""Describe a pre-training: in text for the user, and in metadata for its files."""

import textwrap
from dataclasses import dataclass
from typing import Any

from models.choices import is_library_backbone
from simsiam.commands.estimate import (
    choose_compiled_sizes,
    estimate_seconds,
    format_duration,
    measures_before_training,
)
from simsiam.commands.fit import describe_fit
from simsiam.commands.resume import Start, count_processes
from simsiam.config.ablations import describe_unused_settings
from simsiam.config.commands import (
    PRETRAIN_DEFAULTS,
    Pretrain,
    settings_that_matter,
    settings_to_keep,
    shell_command,
)
from simsiam.config.recipe_files import pretrain_values
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.image_schedule import describe_view_sizes
from simsiam.data.knn_labels import (
    choose_comparison,
    count_measured_images,
    describe_leave_one_out,
    knn_unavailable_reason,
)
from simsiam.evaluation.starting_weights import StartingWeights
from simsiam.module import SimSiam
from utils import distributed
from utils.console import format_count
from utils.device import describe_hardware, git_commit, hidden_gpu_reason, package_versions
from utils.run_dir import RunDirectory
from utils.settings import flatten

LONG_RUN = 6 * 3600  # seconds; for a longer run on a CPU, a shorter one is suggested
# Reaches a kNN accuracy of 60 % on CIFAR-10 in a quarter of an hour on a CPU: docs/benchmarks.md.
FLAGS_FOR_CPU = (
    "--backbone resnet10 --width 16 --out-dim 512 --h-dim 128 --batch-size 64 "
    "--constant-predictor-lr --epochs 20 --image-schedule 16:15 24:4"
)
INDENT = " " * 12  # of a line that continues the one above


@dataclass
class RunContext:
    """The settings, folder, data and model of a pre-training."""

    config: Pretrain
    run: RunDirectory
    accelerator: str  # "cpu" or "gpu"
    precision: Any  # Lightning's name for it
    data: ViewsDataModule
    model: SimSiam
    start: Start | None  # None: training starts at step 0
    fitted: list[str]  # options that were not given, with values that fit the data set
    weights: StartingWeights | None = None  # None: the weights of step 0 are random

    @property
    def compiled_sizes(self) -> list[int]:
        """Sizes of views for which a CPU compiles the augmentation."""
        if self.accelerator != "cpu" or not self.config.device.compile:
            return []
        return choose_compiled_sizes(self.data, self.config.optimizer.epochs)


def collect_provenance(context: RunContext) -> dict[str, Any]:
    """Return the origin of the run, for the metadata of its checkpoints and exported files."""
    provenance = {
        "classes": list(context.data.train.classes),
        "settings": settings_to_keep(context.config),
        "versions": package_versions(),
        "commit": git_commit(),
        "precision": context.precision,
    }
    if context.data.dataset_digest is not None:  # only the user's own images have a digest
        provenance["images"] = context.data.dataset_digest
    if context.data.train.image_cache is not None:
        provenance["image_cache"] = context.data.train.image_cache
    return provenance


def resolve_settings(context: RunContext) -> dict[str, Any]:
    """Return the section `resolved` of config.yaml.

    It has the values that the program chose for settings that were left open, and facts about the
    data and the machine.
    """
    network = context.config.network
    optimizer = context.config.optimizer
    resolved = {
        "accelerator": context.accelerator,
        "precision": context.precision,
        "devices": distributed.world_size(),
        "fitted": context.fitted,
        "learning_rate": optimizer.peak_rate,
        "warmup_epochs": optimizer.warmup,
        "proj_hidden": network.proj_hidden or network.out_dim,
        "in_dim": context.model.projector[0].in_features,
        "train_images": len(context.data.train),
        "test_images": len(context.data.test),
        "hardware": describe_hardware(context.accelerator),
        "image_size": context.data.size,
        "stem": context.model.hparams["stem"],
        "images": context.data.dataset_digest,
    }
    comparison = choose_comparison(context.data.train, context.data.test)
    if comparison is not None and comparison.leave_one_out:
        resolved["leave_one_out"] = comparison.name
    if context.data.train.image_cache is not None:
        resolved["image_cache"] = context.data.train.image_cache
    if context.weights is not None:
        resolved["starting_weights"] = "; ".join(context.weights.lines)
    elif context.start is not None and context.run.config.exists():
        # Only the first start of a run loads the weights of --model-path. This is a later one.
        description = context.run.settings("resolved").get("starting_weights")
        if description is not None:
            resolved["starting_weights"] = description
    return resolved


def describe_run(context: RunContext) -> str:
    """Return the lines about a run that need its images.

    `simsiam.config.run_state.announce` has printed the lines before them.
    """
    data = context.data
    optimizer = context.config.optimizer
    device_options = context.config.device

    lines = describe_images(context) + describe_network(context.model)
    defaults = PRETRAIN_DEFAULTS | pretrain_values(context.config.run.recipe)
    unused = describe_unused_settings(flatten(context.config), defaults)
    if unused is not None:
        lines.append(INDENT + unused)

    lines += describe_fit(context.config, data, context.fitted)
    steps_per_epoch = len(data.train) // optimizer.images_per_step
    steps = optimizer.epochs * steps_per_epoch
    epochs = format_count(optimizer.epochs, "epoch")
    lines.append(f"  steps     {epochs} of {format_count(steps_per_epoch, 'step')} = {steps:,}")

    processes = count_processes(device_options, context.config.run.dry_run)
    device = context.accelerator
    if processes > 1:
        device = f"{processes} x {device}"
    lines.append(f"  device    {device}, precision {context.precision}")
    unused_gpu_reason = hidden_gpu_reason(device_options.accelerator)
    if unused_gpu_reason is not None:
        lines.append(INDENT + unused_gpu_reason)

    if context.compiled_sizes:
        sizes = " and ".join(str(size) for size in context.compiled_sizes)
        lines.append(f"{INDENT}the augmentation is compiled for views of {sizes} pixels")

    if context.weights is not None:
        lines += describe_weights(context.weights, context.data)
    if context.start is not None:
        lines.append(f"  start     resumed from {context.start.path}")
    elif processes == 1 and context.accelerator == "cpu":
        lines += describe_time(context)

    if context.config.run.dry_run:
        lines += describe_settings(context)

    runs_folder = context.run.path.parent
    tensorboard = shell_command("-m", "tensorboard.main", "--logdir", runs_folder)
    lines.append(f"  watch     {tensorboard}")
    return "\n".join(lines)


def describe_settings(context: RunContext) -> list[str]:
    """Return the values of all settings that change what is computed."""
    settings = settings_that_matter(settings_to_keep(context.config))
    resolved = resolve_settings(context)
    for name in ("learning_rate", "warmup_epochs", "proj_hidden", "stem", "image_size"):
        settings[name] = resolved[name]
    parts: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list):
            value = " ".join(str(item) for item in value)
        if value not in (None, ""):
            parts.append(f"{name} {value}")
    text = ", ".join(parts)
    return textwrap.wrap(
        text,
        width=100,
        initial_indent="  settings  ",
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def describe_images(context: RunContext) -> list[str]:
    """Return the lines about the images, their views, and what kNN is measured on."""
    data = context.data
    classes = data.train.describe_classes()
    counts = f"{len(data.train):,} train and {len(data.test):,} {data.test.evaluation_name}"
    reason = knn_unavailable_reason(data.train, data.test)
    is_off_said = reason is not None and reason == classes
    if is_off_said and context.config.monitor.knn_every > 0:
        classes += ": kNN is off"

    lines = [f"  images    {counts}, {classes}"]
    epochs = context.config.optimizer.epochs
    for sentence in describe_view_sizes(data.phases, epochs, data.size, data.train.side):
        lines += textwrap.wrap(sentence, 100, initial_indent=INDENT, subsequent_indent=INDENT)
    lines += [INDENT + line for line in context.config.data.describe_unused()]
    lines += [INDENT + line for line in context.config.augmentation.describe()]
    if context.config.monitor.knn_every > 0:
        unsaid_reason = None if is_off_said else reason
        lines += [INDENT + line for line in describe_measurements(context, unsaid_reason)]
    return lines


def describe_measurements(context: RunContext, reason: str | None) -> list[str]:
    """Return the lines about what is measured, and when.

    Args:
        reason: why kNN is off, unless another line says so.
    """
    train = context.data.train
    test = context.data.test
    lines: list[str] = []
    if reason is not None:
        lines.append(f"{reason}: kNN is off")
    if train.image_cache == "off":
        files = format_count(count_measured_images(train, test), "file")
        lines.append(f"each measurement decodes {files}: see --knn-every")
    is_new = context.start is None
    if is_new and not measures_before_training(context.data, context.config.optimizer.epochs):
        lines.append("nothing is measured before training: it would take over a tenth of the run")
    comparison = choose_comparison(train, test)
    if comparison is not None and comparison.leave_one_out:
        lines += describe_leave_one_out(comparison, train, test)
    return lines


def describe_network(model: SimSiam) -> list[str]:
    """Return the lines about the stem and the numbers of parameters in millions."""
    millions: dict[str, float] = {}
    for name, network in model.named_children():
        millions[name] = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    name = model.hparams["backbone"]
    stem = ""
    if model.hparams["stem"] is not None:
        stem = f"{model.hparams['stem']} stem; "
    lines = [
        f"  network   {stem}parameters: backbone {millions['backbone']:.2f} M,",
        f"{INDENT}projector {millions['projector']:.2f} M, predictor {millions['predictor']:.2f} M",
    ]
    if is_library_backbone(name) and "." in name:
        lines.append(f"{INDENT}the tag in {name} loads no weights")
    return lines


def describe_weights(weights: StartingWeights, data: ViewsDataModule) -> list[str]:
    """Return the lines about the weights of --model-path."""
    first_line, *more_lines = weights.lines
    lines = [f"  start     {first_line}"]
    lines += [INDENT + line for line in more_lines]
    if weights.is_foreign and data.policy.normalize == "dataset":
        lines += [
            f"{INDENT}images are normalised by the data set's own mean and std; if these weights",
            f"{INDENT}were trained with ImageNet's, as most are, pass --normalize imagenet",
        ]
    return lines


def describe_time(context: RunContext) -> list[str]:
    """Return how long the run will take on this CPU, and a faster command if that is long."""
    bf16 = context.precision == "bf16-mixed"
    epochs = context.config.optimizer.epochs
    knn_every = context.config.monitor.knn_every
    seconds = estimate_seconds(
        context.model, context.data, bf16, epochs, knn_every, context.compiled_sizes
    )
    time = f"  time      {format_duration(seconds)} on this CPU"
    if seconds <= LONG_RUN:
        return [time]
    return [
        f"{time}: use a GPU.",
        f"{INDENT}This command reaches 60 % (kNN) on CIFAR-10 in 15 minutes on a CPU:",
        INDENT + shell_command(*FLAGS_FOR_CPU.split()),
    ]
