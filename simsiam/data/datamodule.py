"""From a data set to views: images live on the training device, or are read ahead; augmented there, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam.augment import Policy, augment
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import SMALL, Splits, channel_statistics, make_options, place_on_device
from simsiam.data.sampler import EpochSampler, PrefetchLoader
from utils.errors import check


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
        self.options = make_options(dataset=dataset, data_dir=data_dir, **options)
        self.batch_size, self.views, self.seed, self.policy = batch_size, views, seed, policy
        self.accumulate, self.loaded = accumulate, False
        self.phases = [tuple(map(int, phase.split(":"))) for phase in image_schedule]  # (pixels, epochs) each
        self._augment = torch.compile(augment, fullgraph=True, dynamic=False) if compile else augment

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
            self.train, self.test = place_on_device((self.train, self.test), device, self.options.data_memory)
            self.mean, self.std = self.mean.to(device), self.std.to(device)

    def set_splits(self, splits: Splits) -> None:
        """Take these as the train and the test split, without statistics; UserError if batch or views are too large."""
        self.train, self.test = splits
        self.classes = self.train.classes  # their names, which a checkpoint keeps
        self.dataset_digest = self.train.digest  # identifies a person's own images; None for a published data set
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        n, side, options = len(self.train), self.train.side, self.options
        self.size = options.image_size or side
        check(self.size <= side, f"--image-size {self.size}: the images of {options.dataset} are {side} pixels wide")
        for size, _ in self.phases:
            check(8 <= size <= self.size, f"--image-schedule {size}: from 8 to the full {self.size} pixels")
        check(self.batch_size <= n, f"--batch-size {self.batch_size} is more than the {n} train images")
        self.loaded = True

    def view_size(self, epoch: int) -> int:
        """S, the side of the views of an epoch (from 0)."""
        for size, epochs in self.phases:
            if (epoch := epoch - epochs) < 0:
                return size
        return self.size

    def train_dataloader(self) -> "EpochSampler | PrefetchLoader | ViewsLoader":
        """For a Trainer batches of indices, or of images that do not live on its device, with these; else views."""
        trainer, images = self.trainer, self.train.images
        if trainer is None:
            return ViewsLoader(self)
        device = trainer.strategy.root_device
        steps = len(images) // self.batch_size  # of an epoch
        sampler = EpochSampler(
            len(images),
            self.batch_size,
            self.seed,
            epoch=lambda: trainer.current_epoch,
            done=lambda: trainer.global_step % steps,
            device=images.device,
            part=(trainer.global_rank, trainer.world_size),
            pieces=self.accumulate,
        )
        streamed = self.train.on_disk or images.device.type != device.type
        return PrefetchLoader(sampler, images, pin=device.type == "cuda") if streamed else sampler

    def on_after_batch_transfer(self, batch: Tensor | list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Indices (B,), or these and their images, on the device -> V views (B, 3, S, S) each."""
        assert self.trainer is not None
        indices, images = (batch, self.train.at(batch)) if isinstance(batch, Tensor) else batch
        return self.make_views(indices, self.trainer.current_epoch, images)

    def make_views(self, indices: Tensor, epoch: int, images: Tensor | None = None) -> list[Tensor]:
        """V views (B, 3, S, S) float32 of the train images at `indices` (B,), as epoch `epoch` sees them.

        `images` are these (B, 3, C, C) uint8, if they are at hand.
        """
        images, found = self.train.at(indices) if images is None else images, []
        # all views of small images in one call, which is faster; of large ones each by itself, for the memory
        together = self.views if images.shape[-1] <= SMALL else 1
        for views in torch.arange(self.views, device=indices.device).split(together):
            x = self._augment(
                images.repeat(together, 1, 1, 1) if together > 1 else images,
                indices.repeat(together),
                seed=self.seed,
                epoch=torch.full((), epoch, device=indices.device),  # a plain number would be compiled anew each time
                view=views.repeat_interleave(len(indices))[:, None],
                policy=self.policy,
                mean=self.mean,
                std=self.std,
                size=self.view_size(epoch),
            )
            found += x.chunk(together)
        return found


class ViewsLoader:
    """The batches of a data module without a Trainer: V views (B, 3, S, S) each, new ones in each iteration."""

    def __init__(self, data: ViewsDataModule) -> None:
        self.data, self.epoch, n, device = data, -1, len(data.train), data.train.images.device
        self.order = EpochSampler(n, data.batch_size, data.seed, epoch=lambda: self.epoch, device=device)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.epoch += 1
        return (self.data.make_views(indices, self.epoch) for indices in self.order)
