"""From a data set to views: images live on the training device, or are read ahead; augmented there, batch by batch."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam.augment import Policy, augment
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import Splits, channel_statistics, make_spec, place_on_device
from simsiam.data.sampler import EpochSampler, PrefetchLoader
from utils import distributed
from utils.errors import check


class ViewsDataModule(pl.LightningDataModule):
    """Two (or more) augmented views of each train image; clean images for the monitors.

    Args:
        dataset, data_dir, data_url, train_images, test_images, image_size, cache_dir, skip_bad_images: as of
            `DatasetSpec`; image_size is the side S of a view, None for the data set's own.
        batch_size: images in a step.
        accumulate: parts in which they come.
        views: views of each image.
        seed: of order and augmentation.
        policy: the distribution of views.
        compile: compile the augmentation.
        data_memory: GiB of the training device's memory for the images, beyond which they are streamed from the
            disk; None for half of what is free.
    """

    def __init__(
        self,
        dataset: str = "cifar10",
        data_dir: str = "./data",
        data_url: str | None = None,
        train_images: int | None = None,
        test_images: int | None = None,
        batch_size: int = 512,
        views: int = 2,
        seed: int = 0,
        policy: Policy = Policy(),
        compile: bool = False,
        accumulate: int = 1,
        image_size: int | None = None,
        cache_dir: str | None = None,
        skip_bad_images: bool = False,
        data_memory: float | None = None,
    ) -> None:
        super().__init__()
        images = (dataset, data_dir, data_url, train_images, test_images, image_size, cache_dir, skip_bad_images)
        self.spec = make_spec(*images)
        self.batch_size, self.views, self.seed, self.policy = batch_size, views, seed, policy
        self.accumulate, self.data_memory = accumulate, data_memory
        self._augment = torch.compile(augment, fullgraph=True, dynamic=False) if compile else augment
        self.loaded = self.placed = False

    @property
    def dataset_digest(self) -> str | None:
        """Identifies a person's own images by names and contents; None for a published data set."""
        return self.train.digest

    def prepare_data(self) -> None:
        """Download or decode what is missing, unless all is loaded already: a Trainer asks again."""
        if not self.loaded:
            prepare_dataset(self.spec)

    def setup(self, stage: str | None = None) -> None:
        """Load both splits, once, and move them to the training device as soon as there is one, if they fit there.

        Raises:
            UserError: damaged files, or more images in a batch than there are.
        """
        if not self.loaded:
            self.set_splits(load_dataset(self.spec))
            mean, std = channel_statistics(self.train.images)
            self.mean, self.std = torch.tensor(mean), torch.tensor(std)
            self.loaded = True
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            if not self.placed:
                processes = distributed.local_world_size() if device.type == "cpu" else 1
                self.train, self.test = place_on_device((self.train, self.test), device, self.data_memory, processes)
                self.placed = True
            self.mean, self.std = self.mean.to(device), self.std.to(device)

    def set_splits(self, splits: Splits) -> None:
        """Take these as the train and the test split, without statistics.

        Raises:
            UserError: more images in a batch than there are, or views larger than the images.
        """
        self.train, self.test = splits
        self.size = self.spec.image_size or self.train.side
        check(
            self.size <= self.train.side,
            f"--image-size {self.size}: the images of {self.spec.dataset} are {self.train.side} pixels wide",
        )
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        check(
            self.batch_size <= len(self.train),
            f"--batch-size {self.batch_size} is more than the {len(self.train)} train images",
        )

    def train_dataloader(self) -> EpochSampler | PrefetchLoader:
        """Batches of indices; of images that do not live on the training device, with these."""
        assert self.trainer is not None
        trainer, images = self.trainer, self.train.images
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
        pin = trainer.strategy.root_device.type == "cuda"
        return PrefetchLoader(sampler, images, pin) if self.streamed else sampler

    @property
    def streamed(self) -> bool:
        """Whether the train images do not live on the training device."""
        return self.train.on_disk or self.train.images.device.type != self.mean.device.type

    def on_after_batch_transfer(self, batch: Tensor | list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Indices (B,), or these and their images, on the device -> V views (B, 3, S, S) each."""
        assert self.trainer is not None
        indices, images = (batch, self.train.at(batch)) if isinstance(batch, Tensor) else batch
        return [self.view(indices, self.trainer.current_epoch, view, images) for view in range(self.views)]

    def view(self, indices: Tensor, epoch: int, view: int, images: Tensor | None = None) -> Tensor:
        """One view of the train images at `indices` (B,), as epoch `epoch` sees it: (B, 3, S, S) float32.

        Args:
            images: (B, 3, C, C) uint8, if they are at hand.
        """
        images = self.train.at(indices) if images is None else images
        # epoch and view as tensors, filled on the device: plain numbers would be compiled anew each time they change
        epoch_, view_ = (torch.full((), value, device=indices.device) for value in (epoch, view))
        return self._augment(
            images,
            indices,
            seed=self.seed,
            epoch=epoch_,
            view=view_,
            policy=self.policy,
            mean=self.mean,
            std=self.std,
            size=self.size,
        )
