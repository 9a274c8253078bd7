"""The data module that makes augmented views of images on the training device.

The images live on that device if they fit there. Otherwise they are read in advance from memory or
from the disk, batch by batch.
"""

import inspect
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Self, get_args

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from simsiam.augment import Policy
from simsiam.config.augment_options import Normalize
from simsiam.config.optimizer_options import DEFAULT_BATCH_SIZE, OptimizerOptions
from simsiam.config.options import DataOptions, MethodOptions
from simsiam.config.run_options import RunOptions
from simsiam.config.value_types import parse_image_schedule
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import (
    STATISTICS_FILES,
    Splits,
    choose_statistics,
    make_options,
    place_on_device,
)
from simsiam.data.files.crop_loader import CropLoader
from simsiam.data.image_schedule import check_image_schedule, find_view_size
from simsiam.data.sampler import (
    EpochSampler,
    PrefetchLoader,
    ViewsLoader,
    are_indices,
    are_indices_and_images,
    check_batch_split,
)
from simsiam.data.view_maker import ViewMaker
from simsiam.inputs import check_counts
from utils.errors import require
from utils.option_group import reject_unknown
from utils.trainer import count_batches_done


class ViewsDataModule(pl.LightningDataModule):
    """Makes two or more augmented views of each train image, and heavy views if wanted.

    Callbacks such as `KNNMonitor` read the images without augmentation, from `train` and `test`.
    The defaults are those of the command line.

    Args:
        dataset: name of the data set, see `DATASETS`.
        data_dir: folder of the data set.
        batch_size: images in an optimizer step, over all devices.
        views: number of views of each image.
        seed: seed of the order and of the augmentation.
        policy: the distribution of the views.
        heavy_views: number of heavy views, made of the first views, which come after the others.
        normalize: replaces that of the policy: "dataset" or "imagenet".
        compile: whether to compile the augmentation.
        accumulate: number of equal parts in which each batch comes.
        image_schedule: one "PIXELS:EPOCHS" for each phase of the training: EPOCHS epochs with
            views of PIXELS x PIXELS pixels. After the last phase the views have full size.
        options: other fields of `DataOptions`, such as train_images, test_images, image_size,
            cache_dir and data_memory.

    Raises:
        TypeError: if an argument is unknown.
        UserError: if a value is out of its range.
    """

    def __init__(
        self,
        dataset: str = DataOptions.dataset,
        data_dir: str = DataOptions.data_dir,
        batch_size: int = DEFAULT_BATCH_SIZE,
        views: int = MethodOptions.views,
        seed: int = RunOptions.seed,
        policy: Policy = Policy(),
        compile: bool = False,
        accumulate: int = OptimizerOptions.accumulate,
        image_schedule: Sequence[str] = MethodOptions.image_schedule,
        normalize: Normalize | None = None,
        heavy_views: int = MethodOptions.heavy_views,
        **options: Any,
    ) -> None:
        super().__init__()
        # For an unknown name, the error suggests the most similar of all names.
        own_arguments = inspect.signature(ViewsDataModule.__init__).parameters
        option_names = [field.name for field in fields(DataOptions)]
        reject_unknown(options, [*own_arguments, *option_names], "ViewsDataModule")
        check_counts(
            "ViewsDataModule",
            batch_size=(batch_size, 1),
            views=(views, 2),
            seed=(seed, 0),
            accumulate=(accumulate, 1),
            heavy_views=(heavy_views, 0),
        )
        require(heavy_views <= views, f"heavy_views {heavy_views} must not exceed views {views}")
        self.options = make_options(dataset=dataset, data_dir=data_dir, **options)
        self.loaded = False
        self._batch_size = batch_size
        self.views = views
        self.seed = seed
        if normalize is not None:
            choices = get_args(Normalize)
            require(normalize in choices, f"normalize must be one of {choices}, got {normalize!r}")
            policy = replace(policy, normalize=normalize)
        self.policy = policy
        self.accumulate = accumulate
        self.phases = parse_image_schedule(image_schedule)
        self.view_maker = ViewMaker(views, seed, policy, compile, heavy_views)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a subclass that saves its arguments. This class does not: UserError."""
        require(
            cls is not ViewsDataModule,
            "a checkpoint does not hold the arguments of ViewsDataModule. config.yaml of a run has "
            "them: ViewsDataModule(dataset=...)",
        )
        return super().load_from_checkpoint(*args, **kwargs)

    @property
    def batch_size(self) -> int:
        """Images in an optimizer step, over all devices.

        Once the data set is loaded, a larger number is reduced to the number of its train images,
        because Lightning's `Tuner.scale_batch_size` tries ever larger numbers.
        """
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        if self.loaded and size > len(self.train):
            n = len(self.train)
            rank_zero_warn(f"batch_size {size} is more than the {n} train images. {n} is used.")
            size = n
        self._batch_size = size

    def prepare_data(self) -> None:
        """Download or decode what is missing.

        Raises:
            UserError: see `prepare_dataset`.
        """
        # A Trainer calls this again for each fit and validation.
        if not self.loaded:
            prepare_dataset(self.options)

    def setup(self, stage: str | None = None) -> None:
        """Load both splits once. Move them to the Trainer's device if they fit there.

        Raises:
            UserError: see `load_dataset` and `set_splits`.
        """
        if not self.loaded:
            self.set_splits(load_dataset(self.options))
            n = None if self.train.whole is None else STATISTICS_FILES
            self.mean, self.std = choose_statistics(self.train.images, self.policy.normalize, n)
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            splits = (self.train, self.test)
            self.train, self.test = place_on_device(splits, device, self.options.data_memory)
            self.mean = self.mean.to(device)
            self.std = self.std.to(device)

    def set_splits(self, splits: Splits) -> None:
        """Use these splits, with a mean of 0 and a std of 1.

        `setup` calls this method, and then sets the real mean and std. A caller with blank images,
        as in a dry run, has nothing to measure.

        Raises:
            UserError: if the batches or the views are too large for the train split.
        """
        self.train, self.test = splits
        self.classes = self.train.classes  # the names of the classes, for checkpoints
        self.dataset_digest = self.train.digest  # None for a published data set
        self.mean = torch.zeros(3)
        self.std = torch.ones(3)

        # --image-size is the side of the views. The images of an .npz file may be larger.
        image_side = self.train.side
        # SimSiam reads `size`, mean, std and classes from any datamodule.
        self.size = self.options.image_size or image_side
        require(
            self.size <= image_side,
            f"--image-size {self.size} is too large: "
            f"the images of {self.options.dataset} are {image_side} pixels wide.",
        )
        check_image_schedule(self.phases, self.size)
        num_images = len(self.train)
        require(
            self.batch_size <= num_images,
            f"--batch-size {self.batch_size} is more than the {num_images} train images.",
        )
        self.loaded = True

    def view_size(self, epoch: int) -> int:
        """Return S, the side of the views in an epoch (from 0)."""
        return find_view_size(self.phases, epoch, self.size)

    def train_dataloader(self) -> EpochSampler | PrefetchLoader | CropLoader | ViewsLoader:
        """Return a loader of batches: of indices for a Trainer, of views without one.

        For a Trainer, the batches also have the images, if these are on the disk or on another
        device. `on_after_batch_transfer` makes views from the batches.

        Raises:
            ValueError: if the batch does not split evenly among processes and `accumulate` parts.
        """
        trainer = self.trainer
        images = self.train.images
        # A Trainer stays attached after its fit, also if an error or Ctrl-C has ended that.
        if trainer is None or trainer.state.stopped:
            device = images.device
            return ViewsLoader(len(images), self.batch_size, self.seed, device, self.make_views)
        check_batch_split(self.batch_size, self.accumulate, trainer)
        device = trainer.strategy.root_device
        # With `overfit_batches` all epochs have the images of epoch 0, in new views.
        overfits = trainer.overfit_batches > 0  # pyright: ignore[reportAttributeAccessIssue]
        sampler = EpochSampler(
            len(images),
            self.batch_size,
            self.seed,
            epoch=lambda: 0 if overfits else trainer.current_epoch,
            device=torch.device("cpu") if self.train.whole is not None else images.device,
            parts_done=lambda: count_batches_done(trainer),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=self.accumulate,
        )
        pin = device.type == "cuda"
        if self.train.whole is not None:
            return CropLoader(
                sampler,
                self.train.whole,
                self.views,
                draw_boxes=self.view_maker.draw_boxes_in(lambda: trainer.current_epoch),
                view_size=lambda: self.view_size(trainer.current_epoch),
                pin=pin,
            )
        if self.train.on_disk or images.device.type != device.type:
            assert isinstance(images, Tensor)  # all other images have `whole`
            return PrefetchLoader(sampler, images, pin)
        return sampler

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a training batch on the device into V + N views (B, 3, S, S).

        Args:
            batch: indices (B,); or indices and their images (B, 3, C, C); or indices and the crops
                of their views (V, B, 3, S, S). Any other batch is returned as it is: a subclass may
                have loaders of validation images, or of views.
        """
        trainer = self.trainer
        assert trainer is not None
        if not trainer.training:
            return batch
        epoch = trainer.current_epoch
        if are_indices(batch):
            views = self.make_views(batch, epoch)
        elif are_indices_and_images(batch, image_dims=4):
            indices, images = batch
            views = self.make_views(indices, epoch, images)
        elif are_indices_and_images(batch, image_dims=5):
            indices, crops = batch
            views = self._finish_crops(crops, indices, epoch)
        else:
            return batch
        # Convert to the dtype in which the module computes.
        return trainer.precision_plugin.convert_input(views)

    def make_views(self, indices: Tensor, epoch: int, images: Tensor | None = None) -> list[Tensor]:
        """Return the views of train images in an epoch.

        Args:
            indices: (B,) int64.
            epoch: from 0.
            images: (B, 3, C, C) uint8, the images at `indices` if they are already loaded.

        Returns:
            V + N tensors (B, 3, S, S) float32, normalised; the N heavy views come last.
        """
        size = self.view_size(epoch)
        if self.train.whole is not None:
            crops = self.view_maker.cut_crops(self.train.whole, indices, epoch, size)
            return self._finish_crops(crops, indices, epoch)
        if images is None:
            images = self.train.images_at(indices)
        return self.view_maker.crop_and_finish(images, indices, epoch, size, self.mean, self.std)

    def _finish_crops(self, crops: Tensor, indices: Tensor, epoch: int) -> list[Tensor]:
        """Return the views of which these are the crops (V, B, 3, S, S)."""
        return self.view_maker.finish_crops(crops, indices, epoch, self.mean, self.std)
