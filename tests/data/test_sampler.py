"""simsiam/data/sampler.py and datamodule.py: the order of an epoch, batches read ahead, views."""

import threading

import pytest
import torch

from simsiam.augment import Policy
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.sampler import EpochSampler, PrefetchLoader

IMAGES = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)


def make_sampler(n: int, done: int = 0) -> EpochSampler:
    return EpochSampler(n, 8, seed=0, epoch=lambda: 0, device=torch.device("cpu"), done=lambda: done)


def test_an_epoch_shuffles_all_images_and_drops_the_last_partial_batch() -> None:
    epoch = [0]
    order = EpochSampler(103, 10, seed=0, epoch=lambda: epoch[0], device=torch.device("cpu"))
    first = list(order)
    assert len(order) == len(first) == 10 and all(len(batch) == 10 for batch in first)
    assert len(torch.cat(first).unique()) == 100
    assert torch.equal(torch.cat(list(order)), torch.cat(first))
    epoch[0] = 1
    assert not torch.equal(torch.cat(list(order)), torch.cat(first))


@pytest.mark.parametrize("done", [0, 2, 6])
def test_batches_read_ahead_are_those_of_the_sampler_in_its_order(done: int) -> None:
    loader = PrefetchLoader(make_sampler(50, done), IMAGES, pin=False)
    assert len(loader) == 6
    for _ in range(2):
        batches, expected = list(loader), list(make_sampler(50, done))
        assert [indices.tolist() for indices, _ in batches] == [indices.tolist() for indices in expected]
        assert all(torch.equal(images, IMAGES[indices]) for indices, images in batches)


def test_what_is_done_is_asked_when_the_first_batch_is_waited_for() -> None:
    """A Trainer makes its iterator before it has taken up a run's state."""
    done = [0]
    sampler = EpochSampler(50, 8, seed=0, epoch=lambda: 0, device=torch.device("cpu"), done=lambda: done[0])
    batches = iter(PrefetchLoader(sampler, IMAGES, pin=False))
    done[0] = 4
    assert [indices.tolist() for indices, _ in batches] == [indices.tolist() for indices in make_sampler(50, 4)]


def test_a_loader_that_nobody_listens_to_ends_its_threads() -> None:
    before = threading.active_count()
    batches = iter(PrefetchLoader(make_sampler(50), IMAGES, pin=False))
    next(batches)
    assert threading.active_count() > before
    del batches
    assert threading.active_count() == before


def test_an_error_while_reading_reaches_who_waits() -> None:
    with pytest.raises(IndexError, match="out of range"):
        list(PrefetchLoader(make_sampler(50), IMAGES[:20], pin=False))


def test_views_are_normalised_with_the_data_sets_own_statistics() -> None:
    off = Policy(crop_scale=1, flip=0, jitter=0, grayscale=0)
    data = ViewsDataModule("patterns", train_images=1000, test_images=10, policy=off)
    data.setup()
    x = data.view(torch.arange(1000), epoch=0, view=0)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)
