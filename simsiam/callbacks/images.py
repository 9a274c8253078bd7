"""Images of a run for TensorBoard: augmented views and nearest neighbours."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from simsiam.callbacks.knn import KNNMonitor
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.knn_labels import choose_comparison
from simsiam.evaluation.gallery import draw_gallery, draw_views, gallery_rows, select_evenly
from utils.run_dir import RunDirectory

GALLERY_QUERIES = 10  # rows of the image `neighbours`
GALLERY_NEIGHBOURS = 9  # neighbours in a row


class ImageLogger(pl.Callback):
    """Log the images `views` and `neighbours`.

    `views` is logged at the start of a run, and also saved as views.png. Both images are logged
    after every `every`-th epoch and after the last one.

    Args:
        knn: must come before this callback. `neighbours` shows the neighbours that it has found,
            and is only logged in epochs in which it has measured.
        every: epochs between images; 0 logs them at the start and after the last epoch only.
        log_image: takes a tag, an image (3, H, W) uint8 and a step.
    """

    def __init__(
        self,
        run: RunDirectory,
        knn: KNNMonitor,
        every: int,
        log_image: Callable[[str, Tensor, int], object],
    ) -> None:
        self.run = run
        self.knn = knn
        self.every = every
        self.log_image = log_image

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > 0 or not trainer.is_global_zero:
            return
        views = draw_views(get_data(trainer))
        twice_as_large = views.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        to_pil_image(twice_as_large).save(self.run.views)
        self.log_image("views", views, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs
        is_due = is_last or (self.every > 0 and epoch % self.every == 0)
        if not is_due or not trainer.is_global_zero:
            return
        data = get_data(trainer)
        step = trainer.global_step - 1
        self.log_image("views", draw_views(data, first_epoch=epoch), step)
        if self.knn.epoch_metrics and self.knn.indices is not None:
            comparison = choose_comparison(data.train, data.test)
            assert comparison is not None  # since neighbours were found
            spread = select_evenly(len(self.knn.indices), GALLERY_QUERIES)
            chosen = torch.tensor(spread, device=self.knn.indices.device)
            indices = self.knn.indices[chosen, :GALLERY_NEIGHBOURS]
            compared = comparison.indices
            queries = comparison.split.subset(compared[chosen.to(compared.device)])
            if comparison.leave_one_out:
                rows = gallery_rows(comparison.split, queries, compared[indices])
            else:
                rows = gallery_rows(data.train, queries, indices)
            self.log_image("neighbours", pil_to_tensor(draw_gallery(rows)), step)


def get_data(trainer: pl.Trainer) -> ViewsDataModule:
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(data, ViewsDataModule)  # the command pretrain uses no other
    return data
