"""From a data set to views: images live on the training device, or are read ahead; augmented there, batch by batch."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from simsiam.augment import Policy, augment
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import SMALL, Splits, channel_statistics, make_options, place_on_device
from simsiam.data.sampler import EpochSampler, PrefetchLoader
from utils.errors import require
from utils.option_group import reject_unknown
from utils.trainer import count_batches_done


class ViewsDataModule(pl.LightningDataModule):
    """Two (or more) augmented views of each train image; clean images for the monitors.

    Args:
        batch_size: images in a step, which come in `accumulate` parts.
        views: views of each image.
        seed: of order and augmentation.
        policy: the distribution of views.
        compile: compile the augmentation.
        image_schedule: ("PIXELS:EPOCHS", ...), sides S of the views in the first epochs; later ones have full size.
        options: other fields of `DataOptions`: train_images, test_images, image_size, cache_dir, data_memory, ...
    """

    def __init__(
        self,
        dataset: str = "cifar10",
        data_dir: str = "./data",
        batch_size: int = 512,
        views: int = 2,
        seed: int = 0,
        policy: Policy = Policy(),
        compile: bool = False,
        accumulate: int = 1,
        image_schedule: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        parameters = inspect.signature(ViewsDataModule.__init__).parameters
        known = [*parameters, *(field.name for field in fields(DataOptions))]
        reject_unknown(options, known, "ViewsDataModule")
        self.options = make_options(dataset=dataset, data_dir=data_dir, **options)
        self.loaded = False
        self._batch_size = batch_size
        self.views = views
        self.seed = seed
        self.policy = policy
        self.accumulate = accumulate
        # (side of the views, number of epochs) of each phase but the last
        self.phases = [tuple(map(int, phase.split(":"))) for phase in image_schedule]
        self._augment = augment
        if compile:
            self._augment = torch.compile(augment, fullgraph=True, dynamic=False)

    @property
    def batch_size(self) -> int:
        """Images in a step, over all devices; never more than there are once they are loaded.

        Lightning's `Tuner.scale_batch_size` tries larger and larger ones.
        """
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        if self.loaded and size > len(self.train):
            n = len(self.train)
            rank_zero_warn(f"batch_size {size} is more than the {n} train images: {n} is used")
            size = n
        self._batch_size = size

    def prepare_data(self) -> None:
        """Download or decode what is missing, unless all is loaded already: a Trainer asks again."""
        if not self.loaded:
            prepare_dataset(self.options)

    def setup(self, stage: str | None = None) -> None:
        """Load both splits, once, and move them to the training device as soon as there is one, if they fit there."""
        if not self.loaded:
            self.set_splits(load_dataset(self.options))
            self.mean, self.std = map(torch.tensor, channel_statistics(self.train.images))
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.train, self.test = place_on_device(
                (self.train, self.test), device, self.options.data_memory
            )
            self.mean, self.std = self.mean.to(device), self.std.to(device)

    def set_splits(self, splits: Splits) -> None:
        """Take these as the train and the test split, without statistics; UserError if batch or views are too large."""
        self.train, self.test = splits
        self.classes = self.train.classes  # their names, which a checkpoint keeps
        self.dataset_digest = (
            self.train.digest
        )  # identifies a person's own images; None for a published data set
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        n, side, options = len(self.train), self.train.side, self.options
        self.size = options.image_size or side
        require(
            self.size <= side,
            f"--image-size {self.size}: the images of {options.dataset} are {side} pixels wide",
        )
        for size, _ in self.phases:
            require(
                8 <= size <= self.size,
                f"--image-schedule {size}: from 8 to the full {self.size} pixels",
            )
        require(
            self.batch_size <= n,
            f"--batch-size {self.batch_size} is more than the {n} train images",
        )
        self.loaded = True

    def view_size(self, epoch: int) -> int:
        """S, the side of the views of an epoch (from 0)."""
        for size, epochs in self.phases:
            if (epoch := epoch - epochs) < 0:
                return size
        return self.size

    def train_dataloader(self) -> "EpochSampler | PrefetchLoader | ViewsLoader":
        """Return the batches of an epoch: for a Trainer without their views yet, else views.

        A Trainer gets indices, with their images where these do not live on its device;
        `on_after_batch_transfer` makes views of them.

        Raises:
            ValueError: the batch does not split evenly among the processes and `accumulate` parts.
        """
        if self.trainer is None:
            return ViewsLoader(self)
        trainer = self.trainer
        self._check_parts(trainer)
        images = self.train.images
        device = trainer.strategy.root_device
        # `overfit_batches` asks for the same images in each epoch.
        overfits = trainer.overfit_batches > 0  # pyright: ignore[reportAttributeAccessIssue]
        sampler = EpochSampler(
            len(images),
            self.batch_size,
            self.seed,
            epoch=lambda: 0 if overfits else trainer.current_epoch,
            device=images.device,
            batches_done=lambda: count_batches_done(trainer),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=self.accumulate,
        )
        if self.train.on_disk or images.device.type != device.type:
            return PrefetchLoader(sampler, images, pin=device.type == "cuda")
        return sampler

    def _check_parts(self, trainer: pl.Trainer) -> None:
        """Raise ValueError for a batch that processes and accumulation cannot share equally."""
        parts = trainer.world_size * self.accumulate
        if self.batch_size % parts or self.batch_size < 2 * parts:
            below = max(2 * parts, self.batch_size // parts * parts)
            raise ValueError(
                f"batch_size {self.batch_size}: must split into {parts} equal parts of at least 2 "
                f"images ({trainer.world_size} devices x accumulate {self.accumulate}). "
                f"Try {below} or {below + parts}."
            )
        if self.accumulate > 1 and trainer.accumulate_grad_batches != self.accumulate:
            raise ValueError(
                f"accumulate {self.accumulate}: also give Trainer(accumulate_grad_batches={self.accumulate})"
            )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a training batch on the device into V views (B, 3, S, S) each.

        Args:
            batch: indices (B,), or indices and their images. What a subclass's loaders bring,
                such as validation batches or views of its own, is returned as it is.
        """
        trainer = self.trainer
        assert trainer is not None
        if not trainer.training:
            return batch
        if _are_indices(batch):
            indices, images = batch, self.train.images_at(batch)
        elif _are_indices_and_images(batch):
            indices, images = batch
        else:
            return batch
        views = self.make_views(indices, trainer.current_epoch, images)
        return trainer.precision_plugin.convert_input(
            views
        )  # the dtype in which the module computes

    def make_views(self, indices: Tensor, epoch: int, images: Tensor | None = None) -> list[Tensor]:
        """V views (B, 3, S, S) float32 of the train images at `indices` (B,), as epoch `epoch` sees them.

        `images` are these (B, 3, C, C) uint8, if they are at hand.
        """
        images, found = self.train.images_at(indices) if images is None else images, []
        # all views of small images in one call, which is faster; of large ones each by itself, for the memory
        together = self.views if images.shape[-1] <= SMALL else 1
        for views in torch.arange(self.views, device=indices.device).split(together):
            x = self._augment(
                images.repeat(together, 1, 1, 1) if together > 1 else images,
                indices.repeat(together),
                seed=self.seed,
                epoch=torch.full(
                    (), epoch, device=indices.device
                ),  # a plain number would be compiled anew each time
                view=views.repeat_interleave(len(indices))[:, None],
                policy=self.policy,
                mean=self.mean,
                std=self.std,
                size=self.view_size(epoch),
            )
            found += x.chunk(together)
        return found


def _are_indices(batch: Any) -> bool:
    return isinstance(batch, Tensor) and batch.dim() == 1 and batch.dtype == torch.int64


def _are_indices_and_images(batch: Any) -> bool:
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not _are_indices(batch[0]):
        return False
    images = batch[1]
    return isinstance(images, Tensor) and images.dim() == 4 and images.dtype == torch.uint8


class ViewsLoader:
    """The batches of a data module without a Trainer: V views (B, 3, S, S) each, new ones in each iteration."""

    def __init__(self, data: ViewsDataModule) -> None:
        self.data, self.epoch, n, device = data, -1, len(data.train), data.train.images.device
        self.order = EpochSampler(
            n, data.batch_size, data.seed, epoch=lambda: self.epoch, device=device
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.epoch += 1
        return (self.data.make_views(indices, self.epoch) for indices in self.order)
