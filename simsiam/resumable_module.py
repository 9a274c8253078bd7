"""A LightningModule with exact epoch means and an exact resume at any batch."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from utils import distributed
from utils.trainer import follow_accumulation_schedule, has_accumulated_gradients


class ResumableModule(pl.LightningModule):
    """Log the means of loss and z_std of each epoch, also if a run resumes within the epoch.

    With accumulation, a checkpoint may be written after some of the batches of an optimizer step.
    It then also holds the gradients accumulated so far, so that a resumed run equals an
    uninterrupted one to the bit.
    """

    def __init__(self) -> None:
        super().__init__()
        # Sums of loss and z_std over the batches of the current epoch.
        self._epoch_sums = torch.zeros(2, dtype=torch.float64)
        self._epoch_batches = 0
        self._means_logged = False
        # Gradients by parameter name, from a checkpoint with accumulated gradients.
        self._restored_gradients: dict[str, Tensor] = {}

    # ---------------------------------------------------------------- epoch means

    def record_metrics(self, metrics: Tensor, batch_size: int, batch_idx: int) -> None:
        """Add the metrics of a batch to the sums of the epoch, and log them every few steps.

        `self.log(on_epoch=True)` also computes the means of an epoch. But it takes half a
        millisecond of CPU time in each step, and a resumed run forgets the earlier batches.

        Args:
            metrics: Loss and z_std of the batch, (2,).
            batch_size: Number of images in the batch.
            batch_idx: Position of the batch in the epoch.
        """
        if self._trainer is None:
            return  # `training_step` was called without a Trainer.

        # A run that resumes within an epoch starts at a later batch. It continues the sums that
        # `on_load_checkpoint` restored.
        if batch_idx == 0:
            self._epoch_sums = torch.zeros_like(self._epoch_sums)
            self._epoch_batches = 0
            self._means_logged = False
        self._epoch_sums = self._epoch_sums.to(metrics.device) + metrics
        self._epoch_batches += 1

        log_every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        step = self.trainer.global_step + 1  # global_step does not count the current step yet
        if log_every and step % log_every == 0:
            step_metrics = {"train_loss_step": metrics[0], "z_std_step": metrics[1]}
            self.log_dict(step_metrics, on_step=True, on_epoch=False, batch_size=batch_size)

    def epoch_means(self) -> Tensor:
        """Return the means of loss and z_std (2,) over the epoch so far and all processes."""
        return distributed.all_reduce_mean(self._epoch_sums) / max(1, self._epoch_batches)

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
        train_loss, z_std = self.epoch_means()
        means = {"train_loss": train_loss, "z_std": z_std}
        # All processes have the same means. Lightning warns where sync_dist is not set.
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self._means_logged = True

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the epoch, and the gradients that wait for an optimizer step."""
        # All processes resume from the same file, so it holds means over all processes.
        sums = distributed.all_reduce_mean(self._epoch_sums)
        checkpoint["epoch_so_far"] = {"sums": sums, "batches": self._epoch_batches}

        is_resumable = "optimizer_states" in checkpoint  # False for a checkpoint of weights alone
        if is_resumable and has_accumulated_gradients(self.trainer):
            gradients: dict[str, Tensor] = {}
            for name, parameter in self.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = distributed.all_reduce_mean(parameter.grad)
            checkpoint["accumulated_gradients"] = gradients

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums and the gradients. Older checkpoints may not have them."""
        epoch_so_far = checkpoint.get("epoch_so_far")
        if epoch_so_far:
            self._epoch_sums = epoch_so_far["sums"].to(self.device)
            self._epoch_batches = epoch_so_far["batches"]
        # `on_train_start` sets them as gradients of the parameters.
        self._restored_gradients = checkpoint.get("accumulated_gradients", {})

    def on_train_start(self) -> None:
        """Restore the accumulated gradients, and how many batches make a step in this epoch."""
        follow_accumulation_schedule(self.trainer)
        for name, parameter in self.named_parameters():
            if name in self._restored_gradients:
                parameter.grad = self._restored_gradients[name].to(parameter)
        self._restored_gradients = {}
