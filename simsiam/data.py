"""From a data set to views: all images live on the training device, and a batch is made there."""

from collections.abc import Callable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam.augment import Policy, augment
from simsiam.datasets import Images, channel_statistics, fetch, load
from utils.errors import check
from utils.philox import permutation


class EpochOrder:
    """Batches of indices, shuffled anew each epoch as a pure function of (seed, epoch); the last partial one dropped.

    Iterating yields (batch_size,) int64 tensors on `device`; with several processes, each one's part of the batch.

    Args:
        pieces: equal parts in which each batch comes, one after the other.
        epoch: asked when iteration begins.
        part: (rank, processes): which part of each batch.
        done: likewise, how many batches of this epoch have been trained on before a run was interrupted.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        device: torch.device,
        done: Callable[[], int] = lambda: 0,
        part: tuple[int, int] = (0, 1),
        pieces: int = 1,
    ) -> None:
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self.epoch, self.done, self.part, self.pieces = epoch, done, part, pieces

    def __len__(self) -> int:
        return self.n // self.batch_size * self.pieces

    def __iter__(self) -> Iterator[Tensor]:
        order = permutation(self.n, self.epoch(), seed=self.seed, device=self.device)
        rank, processes = self.part
        size = self.batch_size // self.pieces
        for batch in order[: len(self) * size].split(size)[self.done() * self.pieces :]:
            yield batch[rank::processes]


class ViewsDataModule(pl.LightningDataModule):
    """Two (or more) augmented views of each train image; clean images for the monitors.

    Args:
        dataset: cifar10, cifar100 or patterns.
        data_dir: folder of the data sets, as torchvision lays them out.
        data_url: a mirror of the archive.
        train_images, test_images: how many of each split, from its beginning; None for all.
        batch_size: images in a step.
        accumulate: parts in which they come.
        views: views of each image.
        seed: of order and augmentation.
        policy: the distribution of views.
        compile: compile the augmentation.
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
    ) -> None:
        super().__init__()
        self.dataset, self.data_dir, self.data_url = dataset, data_dir, data_url
        self.train_images, self.test_images = train_images, test_images
        self.batch_size, self.views, self.seed, self.policy = batch_size, views, seed, policy
        self.accumulate = accumulate
        self._augment = torch.compile(augment, fullgraph=True, dynamic=False) if compile else augment
        self.ready = False

    def prepare_data(self) -> None:
        fetch(self.dataset, self.data_dir, self.data_url)

    def setup(self, stage: str | None = None) -> None:
        """Load both splits, once, and move them to the training device as soon as there is one.

        Raises:
            UserError: damaged files, or more images in a batch than there are.
        """
        if not self.ready:
            self.use(load(self.dataset, self.data_dir, self.train_images, self.test_images))
            mean, std = channel_statistics(self.train.images)
            self.mean, self.std = torch.tensor(mean), torch.tensor(std)
            self.ready = True
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.train, self.test = self.train.to(device), self.test.to(device)
            self.mean, self.std = self.mean.to(device), self.std.to(device)

    def use(self, splits: tuple[Images, Images]) -> None:
        """Take these as the train and the test split.

        Raises:
            UserError: more images in a batch than there are.
        """
        self.train, self.test = splits
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        check(
            self.batch_size <= len(self.train),
            f"--batch-size {self.batch_size} is more than the {len(self.train)} train images",
        )

    def train_dataloader(self) -> EpochOrder:
        assert self.trainer is not None
        trainer, images = self.trainer, self.train.images
        steps = len(images) // self.batch_size  # of an epoch; a step taken is a batch done
        return EpochOrder(
            len(images),
            self.batch_size,
            self.seed,
            epoch=lambda: trainer.current_epoch,
            done=lambda: trainer.global_step % steps,
            device=images.device,
            part=(trainer.global_rank, trainer.world_size),
            pieces=self.accumulate,
        )

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> list[Tensor]:
        """Indices (B,) -> V views (B, 3, S, S) each."""
        assert self.trainer is not None
        return [self.view(batch, self.trainer.current_epoch, view) for view in range(self.views)]

    def view(self, indices: Tensor, epoch: int, view: int) -> Tensor:
        """One view of the train images at `indices` (B,), as epoch `epoch` sees it: (B, 3, S, S) float32."""
        # epoch and view go as tensors, filled on the device: as numbers, each new one would be compiled anew
        epoch_, view_ = (torch.full((), value, device=indices.device) for value in (epoch, view))
        return self._augment(
            self.train.images[indices],
            indices,
            seed=self.seed,
            epoch=epoch_,
            view=view_,
            policy=self.policy,
            mean=self.mean,
            std=self.std,
        )
