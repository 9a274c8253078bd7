"""TensorBoard's curves, settings and pictures."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from utils.console import print_line

CURVES = {"kNN_accuracy": "kNN accuracy (%)", "train_loss": "loss", "z_std": "z_std", "learning_rate": "learning rate"}


class ResilientTensorBoardLogger(TensorBoardLogger):
    """TensorBoard, without Lightning's curve of the epoch's own number.

    What a full disk does not take waits in memory: once there is room, the curves are whole again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        first = not self.waiting  # hence: nothing has failed so far
        self.waiting.append(({name: value for name, value in metrics.items() if name != "epoch"}, step))
        try:
            while self.waiting:
                super().log_metrics(*self.waiting[0])
                self.experiment.flush()
                self.waiting.pop(0)
        except (OSError, ValueError) as error:  # the latter is Lightning's word for any failure to log
            why = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(why, OSError):
                raise
            self._experiment = None  # its file may end in the middle of a record: the next try begins another,
            self._kwargs["purge_step"] = None  # which takes nothing back of what the first one holds
            if first:
                print_line(
                    f"warning: TensorBoard's files cannot be written ({why.strerror}); it is tried again each epoch"
                )

    def log_picture(self, tag: str, picture: Tensor, step: int) -> None:
        """(3, H, W) uint8. On a full disk there is none."""
        with suppress(OSError):
            self.experiment.add_image(tag, picture, step)

    def log_settings(self, settings: dict[str, Any]) -> None:
        """Put the four curves on one page (CUSTOM SCALARS), and fill the HPARAMS tab.

        Its metrics are the latest values of the curves, so it needs no tags of its own.
        """
        known = {name: "default" if value is None else value for name, value in settings.items()}
        for part in hparams(known, dict.fromkeys(("kNN_accuracy", "train_loss", "z_std"), 0.0)):
            self.experiment._get_file_writer().add_summary(part)
        lines = {title: ["Multiline", [tag]] for tag, title in CURVES.items()}
        self.experiment.add_custom_scalars({"SimSiam": lines})
