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
from utils.knn import nearest

if TYPE_CHECKING:  # galleries need no Lightning, which takes seconds to import
    from simsiam.data.datamodule import ViewsDataModule

TILE, GAP, LINE = 96, 10, 16  # pixels of a thumbnail, between two, of a line of text
SAME, OTHER = (
    (0, 114, 178),
    (213, 94, 0),
)  # blue and vermilion: everyone can tell them apart (Okabe & Ito 2008)


def draw_views(data: "ViewsDataModule", first: int = 0) -> Tensor:
    """(3, H, W) uint8: each of the first train images, and in its row its views in four epochs from `first` on."""
    indices = torch.arange(min(8, len(data.train)), device=data.mean.device)
    originals = data.train.images_at(indices)
    columns = [center(originals, data.size)]
    for epoch in range(first, first + 4):
        for view in range(data.views):
            drawn = draw(
                indices,
                originals.shape[-1],
                seed=data.seed,
                epoch=epoch,
                view=view,
                policy=data.policy,
            )
            columns.append(
                (apply(originals, drawn, data.size).clamp(0, 1) * 255).round().to(torch.uint8)
            )
    tiles = torch.stack(
        [shrink_images(column) for column in columns], dim=1
    )  # (images, columns, 3, T, T)
    return make_grid(tiles.flatten(0, 1), nrow=len(columns), pad_value=255)


def shrink_images(images: Tensor) -> Tensor:
    """(B, 3, C, C) uint8 -> the same on the CPU, with a side of at most TILE pixels."""
    images = images.cpu()
    return (
        images
        if images.shape[-1] <= TILE
        else interpolate(images, (TILE, TILE), mode="bilinear", antialias=True)
    )


def select_evenly(n: int, count: int) -> list[int]:
    """`count` of the indices 0 .. n - 1, evenly spread, or all; the offset i meets all classes where they alternate."""
    count = min(n, count)
    return [i * n // count + i % (n // count) for i in range(count)]


class Tile(NamedTuple):
    """A thumbnail of at most TILE pixels, and the text below it."""

    image: Image.Image
    text: str
    same_class: bool | None = None  # as the query of its row; None: not known, or the query itself


def gallery_rows(
    train: ImageDataset, queries: ImageDataset, index: Tensor, similarity: Tensor | None = None
) -> list[list[Tile]]:
    """A row for each query: itself, then train images by index (Q, k), with cosines (Q, k) if they are given."""
    rows = []
    for r, (image, label) in enumerate(
        zip(shrink_images(queries.images), queries.labels.tolist(), strict=True)
    ):
        found = train.labels[index[r]].tolist()
        cosines = (
            [""] * len(found)
            if similarity is None
            else [f" {cosine:.2f}" for cosine in similarity[r].tolist()]
        )
        texts = [
            f"{name}{cosine}".strip()
            for name, cosine in zip(train.names(found), cosines, strict=True)
        ]
        same = [
            other == label if label >= 0 and queries.classes == train.classes else None
            for other in found
        ]
        images = map(to_pil_image, [image, *shrink_images(train.images_at(index[r]))])
        rows.append(list(map(Tile, images, [*queries.names([label]), *texts], [None, *same])))
    return rows


def find_nearest(
    train: ImageDataset,
    queries: ImageDataset,
    features: Tensor,
    bank: Tensor,
    k: int,
    in_bank: bool,
) -> list[list[Tile]]:
    """`gallery_rows` of the nearest by unit features (Q, F) and (N, F); of queries `in_bank` without themselves."""
    similarity, index = nearest(features, bank, min(k + in_bank, len(bank)))
    return gallery_rows(train, queries, index[:, in_bank:], similarity[:, in_bank:])


def draw_gallery(rows: Sequence[Sequence[Tile]], heading: str = "") -> Image.Image:
    """Each row of tiles in a line, its query a little apart; blue frame: same class, orange: another."""
    step, top = TILE + GAP, 2 * GAP + LINE
    sheet = Image.new(
        "RGB", (3 * GAP + len(rows[0]) * step, top + len(rows) * (step + LINE)), "white"
    )
    font = ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11
    )
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
