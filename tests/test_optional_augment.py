"""The operations that are off by default do what torchvision and PIL do, and nothing while off."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torch import Tensor

from simsiam.augment import Policy, ViewParams, apply, augment, draw
from simsiam.image_ops import gaussian_blur, rotate, solarize
from tests.distributions import distance, find_differing

LEVEL = 1 / 255
MEAN = torch.tensor([0.49, 0.48, 0.45])
STD = torch.tensor([0.25, 0.24, 0.26])
JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
ALL_ON = Policy(blur=0.5, solarize=0.3, vertical_flip=0.5, rotate=0.6)
NUM_CIFAR_PARAMS = 9  # the first fields of ViewParams, which every policy draws


def photographs(n: int, size: int = 96) -> Tensor:
    """Return random parts (n, 3, S, S) uint8 of scikit-learn's two photographs."""
    pictures = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    crop = T.RandomCrop(size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.stack([crop(pictures[i % 2]) for i in range(n)])


def noise(n: int, size: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def draws(n: int, policy: Policy = ALL_ON, size: int = 32, epoch: int = 0) -> ViewParams:
    return draw(torch.arange(n), size, seed=0, epoch=epoch, view=0, policy=policy)


def to_pil(image: Tensor) -> Image.Image:
    """Return an image (3, S, S) uint8 for PIL."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return F.pil_to_tensor(image) / 255


def round_to_8_bits(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------- operations


@pytest.mark.parametrize("images", [photographs(40), noise(40), noise(40, 9)])
def test_blur_is_pils(images: Tensor) -> None:
    """PIL rounds six times to whole levels, each time by half a level at most, so 3 in all."""
    sigma = torch.linspace(0.1, 3, 40)
    ours = gaussian_blur(images / 255, sigma)
    for i in range(40):
        theirs = from_pil(to_pil(images[i]).filter(ImageFilter.GaussianBlur(float(sigma[i]))))
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=3.05 * LEVEL)


def test_blur_has_the_variance_of_its_sigma() -> None:
    point = torch.zeros(30, 3, 65, 65)
    point[:, :, 32, 32] = 1
    sigma = torch.linspace(0.1, 4, 30)
    rows = gaussian_blur(point, sigma)[:, 0].sum(dim=2)  # (30, 65)
    variance = (rows * (torch.arange(65) - 32) ** 2).sum(dim=1)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(30))
    torch.testing.assert_close(variance, sigma**2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_blur_is_nearly_torchvisions_gaussian(sigma: float) -> None:
    """Three boxes are nearly a Gaussian. At the edges torchvision reflects the image instead."""
    x = photographs(20) / 255
    ours = gaussian_blur(x, torch.full((20,), sigma))
    theirs = F.gaussian_blur(x, [17, 17], [sigma, sigma])
    difference = (ours - theirs)[:, :, 8:-8, 8:-8].abs()
    assert difference.max() < 5 * LEVEL
    assert difference.mean() < 0.5 * LEVEL


def test_blur_of_sigma_0_changes_nothing() -> None:
    x = photographs(4) / 255
    assert torch.equal(gaussian_blur(x, torch.zeros(4)), x)


def test_solarize_is_torchvisions() -> None:
    """For each of the 256 values. torchvision takes PIL's operation for images of PIL."""
    image = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    ours = solarize(image[None] / 255)[0]
    torch.testing.assert_close(ours, F.solarize(image, 128) / 255)
    torch.testing.assert_close(ours, from_pil(F.solarize(to_pil(image), 128)))


@pytest.mark.parametrize("turns", range(4))
def test_rotate_is_pils_without_a_change_of_pixels(turns: int) -> None:
    images = noise(2)
    rotated = rotate(images, torch.tensor([turns, 0]))
    assert torch.equal(rotated[0], F.pil_to_tensor(to_pil(images[0]).rotate(90 * turns)))
    assert torch.equal(rotated[1], images[1])


def test_the_whole_view_is_that_of_torchvision_and_pil_with_the_flips_last() -> None:
    """PIL rounds the image before the blur, and six times in it: 3.5 levels at most."""
    images = photographs(300, 48)
    v = draws(300, size=48)
    ours = apply(images, v, 32)
    assert v.blur_sigma is not None and v.solarize is not None
    assert v.vertical_flip is not None and v.quarter_turns is not None
    for i, image in enumerate(images):
        box = (int(v.top[i]), int(v.left[i]), int(v.height[i]), int(v.width[i]))
        x = F.resized_crop(image / 255, *box, [32, 32], antialias=True)
        if v.jitter[i]:
            for operation in v.op_order[i].argsort().tolist():
                x = JITTER[operation](x, float(v.factor[i, operation]))
        if v.grayscale[i]:
            x = F.rgb_to_grayscale(x, 3)
        if v.blur_sigma[i] > 0:
            blur = ImageFilter.GaussianBlur(float(v.blur_sigma[i]))
            x = from_pil(to_pil(round_to_8_bits(x)).filter(blur))
        if v.solarize[i]:
            x = F.solarize(x, 0.5)
        if v.flip[i]:
            x = F.hflip(x)
        if v.vertical_flip[i]:
            x = F.vflip(x)
        x = torch.rot90(x, int(v.quarter_turns[i]), (1, 2))
        torch.testing.assert_close(ours[i], x, rtol=0, atol=3.55 * LEVEL)


# ---------------------------------------------------------------- parameters


def test_operations_leave_the_parameters_of_the_others_as_they_are() -> None:
    without = draws(500, Policy())
    assert without[NUM_CIFAR_PARAMS:] == (None, None, None, None)
    for policy in (ALL_ON, Policy(blur=1.0), Policy(rotate=1.0)):
        params = draws(500, policy)
        for ours, theirs in zip(params[:NUM_CIFAR_PARAMS], without, strict=False):
            assert torch.equal(ours, theirs)
    # Nor does one of them change another one.
    assert torch.equal(draws(500, ALL_ON).solarize, draws(500, Policy(solarize=0.3)).solarize)


def test_an_operation_that_happens_to_no_sample_changes_no_bit() -> None:
    """No sample of a few has a probability of 1e-9."""
    images = photographs(20, 40)
    rare = Policy(blur=1e-9, solarize=1e-9, vertical_flip=1e-9, rotate=1e-9)
    expected = apply(images, draws(20, Policy(), 40), 32)
    assert torch.equal(apply(images, draws(20, rare, 40), 32), expected)


def test_parameters_have_the_distribution_of_torchvisions() -> None:
    n = 20_000
    v = draws(n)
    assert v.blur_sigma is not None and v.quarter_turns is not None
    for drawn, probability in ((v.solarize, 0.3), (v.vertical_flip, 0.5), (v.blur_sigma, 0.5)):
        assert (drawn > 0).float().mean().item() == pytest.approx(probability, abs=0.015)
    shares = torch.bincount(v.quarter_turns) / n
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), rtol=0, atol=0.015)

    sigma = v.blur_sigma[v.blur_sigma > 0]
    torch.manual_seed(0)
    theirs = torch.tensor([T.GaussianBlur.get_params(0.1, 2.0) for _ in range(len(sigma))])
    assert distance(sigma, theirs) < 1.95 * (2 / len(sigma)) ** 0.5
    sigma = draws(n, Policy(blur=1.0, blur_sigma=(1.0, 1.5))).blur_sigma
    assert sigma is not None and 1 <= sigma.min() < 1.001 and 1.499 < sigma.max() <= 1.5


