"""The order of an epoch, and batches that are read ahead while the device computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.philox import permutation

AHEAD = 4  # batches that are read ahead, each by a thread


@dataclass(eq=False)
class EpochSampler:
    """Batches of indices, shuffled anew each epoch as a pure function of (seed, epoch); the last partial one dropped.

    Iterating yields (batch_size,) int64 tensors on `device`; with several processes, this one's share of each batch.
    """

    n: int
    batch_size: int
    seed: int
    epoch: Callable[[], int]  # called for the first batch
    device: torch.device
    done: Callable[[], int] = lambda: 0  # likewise: batches of this epoch that an interrupted run was trained on
    part: tuple[int, int] = (0, 1)  # rank and number of processes
    pieces: int = 1  # equal parts in which each batch comes, one after the other

    def __len__(self) -> int:
        return self.n // self.batch_size * self.pieces

    def __iter__(self) -> Iterator[Tensor]:
        order = permutation(self.n, self.epoch(), seed=self.seed, device=self.device)
        rank, processes = self.part
        size = self.batch_size // self.pieces
        for batch in order[: len(self) * size].split(size)[self.done() * self.pieces :]:
            yield batch[rank::processes]


@dataclass(eq=False)
class PrefetchLoader:
    """The batches of an epoch with their images, read ahead by threads: (indices (B,), images (B, 3, C, C) uint8).

    Threads, not a DataLoader's worker processes: those would inherit the lock of the run's folder and hold it after
    this process was killed, get the signals that are meant for the run, and need a batch's size in /dev/shm.
    """

    sampler: EpochSampler
    images: Tensor  # (N, 3, C, C) uint8 on the CPU, mostly a memory map
    pin: bool  # read into page-locked memory, from which a GPU copies in the background

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator: nothing runs before the first `next`. A Trainer makes its iterator before it restores epoch and
        # step of a resumed run, for which the sampler asks.
        waiting: deque[tuple[Tensor, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            for indices in self.sampler:
                # allocated by this thread: each thread that allocates keeps some memory for itself
                out = torch.empty(len(indices), *self.images.shape[1:], dtype=torch.uint8, pin_memory=self.pin)
                waiting.append((indices, pool.submit(torch.index_select, self.images, 0, indices, out=out)))
                if len(waiting) > AHEAD:
                    first, reading = waiting.popleft()
                    yield first, reading.result()
            for first, reading in waiting:
                yield first, reading.result()
