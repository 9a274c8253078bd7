"""simsiam/data/sampler.py and datamodule.py: the order of an epoch, batches read ahead, views."""

import threading

import pytest
import torch

from simsiam.augment import Policy, augment
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.sampler import EpochSampler, PrefetchLoader
from tests.helpers import Program

IMAGES = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)


def make_sampler(n: int, done: int = 0) -> EpochSampler:
    return EpochSampler(
        n, 8, seed=0, epoch=lambda: 0, device=torch.device("cpu"), parts_done=lambda: done
    )


def test_an_epoch_is_a_permutation_without_the_partial_batch() -> None:
    epoch = [0]
    order = EpochSampler(103, 10, seed=0, epoch=lambda: epoch[0], device=torch.device("cpu"))
    first = list(order)
    assert len(order) == len(first) == 10 and all(len(batch) == 10 for batch in first)
    assert len(torch.cat(first).unique()) == 100
    assert torch.equal(torch.cat(list(order)), torch.cat(first))
    epoch[0] = 1
    assert not torch.equal(torch.cat(list(order)), torch.cat(first))


@pytest.mark.parametrize("done", [0, 2, 6])
def test_prefetched_batches_equal_the_samplers(done: int) -> None:
    loader = PrefetchLoader(make_sampler(50, done), IMAGES, pin=False)
    assert len(loader) == 6
    for _ in range(2):
        batches = list(loader)
        expected = [indices.tolist() for indices in make_sampler(50, done)]
        assert [indices.tolist() for indices, _ in batches] == expected
        assert all(torch.equal(images, IMAGES[indices]) for indices, images in batches)


def test_parts_done_is_called_at_the_first_batch() -> None:
    """A Trainer makes its iterator before it restores the state of a run."""
    done = [0]
    sampler = EpochSampler(
        50, 8, seed=0, epoch=lambda: 0, device=torch.device("cpu"), parts_done=lambda: done[0]
    )
    batches = iter(PrefetchLoader(sampler, IMAGES, pin=False))
    done[0] = 4
    expected = [indices.tolist() for indices in make_sampler(50, 4)]
    assert [indices.tolist() for indices, _ in batches] == expected


def test_an_abandoned_loader_ends_its_threads() -> None:
    before = threading.active_count()
    batches = iter(PrefetchLoader(make_sampler(50), IMAGES, pin=False))
    next(batches)
    assert threading.active_count() > before
    del batches
    assert threading.active_count() == before


def test_an_error_in_a_thread_is_raised() -> None:
    with pytest.raises(IndexError, match="out of range"):
        list(PrefetchLoader(make_sampler(50), IMAGES[:20], pin=False))


def test_views_follow_the_image_schedule() -> None:
    schedule = ("16:1", "24:2")
    data = ViewsDataModule(
        "patterns", train_images=20, test_images=10, batch_size=4, image_schedule=schedule
    )
    data.setup()
    indices = torch.arange(4)
    for epoch, size in enumerate((16, 24, 24, 32, 32)):
        expected = augment(
            data.train.images_at(indices),
            indices,
            seed=0,
            epoch=epoch,
            view=1,
            mean=data.mean,
            std=data.std,
            size=size,
        )
        assert expected.shape == (4, 3, size, size)
        assert torch.equal(data.make_views(indices, epoch)[1], expected)


@pytest.mark.parametrize(
    ("schedule", "epochs", "described"),
    [
        ((), 3, ["views of 32 x 32 pixels"]),
        (
            ("16:2", "24:1"),
            5,
            [
                "views of 16 x 16 pixels in epochs 1 to 2, 24 x 24 pixels in epoch 3, "
                "32 x 32 pixels in epochs 4 to 5"
            ],
        ),
        (
            ("16:2", "32:9"),
            3,
            ["views of 16 x 16 pixels in epochs 1 to 2, 32 x 32 pixels in epoch 3"],
        ),
        (
            ("16:12", "24:6"),
            10,
            [
                "views of 16 x 16 pixels in epochs 1 to 10",
                "no view has the full 32 x 32 pixels, because --image-schedule takes the whole run",
            ],
        ),
    ],
)
def test_a_run_says_which_epochs_have_which_views(
    schedule: tuple[str, ...], epochs: int, described: list[str], program: Program
) -> None:
    flags = ["--dataset", "patterns", "--train-images", "64", "--test-images", "10", "--dry-run"]
    flags += ["--backbone", "resnet10", "--width", "2", "--epochs", str(epochs)]
    if schedule:
        flags += ["--image-schedule", *schedule]
    status, out, _ = program(*flags)
    assert status == 0
    words = out.split("  network  ")[0].split()
    assert " ".join(words).endswith(" ".join(described))


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("16x2", "PIXELS:EPOCHS"),
        ("16:0", "PIXELS:EPOCHS"),
        ("33:1", "full 32 pixels"),
        ("4:1", "from 8"),
    ],
)
def test_a_malformed_schedule_is_refused_in_one_line(
    phase: str, message: str, program: Program
) -> None:
    status, _, err = program("--dataset", "patterns", "--image-schedule", phase)
    assert status == 2 and message in err and err.count("\n") == 1


def test_views_are_normalised_with_the_data_sets_own_statistics() -> None:
    off = Policy(crop_scale=1, flip=0, jitter=0, grayscale=0)
    data = ViewsDataModule("patterns", train_images=1000, test_images=10, policy=off)
    data.setup()
    x = data.make_views(torch.arange(1000), epoch=0)[0]
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)
