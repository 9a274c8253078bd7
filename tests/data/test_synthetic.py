"""simsiam/data/synthetic.py: the generated images."""

import torch

from simsiam.data.synthetic import CLASSES, make_patterns
from utils.knn import knn_predict


def test_patterns_do_not_depend_on_the_count() -> None:
    images, labels = make_patterns(300)
    assert images.shape == (300, 3, 32, 32) and images.dtype == torch.uint8 and len(CLASSES) == 10
    for count in (300, 40):
        again, again_labels = make_patterns(count)
        assert torch.equal(again, images[:count]) and torch.equal(again_labels, labels[:count])
    assert not torch.equal(make_patterns(300, split=1)[0], images)
    assert labels.bincount().tolist() == [30] * 10


def test_patterns_are_gray() -> None:
    images, _ = make_patterns(200)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_pixels_do_not_separate_patterns() -> None:
    bank, labels = make_patterns(2000)
    queries, truth = make_patterns(500, split=1)
    flat = [
        torch.nn.functional.normalize(x.float().flatten(1) - 128, dim=1) for x in (queries, bank)
    ]
    # Measured: 0.47 for k = 1 and 0.39 for k = 200. Pixels tell only the direction of stripes.
    for k in (1, 200):
        assert (knn_predict(*flat, labels, 10, k=k) == truth).float().mean() < 0.5
