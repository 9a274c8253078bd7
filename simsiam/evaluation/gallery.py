"""Augmented views and nearest neighbours as pictures."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import make_grid

from simsiam.augment import apply, draw
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import center


def views_grid(data: ViewsDataModule, images: int = 8, epochs: int = 4, first: int = 0) -> Tensor:
    """A row for each of the first train images: the image itself, then its views of some epochs from `first` on.

    Returns:
        (3, H, W) uint8.
    """
    indices = torch.arange(min(images, len(data.train)), device=data.mean.device)
    originals = data.train.at(indices)
    columns = [center(originals, data.size)]
    for epoch in range(first, first + epochs):
        for view in range(data.views):
            drawn = draw(indices, originals.shape[-1], seed=data.seed, epoch=epoch, view=view, policy=data.policy)
            columns.append((apply(originals, drawn, data.size).clamp(0, 1) * 255).round().to(torch.uint8))
    return _grid(torch.stack(columns, dim=1))


def neighbours_grid(data: ViewsDataModule, nearest: Tensor) -> Tensor:
    """A row for each of the first test images: the image itself, then its nearest train images.

    Without test images, for each of the first train images.

    Args:
        nearest: (Q, k) places among the train images.

    Returns:
        (3, H, W) uint8.
    """
    found = data.train.at(nearest)  # (Q, k, 3, C, C)
    asked = (data.test if len(data.test) else data.train).images[: len(nearest)].to(found.device)
    return _grid(torch.cat([asked[:, None], found], dim=1))


def nearest_others(features: Tensor, bank: Tensor, k: int, itself: bool) -> tuple[Tensor, Tensor]:
    """Cosines and places (Q, k) of the nearest of a bank; at most as many as there are.

    Args:
        features, bank: (Q, F) and (N, F), L2-normalised.
        itself: the queries are in the bank, and are not their own neighbours: the nearest one is left out.
    """
    similarity, nearest = (features @ bank.T).topk(min(k + itself, len(bank)), dim=1)
    return similarity[:, int(itself) :], nearest[:, int(itself) :]


def _grid(rows: Tensor) -> Tensor:
    """(R, C, 3, S, S) uint8 -> (3, H, W) uint8, one row a line, in tiles of at most 96 pixels."""
    tiles = torch.cat([_small(row, TILE) for row in rows])
    return (make_grid(tiles, nrow=rows.shape[1], padding=2, pad_value=1.0) * 255).round().to(torch.uint8)


def save_png(picture: Tensor, path: Path, scale: int = 2) -> None:
    """(3, H, W) uint8 -> a PNG, each pixel a square of `scale`."""
    picture = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


def _small(images: Tensor, most: int) -> Tensor:
    """(B, 3, C, C) uint8 -> (B, 3, T, T) in 0 to 1, T at most `most`."""
    x = images.cpu().float() / 255
    return x if x.shape[-1] <= most else interpolate(x, (most, most), mode="bilinear", antialias=True)


TILE, GAP, LINE = 96, 10, 16  # pixels of a thumbnail, between two, of a line of text


SAME, OTHER = (0, 114, 178), (213, 94, 0)  # blue and vermilion: told apart by everyone (Okabe & Ito 2008)


class Tile(NamedTuple):
    """A thumbnail (3, S, S) uint8 with a line of text below it, and a frame where there is something to tell."""

    image: Tensor
    text: str
    frame: tuple[int, int, int] | None = None


def gallery(heading: str, rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """A row of tiles for each query: the query itself, then, a little apart, its neighbours."""
    step = TILE + GAP
    width = 2 * GAP + max(len(row) for row in rows) * step + GAP
    sheet = Image.new("RGB", (width, 2 * GAP + LINE + len(rows) * (step + LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((GAP, GAP), heading, "black", font)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            x, y = GAP + c * step + GAP * (c > 0), 2 * GAP + LINE + r * (step + LINE)
            thumbnail = Image.fromarray(tile.image.permute(1, 2, 0).cpu().numpy())
            sheet.paste(thumbnail.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            if tile.frame:
                pen.rectangle((x - 2, y - 2, x + TILE + 1, y + TILE + 1), outline=tile.frame, width=3)
            text = unicodedata.normalize("NFKD", tile.text).encode("ascii", "ignore").decode()  # what the font has
            while pen.textlength(text, font) > TILE:
                text = text.removesuffix("...")[:-1] + "..."
            pen.text((x, y + TILE + 2), text, "black", font)
    return sheet
