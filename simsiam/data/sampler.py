"""The order of an epoch, and batches that are read ahead while the device computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.philox import permutation

AHEAD = 4  # batches that are read ahead, each by a thread


class _ResumesByTrainer:
    """Tells Lightning that a resume in mid-epoch is exact.

    There is nothing to keep: the Trainer knows which batch comes next, and is asked for it.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


@dataclass(eq=False)
class EpochSampler(_ResumesByTrainer):
    """Batches of indices in an order that is a pure function of (seed, epoch).

    The last partial batch of an epoch is dropped. With several processes, each gets its share of
    each batch.

    Iterating yields (batch_size / accumulate / world_size,) int64 tensors on `device`.

    Args:
        n: images in the data set.
        batch_size: images that an optimizer step sees, over all processes.
        seed: of the order.
        epoch: gives the epoch, from 0; called when the first batch is asked for.
        device: of the indices.
        batches_done: gives the number of batches of this epoch that a resumed run was trained on
            already; called when the first batch is asked for.
        rank, world_size: this process and the number of processes.
        accumulate: equal parts in which each batch of `batch_size` comes, one after the other.
    """

    n: int
    batch_size: int
    seed: int
    epoch: Callable[[], int]
    device: torch.device
    batches_done: Callable[[], int] = lambda: 0
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def dataset(self) -> range:
        """The images by index: Lightning asks a loader for its data set's length."""
        return range(self.n)

    def __len__(self) -> int:
        return self.n // self.batch_size * self.accumulate

    def __iter__(self) -> Iterator[Tensor]:
        order = permutation(self.n, self.epoch(), seed=self.seed, device=self.device)
        size = self.batch_size // self.accumulate
        batches = order[: len(self) * size].split(size)
        for batch in batches[self.batches_done() :]:
            yield batch[self.rank :: self.world_size]


@dataclass(eq=False)
class PrefetchLoader(_ResumesByTrainer):
    """The batches of an epoch with their images, read ahead by threads.

    Iterating yields indices (B,) and images (B, 3, C, C) uint8.

    Threads, not a DataLoader's worker processes: those would inherit the lock of the run's folder and hold it after
    this process was killed, get the signals that are meant for the run, and need a batch's size in /dev/shm.
    """

    batches: EpochSampler
    images: Tensor  # (N, 3, C, C) uint8 on the CPU, mostly a memory map
    pin: bool  # read into page-locked memory, from which a GPU copies in the background

    @property
    def dataset(self) -> range:
        """The images by index, as of `EpochSampler`."""
        return self.batches.dataset

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator: nothing runs before the first `next`. A Trainer makes its iterator before it restores epoch and
        # step of a resumed run, for which the sampler asks.
        waiting: deque[tuple[Tensor, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            for indices in self.batches:
                # allocated by this thread: each thread that allocates keeps some memory for itself
                out = torch.empty(
                    len(indices), *self.images.shape[1:], dtype=torch.uint8, pin_memory=self.pin
                )
                waiting.append(
                    (indices, pool.submit(torch.index_select, self.images, 0, indices, out=out))
                )
                if len(waiting) > AHEAD:
                    first, reading = waiting.popleft()
                    yield first, reading.result()
            for first, reading in waiting:
                yield first, reading.result()
