"""Make the views of a batch: of square images on the device, or of crops that were cut before."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from simsiam.augment import Policy, augment, draw_boxes
from simsiam.compilation import CompiledPerShape
from simsiam.config.options import SMALL_IMAGE
from simsiam.data.files.crop_loader import CropCutter, DrawBoxes, count_threads
from simsiam.data.files.whole_images import WholeImages
from simsiam.heavy_augment import augment_twice
from utils import distributed

# The number of pixels of views that are made together on a CPU. Their values then fit into its
# caches, and into memory that the process keeps from one call to the next.
CACHED_PIXELS = 2**18


class ViewMaker:
    """Makes views of images, each a pure function of (seed, epoch, index, view).

    Args:
        views: V, the number of standard views of each image.
        seed: seed of the augmentation.
        policy: the distribution of the standard views.
        compile: whether to compile the augmentation for all sizes of views.
        heavy_views: N, the number of heavy views, which come after the standard views. The i-th is
            made of the i-th standard view.
    """

    def __init__(
        self, views: int, seed: int, policy: Policy, compile: bool, heavy_views: int = 0
    ) -> None:
        self.views = views
        self.seed = seed
        self.policy = policy
        self.heavy_views = heavy_views
        self._compiles_all_sizes = compile
        self._compiled_sizes: set[int] = set()
        self._print_fn: Callable[[str], None] = rank_zero_warn
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        for function in (augment, augment_twice):
            self._compiled[function] = CompiledPerShape(function, fullgraph=True, dynamic=False)

    def compile_sizes(self, sizes: Iterable[int], print_fn: Callable[[str], None]) -> None:
        """Compile the augmentation for views of these sizes in pixels.

        Args:
            print_fn: gets a line on rank 0 if a CPU has no compiler.
        """
        self._compiled_sizes.update(sizes)
        self._print_fn = print_fn

    def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call `augment` or `augment_twice`, compiled if that was asked for and is possible."""
        if not self._compiles_all_sizes and arguments["size"] not in self._compiled_sizes:
            return function(**arguments)
        try:
            return self._compiled[function](**arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:  # pyright: ignore[reportAttributeAccessIssue]
            if arguments["images"].device.type != "cpu":
                raise
            # Compilation needs a C++ compiler, which a machine may lack.
            reason = str(error.inner_exception).strip().splitlines()[0]
            if distributed.rank() == 0:
                self._print_fn(f"the augmentation is not compiled, which is slower: {reason}")
            self._compiles_all_sizes = False
            self._compiled_sizes.clear()
        return function(**arguments)

    @property
    def views_in_all(self) -> int:
        """The number of standard and heavy views of each image, V + N."""
        return self.views + self.heavy_views

    def crop_and_finish(
        self, images: Tensor, indices: Tensor, epoch: int, size: int, mean: Tensor, std: Tensor
    ) -> list[Tensor]:
        """Return V + N views (B, 3, S, S) float32 of square images, normalised.

        Args:
            images: (B, 3, C, C) uint8.
            indices: (B,) int64, indices of the images in the data set.
            epoch: from 0.
            size: S.
            mean, std: (3,) each, for the normalisation.
        """
        repeated_images = images.repeat(self.views, 1, 1, 1)
        return self._augment_rows(repeated_images, indices, epoch, mean, std, size, cropped=False)

    def finish_crops(
        self, crops: Tensor, indices: Tensor, epoch: int, mean: Tensor, std: Tensor
    ) -> list[Tensor]:
        """Return V + N views (B, 3, S, S) float32 made of their crops (V, B, 3, S, S) uint8."""
        rows = crops.flatten(0, 1)
        size = crops.shape[-1]
        return self._augment_rows(rows, indices, epoch, mean, std, size, cropped=True)

    def _augment_rows(
        self,
        images: Tensor,
        indices: Tensor,
        epoch: int,
        mean: Tensor,
        std: Tensor,
        size: int,
        cropped: bool,
    ) -> list[Tensor]:
        """Return the V + N views of a batch, each (B, 3, S, S).

        Args:
            images: (V * B, 3, C, C) uint8. Row i * B + j is image j, for view i.
            indices: (B,) int64.
            cropped: whether the images are crops. The other arguments are those of `augment`.
        """
        num_images = len(indices)
        view_of_row = torch.arange(self.views, device=images.device).repeat_interleave(num_images)
        index_of_row = indices.repeat(self.views)
        # A compiled function would be compiled again for each value of an int.
        epoch_tensor = torch.full((), epoch, device=indices.device)
        # The first rows are of views that also have a heavy view.
        rows_with_heavy = self.heavy_views * num_images
        standard: list[Tensor] = []
        heavy: list[Tensor] = []
        for rows in self._split_rows(images, rows_with_heavy, num_images):
            arguments = {
                "images": images[rows],
                "indices": index_of_row[rows],
                "seed": self.seed,
                "epoch": epoch_tensor,
                "view": view_of_row[rows, None],  # `augment` takes a column of numbers
                "policy": self.policy,
                "mean": mean,
                "std": std,
                "size": size,
                "cropped": cropped,
            }
            if rows.start < rows_with_heavy:
                standard_rows, heavy_rows = self._call(augment_twice, **arguments)
                standard.append(standard_rows)
                heavy.append(heavy_rows)
            else:
                standard.append(self._call(augment, **arguments))
        return _split_views(standard, num_images) + _split_views(heavy, num_images)

    def _split_rows(self, images: Tensor, rows_with_heavy: int, num_images: int) -> list[slice]:
        """Return the parts of the rows (V * B, 3, C, C) that are augmented together.

        A part has either rows of views with a heavy view, which come first, or others.
        """
        parts: list[slice] = []
        for first, last in ((0, rows_with_heavy), (rows_with_heavy, len(images))):
            if first == last:
                continue
            size = self._choose_rows_per_call(images[first:last], num_images)
            for start in range(first, last, size):
                parts.append(slice(start, min(start + size, last)))
        return parts

    def _choose_rows_per_call(self, images: Tensor, num_images: int) -> int:
        """Return how many of these rows (R, 3, C, C) each call of `augment` gets."""
        side = images.shape[-1]
        if images.device.type == "cpu":
            return split_evenly(len(images), max(1, CACHED_PIXELS // side**2))
        # One call for all views is faster. One call for each view takes less memory.
        return len(images) if side <= SMALL_IMAGE else num_images

    # ---------------------------------------------------------------- crops of whole images

    def draw_boxes_in(self, epoch: Callable[[], int]) -> DrawBoxes:
        """Return a function that draws the boxes (V, B, 4) of a batch in an epoch."""

        def draw(indices: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
            view_of_row = torch.arange(self.views).repeat_interleave(len(indices))
            boxes = draw_boxes(
                indices.repeat(self.views),
                heights.repeat(self.views),
                widths.repeat(self.views),
                seed=self.seed,
                epoch=epoch(),
                view=view_of_row[:, None],  # a column, as for `augment`
                policy=self.policy,
            )
            return torch.stack(boxes, dim=1).view(self.views, len(indices), 4)

        return draw

    def cut_crops(self, whole: WholeImages, indices: Tensor, epoch: int, size: int) -> Tensor:
        """Return the crops (V, B, 3, S, S) uint8 of the views of whole images in an epoch."""
        crops = torch.empty(self.views, len(indices), 3, size, size, dtype=torch.uint8)
        cutter = CropCutter(whole, self.draw_boxes_in(lambda: epoch), count_threads())
        try:
            cutter.cut(indices.cpu(), crops)
        finally:
            cutter.close()
        return crops.to(indices.device)


def _split_views(parts: list[Tensor], num_images: int) -> list[Tensor]:
    """Return views (B, 3, S, S) whose rows come in parts, of a view or of several."""
    if any(len(part) % num_images != 0 for part in parts):
        parts = [torch.cat(parts)]
    return [view for part in parts for view in part.split(num_images)]


def split_evenly(n: int, limit: int) -> int:
    """Return the size of the parts of n things, at most `limit`.

    The parts have equal sizes, if that is possible with up to twice as many of them as needed. A
    compiled function is then compiled once, and not once more for a last smaller part.
    """
    fewest_parts = math.ceil(n / limit)
    for parts in range(fewest_parts, 2 * fewest_parts + 1):
        if n % parts == 0:
            return n // parts
    return limit
