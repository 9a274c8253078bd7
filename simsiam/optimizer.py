"""The optimizer of SimSiam, SGD, and its schedule, linear warm-up and cosine decay (section 3).

`make_optimizer` chooses the one and `make_schedule` the other.
"""

from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from simsiam.config.optimizer_options import DEFAULT_WARMUP_EPOCHS, RUN_TO_WARMUP_RATIO
from utils.schedule import WarmupCosine, warmup_cosine
from utils.trainer import UnknownLengthError, count_steps


def make_optimizer(module: Any) -> torch.optim.Optimizer:
    """Build the optimizer of a SimSiam that is attached to a Trainer.

    Weight decay applies to every parameter, BN's included, as in the paper.
    """
    hp = module.hparams
    groups = _make_groups(module)

    # Fused SGD is faster. But with gradient clipping and mixed precision, Lightning refuses it.
    clips_gradients = module.trainer.gradient_clip_val is not None
    if is_overridden("configure_gradient_clipping", module):
        clips_gradients = True
    optimizer = torch.optim.SGD(
        groups,
        hp["learning_rate"],
        hp["momentum"],
        weight_decay=hp["weight_decay"],
        fused=not clips_gradients,
    )

    optimizer.register_step_pre_hook(_add_missing_momentum)
    return optimizer


class RunSchedule(WarmupCosine):
    """The schedule of a run. It ends when the run ends, also if the run is resumed.

    Args:
        optimizer: Groups with `constant_lr=True` keep their rate throughout.
        warmup_steps: Steps of linear warm-up, fewer than `total_steps`.
        total_steps: Steps of the schedule.
        first_step: Step of the Trainer at which the schedule starts. It is 0 except in a second
            `fit` with the same Trainer, which continues to count.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int,
        total_steps: int,
        first_step: int,
    ) -> None:
        self.first_step = first_step
        super().__init__(optimizer, warmup_steps, total_steps)

    @property
    def end(self) -> int:
        """The step of the Trainer at which the rate is 0."""
        return self.first_step + self.max_epochs  # bolts calls steps epochs.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schedule from a checkpoint.

        Raises:
            ValueError: The run would be longer than the schedule of the checkpoint.
        """
        end_of_run = self.end  # This schedule was made for the Trainer that resumes the run.
        super().load_state_dict(state_dict)
        difference = (
            f"the checkpoint's learning rate falls to 0 until step {self.end}, "
            f"but this Trainer ends at step {end_of_run}"
        )
        advice = (
            "To finish the run of the checkpoint, pass the same max_epochs, max_steps and "
            "limit_train_batches as before. For another length, load only the weights "
            "(SimSiam.load_from_checkpoint) and fit without ckpt_path"
        )
        if self.end < end_of_run:
            raise ValueError(f"{difference}, so the rate would rise again. {advice}")
        if self.end > end_of_run:
            rank_zero_warn(f"{difference}, at a rate above 0. {advice}")


