"""From a data set to views: images live on the training device, or are read ahead; a batch is made there."""

from collections.abc import Callable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam.augment import Policy, augment
from simsiam.data.cifar import fetch, load, origin
from simsiam.data.dataset import ImageDataset, channel_statistics, settle
from simsiam.data.memmap_images import MemmapImages
from simsiam.data.read_ahead import ReadAhead
from utils import distributed
from utils.errors import check
from utils.philox import permutation


class EpochSampler:
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
        dataset: cifar10, cifar100, patterns, folder or arrays.
        data_dir: folder of the data sets, as torchvision lays them out; one's own folder or .npz file.
        data_url: a mirror of the archive.
        train_images, test_images: how many of each split, from its beginning; None for all.
        batch_size: images in a step.
        accumulate: parts in which they come.
        views: views of each image.
        seed: of order and augmentation.
        policy: the distribution of views.
        compile: compile the augmentation.
        image_size: S, the side of a view; None for the data set's own.
        cache_dir: where a folder's decoded images are kept; None for the usual place.
        skip_bad_images: leave out what cannot be read.
        data_memory: GiB that images may take on the training device; None for half of what is free.
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
        self.dataset, self.data_dir, self.data_url = dataset, data_dir, data_url
        self.train_images, self.test_images = train_images, test_images
        self.batch_size, self.views, self.seed, self.policy = batch_size, views, seed, policy
        self.accumulate = accumulate
        self._augment = torch.compile(augment, fullgraph=True, dynamic=False) if compile else augment
        self.image_size, self.cache_dir, self.skip_bad_images = image_size, cache_dir, skip_bad_images
        self.data_memory = data_memory
        self.reader: ReadAhead | None = None
        self.origin: str | None = None  # what tells a person's own images from others
        self.ready = self.settled = False

    def prepare_data(self) -> None:
        """Download or decode what is missing, unless all is loaded already: a Trainer asks again."""
        if self.ready:
            return
        few = (self.train_images, self.test_images, self.image_size)
        fetch(self.dataset, self.data_dir, self.data_url, *few, self.cache_dir, self.skip_bad_images)

    def setup(self, stage: str | None = None) -> None:
        """Load both splits, once, and move them to the training device as soon as there is one, if they fit there.

        Raises:
            UserError: damaged files, or more images in a batch than there are.
        """
        if not self.ready:
            few = (self.train_images, self.test_images, self.image_size)
            self.origin = origin(self.dataset, self.data_dir, *few, self.cache_dir)
            self.use(load(self.dataset, self.data_dir, *few, self.cache_dir))
            mean, std = channel_statistics(self.train.images)
            self.mean, self.std = torch.tensor(mean), torch.tensor(std)
            self.ready = True
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            if not self.settled:
                sharing = distributed.local_world_size() if device.type == "cpu" else 1
                self.train, self.test = settle((self.train, self.test), device, self.data_memory, sharing)
                self.settled = True
            self.mean, self.std = self.mean.to(device), self.std.to(device)

    def use(self, splits: tuple[ImageDataset, ImageDataset]) -> None:
        """Take these as the train and the test split.

        Raises:
            UserError: more images in a batch than there are, or views larger than the images.
        """
        self.train, self.test = splits
        self.size = self.image_size or self.train.side
        check(
            self.size <= self.train.side,
            f"--image-size {self.size}: the images of {self.dataset} are {self.train.side} pixels wide",
        )
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        check(
            self.batch_size <= len(self.train),
            f"--batch-size {self.batch_size} is more than the {len(self.train)} train images",
        )

    def train_dataloader(self) -> EpochSampler | ReadAhead:
        assert self.trainer is not None
        trainer, images = self.trainer, self.train.images
        steps = len(images) // self.batch_size  # of an epoch; a step taken is a batch done
        order = EpochSampler(
            len(images),
            self.batch_size,
            self.seed,
            epoch=lambda: trainer.current_epoch,
            done=lambda: trainer.global_step % steps,
            device=images.device,
            part=(trainer.global_rank, trainer.world_size),
            pieces=self.accumulate,
        )
        if not self.streamed:
            return order
        self.reader = ReadAhead(order, images, pin=trainer.strategy.root_device.type == "cuda")
        return self.reader

    @property
    def streamed(self) -> bool:
        """Whether images are read while training, since they do not fit on its device."""
        images = self.train.images
        return isinstance(images, MemmapImages) or images.device.type != self.mean.device.type

    def teardown(self, stage: str | None = None) -> None:
        if self.reader is not None:
            self.reader.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown()

    def on_after_batch_transfer(self, batch: Tensor | list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Indices (B,), or these and their images, on the device -> V views (B, 3, S, S) each."""
        assert self.trainer is not None
        indices, images = (batch, self.train.at(batch)) if isinstance(batch, Tensor) else batch
        return [self._view(images, indices, self.trainer.current_epoch, view) for view in range(self.views)]

    def view(self, indices: Tensor, epoch: int, view: int) -> Tensor:
        """One view of the train images at `indices` (B,), as epoch `epoch` sees it: (B, 3, S, S) float32."""
        return self._view(self.train.at(indices), indices, epoch, view)

    def _view(self, images: Tensor, indices: Tensor, epoch: int, view: int) -> Tensor:
        # epoch and view go as tensors, filled on the device: as numbers, each new one would be compiled anew
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
