"""Draw augmented views, and galleries of nearest neighbours."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from simsiam.augment import apply as apply_parameters
from simsiam.augment import draw as draw_parameters
from simsiam.data.dataset import ImageDataset
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.spread import evenly_spaced, staggered
from simsiam.evaluation.captions import CaptionWriter
from simsiam.evaluation.features import resize_to
from simsiam.heavy_augment import apply_heavy, draw_heavy
from utils.knn import nearest
from utils.text import drop_common_ends, printable

# Galleries are drawn without Lightning, which takes seconds to import.
if TYPE_CHECKING:
    from simsiam.data.datamodule import ViewsDataModule

VIEWED_IMAGES = 8  # rows of `draw_views`
VIEWED_EPOCHS = 4

# Pixels.
TILE = 96  # side of a thumbnail
GAP = 10  # between two thumbnails
LINE = 16  # height of a line of text
FRAME = 3  # width of the frame of a thumbnail
NAME_LENGTH = 14  # letters of a file's name that fit below a thumbnail

# Blue and vermilion, which colour-blind people can tell apart too (Okabe & Ito 2008).
SAME_CLASS_COLOUR = (0, 114, 178)
OTHER_CLASS_COLOUR = (213, 94, 0)


def draw_views(data: "ViewsDataModule", first_epoch: int = 0) -> Tensor:
    """Draw a row for each of eight train images: the image and its views in four epochs.

    The images are spread evenly over all, and over their classes.

    Args:
        data: has loaded its images.
        first_epoch: the first of these epochs.

    Returns:
        The picture (3, H, W) uint8.
    """
    indices = select_over_classes(data.train, VIEWED_IMAGES).to(data.mean.device)
    originals = data.train.images_at(indices)
    columns = [resize_to(originals, data.size)]
    for epoch in range(first_epoch, first_epoch + VIEWED_EPOCHS):
        if data.train.whole is not None:
            zero = torch.zeros_like(data.mean)
            crops = data.view_maker.cut_crops(data.train.whole, indices, epoch, data.size)
            views = data.view_maker.finish_crops(crops, indices, epoch, zero, zero + 1)
            columns += [to_pixels(view) for view in views]
            continue
        heavy_columns: list[Tensor] = []
        for view in range(data.views):
            parameters = draw_parameters(
                indices,
                originals.shape[-1],
                seed=data.seed,
                epoch=epoch,
                view=view,
                policy=data.policy,
            )
            views = apply_parameters(originals, parameters, data.size)
            columns.append(to_pixels(views))
            if view < data.view_maker.heavy_views:
                heavy_parameters = draw_heavy(indices, seed=data.seed, epoch=epoch, view=view)
                heavy_columns.append(to_pixels(apply_heavy(views, heavy_parameters)))
        columns += heavy_columns
    tiles = torch.stack([shrink_images(column) for column in columns], dim=1)
    tiles = tiles.flatten(0, 1)  # (images * columns, 3, T, T)
    return make_grid(tiles, nrow=len(columns), pad_value=255)


def to_pixels(views: Tensor) -> Tensor:
    """Return views (B, 3, S, S) from 0 to 1 as uint8."""
    return (views.clamp(0, 1) * 255).round().to(torch.uint8)


def shrink_images(images: Tensor | LazyImages) -> Tensor:
    """Return uint8 images (B, 3, T, T) on the CPU, resized to TILE pixels if they are larger."""
    images = images.to(torch.device("cpu"))
    if images.shape[-1] <= TILE:
        return images
    return interpolate(images, (TILE, TILE), mode="bilinear", antialias=True)


def select_evenly(n: int, count: int) -> list[int]:
    """Return `count` indices of n images, or all if there are fewer: see `staggered`."""
    return staggered(min(n, count), n).tolist()


def select_over_classes(split: ImageDataset, count: int) -> Tensor:
    """Return indices (n,) of at most `count` images, spread evenly over the classes and in each.

    Without labels, the images are spread over the split.
    """
    if not split.labelled:
        return torch.tensor(select_evenly(len(split), count))
    labels = split.labels.cpu()
    present = labels.unique()
    # The class of each chosen image, such as 0 0 1 1 2 2 3 3 for 8 images of 4 classes.
    chosen_classes = present[torch.arange(count) * len(present) // count]
    chosen: list[Tensor] = []
    for label in chosen_classes.unique():
        members = (labels == label).nonzero().flatten()
        n = min(int((chosen_classes == label).sum()), len(members))
        chosen.append(members[evenly_spaced(n, len(members))])
    return torch.cat(chosen)


class Tile(NamedTuple):
    """A thumbnail with the text below it.

    `same_class` says whether a neighbour has the class of its query. It is None for the query
    itself, and if the class is not known. `path` is that of the image's file, printable, or
    "" if it has none. `name` is what is written of it.
    """

    image: Image.Image  # at most TILE pixels wide and high
    text: str
    same_class: bool | None = None
    path: str = ""
    name: str = ""

    @property
    def lines(self) -> list[str]:
        """The lines below the thumbnail: the text, then the name of the file."""
        return [line for line in (self.text, self.name) if line]


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
    share_classes = queries.classes == train.classes
    cosines = None if similarity is None else similarity.tolist()

    rows: list[list[Tile]] = []
    for r in range(len(queries)):
        path = printable(queries.paths[r]) if queries.paths is not None else ""
        row = [Tile(to_pil_image(thumbnails[r]), query_names[r], path=path)]

        nearest_images = train.subset(index[r])
        neighbours = shrink_images(nearest_images.images)
        neighbour_labels = nearest_images.labels.tolist()
        neighbour_names = train.names(neighbour_labels)
        paths = nearest_images.paths or [""] * len(neighbours)  # a data set may have no files
        can_compare = share_classes and labels[r] >= 0
        for c in range(len(neighbours)):
            text = neighbour_names[c]
            if cosines is not None:
                text += f" {cosines[r][c]:.2f}"
            same_class = None
            if can_compare and neighbour_labels[c] >= 0:
                same_class = neighbour_labels[c] == labels[r]
            path = printable(paths[c])
            row.append(Tile(to_pil_image(neighbours[c]), text.strip(), same_class, path))
        rows.append(row)
    return name_tiles(rows)


def name_tiles(rows: Sequence[Sequence[Tile]]) -> list[list[Tile]]:
    """Return the tiles with the names of their files."""
    query_names = shorten_names([row[0].path for row in rows])
    neighbour_names = shorten_names([tile.path for row in rows for tile in row[1:]])
    named_rows: list[list[Tile]] = []
    for row in rows:
        named_row = [row[0]._replace(name=query_names[row[0].path])]
        named_row += [tile._replace(name=neighbour_names[tile.path]) for tile in row[1:]]
        named_rows.append(named_row)
    return named_rows


def shorten_names(paths: Sequence[str]) -> dict[str, str]:
    """Return what is written of each file.

    If a name is too long for a thumbnail, all lose the beginning and the ending that they share.
    """
    names = [os.path.basename(path) for path in paths]
    if max(map(len, names), default=0) > NAME_LENGTH:
        names = drop_common_ends(names)
    return dict(zip(paths, names, strict=True))


class Nearest(NamedTuple):
    """The k nearest train images of each of Q queries."""

    similarity: Tensor  # (Q, k) cosines, the highest first
    index: Tensor  # (Q, k) indices of train images


def find_nearest(
    features: Tensor, bank: Tensor, k: int, bank_index: Tensor | None = None
) -> Nearest:
    """Return the k train images that are nearest to each query, by cosine.

    Args:
        features: (Q, F) of the queries, L2-normalised.
        bank: (N, F) of the train images, L2-normalised.
        k: neighbours of each query; fewer if there are not as many.
        bank_index: (Q,) indices of the queries in the bank, if they are train images themselves. No
            query is its own neighbour.
    """
    if bank_index is None:
        return Nearest(*nearest(features, bank, min(k, len(bank))))
    similarity, index = nearest(features, bank, min(k + 1, len(bank)))
    is_other = index != bank_index.to(index.device)[:, None]
    # A query with many copies among the train images may be missing from its own k + 1 neighbours.
    # Then drop the farthest of them.
    is_other[is_other.all(dim=1), -1] = False
    shape = (len(index), index.shape[1] - 1)
    return Nearest(similarity[is_other].view(shape), index[is_other].view(shape))


def draw_gallery(rows: Sequence[Sequence[Tile]], heading: str = "") -> Image.Image:
    """Draw each row of tiles as a line, with a gap between the query and its neighbours.

    Below a tile are its class and cosine, and the name of its file. Neighbours have a blue frame if
    they have the class of their query, and an orange one if not.
    """
    tiles = [tile for row in rows for tile in row]
    num_lines = max([1, *(len(tile.lines) for tile in tiles)])
    num_columns = max([0, *(len(row) for row in rows)])
    outside = FRAME - 1  # the frame covers one pixel of the thumbnail
    width = TILE + GAP
    height = width + num_lines * LINE
    top = 2 * GAP + LINE
    size = (3 * GAP + num_columns * width, top + len(rows) * height)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    captions = CaptionWriter(pen, [heading, *(line for tile in tiles for line in tile.lines)])

    captions.write(GAP, GAP, heading)
    for r, row in enumerate(rows):
        y = top + r * height
        for c, tile in enumerate(row):
            x = GAP + c * width
            if c > 0:
                x += GAP  # sets the neighbours apart from the query
            thumbnail = tile.image.resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(thumbnail, (x, y))
            if tile.same_class is not None:
                last = TILE - 1 + outside
                frame = (x - outside, y - outside, x + last, y + last)
                colour = SAME_CLASS_COLOUR if tile.same_class else OTHER_CLASS_COLOUR
                pen.rectangle(frame, outline=colour, width=FRAME)
            for i, line in enumerate(tile.lines):
                captions.write(x, y + TILE + outside + i * LINE, line, TILE)
    return sheet
