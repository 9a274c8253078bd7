"""Heavy views: each operation is PIL's or torchvision's, and a pure function of its counters."""

from collections import Counter

import numpy as np
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from simsiam import heavy_ops
from simsiam.augment import Policy, augment
from simsiam.data.view_maker import ViewMaker
from simsiam.heavy_augment import apply_heavy, augment_twice, draw_heavy
from simsiam.heavy_ops import OPERATIONS, Choices, apply_chosen
from tests.test_optional_augment import from_pil, noise, photographs, to_pil

LEVEL = 1 / 255
MEAN = torch.tensor([0.49, 0.48, 0.45])
STD = torch.tensor([0.25, 0.24, 0.26])
FACTOR = 0.64  # 0.1 + 9 / 30 x 1.8
IMAGES = torch.cat([photographs(20, 32), noise(10, 32), photographs(2, 32) // 8])


def choices(n: int, sign: float = 1.0) -> Choices:
    return Choices(torch.full((n,), float(sign)), torch.full((n, 2), 0.5))


def brighten_and_solarize(image: Image.Image) -> Image.Image:
    brighter = np.clip(np.array(image).astype(int) + 33, 0, 255).astype(np.uint8)
    return PIL.ImageOps.solarize(Image.fromarray(brighter), 128)


# How DSSL calls PIL for an image of 8 bits, and by how many levels its result may differ. PIL
# truncates or rounds each value that is not a whole level, also those of the image it mixes with.
PIL_OPERATIONS = {
    "posterize": (lambda image: PIL.ImageOps.posterize(image, 1), 0),
    "solarize_below": (lambda image: PIL.ImageOps.solarize(image, 76.8), 0),
    "solarize_brightened": (brighten_and_solarize, 0),
    "invert": (PIL.ImageOps.invert, 0),
    "equalize": (PIL.ImageOps.equalize, 0),
    "autocontrast": (PIL.ImageOps.autocontrast, 1),
    "reduce_colour": (lambda image: PIL.ImageEnhance.Color(image).enhance(FACTOR), 1.5),
    "reduce_contrast": (lambda image: PIL.ImageEnhance.Contrast(image).enhance(FACTOR), 1.5),
    "reduce_brightness": (lambda image: PIL.ImageEnhance.Brightness(image).enhance(FACTOR), 1),
    "reduce_sharpness": (lambda image: PIL.ImageEnhance.Sharpness(image).enhance(FACTOR), 1.5),
}


@pytest.mark.parametrize("name", PIL_OPERATIONS)
def test_an_operation_on_values_is_pils(name: str) -> None:
    operate, levels = PIL_OPERATIONS[name]
    ours = getattr(heavy_ops, name)(IMAGES / 255, choices(len(IMAGES)))
    theirs = torch.stack([from_pil(operate(to_pil(image))) for image in IMAGES])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=(levels + 0.01) * LEVEL)


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_torchvisions(sign: int) -> None:
    x = IMAGES / 255
    ours = heavy_ops.rotate(x, choices(len(x), sign))
    theirs = F.rotate(x, 9 * sign, InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["shear_x", "shear_y"])
def test_shear_is_pils(name: str, sign: int) -> None:
    """Where a pixel comes from outside in part, PIL makes it black. The others are compared."""
    matrix = (1, 0.09 * sign, 0, 0, 1, 0) if name == "shear_x" else (1, 0, 0, 0.09 * sign, 1, 0)

    def shear(image: Image.Image) -> Image.Image:
        bilinear = Image.Resampling.BILINEAR
        return image.transform(image.size, Image.Transform.AFFINE, matrix, bilinear)

    ours = getattr(heavy_ops, name)(IMAGES / 255, choices(len(IMAGES), sign))
    theirs = torch.stack([from_pil(shear(to_pil(image))) for image in IMAGES])
    inside = (
        (..., slice(1, -1), slice(4, -4))
        if name == "shear_x"
        else (..., slice(4, -4), slice(1, -1))
    )
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1.01 * LEVEL)
    corner = ours[..., -1, 0] if name == "shear_x" else ours[..., 0, -1]
    assert bool((corner == 0).all()) == (sign == -1)  # it comes from outside


@pytest.mark.parametrize(
    ("center", "box"), [((0.5, 0.5), (10, 10, 12, 12)), ((0.0, 0.75), (0, 18, 6, 12))]
)
def test_cutout_covers_a_gray_square_of_12_of_32_pixels(
    center: tuple[float, float], box: tuple[int, int, int, int]
) -> None:
    x = IMAGES / 255
    gray = torch.tensor([125, 123, 114])[:, None, None] / 255
    chosen = Choices(torch.ones(len(x)), torch.tensor(center).expand(len(x), 2))
    assert torch.equal(heavy_ops.cutout(x, chosen), F.erase(x, *box, gray))


def test_an_image_of_one_value_survives_equalize_and_autocontrast() -> None:
    x = torch.full((1, 3, 32, 32), 0.3) + 1e-7 * torch.rand(1, 3, 32, 32)
    for operate in (heavy_ops.equalize, heavy_ops.autocontrast):
        torch.testing.assert_close(operate(x, choices(1)), x)


def test_each_image_gets_its_own_operation() -> None:
    x = IMAGES[: len(OPERATIONS)] / 255
    all_choices = choices(len(x))
    ours = apply_chosen(x, torch.arange(len(x)), all_choices)
    for i, operate in enumerate(OPERATIONS):
        alone = operate(x[i : i + 1], choices(1))[0]
        torch.testing.assert_close(ours[i], alone, rtol=0, atol=1e-6)


