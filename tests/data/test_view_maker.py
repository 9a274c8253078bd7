"""The views of a batch that are made in parts, as on a CPU."""

import pytest
import torch

from simsiam.augment import Policy, augment
from simsiam.data.view_maker import ViewMaker, split_evenly

MEAN = torch.full((3,), 0.5)
STD = torch.full((3,), 0.25)


@pytest.mark.parametrize(("num_images", "size"), [(300, 32), (37, 96), (9, 224)])
def test_views_made_in_parts_are_those_made_at_once(num_images: int, size: int) -> None:
    images = torch.randint(256, (num_images, 3, size, size), dtype=torch.uint8)
    indices = torch.arange(num_images) + 1000
    maker = ViewMaker(views=2, seed=5, policy=Policy(), compile=False)
    views = maker.crop_and_finish(images, indices, 3, size, MEAN, STD)
    for number, view in enumerate(views):
        at_once = augment(images, indices, seed=5, epoch=3, view=number, mean=MEAN, std=STD)
        assert torch.allclose(view, at_once, atol=1e-5)  # products of matrices may round otherwise


@pytest.mark.parametrize("n", [1, 2, 61, 128, 997, 1024])
@pytest.mark.parametrize("limit", [1, 5, 28, 256])
def test_parts_are_within_the_limit_and_few(n: int, limit: int) -> None:
    size = split_evenly(n, limit)
    assert 1 <= size <= limit
    assert size >= min(limit, n) / 2
