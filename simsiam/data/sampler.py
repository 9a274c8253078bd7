"""The order of an epoch, and loaders of its images or of their views."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from utils.philox import permutation_in_pieces

BATCHES_AHEAD = 4  # batches that are read in advance, and threads that read them


class ResumesByTrainer:
    """Tells Lightning that training can resume exactly in the middle of an epoch.

    Lightning looks for these two methods. The state is empty, because the Trainer itself knows
    how far training got in the epoch, and `EpochSampler.parts_done` asks it.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


@dataclass(eq=False)
class EpochSampler(ResumesByTrainer):
    """Batches of indices, in an order that is a pure function of (seed, epoch).

    Each batch of `batch_size` is yielded in `accumulate` parts, which a Trainer takes for batches.
    Each process gets its share of each part: (batch_size / accumulate / world_size,) int64 on
    `device`. The last partial batch of an epoch is dropped.

    Args:
        n: number of images in the data set.
        batch_size: images in an optimizer step, over all processes.
        seed: seed of the order.
        epoch: returns the epoch, from 0. It is called when the first batch is requested.
        device: device of the indices.
        parts_done: returns how many parts of this epoch a resumed run has already trained on. It
            is called when the first batch is requested.
        rank: number of this process.
        world_size: number of processes.
        accumulate: number of equal parts of a batch.
    """

    n: int
    batch_size: int
    seed: int
    epoch: Callable[[], int]
    device: torch.device
    parts_done: Callable[[], int] = lambda: 0
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def dataset(self) -> range:
        """The indices of all images. Lightning asks a loader for the length of its data set."""
        return range(self.n)

    def __len__(self) -> int:
        full_batches = self.n // self.batch_size
        return full_batches * self.accumulate

    def __iter__(self) -> Iterator[Tensor]:
        part_size = self.batch_size // self.accumulate
        epoch = self.epoch()
        parts_done = self.parts_done()
        pieces = permutation_in_pieces(
            self.n, epoch, seed=self.seed, device=self.device, skip=parts_done * part_size
        )
        remaining = len(self) - parts_done
        parts = islice(_regroup(pieces, part_size), max(0, remaining))
        for part in parts:
            yield part[self.rank :: self.world_size]


def _regroup(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the numbers of all pieces in tensors of `size` numbers. The last ones are left out."""
    rest: Tensor | None = None
    for piece in pieces:
        numbers = piece if rest is None else torch.cat([rest, piece])
        num_full = len(numbers) // size
        for i in range(num_full):
            yield numbers[i * size : (i + 1) * size]
        rest = numbers[num_full * size :].clone()  # without the memory of the piece


@dataclass(eq=False)
class LoaderOfImages(ResumesByTrainer):
    """What loaders of images have in common.

    Args:
        batches: the indices of each batch.
    """

    batches: EpochSampler

    @property
    def dataset(self) -> range:
        """The indices of all images, as in `EpochSampler`."""
        return self.batches.dataset

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(eq=False)
class PrefetchLoader(LoaderOfImages):
    """The batches of an epoch with their images, which threads read in advance.

    Iterating yields indices (B,) and images (B, 3, C, C) uint8.

    Worker processes, as those of a DataLoader, would have three disadvantages. They would inherit
    the lock of the run's folder, and hold it after this process is killed. They would receive the
    signals that are meant for the run. They would need shared memory (/dev/shm) for each batch.

    Args:
        batches: the indices of each batch.
        images: (N, 3, C, C) uint8 on the CPU, in most cases a memory map.
        pin: whether to read into page-locked memory, from which a GPU copies in the background.
    """

    images: Tensor
    pin: bool

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # This is a generator, so nothing here runs before the first `next`. A Trainer makes its
        # iterator before it restores the epoch and the step of a resumed run, and the sampler
        # needs both.
        pending: deque[tuple[Tensor, Future[Tensor]]] = deque()
        image_shape = self.images.shape[1:]
        with ThreadPoolExecutor(BATCHES_AHEAD) as pool:
            for indices in self.batches:
                # The main thread allocates, because malloc may keep freed memory for each thread
                # that allocates.
                buffer = torch.empty(
                    len(indices), *image_shape, dtype=torch.uint8, pin_memory=self.pin
                )
                reading = pool.submit(torch.index_select, self.images, 0, indices, out=buffer)
                pending.append((indices, reading))
                if len(pending) > BATCHES_AHEAD:
                    oldest_indices, oldest_reading = pending.popleft()
                    yield oldest_indices, oldest_reading.result()
            for indices, reading in pending:
                yield indices, reading.result()


class ViewsLoader:
    """The batches of views of a data set, for training without a Trainer.

    Iterating yields lists of V views (B, 3, S, S) float32. Each new iterator is the next epoch,
    with other views of the images.

    Args:
        n: number of images in the data set.
        batch_size: B.
        seed: seed of the order.
        device: device of the indices.
        make_views: returns the views of the images at some indices (B,) in an epoch (from 0).
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        make_views: Callable[[Tensor, int], list[Tensor]],
    ) -> None:
        self.make_views = make_views
        self.epoch = -1  # the first iteration makes it 0
        self.sampler = EpochSampler(n, batch_size, seed, epoch=lambda: self.epoch, device=device)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.epoch += 1
        return (self.make_views(indices, self.epoch) for indices in self.sampler)


def are_indices(batch: Any) -> bool:
    """Return whether a batch has indices (B,) alone."""
    return isinstance(batch, Tensor) and batch.dim() == 1 and batch.dtype == torch.int64


def are_indices_and_images(batch: Any, image_dims: int) -> bool:
    """Return whether a batch has indices (B,) and uint8 images with this number of dimensions."""
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not are_indices(batch[0]):
        return False
    images = batch[1]
    return isinstance(images, Tensor) and images.dim() == image_dims and images.dtype == torch.uint8


def check_batch_split(batch_size: int, accumulate: int, trainer: pl.Trainer) -> None:
    """Raise ValueError unless all processes and accumulated parts get equally many images."""
    parts = trainer.world_size * accumulate
    smallest = 2 * parts  # batch normalisation needs two images
    if batch_size % parts != 0 or batch_size < smallest:
        below = max(smallest, batch_size // parts * parts)
        raise ValueError(
            f"batch_size {batch_size} must split into {parts} equal parts of at least 2 "
            f"images ({trainer.world_size} devices x accumulate {accumulate}). "
            f"Try {below} or {below + parts}."
        )
    # With accumulate 1, a Trainer may accumulate whole batches of batch_size images.
    if accumulate > 1 and trainer.accumulate_grad_batches != accumulate:
        raise ValueError(
            f"accumulate {accumulate} needs the same number in the Trainer. "
            f"Pass Trainer(accumulate_grad_batches={accumulate})."
        )
