"""The loggers of a run, and TensorBoard's with its pictures and settings."""

import importlib.util
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from simsiam.config.commands import DEFAULTS, Pretrain, settings_that_matter, settings_to_keep
from utils import distributed
from utils.console import print_line
from utils.errors import UserError, require
from utils.run_dir import RunDirectory


class ResilientTensorBoardLogger(TensorBoardLogger):
    """TensorBoard without Lightning's curve of the epoch number; on a full disk, points wait in memory for room.

    A point that is logged twice is written once, so that a run can log an epoch before its checkpoint, and Lightning
    after it: what a checkpoint says has happened is in the curves, too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: list[tuple[dict[str, float], int | None]] = []
        self.latest: dict[str, int | None] = {}  # step of each curve's latest point

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = {
            name: value
            for name, value in metrics.items()
            if name != "epoch" and self.latest.get(name, -1) != step
        }
        self.latest |= dict.fromkeys(new, step)
        if new:
            self.waiting.append((new, step))
        try:
            while self.waiting:
                super().log_metrics(*self.waiting[0])
                self.experiment.flush()
                self.waiting.pop(0)
        except (OSError, ValueError) as error:  # Lightning wraps any failure to log in a ValueError
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            # The file may end in half a record, so the next try begins another, which must not purge what is in this.
            self._experiment, self._kwargs["purge_step"] = None, None
            if len(self.waiting) == 1:
                reason = f"TensorBoard's files cannot be written ({cause.strerror})"
                print_line(f"warning: {reason}; it is tried again each epoch")

    def save(self) -> None:
        """Nothing: Lightning would write a file of settings, which config.yaml has."""

    def log_picture(self, tag: str, picture: Tensor, step: int) -> None:
        """(3, H, W) uint8. Skipped on a full disk."""
        with suppress(OSError):
            self.experiment.add_image(tag, picture, step)

    def log_settings(self, settings: dict[str, Any]) -> None:
        """Fill the HPARAMS tab with these and the latest values of the main curves."""
        known = {name: "default" if value is None else value for name, value in settings.items()}
        known |= {
            name: " ".join(value) for name, value in settings.items() if isinstance(value, list)
        }
        for summary in hparams(known, dict.fromkeys(("kNN_accuracy", "train_loss", "z_std"), 0.0)):
            self.experiment._get_file_writer().add_summary(summary)


def check_installed(names: Iterable[str]) -> None:
    """Raise UserError for a logger whose package is not there."""
    for name in {"wandb", "mlflow"}.intersection(names):
        require(
            importlib.util.find_spec(name) is not None,
            f"--logger {name}: it is not installed: pip install {name}",
        )


def make_loggers(config: Pretrain, run: RunDirectory, resumed_at: int | None) -> list[Logger]:
    """In the order of `--logger`; `resumed_at` is a step. Raises UserError for one that does not start."""
    loggers: list[Logger] = []
    settings = settings_that_matter(settings_to_keep(config))
    name = "_".join(
        filter(None, (config.run.exp_name or f"simsiam_{config.data.dataset}", config.run.version))
    )
    for kind in dict.fromkeys(config.monitor.logger):
        if kind == "tensorboard":
            # It drops what it has from the step on that is resumed from.
            where: dict[str, Any] = {"name": "", "version": "", "purge_step": resumed_at or 0}
            loggers.append(
                board := ResilientTensorBoardLogger(run.path, default_hp_metric=False, **where)
            )
            if resumed_at is None and distributed.rank() == 0:
                differing = {
                    key: value for key, value in settings.items() if value != DEFAULTS.get(key)
                }
                board.log_settings({"seed": config.run.seed} | differing)
        elif kind == "csv":
            loggers.append(CSVLogger(run.path, name="csv"))
        else:
            loggers.append(make_remote_logger(kind, name, run, settings))
    return loggers


def make_remote_logger(kind: str, name: str, run: RunDirectory, settings: dict[str, Any]) -> Logger:
    """Of Weights & Biases or MLflow, which take their own settings from the environment. Raises UserError."""
    try:
        if kind == "wandb":
            logger = WandbLogger(name, run.path, project="simsiam")
        else:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            logger = MLFlowLogger(
                "simsiam",
                name,
                os.environ.get("MLFLOW_TRACKING_URI", f"file:{run.path / 'mlruns'}"),
            )
        logger.log_hyperparams(settings)
    except Exception as error:
        raise UserError(f"--logger {kind}: {' '.join(str(error).split())[:300]}") from None
    return logger
