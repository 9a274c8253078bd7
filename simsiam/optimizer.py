"""The optimizer of SimSiam and its schedule: SGD with linear warm-up and cosine decay (section 3)."""

from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden

from utils.schedule import warmup_cosine
from utils.trainer import UnknownLengthError, count_steps

DEFAULT_WARMUP_EPOCHS = 10


def make_optimizer(module: pl.LightningModule) -> dict[str, Any]:
    """Return what `configure_optimizers` of a SimSiam returns.

    Weight decay is on every parameter, BN's included, as in the paper. The schedule is stepped
    after each optimizer step and reaches 0 at the end of the run.

    Raises:
        ValueError: the Trainer does not know how long the run is.
    """
    hp: Any = module.hparams
    groups: list[dict[str, Any]] = [
        {"params": [*module.backbone.parameters(), *module.projector.parameters()]},  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        {
            "params": list(module.predictor.parameters()),  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
            "lr": hp["learning_rate"] * hp["predictor_lr_scale"],
            "constant_lr": hp["constant_predictor_lr"],
        },
    ]
    # An ablated or fixed predictor has no parameters to train.
    groups = [group for group in groups if any(p.requires_grad for p in group["params"])]
    # Lightning's clipping refuses fused optimizers under mixed precision.
    clips = module.trainer.gradient_clip_val is not None
    clips = clips or is_overridden("configure_gradient_clipping", module)
    optimizer = torch.optim.SGD(
        groups,
        hp["learning_rate"],
        hp["momentum"],
        weight_decay=hp["weight_decay"],
        fused=not clips,
    )
    if any(not p.requires_grad for group in groups for p in group["params"]):
        optimizer.register_step_pre_hook(_add_missing_momentum)
    total_steps = _count_total_steps(module.trainer)
    warmup_steps = _count_warmup_steps(module.trainer, hp["warmup_epochs"], total_steps)
    schedule = warmup_cosine(optimizer, warmup_steps, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _add_missing_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give parameters that start to learn after the first step a momentum of 0.

    They may have been frozen, as by BackboneFinetuning. torch's fused SGD fails where some
    parameters of a group have a momentum and some have none.
    """
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        missing: list[torch.Tensor] = []
        for parameter in group["params"]:
            if optimizer.state.get(parameter, {}).get("momentum_buffer") is None:
                missing.append(parameter)
        if len(missing) == len(group["params"]):
            continue  # no step was made yet
        for parameter in missing:
            if parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _count_total_steps(trainer: pl.Trainer) -> int:
    try:
        return max(1, int(count_steps(trainer)))
    except UnknownLengthError as error:
        raise ValueError(
            f"SimSiam's learning rate falls along a cosine to the end of the run, but {error}"
        ) from None


def _count_warmup_steps(trainer: pl.Trainer, epochs: float | None, total_steps: int) -> int:
    """Return the steps of warm-up, which leave at least one to the cosine.

    Args:
        epochs: of warm-up; None for 10, or a tenth of the run if that is shorter.
    """
    if epochs == 0:
        return 0
    if epochs is not None:
        steps = count_steps(trainer, epochs)
    else:
        steps = total_steps / 10
        with suppress(UnknownLengthError):  # a loader without length has no epochs
            steps = min(steps, count_steps(trainer, DEFAULT_WARMUP_EPOCHS))
    return round(min(steps, total_steps - 1))
