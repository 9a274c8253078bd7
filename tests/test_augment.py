"""simsiam/augment.py and image_ops.py do what torchvision's operations and pipeline do."""

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from simsiam.augment import Policy, apply, augment, draw, normalize
from simsiam.image_ops import color_jitter, luma, resized_crop, shift_hue
from tests.distributions import find_differing
from utils.philox import permutation

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def noise(n: int, size: int = 32) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def draws(n: int, policy: Policy = Policy(), size: int = 32):
    return draw(torch.arange(n), size, seed=0, epoch=0, view=0, policy=policy)


# ---------------------------------------------------------------- apply, against torchvision


@pytest.mark.parametrize("size", [32, 33, 64])
def test_resized_crop_is_torchvisions(size: int) -> None:
    x, v = noise(200, size).float() / 255, draws(200, Policy(crop_scale=0.08), size)
    ours = resized_crop(x, v.top, v.left, v.height, v.width, v.flip)
    for i in range(200):
        box = (int(v.top[i]), int(v.left[i]), int(v.height[i]), int(v.width[i]))
        theirs = F.resized_crop(x[i], *box, [size, size], antialias=True)
        theirs = F.hflip(theirs) if v.flip[i] else theirs
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("side", "size"), [(110, 96), (48, 32), (64, 100)])
def test_a_crop_resized_to_another_size_is_torchvisions(side: int, size: int) -> None:
    images, v = noise(60, side), draws(60, Policy(crop_scale=0.08), side)
    ours = resized_crop(images.float() / 255, v.top, v.left, v.height, v.width, v.flip, size)
    assert ours.shape == apply(images, v, size).shape == (60, 3, size, size)
    for i in range(60):
        box = (int(v.top[i]), int(v.left[i]), int(v.height[i]), int(v.width[i]))
        theirs = F.resized_crop(images[i].float() / 255, *box, [size, size], antialias=True)
        theirs = F.hflip(theirs) if v.flip[i] else theirs
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operation", range(4))
def test_each_colour_operation_is_torchvisions(operation: int, real_images: Tensor) -> None:
    x, v = real_images[:200].float() / 255, draws(200)
    factor = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(200, 1)
    factor[:, operation] = v.factor[:, operation]
    ours = color_jitter(x, v.op_order, factor, torch.ones(200, dtype=torch.bool))
    for i in range(200):
        torch.testing.assert_close(
            ours[i], JITTER[operation](x[i], float(factor[i, operation])), rtol=0, atol=2e-6
        )


def test_grayscale_is_torchvisions(real_images: Tensor) -> None:
    x = real_images[:50].float() / 255
    torch.testing.assert_close(luma(x), F.rgb_to_grayscale(x))


def test_hue_keeps_gray_and_a_full_turn_changes_nothing(real_images: Tensor) -> None:
    gray = torch.full((1, 3, 4, 4), 0.3)
    assert torch.equal(shift_hue(gray, torch.tensor([0.2])), gray)
    x = real_images[:50].float() / 255
    torch.testing.assert_close(shift_hue(x, torch.ones(50)), x, rtol=0, atol=2e-6)


def test_the_whole_view_is_torchvisions_in_each_samples_own_order(real_images: Tensor) -> None:
    images, v = real_images[:500], draws(500)
    ours = apply(images, v)
    order = v.op_order.argsort(dim=1)  # row: the operations in their order
    assert len(order.unique(dim=0)) == 24
    for i, image in enumerate(images.float() / 255):
        box = (int(v.top[i]), int(v.left[i]), int(v.height[i]), int(v.width[i]))
        x = F.resized_crop(image, *box, [32, 32], antialias=True)
        x = F.hflip(x) if v.flip[i] else x
        for operation in order[i].tolist() if v.jitter[i] else ():
            x = JITTER[operation](x, float(v.factor[i, operation]))
        x = F.rgb_to_grayscale(x, 3) if v.grayscale[i] else x
        torch.testing.assert_close(ours[i], x, rtol=0, atol=1e-5)


def test_normalize_is_torchvisions(real_images: Tensor) -> None:
    x = real_images[:10].float() / 255
    torch.testing.assert_close(normalize(x, MEAN, STD), F.normalize(x, MEAN.tolist(), STD.tolist()))


# ---------------------------------------------------------------- draw


def test_a_view_is_a_pure_function_of_seed_epoch_index_and_view() -> None:
    images, indices = noise(64), torch.arange(64)

    def view(some: Tensor = indices, seed: int = 0, epoch: int = 0, view: int = 0) -> Tensor:
        return augment(images[some], some, seed=seed, epoch=epoch, view=view, mean=MEAN, std=STD)

    all_views = view()
    assert torch.equal(all_views, view())
    some = torch.tensor([5, 63, 0])  # A view does not depend on the other samples of its batch.
    torch.testing.assert_close(view(some), all_views[some], rtol=0, atol=1e-6)
    for other in (view(seed=1), view(epoch=1), view(view=1)):
        assert (all_views - other).abs().mean() > 0.1


