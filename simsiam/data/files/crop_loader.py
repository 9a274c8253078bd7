"""A loader of the crops of whole images, which threads cut in advance."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simsiam.data.files.resizing import Box
from simsiam.data.files.threads import count_threads, start_threads
from simsiam.data.files.whole_images import WholeImages
from simsiam.data.sampler import BATCHES_AHEAD, LoaderOfImages

# The number of images that a thread cuts before it takes the next ones. With single images, the
# threads would spend more time on taking turns than on cutting.
IMAGES_PER_TASK = 8

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
        sizes_of_parts = self.pool.map(self.images.read_sizes, indices.split(IMAGES_PER_TASK))
        heights, widths = torch.cat(list(sizes_of_parts)).unbind(1)
        boxes = self.draw_boxes(indices, heights, widths)  # (V, B, 4)

        def cut_part(part: Tensor) -> None:
            boxes_of_part = boxes[:, part].transpose(0, 1).tolist()  # a list of V boxes per image
            for position, boxes_of_image in zip(part.tolist(), boxes_of_part, strict=True):
                index = int(indices[position])
                named_boxes = [Box(*numbers) for numbers in boxes_of_image]
                self.images.cut(index, named_boxes, crops[:, position])

        # Reading the results raises the errors of the threads.
        for _ in self.pool.map(cut_part, torch.arange(len(indices)).split(IMAGES_PER_TASK)):
            pass

    def close(self) -> None:
        """End the threads. What is not cut yet is not cut any more."""
        self.pool.shutdown(wait=True, cancel_futures=True)


class CropBuffers:
    """Memory for the crops of batches, which is used again once no tensor refers to it.

    The kernel fills new memory with zeros, page by page, which takes a fifth of the time of cutting
    views of 224 pixels. Page-locked memory is used again by torch itself.

    Args:
        views: V.
        size: S in pixels.
        pin: whether to take page-locked memory.
    """

    def __init__(self, views: int, size: int, pin: bool) -> None:
        self.views = views
        self.size = size
        self.pin = pin
        # The first array is never handed out, so its references are those of an unused array.
        self._arrays = [np.empty(0, np.uint8)]

    def take(self, num_images: int) -> Tensor:
        """Return memory (V, B, 3, S, S) uint8 for the crops of B images, whatever it contains."""
        shape = (self.views, num_images, 3, self.size, self.size)
        if self.pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        references = [sys.getrefcount(array) for array in self._arrays]
        for i in range(1, len(self._arrays)):
            # A tensor from `from_numpy` refers to the array, and so does each view of the tensor.
            if references[i] == references[0] and self._arrays[i].shape == shape:
                return torch.from_numpy(self._arrays[i])
        self._arrays.append(torch.empty(shape, dtype=torch.uint8).numpy())
        return torch.from_numpy(self._arrays[-1])


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
        buffers = CropBuffers(self.views, self.view_size(), self.pin)
        pending: deque[tuple[Tensor, Tensor, Future[None]]] = deque()
        cutter = CropCutter(self.images, self.draw_boxes, count_threads())
        try:
            with start_threads(BATCHES_AHEAD) as batch_pool:
                for indices in self.batches:
                    crops = buffers.take(len(indices))
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
