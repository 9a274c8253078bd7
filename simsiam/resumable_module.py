"""A LightningModule with exact epoch means and an exact resume at any batch."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from utils import distributed
from utils.trainer import (
    follow_accumulation_schedule,
    has_accumulated_gradients,
    logs_this_step,
)

# Older checkpoints have the sums of these metrics as one tensor, in this order.
METRICS_WITHOUT_NAMES = ("train_loss", "z_std")


class ResumableModule(pl.LightningModule):
    """Log the mean of each metric over each epoch, also if a run resumes within the epoch.

    There is no list of the metrics: logs, checkpoints and metrics.jsonl have those that a module
    passes to `record_metrics` or `add_metrics`.

    With accumulation, a checkpoint may be written after some of the batches of an optimizer step.
    It then also holds the gradients accumulated so far, so that a resumed run equals an
    uninterrupted one to the bit.
    """

    def __init__(self) -> None:
        super().__init__()
        # The sum of each metric over its values in the current epoch, and how many values it has.
        self._metric_sums: dict[str, Tensor] = {}
        self._metric_counts: dict[str, int] = {}
        self._means_logged = False
        # Gradients by parameter name, from a checkpoint with accumulated gradients.
        self._restored_gradients: dict[str, Tensor] = {}

    # ---------------------------------------------------------------- epoch means

    def record_metrics(
        self, metrics: Mapping[str, Tensor], batch_size: int, batch_idx: int
    ) -> None:
        """Record the metrics of a batch, and forget the last epoch's if the batch is the first.

        `training_step` calls this. Later hooks of the same batch, such as
        `on_before_optimizer_step`, call `add_metrics`.

        Args:
            metrics: A scalar of the batch for each name.
            batch_size: Number of images in the batch.
            batch_idx: Position of the batch in the epoch.
        """
        # A run that resumes within an epoch starts at a later batch. It continues the sums that
        # `on_load_checkpoint` restored.
        if batch_idx == 0:
            self._metric_sums = {}
            self._metric_counts = {}
            self._means_logged = False
        self.add_metrics(metrics, batch_size)

    def add_metrics(self, metrics: Mapping[str, Tensor], batch_size: int) -> None:
        """Add metrics to the sums of the epoch, and log them every few steps.

        `self.log(on_epoch=True)` also computes the means of an epoch. But it takes half a
        millisecond of CPU time in each step, and a resumed run forgets the earlier batches.

        Args:
            metrics: A scalar for each name.
            batch_size: Number of images in the batch.
        """
        if self._trainer is None:
            return  # `training_step` was called without a Trainer.
        if self.trainer.lightning_module is not self:
            return  # Another module has this one as a part. Only that module can log.

        step_metrics: dict[str, Tensor] = {}
        for name, metric in metrics.items():
            value = metric.detach()
            if name in self._metric_sums:
                self._metric_sums[name] = self._metric_sums[name].to(value.device) + value
            else:
                self._metric_sums[name] = value.double()
            self._metric_counts[name] = self._metric_counts.get(name, 0) + 1
            step_metrics[f"{name}_step"] = value

        if logs_this_step(self.trainer):
            self.log_dict(step_metrics, on_step=True, on_epoch=False, batch_size=batch_size)

    def epoch_means(self) -> dict[str, Tensor]:
        """Return the mean of each metric over the epoch so far and all processes."""
        means: dict[str, Tensor] = {}
        for name, value in self._average_sums().items():
            means[name] = value / max(1, self._metric_counts[name])
        return means

    def _average_sums(self) -> dict[str, Tensor]:
        """Return the mean of each sum over all processes."""
        if not self._metric_sums:
            return {}
        sums = distributed.all_reduce_mean(torch.stack(list(self._metric_sums.values())))
        return dict(zip(self._metric_sums, sums, strict=True))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means of the epoch after its last batch.

        Callbacks read the means in their `on_train_epoch_end`, which runs before the module's.
        """
        # Each test misses a case. `is_last_batch` misses an epoch that ends early, as by max_steps.
        # `done` misses a resumed run whose first batch is the last one of the epoch.
        if self.trainer.is_last_batch or self.trainer.fit_loop.epoch_loop.done:
            self._log_means()

    def on_train_epoch_end(self) -> None:
        """Log the means of an epoch that a callback stopped early, during a validation."""
        if not self._means_logged:
            self._log_means()

    def _log_means(self) -> None:
        # All processes have the same means. Lightning warns where sync_dist is not set.
        self.log_dict(
            self.epoch_means(), on_step=False, on_epoch=True, batch_size=1, sync_dist=True
        )
        self._means_logged = True

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the epoch, and the gradients that wait for an optimizer step."""
        # All processes resume from the same file, so it holds means over all processes.
        checkpoint["epoch_so_far"] = {
            "sums": self._average_sums(),
            "counts": dict(self._metric_counts),
        }

        is_resumable = "optimizer_states" in checkpoint  # False for a checkpoint of weights alone
        if is_resumable and has_accumulated_gradients(self.trainer):
            gradients: dict[str, Tensor] = {}
            for name, parameter in self.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = distributed.all_reduce_mean(parameter.grad)
            checkpoint["accumulated_gradients"] = gradients

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums and the gradients. Older checkpoints may not have them.

        A metric that the checkpoint does not have starts from no data: its mean is that of the
        batches after the resume.
        """
        epoch_so_far = checkpoint.get("epoch_so_far")
        if epoch_so_far:
            sums = epoch_so_far["sums"]
            if isinstance(sums, Tensor):
                sums = dict(zip(METRICS_WITHOUT_NAMES, sums, strict=True))
                self._metric_counts = dict.fromkeys(sums, epoch_so_far["batches"])
            else:
                self._metric_counts = dict(epoch_so_far["counts"])
            self._metric_sums = {name: value.to(self.device) for name, value in sums.items()}
        # `on_train_start` sets them as gradients of the parameters.
        self._restored_gradients = checkpoint.get("accumulated_gradients", {})

    def on_train_start(self) -> None:
        """Restore the accumulated gradients, and how many batches make a step in this epoch."""
        follow_accumulation_schedule(self.trainer)
        for name, parameter in self.named_parameters():
            if name in self._restored_gradients:
                parameter.grad = self._restored_gradients[name].to(parameter)
        self._restored_gradients = {}
