"""What a Lightning Trainer knows of its run: which batch comes next, how many steps there are."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Lightning takes seconds to import
    import pytorch_lightning as pl


class UnknownLengthError(ValueError):
    """The Trainer does not know how long its run or an epoch is."""


def count_batches_done(trainer: "pl.Trainer") -> int:
    """Return how many batches of this epoch were trained on: the index of the next one.

    The Trainer keeps this number in its checkpoints, so it holds after a resume in mid-epoch, with
    accumulated gradients and with `limit_train_batches`.
    """
    return trainer.fit_loop.batch_idx + 1


def is_between_steps(trainer: "pl.Trainer") -> bool:
    """Return whether no gradient is waiting for further batches to become an optimizer step."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches: Any = progress.current  # of this epoch
    # After an exception within a batch, that batch is ready but not processed.
    if progress.is_last_batch and batches.processed == batches.ready:
        return True
    return batches.processed % trainer.accumulate_grad_batches == 0


def follow_accumulation_schedule(trainer: "pl.Trainer") -> None:
    """Accumulate as a GradientAccumulationScheduler says for the current epoch.

    Its own hook is not called after a resume in mid-epoch.
    """
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, GradientAccumulationScheduler):
            epoch = trainer.current_epoch
            trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(epoch)


def is_last_epoch(trainer: "pl.Trainer") -> bool:
    """Return whether training ends with the current epoch, as far as can be told at its end."""
    if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
        return True
    return trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps


def count_steps(trainer: "pl.Trainer", epochs: float | None = None) -> float:
    """Return the optimizer steps of the first epochs of a run.

    Args:
        epochs: how many, or None for the whole run.

    Raises:
        UnknownLengthError: the run has no known end, or its epochs have no known length.
    """
    if trainer.limit_train_batches == 0 or trainer.max_epochs == 0 or trainer.max_steps == 0:
        return 0
    trainer.fit_loop.setup_data()  # Lightning has not asked for the loader yet
    batches = trainer.num_training_batches
    if math.isinf(batches):
        if epochs is None and trainer.max_steps != -1:
            return trainer.max_steps
        if epochs is None:
            raise UnknownLengthError("the loader has no length: give Trainer(max_steps=...)")
        raise UnknownLengthError("the loader has no length, so it has no epochs to count")
    if epochs is None:
        if trainer.max_epochs in (None, -1):
            if trainer.max_steps == -1:
                raise UnknownLengthError("the run has no end: give Trainer(max_steps=...)")
            return trainer.max_steps
        epochs = trainer.max_epochs
        limit = trainer.max_steps if trainer.max_steps != -1 else math.inf
    else:
        limit = math.inf
    schedule = _accumulation_schedule(trainer)
    steps = 0.0
    for start, accumulate in schedule.items():
        end = min([epochs, *(epoch for epoch in schedule if epoch > start)])
        steps += max(0, end - start) * math.ceil(batches / accumulate)
    return min(steps, limit)


def _accumulation_schedule(trainer: "pl.Trainer") -> dict[int, int]:
    """Return {first epoch: batches that make a step from then on}; epoch 0 is among the keys."""
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, GradientAccumulationScheduler):
            return dict(sorted(callback.scheduling.items()))
    return {0: trainer.accumulate_grad_batches}
