"""What `linear` and `finetune` share: training a classifier, measuring it and keeping its head."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from simsiam.callbacks.progress import ProgressCallback
from simsiam.config.commands import Finetune, Linear
from simsiam.evaluation.classifier import Classifier, LabelledViews
from simsiam.evaluation.context import EvaluationContext
from simsiam.evaluation.metrics import confusion
from simsiam.evaluation.results import Results
from utils.device import choose_accelerator, choose_precision
from utils.export import HEAD, write_weights

CHOICE_EPOCH = 2**32 - 1  # no training gets here: its order decides which images are held out or keep their labels


def train_classifier(
    config: Linear | Finetune,
    model: Classifier,
    data: LabelledViews,
    epochs: int,
    results: Results,
    largest_gradient: float | None = None,
) -> int:
    """Train, and return the number of steps taken. An earlier summary goes: it is no longer of the files beside it."""
    results.summary.unlink(missing_ok=True)
    trainer = pl.Trainer(
        accelerator=choose_accelerator(config.device.accelerator),
        devices=1,
        precision=choose_precision(config.device.precision, config.device.accelerator),
        max_epochs=epochs,
        gradient_clip_val=largest_gradient,
        logger=False,
        callbacks=[ProgressCallback(model.describe_epoch)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    model.to(data.chosen.device).eval()  # Lightning takes it back to the CPU
    return trainer.global_step


@torch.no_grad()
def measure_accuracy(context: EvaluationContext, head: nn.Linear) -> dict[str, Any]:
    """Accuracy of backbone and head on all test images, clean."""
    features = context.extract_features(context.test.images, "test images", unit=False)
    counts = confusion(head(features).argmax(dim=1), context.test.labels, len(context.classes))
    return context.describe_accuracy("test_accuracy", counts)


def save_head(results: Results, context: EvaluationContext, head: nn.Linear, figures: dict[str, Any]) -> None:
    """Write `head.safetensors`, then the figures: `summary.json` marks a measurement as finished."""
    results.summary.unlink(missing_ok=True)
    right, file = figures["test_accuracy"], str(context.checkpoint.file)
    about = {"classes": context.classes, "dataset": context.dataset, "checkpoint": file, "test_accuracy": right}
    write_weights(results.path / "head.safetensors", HEAD, head.state_dict(), about)
    results.write(figures)