def test_parameters_are_independent() -> None:
    n = 20_000
    v = draws(n)
    assert v.blur_sigma is not None and v.quarter_turns is not None
    earlier = [v.top, v.left, v.height, v.width, v.flip, v.jitter, v.grayscale, *v.factor.T]
    is_blurred = v.blur_sigma > 0
    is_rotated = v.quarter_turns > 0
    new = [is_blurred, v.solarize, v.vertical_flip, is_rotated]
    everywhere = torch.ones_like(is_blurred)
    # Sigma and the angle are compared where they are used.
    for chosen, more in (
        (everywhere, []),
        (is_blurred, [v.blur_sigma]),
        (is_rotated, [v.quarter_turns]),
    ):
        columns = torch.stack([column[chosen].float() for column in (*earlier, *new, *more)])
        correlation = torch.corrcoef(columns).nan_to_num().fill_diagonal_(0)
        limit = 5 / chosen.sum().item() ** 0.5
        assert correlation[len(earlier) :].abs().max() < limit


def test_a_view_is_a_pure_function_of_seed_epoch_index_and_view() -> None:
    images = photographs(32)
    indices = torch.arange(32)

    def make_view(some: Tensor, epoch: int = 0) -> Tensor:
        return augment(
            images[some], some, seed=0, epoch=epoch, view=1, policy=ALL_ON, mean=MEAN, std=STD
        )

    views = make_view(indices)
    assert torch.equal(views, make_view(indices))
    some = torch.tensor([5, 31, 0])
    torch.testing.assert_close(make_view(some), views[some], rtol=0, atol=1e-5)
    assert (make_view(indices, epoch=1) - views).abs().mean() > 0.1


# ---------------------------------------------------------------- the whole pipeline


def random_blur(image: Image.Image) -> Image.Image:
    """Blur an image as the class GaussianBlur of facebookresearch/simsiam does."""
    sigma = torch.empty(()).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def random_quarter_turn(image: Image.Image) -> Image.Image:
    return image.rotate(90 * int(torch.randint(1, 4, ())))


def make_views_with_pil(images: Tensor, seed: int) -> Tensor:
    """Return a view (N, 3, 48, 48) of each image: the official pipeline, and what we have more."""
    pipeline = T.Compose(
        [
            T.RandomResizedCrop(48, scale=(0.2, 1)),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([random_blur], p=0.5),
            T.RandomSolarize(128, p=0.4),
            T.RandomHorizontalFlip(),
            T.RandomVerticalFlip(0.2),
            T.RandomApply([random_quarter_turn], p=0.2),
            T.ToTensor(),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.stack([pipeline(to_pil(image)) for image in images])


def test_views_are_distributed_as_those_of_torchvision_and_pil() -> None:
    """The policies that differ in one setting show what the comparison notices."""
    images = photographs(1000)
    # Darken the images to the right and to the bottom, or flips would hardly change statistics.
    shade = torch.linspace(1, 0.4, images.shape[-1])
    images = (images * shade * shade[:, None]).to(torch.uint8)
    theirs = make_views_with_pil(images, seed=0)
    assert find_differing(make_views_with_pil(images, seed=1), theirs) == []

    def differing(**changes: object) -> list[str]:
        settings = {"blur": 0.5, "solarize": 0.4, "vertical_flip": 0.2, "rotate": 0.2, **changes}
        params = draws(len(images), Policy(**settings), 96)
        return find_differing(round_to_8_bits(apply(images, params, 48)) / 255, theirs)

    assert differing() == []
    assert "sharpness" in differing(blur=0.0)
    assert "sharpness" in differing(blur_sigma=(0.1, 1.0))
    assert "bright pixels" in differing(solarize=0.0)
    assert "top against bottom" in differing(vertical_flip=0.0)
    assert "top against bottom" in differing(rotate=0.9)
