"""Ask a Lightning Trainer about its run: its position in the epoch and the length of the run."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Lightning takes seconds to import.
    import pytorch_lightning as pl


class UnknownLengthError(ValueError):
    """The Trainer does not know the length of its run or of an epoch."""


def count_batches_done(trainer: "pl.Trainer") -> int:
    """Return how many batches of this epoch the model was trained on.

    This is also the index of the next batch. The Trainer saves it in checkpoints, so it is right
    after a resume within an epoch, with accumulated gradients and with `limit_train_batches`.
    """
    return trainer.fit_loop.batch_idx + 1


def logs_this_step(trainer: "pl.Trainer") -> bool:
    """Return whether loggers get the values of this step, as `log_every_n_steps` says.

    `global_step` would be wrong: it counts the steps of all optimizers of a module, and after an
    optimizer step it is the next one.
    """
    log_every: Any = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # by which Lightning decides, too
    return log_every > 0 and step % log_every == 0


def has_accumulated_gradients(trainer: "pl.Trainer") -> bool:
    """Return whether there are gradients that wait for more batches of their optimizer step."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches: Any = progress.current  # counts batches of this epoch

    # An epoch's last batch always ends a step. After an exception in a batch, Lightning has counted
    # that batch as ready but not as processed, so the last batch may not be done.
    is_last_batch_done = progress.is_last_batch and batches.processed == batches.ready
    if is_last_batch_done:
        return False
    return batches.processed % trainer.accumulate_grad_batches != 0


def follow_accumulation_schedule(trainer: "pl.Trainer") -> None:
    """Set how many batches make a step in this epoch, as a GradientAccumulationScheduler says.

    Lightning does this at the start of an epoch, but not after a resume within an epoch.
    """
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, GradientAccumulationScheduler):
            epoch = trainer.current_epoch
            trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(epoch)


def is_last_epoch(trainer: "pl.Trainer") -> bool:
    """Return whether training ends with the current epoch. Is right only at the end of an epoch."""
    if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
        return True
    return trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps


def count_steps(trainer: "pl.Trainer", epochs: float | None = None) -> float:
    """Return the number of optimizer steps in the first epochs of a run.

    Args:
        epochs: How many epochs to count. None means the whole run.

    Raises:
        UnknownLengthError: The run has no known end, or an epoch has no known length.
    """
    has_max_steps = trainer.max_steps != -1
    if trainer.limit_train_batches == 0 or trainer.max_epochs == 0 or trainer.max_steps == 0:
        return 0

    # Lightning has not asked the loader for its length yet.
    trainer.fit_loop.setup_data()
    batches_per_epoch = trainer.num_training_batches

    if math.isinf(batches_per_epoch):
        if epochs is not None:
            raise UnknownLengthError("the loader has no length, so it has no epochs to count")
        if not has_max_steps:
            raise UnknownLengthError("the loader has no length. Pass Trainer(max_steps=...).")
        return trainer.max_steps

    if epochs is not None:
        return _count_steps_of_epochs(trainer, epochs, batches_per_epoch)
    if trainer.max_epochs in (None, -1):
        if not has_max_steps:
            raise UnknownLengthError("the run has no end. Pass Trainer(max_steps=...).")
        return trainer.max_steps
    steps = _count_steps_of_epochs(trainer, trainer.max_epochs, batches_per_epoch)
    if has_max_steps:
        steps = min(steps, trainer.max_steps)
    return steps


def _count_steps_of_epochs(trainer: "pl.Trainer", epochs: float, batches_per_epoch: float) -> float:
    """Count the steps of the first epochs. Epochs may accumulate different numbers of batches."""
    schedule = _get_accumulation_schedule(trainer)
    starts = list(schedule)
    ends = [*starts[1:], math.inf]
    steps = 0.0
    for start, end in zip(starts, ends, strict=True):
        epochs_in_phase = max(0, min(end, epochs) - start)
        # The last step of an epoch may have fewer batches than the others.
        steps_per_epoch = math.ceil(batches_per_epoch / schedule[start])
        steps += epochs_in_phase * steps_per_epoch
    return steps


def _get_accumulation_schedule(trainer: "pl.Trainer") -> dict[int, int]:
    """Return {first epoch: batches per step from this epoch on}, sorted, with a key 0."""
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, GradientAccumulationScheduler):
            return dict(sorted(callback.scheduling.items()))
    return {0: trainer.accumulate_grad_batches}
