"""Views of images of any shape are distributed as torchvision's RandomResizedCrop of the files."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import Tensor

from simsiam.augment import Policy, draw_boxes
from simsiam.data.files.resizing import Box, resize_clean, resize_whole, resized_side
from simsiam.data.files.source_files import SourceFiles
from simsiam.data.files.whole_images import ImageFiles, StoredImages, WholeImages
from simsiam.data.view_maker import ViewMaker
from tests.distributions import distance, find_differing

SHAPES = [(427, 640), (640, 427), (200, 900), (37, 50), (500, 500)]  # height, width
OTHERS_ARE_QUICK = "400 views; two cases of the eight are quick"
IMAGENET = T.Compose(
    [
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
    ]
)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Return real photographs of several shapes."""
    photos = []
    for i, (height, width) in enumerate(SHAPES):
        photo = Image.fromarray(load_sample_image(["china.jpg", "flower.jpg"][i % 2]))
        photos.append(photo.resize((width, height), Image.Resampling.LANCZOS))
    return photos


@pytest.fixture(scope="module")
def files(photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    folder = tmp_path_factory.mktemp("photos")
    names = [f"{i}.png" for i in range(len(photos))]
    for photo, name in zip(photos, names, strict=True):
        photo.save(folder / name)
    return ImageFiles(SourceFiles(folder, names))


def store(photos: list[Image.Image], shorter_side: int | None = None) -> StoredImages:
    """Return stored photographs whose shorter side is at most `shorter_side`."""
    arrays = [np.array(photo) for photo in photos]
    if shorter_side is not None:
        arrays = [resize_whole(torch.from_numpy(a), shorter_side).numpy() for a in arrays]
    ends = np.cumsum([array.size for array in arrays])
    return StoredImages(
        pixels=torch.from_numpy(np.concatenate([array.ravel() for array in arrays])),
        offsets=np.concatenate([[0], ends[:-1]]),
        stored_sizes=np.array([array.shape[:2] for array in arrays]),
        original_sizes=np.array([photo.size[::-1] for photo in photos]),
    )


def boxes_of(height: int, width: int, n: int, policy: Policy = Policy()) -> Tensor:
    """Return n random boxes (n, 4) in an image."""
    heights = torch.full((n,), height)
    widths = torch.full((n,), width)
    boxes = draw_boxes(torch.arange(n), heights, widths, seed=0, epoch=0, view=0, policy=policy)
    return torch.stack(boxes, dim=1)


def cut(images: WholeImages, index: int, boxes: list[Box], size: int) -> Tensor:
    """Return crops (V, 3, size, size) of an image."""
    crops = torch.empty(len(boxes), 3, size, size, dtype=torch.uint8)
    images.cut(index, boxes, crops)
    return crops


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_boxes_have_torchvisions_distribution(height: int, width: int) -> None:
    n = 4000
    ours = boxes_of(height, width, n)
    torch.manual_seed(0)
    blank = torch.zeros(1, height, width)
    drawn = [T.RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = torch.tensor(drawn)
    for column in range(4):
        difference = distance(ours[:, column].double(), theirs[:, column].double())
        assert difference < 1.95 * (2 / n) ** 0.5


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
def test_where_no_box_fits_it_is_torchvisions_central_one(height: int, width: int) -> None:
    policy = Policy(crop_scale=0.9)  # of a narrow image: no such box has a permitted shape
    theirs = T.RandomResizedCrop.get_params(
        torch.zeros(1, height, width), [0.9, 1.0], [3 / 4, 4 / 3]
    )
    assert boxes_of(height, width, 20, policy).unique(dim=0).tolist() == [list(theirs)]


# ---------------------------------------------------------------- crops


@pytest.mark.parametrize("size", [32, 96, 224])
def test_a_crop_of_a_file_is_torchvisions_crop(
    size: int, files: ImageFiles, photos: list[Image.Image]
) -> None:
    for index, photo in enumerate(photos):
        boxes = [Box(*numbers) for numbers in boxes_of(*photo.size[::-1], 5).tolist()]
        ours = cut(files, index, boxes, size)
        for crop, box in zip(ours, boxes, strict=True):
            theirs = F.pil_to_tensor(F.resized_crop(photo, *box, [size, size]))
            assert (crop.int() - theirs.int()).abs().max() <= 1  # they round differently


def test_stored_images_of_full_size_give_the_crops_of_the_files(
    files: ImageFiles, photos: list[Image.Image]
) -> None:
    stored = store(photos)
    for index, photo in enumerate(photos):
        boxes = [Box(*numbers) for numbers in boxes_of(*photo.size[::-1], 5).tolist()]
        assert torch.equal(cut(stored, index, boxes, 96), cut(files, index, boxes, 96))


def test_smaller_stored_images_give_nearly_the_crops_of_the_files(
    files: ImageFiles, photos: list[Image.Image]
) -> None:
    stored = store(photos, shorter_side=192)
    differences = []
    for index, photo in enumerate(photos):
        boxes = [Box(*numbers) for numbers in boxes_of(*photo.size[::-1], 20).tolist()]
        crops = cut(stored, index, boxes, 96).float() - cut(files, index, boxes, 96).float()
        differences.append(crops.abs().mean())
    # Levels of 255. A box that is moved by one pixel of the photograph changes it by 6 or more.
    assert max(differences) < 4


def test_a_jpeg_decoded_at_a_fraction_of_its_size_gives_nearly_the_same_crops(
    tmp_path: Path, photos: list[Image.Image]
) -> None:
    large = photos[0].resize((2560, 1708), Image.Resampling.LANCZOS)
    large.save(tmp_path / "large.jpg", quality=95)
    decoded = Image.open(tmp_path / "large.jpg").convert("RGB")
    files = ImageFiles(SourceFiles(tmp_path, ["large.jpg"]))
    boxes = [Box(*numbers) for numbers in boxes_of(1708, 2560, 20).tolist()]
    ours = cut(files, 0, boxes, 96)
    for crop, box in zip(ours, boxes, strict=True):
        theirs = F.pil_to_tensor(F.resized_crop(decoded, *box, [96, 96]))
        assert (crop.float() - theirs.float()).abs().mean() < 1.5


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_of_turned_photographs_are_upright(
    orientation: int, suffix: str, tmp_path: Path, photos: list[Image.Image]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    name = f"turned{suffix}"
    photos[0].save(tmp_path / name, exif=exif)
    files = ImageFiles(SourceFiles(tmp_path, [name]))
    height, width = files.read_sizes(torch.tensor([0]))[0].tolist()
    assert (height < width) == (orientation < 5)
    whole = cut(files, 0, [Box(0, 0, height, width)], 64)[0]
    upright = ImageOps.exif_transpose(Image.open(tmp_path / name))
    theirs = F.pil_to_tensor(F.resized_crop(upright, 0, 0, height, width, [64, 64]))
    assert (whole.int() - theirs.int()).abs().max() <= 1


# ---------------------------------------------------------------- views


def our_views(images: WholeImages, index: int, n: int, size: int) -> Tensor:
    """Return n views (n, 3, S, S) of one image, from 0 to 1: one view in each of n epochs."""
    maker = ViewMaker(1, seed=0, policy=Policy(), compile=False)
    mean = torch.zeros(3)
    std = torch.ones(3)
    views = []
    for epoch in range(n):
        crops = maker.cut_crops(images, torch.tensor([index]), epoch, size)
        views += maker.finish_crops(crops, torch.tensor([index]), epoch, mean, std)
    return torch.cat(views)


@pytest.mark.parametrize(
    ("index", "mode", "size"),
    [
        (2, "files", 96),
        (0, "stored", 96),
        pytest.param(0, "files", 96, marks=pytest.mark.slow(OTHERS_ARE_QUICK)),
        pytest.param(2, "stored", 96, marks=pytest.mark.slow(OTHERS_ARE_QUICK)),
        pytest.param(0, "files", 224, marks=pytest.mark.slow(OTHERS_ARE_QUICK)),
        pytest.param(0, "stored", 224, marks=pytest.mark.slow(OTHERS_ARE_QUICK)),
        pytest.param(2, "files", 224, marks=pytest.mark.slow(OTHERS_ARE_QUICK)),
        pytest.param(2, "stored", 224, marks=pytest.mark.slow(OTHERS_ARE_QUICK)),
    ],
)
def test_views_have_the_distribution_of_the_official_pipeline(
    index: int, mode: str, size: int, files: ImageFiles, photos: list[Image.Image]
) -> None:
    n = 400
    images = files if mode == "files" else store(photos, shorter_side=2 * size)
    crop = T.RandomResizedCrop(size, scale=(0.2, 1.0))
    torch.manual_seed(0)
    theirs = torch.stack([IMAGENET(crop(photos[index])) for _ in range(2 * n)])
    # Of the panorama, two thirds of the crops are the central one, and 13 % of the views are just
    # this crop, neither jittered nor gray. Rounding moves its statistics by half a level, and the
    # smaller size of stored images moves its sharpness by two levels.
    noise = 0.5 if mode == "files" else 1.0
    assert find_differing(theirs[:n], theirs[n:], noise) == []
    assert find_differing(our_views(images, index, n, size), theirs[:n], noise) == []


def test_a_view_of_the_central_square_alone_would_be_noticed(
    files: ImageFiles, photos: list[Image.Image]
) -> None:
    square = T.CenterCrop(min(photos[2].size))(photos[2])
    crop = T.RandomResizedCrop(96, scale=(0.2, 1.0))
    torch.manual_seed(0)
    theirs = torch.stack([IMAGENET(crop(square)) for _ in range(400)])
    assert find_differing(our_views(files, 2, 400, 96), theirs, noise=0.5) != []


# ---------------------------------------------------------------- clean images


@pytest.mark.parametrize("size", [32, 96, 224])
def test_a_clean_image_is_that_of_torchvisions_evaluation(
    size: int, photos: list[Image.Image]
) -> None:
    evaluate = T.Compose([T.Resize(resized_side(size)), T.CenterCrop(size), T.PILToTensor()])
    for photo in photos:
        ours = resize_clean(torch.from_numpy(np.array(photo)), size)
        assert (ours.int() - evaluate(photo).int()).abs().max() <= 1
