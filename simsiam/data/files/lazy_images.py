"""Images that are read when they are needed (`LazyImages`)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

COPIED_IMAGES = 1000  # images that are copied to a device together


class LazyImages:
    """N images of one size that are read when they are needed.

    It has the operations of a tensor (N, 3, S, S) uint8 that the program uses.

    Args:
        read: returns the images (n, 3, S, S) at some indices.
        indices: what `read` is called with, as a range or as a tensor (N,) int64. A range takes no
            memory for each image.
        size: S.
        from_files: whether files are decoded, which takes long.
    """

    device = torch.device("cpu")
    dtype = torch.uint8

    def __init__(
        self,
        read: Callable[[Sequence[int]], Tensor],
        indices: Tensor | range,
        size: int,
        from_files: bool = True,
    ) -> None:
        self._read = read
        self._indices = indices
        self.from_files = from_files
        self.shape = torch.Size((len(indices), 3, size, size))

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def nbytes(self) -> int:
        """The memory that all images would take."""
        return self.shape.numel()

    def __getitem__(self, part: slice | Tensor) -> "LazyImages":
        if isinstance(part, Tensor):
            chosen = self._choose(part)
        else:
            chosen = self._indices[part]
        return LazyImages(self._read, chosen, self.shape[-1], self.from_files)

    def _choose(self, positions: Tensor) -> Tensor:
        """Return the indices at some positions (n,) int64."""
        if isinstance(self._indices, Tensor):
            return self._indices[positions]
        return self._indices.start + self._indices.step * positions

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """Read the images at some indices (n,); `dim` must be 0."""
        assert dim == 0
        return self._read(self._choose(indices).tolist())

    def split(self, n: int) -> Iterator[Tensor]:
        """Read all images in chunks of n."""
        for start in range(0, len(self), n):
            indices = self._indices[start : start + n]
            yield self._read(indices.tolist() if isinstance(indices, Tensor) else indices)

    def to(self, device: torch.device, copy: bool = True) -> Tensor:
        """Read all images, and return them on a device."""
        images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        start = 0
        for chunk in self.split(COPIED_IMAGES):
            images[start : start + len(chunk)] = chunk.to(device)
            start += len(chunk)
        return images
