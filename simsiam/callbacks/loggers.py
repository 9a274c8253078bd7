"""The loggers of a run. TensorBoard also gets images and settings."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
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

from simsiam.config.commands import (
    PRETRAIN_DEFAULTS,
    Pretrain,
    settings_that_matter,
    settings_to_keep,
)
from utils import distributed
from utils.console import print_line
from utils.errors import UserError, require
from utils.filesystem import write_atomically
from utils.run_dir import RunDirectory

SEPARATE_PACKAGES = ("wandb", "mlflow")  # loggers whose packages req.txt does not install
MAX_ERROR_LENGTH = 300  # characters of a package's error that a message quotes


class ResilientTensorBoardLogger(TensorBoardLogger):
    """TensorBoard for a run that may be killed or meet a full disk.

    - On a full disk, points wait in memory until there is space.
    - `MetricsRecorder` logs an epoch before its checkpoint, by `log_early`. Lightning logs the same
      points again after the checkpoint, and these are left out.
    - Lightning's curve of the epoch number is left out.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # (metrics, step) of the points that are not written yet
        self.waiting: list[tuple[dict[str, float], int | None]] = []
        self.early_steps: dict[str, int] = {}  # curve -> step of its latest point by `log_early`

    def log_early(self, metrics: Mapping[str, float], step: int) -> None:
        """Log points that Lightning will log again."""
        self.log_metrics(metrics, step)
        self.early_steps.update(dict.fromkeys(metrics, step))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new_points: dict[str, float] = {}
        for name, value in metrics.items():
            is_repeated = name in self.early_steps and self.early_steps[name] == step
            if name != "epoch" and not is_repeated:
                new_points[name] = value
        if new_points:
            self.waiting.append((new_points, step))
        self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            while self.waiting:
                metrics, step = self.waiting[0]
                super().log_metrics(metrics, step)
                self.experiment.flush()
                self.waiting.pop(0)
        except (OSError, ValueError) as error:
            # Lightning turns every failure to log into a ValueError.
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            # The file may end in half a record, so the next try must begin another file. It must
            # not purge the points in this file, as the first file of a resumed run does.
            self._experiment = None
            self._kwargs["purge_step"] = None
            if len(self.waiting) == 1:  # warn once; at the next failure, more points wait
                print_line(
                    f"warning: TensorBoard's files cannot be written ({cause.strerror}). "
                    "The next epoch tries again."
                )

    def save(self) -> None:
        """Do nothing: Lightning would write a file of settings, and config.yaml has them."""

    def log_image(self, tag: str, image: Tensor, step: int) -> None:
        """Log an image (3, H, W) uint8; on a full disk, skip it."""
        with suppress(OSError):
            self.experiment.add_image(tag, image, step)

    def log_settings(self, settings: dict[str, Any]) -> None:
        """Fill the HPARAMS tab with these settings and the latest values of the main curves."""
        values: dict[str, Any] = {}
        for name, value in settings.items():
            if value is None:
                values[name] = "default"
            elif isinstance(value, list):
                values[name] = " ".join(str(item) for item in value)
            else:
                values[name] = value
        # `hparams` uses the names only. TensorBoard shows the latest value of each curve.
        curves = dict.fromkeys(("kNN_accuracy", "train_loss", "z_std"), 0.0)
        for summary in hparams(values, curves):
            self.experiment._get_file_writer().add_summary(summary)


class ResilientCSVLogger(CSVLogger):
    """A table for a run that may meet a full disk: rows wait in memory until there is space."""

    warned = False  # whether the latest rows wait, and a line says so

    def save(self) -> None:
        if distributed.rank() != 0:
            return
        writer = self.experiment
        file = Path(writer.metrics_file_path)
        waiting = list(writer.metrics)
        columns = list(writer.metrics_keys)

        def write(partial: Path) -> None:
            # Lightning appends rows. With a new column, it writes the table again.
            if file.exists():
                shutil.copyfile(file, partial)
            writer.metrics_file_path = str(partial)
            super(ResilientCSVLogger, self).save()

        try:
            write_atomically(file, write)
            self.warned = False
        except OSError as error:
            writer.metrics = waiting
            writer.metrics_keys = columns
            if not self.warned:
                print_line(
                    f"warning: {file} cannot be written ({error.strerror}). "
                    "The next epoch tries again."
                )
            self.warned = True
        finally:
            writer.metrics_file_path = str(file)


