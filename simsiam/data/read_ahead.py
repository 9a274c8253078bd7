"""Images that do not live on the training device: read by a thread, while the steps before are computed."""

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from simsiam.data.memmap_images import MemmapImages, Pixels

if TYPE_CHECKING:
    from simsiam.data.datamodule import EpochSampler


AHEAD = 3  # batches that wait
PATIENCE = 0.1  # seconds until a thread that waits looks whether it is still wanted


class ReadAhead:
    """The batches of an epoch with their images: (indices (B,), pixels (B, 3, C, C) uint8), both on the CPU.

    What goes wrong in the thread is raised where the batches are taken.

    Args:
        pin: read into memory from which a GPU copies by itself.
    """

    def __init__(self, order: "EpochSampler", images: Pixels, pin: bool) -> None:
        self.order, self.images, self.pin = order, images, pin
        self.unwanted = threading.Event()
        self.thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self.order)

    def close(self) -> None:
        """End the thread; nothing is read any more."""
        self.unwanted.set()
        if self.thread is not None:
            self.thread.join(timeout=10)  # a disk that answers no more shall not keep the program
            self.thread = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.close()
        ready: queue.Queue[Any] = queue.Queue(AHEAD)
        unwanted = self.unwanted = threading.Event()
        # It asks the order which epoch it is, and how much of it is done. So it starts with the wait for the first
        # batch, not before: a Trainer makes its iterator earlier, and goes on with a run's state only then.
        self.thread = threading.Thread(target=self._read, args=(ready, unwanted), daemon=True)
        self.thread.start()
        try:
            while (batch := ready.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            unwanted.set()

    def _read(self, ready: queue.Queue[Any], unwanted: threading.Event) -> None:
        try:
            for indices in self.order:
                if not _put(ready, unwanted, (indices, self._pixels(indices))):
                    return
            _put(ready, unwanted, None)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is told where it is waited for)
            _put(ready, unwanted, error)

    def _pixels(self, indices: Tensor) -> Tensor:
        if isinstance(self.images, MemmapImages):
            return self.images.read(indices, self.pin)
        pixels = self.images[indices]
        return pixels.pin_memory() if self.pin else pixels


def _put(ready: queue.Queue[Any], unwanted: threading.Event, what: object) -> bool:
    """Wait for room; whether there was any before nobody wanted it."""
    while not unwanted.is_set():
        try:
            ready.put(what, timeout=PATIENCE)
        except queue.Full:
            continue
        return True
    return False
