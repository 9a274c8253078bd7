"""Pictures of a run in TensorBoard: augmented views, nearest neighbours, a map of the features."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from simsiam.callbacks.knn import KNNMonitor, parts
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.gallery import _small, nearest_others, neighbours_grid, save_png, views_grid
from utils.run_dir import RunDirectory

QUERIES, NEIGHBOURS = 10, 9  # rows and columns of `neighbours`


MAP_IMAGES, THUMBNAIL = 1000, 32  # points of the embedding map, and the most pixels of each


def log_embedding(writer: SummaryWriter, images: ImageDataset, features: Tensor, step: int) -> None:
    """The first images as points of TensorBoard's projector, with their thumbnails and class names."""
    shown = images.first(MAP_IMAGES)
    writer.add_embedding(
        features[: len(shown)].cpu(),
        metadata=[name or "image" for name in shown.names(shown.labels.tolist())],
        label_img=torch.cat([_small(chunk, THUMBNAIL) for chunk in shown.images.split(8)]),
        global_step=step,
        tag="embedding",
    )


class Pictures(pl.Callback):
    """`views` at the start of a run, also as `views.png`, and with `neighbours` now and then, into TensorBoard.

    Args:
        every: epochs between them, when kNN is measured; 0 for the start alone.
        show: takes a tag, a picture (3, H, W) uint8 and a step.
    """

    def __init__(
        self, run: RunDirectory, knn: KNNMonitor, every: int, show: Callable[[str, Tensor, int], object]
    ) -> None:
        self.run, self.knn, self.every, self.show = run, knn, every, show

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:
            picture = views_grid(parts(trainer, pl_module)[1])
            save_png(picture, self.run.views)
            self.show("views", picture, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the kNN monitor, whose neighbours are shown."""
        epoch, data = trainer.current_epoch + 1, parts(trainer, pl_module)[1]
        if not trainer.is_global_zero or not self.every or epoch % self.every or epoch == trainer.max_epochs:
            return
        step, places = trainer.global_step - 1, self.knn.places
        self.show("views", views_grid(data, first=epoch), step)
        if self.knn.latest is not None and places is not None:
            self.show("neighbours", neighbours_grid(data, places[:QUERIES, :NEIGHBOURS]), step)


def log_final_pictures(writer: SummaryWriter, data: ViewsDataModule, backbone: nn.Module, step: int) -> None:
    """`neighbours` and `embedding`, of a finished backbone on the data's device."""
    bank = extract_features(backbone, data.train.images, data.mean, data.std)
    asked, features = data.train, bank
    if len(data.test):
        asked, features = data.test, extract_features(backbone, data.test.images, data.mean, data.std)
    nearest = nearest_others(features[:QUERIES], bank, NEIGHBOURS, itself=len(data.test) == 0)[1]
    writer.add_image("neighbours", neighbours_grid(data, nearest), step)
    log_embedding(writer, asked, features, step)
    writer.flush()