class ResilientMLFlowLogger(MLFlowLogger):
    """MLflow for a run that may meet a full disk, or a server that does not answer.

    Points that MLflow does not take are left out. metrics.jsonl has them.
    """

    warned = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if distributed.rank() == 0:
            self._try(lambda: super(ResilientMLFlowLogger, self).log_metrics(metrics, step))

    def finalize(self, status: str = "success") -> None:
        if distributed.rank() == 0:
            self._try(lambda: super(ResilientMLFlowLogger, self).finalize(status))

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001  (the package raises errors of many kinds)
            if not self.warned:
                print_line(f"warning: MLflow lacks points of this run ({shorten_error(error)}).")
            self.warned = True


def shorten_error(error: Exception) -> str:
    """Return the message of a package's error in one line."""
    return " ".join(str(error).split())[:MAX_ERROR_LENGTH]


def check_installed(names: Iterable[str]) -> None:
    """Raise UserError for a logger whose package is not installed."""
    for name in SEPARATE_PACKAGES:
        require(
            name not in names or importlib.util.find_spec(name) is not None,
            f"--logger {name} needs a package that is not installed. Run: pip install {name}",
        )


def make_loggers(config: Pretrain, run: RunDirectory, resumed_at: int | None) -> list[Logger]:
    """Return the loggers that `--logger` names, in the same order.

    Args:
        resumed_at: the step at which the run resumes; None for a new run.

    Raises:
        UserError: a logger does not start.
    """
    # Leave out settings that change nothing that is computed, such as --devices and --logger.
    settings = settings_that_matter(settings_to_keep(config))
    loggers: list[Logger] = []
    for kind in dict.fromkeys(config.monitor.logger):  # each once
        if kind == "tensorboard":
            logger = ResilientTensorBoardLogger(
                run.path,
                name="",
                version="",
                default_hp_metric=False,
                purge_step=resumed_at or 0,  # hides the points of the steps that are done again
            )
            if resumed_at is None and distributed.rank() == 0:
                changed = {"seed": config.run.seed}
                for name, value in settings.items():
                    if value != PRETRAIN_DEFAULTS.get(name):
                        changed[name] = value
                logger.log_settings(changed)
        elif kind == "csv":
            logger = ResilientCSVLogger(run.path, name="csv")
        else:
            run_name = config.run.exp_name or f"{config.PREFIX}_{config.data.dataset}"
            if config.run.version:
                run_name += f"_{config.run.version}"
            logger = make_remote_logger(kind, run_name, run, settings)
        loggers.append(logger)
    return loggers


def make_remote_logger(
    kind: str, run_name: str, run: RunDirectory, settings: dict[str, Any]
) -> Logger:
    """Return a logger of Weights & Biases ("wandb") or MLflow ("mlflow").

    Both packages take their own settings, such as a server's address, from the environment.

    Raises:
        UserError: the logger does not start.
    """
    try:
        if kind == "wandb":
            logger = WandbLogger(run_name, run.path, project="simsiam")
        else:
            # Without a server, MLflow logs to a folder, which it refuses unless this is set.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = os.environ.get("MLFLOW_TRACKING_URI", f"file:{run.path / 'mlruns'}")
            logger = ResilientMLFlowLogger("simsiam", run_name, uri)
        logger.log_hyperparams(settings)
    except Exception as error:  # noqa: BLE001  (the packages raise errors of many kinds)
        raise UserError(f"--logger {kind} does not start: {shorten_error(error)}") from None
    return logger
