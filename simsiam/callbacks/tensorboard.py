"""The logger of a run: TensorBoard's curves, settings and pictures."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from utils.console import print_line


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
        new = {name: value for name, value in metrics.items() if name != "epoch" and self.latest.get(name, -1) != step}
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
        known |= {name: " ".join(value) for name, value in settings.items() if isinstance(value, list)}
        for summary in hparams(known, dict.fromkeys(("kNN_accuracy", "train_loss", "z_std"), 0.0)):
            self.experiment._get_file_writer().add_summary(summary)
