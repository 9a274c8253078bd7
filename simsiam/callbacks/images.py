"""Pictures of a run in TensorBoard: augmented views and nearest neighbours."""

from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from simsiam.callbacks.knn import KNNMonitor, parts
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.gallery import draw_gallery, draw_views, find_nearest, gallery_rows
from utils.run_dir import RunDirectory

QUERIES, NEIGHBOURS = 10, 9  # rows and columns of `neighbours`


def draw_neighbours(data: ViewsDataModule, nearest: Tensor, similarity: Tensor | None = None) -> Tensor:
    """(3, H, W) uint8: the first test images, or train images without any, and their nearest train images (Q, k)."""
    queries = (data.test if len(data.test) else data.train).first(len(nearest))
    return pil_to_tensor(draw_gallery(gallery_rows(data.train, queries, nearest, similarity)))


class Pictures(pl.Callback):
    """Logs `views` at the start of a run, also as `views.png`, and now and then, together with `neighbours`.

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
            views = draw_views(parts(trainer, pl_module)[1])
            to_pil_image(views.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)).save(self.run.views)
            self.show("views", views, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the kNN monitor, whose neighbours are shown."""
        epoch, step, data = trainer.current_epoch + 1, trainer.global_step - 1, parts(trainer, pl_module)[1]
        if trainer.is_global_zero and self.every and epoch % self.every == 0 and epoch != trainer.max_epochs:
            self.show("views", draw_views(data, first=epoch), step)
            if self.knn.latest and self.knn.places is not None:
                self.show("neighbours", draw_neighbours(data, self.knn.places[:QUERIES, :NEIGHBOURS]), step)


def log_final_pictures(writer: SummaryWriter, data: ViewsDataModule, backbone: nn.Module, step: int) -> None:
    """`neighbours` of a finished backbone on the data's device."""
    bank = extract_features(backbone, data.train.images, data.mean, data.std)
    queries = extract_features(backbone, data.test.images[:QUERIES], data.mean, data.std) if len(data.test) else bank
    similarity, nearest = find_nearest(queries[:QUERIES], bank, NEIGHBOURS, in_bank=queries is bank)
    writer.add_image("neighbours", draw_neighbours(data, nearest, similarity), step)
    writer.flush()