def test_the_operations_come_one_after_another_and_keep_the_range() -> None:
    n = 2000
    params = draw_heavy(torch.arange(n), seed=0, epoch=0, view=0)
    x = IMAGES[torch.arange(n) % len(IMAGES)] / 255
    heavy_x = apply_heavy(x, params)
    assert float(heavy_x.min()) > -1e-6 and float(heavy_x.max()) < 1 + 1e-6
    for i in range(40):
        expected = x[i : i + 1]
        for step in range(2):
            chosen = Choices(params.sign[i : i + 1, step], params.center[i : i + 1, step])
            expected = OPERATIONS[int(params.operation[i, step])](expected, chosen)
        torch.testing.assert_close(heavy_x[i], expected[0], rtol=0, atol=1e-5)


def test_all_operations_directions_and_places_are_equally_likely() -> None:
    n = 14_000
    params = draw_heavy(torch.arange(n), seed=0, epoch=0, view=0)
    pairs = Counter(map(tuple, params.operation.tolist()))
    assert len(pairs) == 14**2
    for step in range(2):
        counts = torch.bincount(params.operation[:, step], minlength=14)
        assert int((counts - n / 14).abs().max()) < 5 * (n / 14) ** 0.5
    assert params.sign.unique().tolist() == [-1, 1] and abs(float(params.sign.mean())) < 0.03
    assert abs(float(params.center.mean()) - 0.5) < 0.01
    numbers = torch.cat([params.operation, params.sign, params.center.flatten(1)], dim=1)
    correlations = torch.corrcoef(numbers.T.float()) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.05


# ---------------------------------------------------------------- views


def make_heavy(indices: Tensor, seed: int = 1, epoch: int = 2, view: int = 0) -> Tensor:
    images = IMAGES[indices % len(IMAGES)]
    counters = {"seed": seed, "epoch": epoch, "view": view}
    return augment_twice(images, indices, **counters, policy=Policy(), mean=MEAN, std=STD)[1]


def test_a_heavy_view_is_a_pure_function_of_seed_epoch_index_and_view() -> None:
    indices = torch.arange(100, 132)
    heavy = make_heavy(indices)
    order = torch.randperm(32)
    torch.testing.assert_close(make_heavy(indices[order]), heavy[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(make_heavy(indices[5:6]), heavy[5:6], rtol=0, atol=1e-5)
    for change in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        operations = draw_heavy(indices, **({"seed": 1, "epoch": 2, "view": 0} | change)).operation
        assert not torch.equal(operations, draw_heavy(indices, seed=1, epoch=2, view=0).operation)


def test_the_standard_view_is_that_of_augment_to_the_bit() -> None:
    indices = torch.arange(32)
    counters = {"seed": 1, "epoch": 2, "view": 0}
    settings = {"policy": Policy(), "mean": MEAN, "std": STD}
    standard, heavy = augment_twice(IMAGES, indices, **counters, **settings)
    assert torch.equal(standard, augment(IMAGES, indices, **counters, **settings))
    unchanged = (heavy == standard).flatten(1).all(dim=1)
    assert int(unchanged.sum()) < 3


def test_a_heavy_view_is_made_of_its_standard_view() -> None:
    indices = torch.arange(32)
    zero = torch.zeros(3)
    counters = {"seed": 1, "epoch": 2, "view": 1}
    settings = {"policy": Policy(), "mean": zero, "std": zero + 1}
    standard, heavy = augment_twice(IMAGES, indices, **counters, **settings)
    assert torch.equal(heavy, apply_heavy(standard, draw_heavy(indices, **counters)))


@pytest.mark.parametrize(("num_images", "size"), [(300, 32), (37, 96)])
@pytest.mark.parametrize(("standard", "heavy"), [(2, 0), (2, 2), (3, 1)])
def test_heavy_views_come_last_and_parts_do_not_change_them(
    num_images: int, size: int, standard: int, heavy: int
) -> None:
    images = torch.randint(256, (num_images, 3, size, size), dtype=torch.uint8)
    indices = torch.arange(num_images) + 1000
    maker = ViewMaker(standard, seed=5, policy=Policy(), compile=False, heavy_views=heavy)
    views = maker.crop_and_finish(images, indices, 3, size, MEAN, STD)
    assert len(views) == maker.views_in_all == standard + heavy
    for number in range(standard):
        counters = {"seed": 5, "epoch": 3, "view": number}
        settings = {"policy": Policy(), "mean": MEAN, "std": STD}
        expected, heavy_view = augment_twice(images, indices, **counters, **settings)
        assert torch.allclose(views[number], expected, atol=1e-5)
        if number < heavy:
            # A rounding error may move a value over a threshold, as that of solarize.
            difference = (views[standard + number] - heavy_view).abs()
            assert float((difference > 1e-4).float().mean()) < 1e-3


def test_they_are_compiled_once_for_all_epochs_and_views() -> None:
    """Without a GPU the graph itself is compared, as Inductor would take long."""
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(augment_twice, fullgraph=True, dynamic=False, backend=count)
    indices = torch.arange(32)
    for epoch in range(3):
        counters = {"epoch": torch.tensor(epoch), "view": torch.arange(32)[:, None] // 16}
        settings = {"seed": 0, "policy": Policy(), "mean": MEAN, "std": STD}
        ours = compiled(IMAGES, indices, **counters, **settings)
        expected = augment_twice(IMAGES, indices, **counters, **settings)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert len(graphs) == 1
