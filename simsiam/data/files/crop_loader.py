"""A loader of the crops of whole images, which threads cut in advance."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from simsiam.data.files.resizing import Box
from simsiam.data.files.threads import count_threads, start_threads
from simsiam.data.files.whole_images import WholeImages
from simsiam.data.sampler import BATCHES_AHEAD, LoaderOfImages

# Draws the boxes (V, B, 4) of B images, from their indices (B,), heights (B,) and widths (B,).
DrawBoxes = Callable[[Tensor, Tensor, Tensor], Tensor]


class CropCutter:
    """Cuts the crops of batches of images in threads.

    Threads are enough, because Pillow and torch release Python's lock while they decode and resize.
    Worker processes, as those of a DataLoader, would have three disadvantages. They would inherit
    the lock of the run's folder, and hold it after this process is killed. They would receive the
    signals that are meant for the run. They would need shared memory (/dev/shm) for each batch.

    Args:
        images: the images.
        draw_boxes: see `DrawBoxes`.
        threads: how many images are cut at a time.
    """

    def __init__(self, images: WholeImages, draw_boxes: DrawBoxes, threads: int) -> None:
        self.images = images
        self.draw_boxes = draw_boxes
        self.pool = start_threads(threads)

    def cut(self, indices: Tensor, crops: Tensor) -> None:
        """Cut the crops of a batch.

        Args:
            indices: (B,) int64.
            crops: (V, B, 3, S, S) uint8, which is overwritten.
        """
        sizes = list(self.pool.map(self.images.read_size, indices.tolist()))
        heights, widths = torch.tensor(sizes).unbind(1)
        boxes = self.draw_boxes(indices, heights, widths).transpose(0, 1).tolist()  # B of (V, 4)

        def cut_one(position: int) -> None:
            boxes_of_image = [Box(*numbers) for numbers in boxes[position]]
            index = int(indices[position])
            crops[:, position] = self.images.cut(index, boxes_of_image, crops.shape[-1])

        # Reading the results raises the errors of the threads.
        for _ in self.pool.map(cut_one, range(len(indices))):
            pass

    def close(self) -> None:
        """End the threads. What is not cut yet is not cut any more."""
        self.pool.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class CropLoader(LoaderOfImages):
    """The batches of an epoch with the crops of their views.

    Iterating yields indices (B,) and crops (V, B, 3, S, S) uint8.

    Args:
        batches: the indices of each batch.
        images: the images.
        views: V.
        draw_boxes: see `DrawBoxes`. It is called for batches of the current epoch.
        view_size: returns S in the current epoch.
        pin: whether to cut into page-locked memory, from which a GPU copies in the background.
    """

    images: WholeImages
    views: int
    draw_boxes: DrawBoxes
    view_size: Callable[[], int]
    pin: bool

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # This is a generator, so nothing here runs before the first `next`. A Trainer makes its
        # iterator before it restores the epoch and the step of a resumed run, and the sampler
        # needs both.
        size = self.view_size()
        pending: deque[tuple[Tensor, Tensor, Future[None]]] = deque()
        cutter = CropCutter(self.images, self.draw_boxes, count_threads())
        try:
            with ThreadPoolExecutor(BATCHES_AHEAD) as batch_pool:
                for indices in self.batches:
                    # The main thread allocates, because malloc may keep freed memory for each
                    # thread that allocates.
                    shape = (self.views, len(indices), 3, size, size)
                    crops = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)
                    cutting = batch_pool.submit(cutter.cut, indices, crops)
                    pending.append((indices, crops, cutting))
                    if len(pending) > BATCHES_AHEAD:
                        yield _wait_for(*pending.popleft())
                while pending:
                    yield _wait_for(*pending.popleft())
        finally:
            cutter.close()


def _wait_for(indices: Tensor, crops: Tensor, cutting: Future[None]) -> tuple[Tensor, Tensor]:
    cutting.result()
    return indices, crops