def test_parameters_have_torchvisions_distribution() -> None:
    n = 20_000
    v = draws(n)
    crop = T.RandomResizedCrop(32, scale=(0.2, 1))
    image = torch.zeros(3, 32, 32)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [crop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(n)]
    )
    ours = torch.stack([v.top, v.left, v.height, v.width], dim=1)
    for column in range(4):
        a, b = (torch.bincount(x[:, column], minlength=33).double() for x in (ours, theirs))
        is_used = (a + b) > 0
        num_bins = is_used.sum().item()
        # Its expectation is num_bins, its standard deviation sqrt(2 * num_bins).
        chi2 = ((a - b)[is_used] ** 2 / (a + b)[is_used]).sum().item()
        assert chi2 < 2.2 * num_bins, column
    assert v.flip.float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert v.jitter.float().mean().item() == pytest.approx(0.8, abs=0.015)
    assert v.grayscale.float().mean().item() == pytest.approx(0.2, abs=0.015)
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        factor = v.factor[:, column]
        assert low <= factor.min() < low + 0.001 and high - 0.001 < factor.max() <= high
        assert factor.mean().item() == pytest.approx(
            (low + high) / 2, abs=0.005 * (high - low) / 0.2
        )
    orders = (v.op_order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.unique(orders, return_counts=True)[1]
    assert len(counts) == 24 and (counts - n / 24).abs().max() < 5 * (n / 24) ** 0.5


def test_the_parameters_of_a_view_are_independent() -> None:
    n = 20_000
    v = draws(n)
    rows, columns = (
        (start + 0.5) / (33 - length) for start, length in ((v.top, v.height), (v.left, v.width))
    )
    area, aspect = (v.height * v.width).float(), (v.width / v.height).log()
    drawn = [
        rows,
        columns,
        area,
        aspect,
        v.flip,
        v.jitter,
        v.grayscale,
        *v.factor.T,
        *v.op_order[:, :3].T,
    ]
    correlation = torch.corrcoef(torch.stack([x.float() for x in drawn]))
    correlation[-3:, -3:] = 0  # op_order is a permutation
    assert (correlation.fill_diagonal_(0)).abs().max() < 5 / n**0.5


def test_views_are_independent_of_the_order_of_the_epoch() -> None:
    n = 20_000
    position = permutation(n, 0, seed=0).argsort().float()
    for view in range(2):
        v = draw(torch.arange(n), 32, seed=0, epoch=0, view=view, policy=Policy())
        drawn = [v.top, v.left, v.height, v.width, v.flip, v.jitter, v.grayscale, *v.factor.T]
        correlation = torch.corrcoef(torch.stack([position, *(x.float() for x in drawn)]))
        assert correlation[0, 1:].abs().max() < 5 / n**0.5


def test_each_operation_has_its_own_strength() -> None:
    policy = Policy(
        brightness=0.1, contrast=0.2, saturation=0.3, hue=0.4, flip=0.6, jitter=0.7, grayscale=0.8
    )
    v = draws(5000, policy)
    for column, (low, high) in enumerate([(0.9, 1.1), (0.8, 1.2), (0.7, 1.3), (-0.4, 0.4)]):
        factor = v.factor[:, column]
        assert low <= factor.min() < low + 0.01 and high - 0.01 < factor.max() <= high
    for drawn, share in ((v.flip, 0.6), (v.jitter, 0.7), (v.grayscale, 0.8)):
        assert drawn.float().mean().item() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    "n", [2500, pytest.param(10_000, marks=pytest.mark.slow("40 s of PIL; finer, not other"))]
)
def test_views_are_distributed_as_torchvisions_pipeline(n: int, real_images: Tensor) -> None:
    """Simple statistics of views of real images have the same distribution, ours and PIL's."""
    real_images = real_images[:n]
    pipeline = T.Compose(
        [
            T.RandomResizedCrop(32, scale=(0.2, 1)),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.ToTensor(),
        ]
    )
    torch.manual_seed(0)
    theirs = torch.stack(
        [pipeline(Image.fromarray(image)) for image in real_images.permute(0, 2, 3, 1).numpy()]
    )
    ours = apply(real_images, draws(len(real_images)))
    assert find_differing(ours, theirs) == []


def test_without_augmentation_images_stay_the_same() -> None:
    off = Policy(1.0, flip=0, jitter=0, grayscale=0)
    images = noise(32)
    v = draws(32, off)
    # A crop with the area of the image is the whole image, or not square.
    is_square = v.height == v.width
    is_whole = (v.height == 32) & (v.width == 32)
    assert is_square.any() and torch.equal(is_square, is_whole)
    views = apply(images, v)
    torch.testing.assert_close(views[is_whole], images[is_whole].float() / 255, rtol=0, atol=1e-6)


def test_it_is_compiled_once_for_all_epochs_and_views() -> None:
    """Count traces with the eager backend. Every backend compiles the same traces."""
    torch.compiler.reset()
    images, indices = noise(16), torch.arange(16)
    compiled = torch.compile(augment, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch, view in ((0, 0), (0, 1), (1, 0), (2, 1), (700, 3)):
            arguments = {
                "seed": 0,
                "epoch": torch.tensor(epoch),
                "view": torch.tensor(view),
                "mean": MEAN,
                "std": STD,
            }
            expected = augment(images, indices, **arguments)
            torch.testing.assert_close(compiled(images, indices, **arguments), expected)
