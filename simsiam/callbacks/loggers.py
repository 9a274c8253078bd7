"""The loggers of a run."""

import importlib.util
import os
from collections.abc import Iterable
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from simsiam.callbacks.tensorboard import ResilientTensorBoardLogger
from simsiam.config.commands import DEFAULTS, Pretrain, settings_that_matter, settings_to_keep
from utils import distributed
from utils.errors import UserError, check
from utils.run_dir import RunDirectory


def check_installed(names: Iterable[str]) -> None:
    """Raise UserError for a logger whose package is not there."""
    for name in {"wandb", "mlflow"}.intersection(names):
        check(importlib.util.find_spec(name) is not None, f"--logger {name}: it is not installed: pip install {name}")


def make_loggers(config: Pretrain, run: RunDirectory, resumed_at: int | None) -> list[Logger]:
    """In the order of `--logger`; `resumed_at` is a step. Raises UserError for one that does not start."""
    loggers: list[Logger] = []
    settings = settings_that_matter(settings_to_keep(config))
    name = "_".join(filter(None, (config.run.exp_name or f"simsiam_{config.data.dataset}", config.run.version)))
    for kind in dict.fromkeys(config.monitor.logger):
        if kind == "tensorboard":
            # It drops what it has from the step on that is resumed from.
            where: dict[str, Any] = {"name": "", "version": "", "purge_step": resumed_at or 0}
            loggers.append(board := ResilientTensorBoardLogger(run.path, default_hp_metric=False, **where))
            if resumed_at is None and distributed.rank() == 0:
                differing = {key: value for key, value in settings.items() if value != DEFAULTS.get(key)}
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
            logger = MLFlowLogger("simsiam", name, os.environ.get("MLFLOW_TRACKING_URI", f"file:{run.path / 'mlruns'}"))
        logger.log_hyperparams(settings)
    except Exception as error:  # noqa: BLE001  (theirs, of any kind: no login, no network)
        raise UserError(f"--logger {kind}: {' '.join(str(error).split())[:300]}") from None
    return logger
