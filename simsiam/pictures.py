"""Pictures of a run: the views that it learns from, the neighbours that it finds, the map of its features."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.utils import make_grid

from simsiam.augment import apply, draw
from simsiam.data import ViewsDataModule
from simsiam.features import center, extract_features
from simsiam.monitor import KNNMonitor, parts
from simsiam.splits import Images
from utils.runfolder import RunFolder

QUERIES, NEIGHBOURS = 10, 9  # rows and columns of `neighbours`
MAP_IMAGES, THUMBNAIL = 1000, 32  # points of the embedding map, and the most pixels of each


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


def log_embedding(writer: SummaryWriter, images: Images, features: Tensor, step: int) -> None:
    """The first images as points of TensorBoard's projector, with their thumbnails and class names."""
    shown = images.first(MAP_IMAGES)
    writer.add_embedding(
        features[: len(shown)].cpu(),
        metadata=[name or "image" for name in shown.names(shown.labels.tolist())],
        label_img=torch.cat([_small(chunk, THUMBNAIL) for chunk in shown.images.split(8)]),
        global_step=step,
        tag="embedding",
    )


def _small(images: Tensor, most: int) -> Tensor:
    """(B, 3, C, C) uint8 -> (B, 3, T, T) in 0 to 1, T at most `most`."""
    x = images.cpu().float() / 255
    return x if x.shape[-1] <= most else interpolate(x, (most, most), mode="bilinear", antialias=True)


class Pictures(pl.Callback):
    """`views` at the start of a run, also as `views.png`, and with `neighbours` now and then, into TensorBoard.

    Args:
        every: epochs between them, when kNN is measured; 0 for the start alone.
        show: takes a tag, a picture (3, H, W) uint8 and a step.
    """

    def __init__(self, run: RunFolder, knn: KNNMonitor, every: int, show: Callable[[str, Tensor, int], object]) -> None:
        self.run, self.knn, self.every, self.show = run, knn, every, show

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:
            picture = views_grid(parts(trainer, pl_module)[1])
            save_png(picture, self.run.views)
            self.show("views", picture, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the kNN monitor, whose neighbours are shown."""
        epoch, data = trainer.current_epoch + 1, parts(trainer, pl_module)[1]
        if not trainer.is_global_zero or not self.every or epoch % self.every or epoch == trainer.max_epochs:
            return
        step, places = trainer.global_step - 1, self.knn.places
        self.show("views", views_grid(data, first=epoch), step)
        if self.knn.latest is not None and places is not None:
            self.show("neighbours", neighbours_grid(data, places[:QUERIES, :NEIGHBOURS]), step)


def log_final_pictures(writer: SummaryWriter, data: ViewsDataModule, backbone: nn.Module, step: int) -> None:
    """`neighbours` and `embedding`, of a finished backbone on the data's device."""
    bank = extract_features(backbone, data.train.images, data.mean, data.std)
    asked, features = data.train, bank
    if len(data.test):
        asked, features = data.test, extract_features(backbone, data.test.images, data.mean, data.std)
    nearest = nearest_others(features[:QUERIES], bank, NEIGHBOURS, itself=len(data.test) == 0)[1]
    writer.add_image("neighbours", neighbours_grid(data, nearest), step)
    log_embedding(writer, asked, features, step)
    writer.flush()


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
