"""Make the views of a batch: of square images on the device, or of crops that were cut before."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simsiam.augment import Policy, augment, draw_boxes
from simsiam.config.options import SMALL_IMAGE
from simsiam.data.files.crop_loader import CropCutter, DrawBoxes, count_threads
from simsiam.data.files.whole_images import WholeImages


class ViewMaker:
    """Makes views of images, each a pure function of (seed, epoch, index, view).

    Args:
        views: V, the number of views of each image.
        seed: seed of the augmentation.
        policy: the distribution of the views.
        compile: whether to compile the augmentation.
    """

    def __init__(self, views: int, seed: int, policy: Policy, compile: bool) -> None:
        self.views = views
        self.seed = seed
        self.policy = policy
        self._augment = augment
        if compile:
            self._augment = torch.compile(augment, fullgraph=True, dynamic=False)

    def crop_and_finish(
        self, images: Tensor, indices: Tensor, epoch: int, size: int, mean: Tensor, std: Tensor
    ) -> list[Tensor]:
        """Return V views (B, 3, S, S) float32 of square images, normalised.

        Args:
            images: (B, 3, C, C) uint8.
            indices: (B,) int64, indices of the images in the data set.
            epoch: from 0.
            size: S.
            mean, std: (3,) each, for the normalisation.
        """
        views: list[Tensor] = []
        for numbers in self._split_views(images):
            repeated_images = images.repeat(len(numbers), 1, 1, 1)
            views += self._call_augment(
                repeated_images, indices, epoch, numbers, mean, std, size, cropped=False
            )
        return views

    def finish_crops(
        self, crops: Tensor, indices: Tensor, epoch: int, mean: Tensor, std: Tensor
    ) -> list[Tensor]:
        """Return V views (B, 3, S, S) float32 made of their crops (V, B, 3, S, S) uint8."""
        size = crops.shape[-1]
        views: list[Tensor] = []
        for numbers in self._split_views(crops):
            crops_of_call = crops[numbers].flatten(0, 1)
            views += self._call_augment(
                crops_of_call, indices, epoch, numbers, mean, std, size, cropped=True
            )
        return views

    def _split_views(self, images: Tensor) -> Sequence[Tensor]:
        """Return the numbers of the views that are made in each call of `augment`.

        One call for all views is faster. One call for each view takes less memory.
        """
        views_per_call = self.views if images.shape[-1] <= SMALL_IMAGE else 1
        return torch.arange(self.views, device=images.device).split(views_per_call)

    def _call_augment(
        self,
        images: Tensor,
        indices: Tensor,
        epoch: int,
        numbers: Tensor,
        mean: Tensor,
        std: Tensor,
        size: int,
        cropped: bool,
    ) -> Sequence[Tensor]:
        """Return some of the views of a batch.

        Args:
            images: (v * B, 3, C, C) uint8. Row i * B + j is image j, for the i-th of the v views.
            numbers: (v,) int64, which of the V views.
            cropped: whether the images are crops. The other arguments are those of `augment`.
        """
        view_of_row = numbers.repeat_interleave(len(indices))
        augmented = self._augment(
            images,
            indices.repeat(len(numbers)),
            seed=self.seed,
            # The compiled `augment` would be compiled again for each value of an int.
            epoch=torch.full((), epoch, device=indices.device),
            view=view_of_row[:, None],  # `augment` takes a column of numbers
            policy=self.policy,
            mean=mean,
            std=std,
            size=size,
            cropped=cropped,
        )
        return augmented.chunk(len(numbers))

    # ---------------------------------------------------------------- crops of whole images

    def draw_boxes_in(self, epoch: Callable[[], int]) -> DrawBoxes:
        """Return a function that draws the boxes (V, B, 4) of a batch in an epoch."""

        def draw(indices: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
            boxes: list[Tensor] = []
            for view in range(self.views):
                boxes_of_view = draw_boxes(
                    indices,
                    heights,
                    widths,
                    seed=self.seed,
                    epoch=epoch(),
                    view=view,
                    policy=self.policy,
                )
                boxes.append(torch.stack(boxes_of_view, dim=1))
            return torch.stack(boxes)

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
