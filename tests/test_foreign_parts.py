"""The parts with loaders, modules and callbacks of others, in a plain Trainer."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.trainers import fit, make_model

IMAGES = torch.randn(24, 3, 8, 8)


def make_pairs(arrange: Any = lambda a, b: [a, b]) -> DataLoader[Any]:
    return DataLoader([arrange(x, x.flip(2)) for x in IMAGES], batch_size=8)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- loaders


def test_views_of_several_loaders_are_refused() -> None:
    """Lightning joins their batches: [[x1, x2], [y1, y2]]. The second pair looks like labels."""
    model = make_model()
    with pytest.raises(ValueError, match=r"several lists of views.*ConcatDataset"):
        fit(model=model, data=[make_pairs(), make_pairs()], max_epochs=1)  # pyright: ignore[reportArgumentType]


def test_an_image_after_the_views_is_no_view() -> None:
    """Some loaders give the image itself next to its views."""
    loader: Any = make_pairs(lambda a, b: ([a, b], a, [a]))
    assert fit(data=loader, max_epochs=1).global_step == 3
