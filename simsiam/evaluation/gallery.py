"""Pictures of augmented views and of nearest neighbours."""

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

from simsiam.augment import apply, draw
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.features import center
from utils.knn import nearest as search_nearest

if TYPE_CHECKING:  # galleries need no Lightning, which takes seconds to import
    from simsiam.data.datamodule import ViewsDataModule

TILE, GAP, LINE = 96, 10, 16  # pixels of a thumbnail, between two, of a line of text
SAME, OTHER = (0, 114, 178), (213, 94, 0)  # blue and vermilion: everyone can tell them apart (Okabe & Ito 2008)


def draw_views(data: "ViewsDataModule", images: int = 8, epochs: int = 4, first: int = 0) -> Tensor:
    """(3, H, W) uint8: each of the first train images, and in its row its views in `epochs` epochs from `first` on."""
    indices = torch.arange(min(images, len(data.train)), device=data.mean.device)
    originals = data.train.at(indices)
    columns = [center(originals, data.size)]
    for epoch in range(first, first + epochs):
        for view in range(data.views):
            drawn = draw(indices, originals.shape[-1], seed=data.seed, epoch=epoch, view=view, policy=data.policy)
            columns.append((apply(originals, drawn, data.size).clamp(0, 1) * 255).round().to(torch.uint8))
    tiles = torch.stack([shrink_images(column) for column in columns], dim=1)  # (images, columns, 3, T, T)
    return make_grid(tiles.flatten(0, 1), nrow=len(columns), pad_value=255)


def shrink_images(images: Tensor, side: int = TILE) -> Tensor:
    """(B, 3, C, C) uint8 -> the same on the CPU, with a side of at most `side` pixels."""
    images = images.cpu()
    return images if images.shape[-1] <= side else interpolate(images, (side, side), mode="bilinear", antialias=True)


def find_nearest(features: Tensor, bank: Tensor, k: int, in_bank: bool) -> tuple[Tensor, Tensor]:
    """Cosines and indices (Q, k) of the nearest bank entries, at most as many as there are, of unit features.

    If the queries (Q, F) are `in_bank` (N, F), the nearest of each is itself, and left out.
    """
    similarity, index = search_nearest(features, bank, min(k + in_bank, len(bank)))
    return similarity[:, int(in_bank) :], index[:, int(in_bank) :]


def select_evenly(n: int, count: int) -> list[int]:
    """`count` of the indices 0 .. n - 1, evenly spread, or all; the offset i meets all classes where they alternate."""
    return [i * n // count + i % (n // count) for i in range(count)] if count < n else list(range(n))


class Tile(NamedTuple):
    """A thumbnail of at most TILE pixels, and the text below it."""

    image: Image.Image
    text: str
    same_class: bool | None = None  # as the query of its row; None: not known, or the query itself


def gallery_rows(
    train: ImageDataset, queries: ImageDataset, nearest: Tensor, similarity: Tensor | None = None
) -> list[list[Tile]]:
    """A row for each query: itself, then train images by index (Q, k), with cosines (Q, k) if they are given."""
    rows = []
    for r, (image, label) in enumerate(zip(shrink_images(queries.images), queries.labels.tolist(), strict=True)):
        found = train.labels[nearest[r]].tolist()
        cosines = [""] * len(found) if similarity is None else [f" {cosine:.2f}" for cosine in similarity[r].tolist()]
        texts = [f"{name}{cosine}".strip() for name, cosine in zip(train.names(found), cosines, strict=True)]
        same = [other == label if label >= 0 and queries.classes == train.classes else None for other in found]
        images = map(to_pil_image, [image, *shrink_images(train.at(nearest[r]))])
        rows.append(list(map(Tile, images, [*queries.names([label]), *texts], [None, *same])))
    return rows


def draw_gallery(rows: Sequence[Sequence[Tile]], heading: str = "") -> Image.Image:
    """Each row of tiles in a line, its query a little apart; blue frame: same class, orange: another."""
    step, top = TILE + GAP, 2 * GAP + LINE
    sheet = Image.new("RGB", (3 * GAP + len(rows[0]) * step, top + len(rows) * (step + LINE)), "white")
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), heading, "black", font)
    for r, row in enumerate(rows):
        for c, (image, text, same_class) in enumerate(row):
            x, y = GAP + c * step + GAP * (c > 0), top + r * (step + LINE)
            sheet.paste(image.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            if same_class is not None:
                frame = (x - 2, y - 2, x + TILE + 1, y + TILE + 1)
                pen.rectangle(frame, outline=SAME if same_class else OTHER, width=3)
            while pen.textlength(text, font) > TILE:
                text = text.removesuffix("...")[:-1] + "..."
            pen.text((x, y + TILE + 2), text, "black", font)
    return sheet
