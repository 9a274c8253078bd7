"""ImageLogger of a run in TensorBoard: augmented views and nearest neighbours."""

from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from simsiam.callbacks.knn import KNNMonitor, parts
from simsiam.evaluation.gallery import draw_gallery, draw_views, gallery_rows
from utils.run_dir import RunDirectory

QUERIES, NEIGHBOURS = 10, 9  # rows and columns of `neighbours`


class ImageLogger(pl.Callback):
    """Logs `views` at the start of a run, also as `views.png`; now and then and at its end `views` and `neighbours`.

    Args:
        every: epochs between them, when kNN is measured; 0 for the start and the end alone.
        show: takes a tag, a picture (3, H, W) uint8 and a step.
    """

    def __init__(
        self,
        run: RunDirectory,
        knn: KNNMonitor,
        every: int,
        show: Callable[[str, Tensor, int], object],
    ) -> None:
        self.run, self.knn, self.every, self.show = run, knn, every, show

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:
            views = draw_views(parts(trainer, pl_module)[1])
            to_pil_image(views.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)).save(
                self.run.views
            )
            self.show("views", views, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the kNN monitor, whose neighbours are shown."""
        epoch, step, data = (
            trainer.current_epoch + 1,
            trainer.global_step - 1,
            parts(trainer, pl_module)[1],
        )
        due = epoch == trainer.max_epochs or (self.every and epoch % self.every == 0)
        if due and trainer.is_global_zero:
            self.show("views", draw_views(data, first=epoch), step)
            if self.knn.latest and self.knn.indices is not None:
                nearest = self.knn.indices[:QUERIES, :NEIGHBOURS]
                rows = gallery_rows(data.train, data.test.first(len(nearest)), nearest)
                self.show("neighbours", pil_to_tensor(draw_gallery(rows)), step)