def make_schedule(module: Any, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the learning rate schedule of a SimSiam that is attached to a Trainer.

    The schedule is stepped after each optimizer step, and the rate reaches 0 at the end of the run.
    Groups with `constant_lr=True` keep their rate throughout.

    Raises:
        ValueError: The Trainer does not know how long the run is.
    """
    warmup_steps, total_steps, first_step = _plan_steps(module)
    if module.trainer.fast_dev_run:  # A single step, also with the checkpoint of a long run.
        return warmup_cosine(optimizer, warmup_steps, total_steps)
    return RunSchedule(optimizer, warmup_steps, total_steps, first_step)


def follow_tuners(module: Any) -> None:
    """Make optimizer and schedule again if a callback has changed what they were made from.

    Lightning calls `configure_optimizers` first. BatchSizeFinder then changes the number of steps
    and LearningRateFinder the rate, so the schedule would end too early or too late, or have the
    old rate. This must be called before a checkpoint restores the state of the optimizer.
    """
    for config in module.trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if not isinstance(schedule, RunSchedule):
            continue
        steps = schedule.warmup_epochs, schedule.max_epochs, schedule.first_step
        rate = module.hparams["learning_rate"]
        rates = [group.get("lr", rate) for group in _make_groups(module)]
        if steps != _plan_steps(module) or rates != schedule.base_lrs:
            module.trainer.strategy.setup_optimizers(module.trainer)
            return


def _plan_steps(module: Any) -> tuple[int, int, int]:
    """Return the warm-up steps, all steps and the first step of the schedule of a run."""
    trainer = module.trainer
    total_steps = _count_total_steps(trainer)
    # In a second `fit`, the Trainer continues to count. With a checkpoint, its count is restored.
    first_step = 0
    if trainer.ckpt_path is None:
        first_step = min(trainer.global_step, total_steps - 1)
        total_steps -= first_step
    warmup_steps = _count_warmup_steps(trainer, module.hparams["warmup_epochs"], total_steps)
    return warmup_steps, total_steps, first_step


def _make_groups(module: Any) -> list[dict[str, Any]]:
    """Return the parameter groups of the encoder and of the predictor, whatever the optimizer.

    What a subclass of SimSiam adds is trained like the encoder.
    """
    hp = module.hparams
    encoder = {
        "params": [
            *module.backbone.parameters(),
            *module.projector.parameters(),
            *_find_added_parameters(module),
        ]
    }
    predictor = {
        "params": list(module.predictor.parameters()),
        "lr": hp["learning_rate"] * hp["predictor_lr_scale"],
        "constant_lr": hp["constant_predictor_lr"],  # read by the schedule
    }
    # An ablated or fixed predictor has no parameters to train, so it gets no group.
    groups: list[dict[str, Any]] = []
    for group in (encoder, predictor):
        if any(parameter.requires_grad for parameter in group["params"]):
            groups.append(group)
    return groups


def _find_added_parameters(module: Any) -> list[nn.Parameter]:
    """Return the trainable parameters that a subclass of SimSiam has added to it."""
    own_networks = nn.ModuleList([module.backbone, module.projector, module.predictor])
    own_parameters = set(own_networks.parameters())
    added: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad and parameter not in own_parameters:
            added.append(parameter)
    return added


def _add_missing_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give parameters that start to learn after the first step a momentum of 0.

    A callback such as BackboneFinetuning freezes parameters first and trains them later, or removes
    their gradients. The loss of a subclass may be without some of its parameters in the first
    steps. torch's fused SGD fails if some parameters of a group have a momentum and others have
    none.
    """
    num_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    if len(optimizer.state) in (0, num_parameters):
        return  # In most runs, all parameters learn from the first step on.
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        missing: list[torch.Tensor] = []
        for parameter in group["params"]:
            if optimizer.state.get(parameter, {}).get("momentum_buffer") is None:
                missing.append(parameter)
        if len(missing) == len(group["params"]):
            continue  # No step has been made yet.
        for parameter in missing:
            if parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _count_total_steps(trainer: pl.Trainer) -> int:
    try:
        total_steps = int(count_steps(trainer))
    except UnknownLengthError as error:
        raise ValueError(
            f"SimSiam's learning rate falls until the end of the run, but {error}"
        ) from None
    return max(1, total_steps)


def _count_warmup_steps(trainer: pl.Trainer, epochs: float | None, total_steps: int) -> int:
    """Return the number of warm-up steps. At least one step of the run remains for the decay.

    Args:
        epochs: Epochs of warm-up. None means 10 epochs, or a tenth of the run if that is shorter.
    """
    if epochs == 0:
        return 0

    if epochs is None:
        warmup_steps = total_steps / RUN_TO_WARMUP_RATIO
        # A loader without a length has no epochs to count. The warm-up is then a tenth of the run.
        with suppress(UnknownLengthError):
            warmup_steps = min(warmup_steps, count_steps(trainer, DEFAULT_WARMUP_EPOCHS))
    else:
        warmup_steps = count_steps(trainer, epochs)
    return round(min(warmup_steps, total_steps - 1))
