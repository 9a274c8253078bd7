"""Draw augmented views, and galleries of nearest neighbours."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from simsiam.augment import apply as apply_parameters
from simsiam.augment import draw as draw_parameters
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.features import crop_center
from utils.knn import nearest

# Galleries are drawn without Lightning, which takes seconds to import.
if TYPE_CHECKING:
    from simsiam.data.datamodule import ViewsDataModule

VIEWED_IMAGES = 8  # rows of `draw_views`
VIEWED_EPOCHS = 4

# Pixels.
TILE = 96  # side of a thumbnail
GAP = 10  # between two thumbnails
LINE = 16  # height of a line of text
FRAME = 3  # width of the frame around a thumbnail
FONT_SIZE = 11

# Blue and vermilion, which colour-blind people can tell apart too (Okabe & Ito 2008).
SAME_CLASS_COLOUR = (0, 114, 178)
OTHER_CLASS_COLOUR = (213, 94, 0)


def draw_views(data: "ViewsDataModule", first_epoch: int = 0) -> Tensor:
    """Draw a row for each of the first train images: the image and its views in four epochs.

    Args:
        data: has loaded its images.
        first_epoch: the first of these epochs.

    Returns:
        The picture (3, H, W) uint8.
    """
    n = min(VIEWED_IMAGES, len(data.train))
    indices = torch.arange(n, device=data.mean.device)
    originals = data.train.images_at(indices)
    columns = [crop_center(originals, data.size)]
    for epoch in range(first_epoch, first_epoch + VIEWED_EPOCHS):
        for view in range(data.views):
            parameters = draw_parameters(
                indices,
                originals.shape[-1],
                seed=data.seed,
                epoch=epoch,
                view=view,
                policy=data.policy,
            )
            views = apply_parameters(originals, parameters, data.size).clamp(0, 1)
            columns.append((views * 255).round().to(torch.uint8))
    tiles = torch.stack([shrink_images(column) for column in columns], dim=1)
    tiles = tiles.flatten(0, 1)  # (images * columns, 3, T, T)
    return make_grid(tiles, nrow=len(columns), pad_value=255)


def shrink_images(images: Tensor) -> Tensor:
    """Return uint8 images (B, 3, T, T) on the CPU, resized to TILE pixels if they are larger."""
    images = images.cpu()
    if images.shape[-1] <= TILE:
        return images
    return interpolate(images, (TILE, TILE), mode="bilinear", antialias=True)


def select_evenly(n: int, count: int) -> list[int]:
    """Return `count` indices in 0 .. n - 1, evenly spread; all of them if there are fewer.

    In many data sets the classes alternate regularly, so that equal steps could meet a single class
    only. The range is therefore divided into `count` parts. The i-th index is the start of the i-th
    part, moved on by i modulo the length of the shortest part.
    """
    count = min(n, count)
    return [i * n // count + i % (n // count) for i in range(count)]


class Tile(NamedTuple):
    """A thumbnail with the text below it.

    `same_class` says whether a neighbour has the class of its query. It is None for the query
    itself, and if the class is not known.
    """

    image: Image.Image  # at most TILE pixels wide and high
    text: str
    same_class: bool | None = None


def gallery_rows(
    train: ImageDataset, queries: ImageDataset, index: Tensor, similarity: Tensor | None = None
) -> list[list[Tile]]:
    """Return a row of tiles for each query: the query, then its neighbours.

    Args:
        train: the images among which the neighbours are.
        queries: Q images.
        index: (Q, k) indices of the neighbours in `train`.
        similarity: (Q, k) cosines, to be written below the neighbours.
    """
    thumbnails = shrink_images(queries.images)
    labels = queries.labels.tolist()
    query_names = queries.names(labels)
    same_classes = queries.classes == train.classes
    cosines = None if similarity is None else similarity.tolist()

    rows: list[list[Tile]] = []
    for r in range(len(queries)):
        row = [Tile(to_pil_image(thumbnails[r]), query_names[r])]

        neighbours = shrink_images(train.images_at(index[r]))
        neighbour_labels = train.labels[index[r]].tolist()
        neighbour_names = train.names(neighbour_labels)
        class_is_known = labels[r] >= 0 and same_classes
        for c in range(len(neighbours)):
            text = neighbour_names[c]
            if cosines is not None:
                text += f" {cosines[r][c]:.2f}"
            same_class = None
            if class_is_known and neighbour_labels[c] >= 0:
                same_class = neighbour_labels[c] == labels[r]
            row.append(Tile(to_pil_image(neighbours[c]), text.strip(), same_class))
        rows.append(row)
    return rows


def find_nearest(
    train: ImageDataset,
    queries: ImageDataset,
    features: Tensor,
    bank: Tensor,
    k: int,
    in_bank: bool,
) -> list[list[Tile]]:
    """Return `gallery_rows` of the k train images that are nearest to each query, by cosine.

    Args:
        train: N images.
        queries: Q images.
        features: (Q, F) of the queries, L2-normalised.
        bank: (N, F) of the train images, L2-normalised.
        k: neighbours of each query.
        in_bank: whether the queries are train images. Then each query is its own nearest neighbour,
            and is left out.
    """
    skipped = 1 if in_bank else 0
    similarity, index = nearest(features, bank, min(skipped + k, len(bank)))
    return gallery_rows(train, queries, index[:, skipped:], similarity[:, skipped:])


def draw_gallery(rows: Sequence[Sequence[Tile]], heading: str = "") -> Image.Image:
    """Draw each row of tiles as a line, with a gap between the query and its neighbours.

    Neighbours have a blue frame if they have the class of their query, and an orange one if not.
    """
    step = TILE + GAP
    top = 2 * GAP + LINE
    size = (3 * GAP + len(rows[0]) * step, top + len(rows) * (step + LINE))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font_file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(font_file, FONT_SIZE)

    pen.text((GAP, GAP), heading, "black", font)
    for r, row in enumerate(rows):
        y = top + r * (step + LINE)
        for c, tile in enumerate(row):
            x = GAP + c * step
            if c > 0:
                x += GAP  # sets the neighbours apart from the query
            thumbnail = tile.image.resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(thumbnail, (x, y))
            if tile.same_class is not None:
                frame = (x - 2, y - 2, x + TILE + 1, y + TILE + 1)
                colour = SAME_CLASS_COLOUR if tile.same_class else OTHER_CLASS_COLOUR
                pen.rectangle(frame, outline=colour, width=FRAME)
            pen.text((x, y + TILE + 2), _shorten(tile.text, pen, font), "black", font)
    return sheet


def _shorten(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> str:
    """Return the text, cut to the width of a tile and ended by "..." if it is too long."""
    while pen.textlength(text, font) > TILE:
        text = text.removesuffix("...")[:-1] + "..."
    return text
