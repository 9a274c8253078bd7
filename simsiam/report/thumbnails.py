"""Draw the map of features as thumbnails of the images, for images without labels."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from simsiam.report.figures import new_figure

# The map is a grid, so that no thumbnail covers another one.
COLUMNS = 14
ROWS = 13
CELL = 56  # pixels of a cell's side
MARGIN = 2  # pixels between the thumbnail and the sides of its cell
MAP_HEIGHT = 4.7  # inches

# The points beyond these percentiles are placed at the edge. A single outlier would otherwise push
# all other points into few cells.
LIMITS = (1, 99)


class Thumbnails(NamedTuple):
    """The images that the map shows, and their cells.

    Attributes:
        index: (n,) indices of the shown points.
        row: (n,) from 0 at the bottom.
        column: (n,) from 0 at the left.
        images: (n, S, S, 3) uint8.
    """

    index: np.ndarray
    row: np.ndarray
    column: np.ndarray
    images: np.ndarray


def choose_thumbnails(points: np.ndarray) -> Thumbnails:
    """Choose one point for each cell that has any: the one next to the cell's centre.

    Args:
        points: (N, 2).

    Returns:
        The chosen points, still without images.
    """
    low, high = np.percentile(points, LIMITS, axis=0)
    spread = np.where(high > low, high - low, 1)
    cells = np.array([COLUMNS, ROWS])
    position = np.clip((points - low) / spread, 0, 1) * cells  # (N, 2), in cells
    cell = np.minimum(position.astype(np.int64), cells - 1)
    distance = ((position - cell - 0.5) ** 2).sum(axis=1)

    # Of the points from the nearest to the farthest, `unique` returns the first of each cell.
    from_nearest = np.argsort(distance, kind="stable")
    number = cell[:, 1] * COLUMNS + cell[:, 0]
    _, first = np.unique(number[from_nearest], return_index=True)
    index = from_nearest[first]
    no_images = np.empty((0, 0, 0, 3), np.uint8)
    return Thumbnails(index, row=cell[index, 1], column=cell[index, 0], images=no_images)


def draw_thumbnails(thumbnails: Thumbnails) -> Figure:
    """Draw each image in its cell."""
    sheet = Image.new("RGBA", (COLUMNS * CELL, ROWS * CELL))  # transparent
    side = CELL - 2 * MARGIN
    for image, row, column in zip(
        thumbnails.images, thumbnails.row.tolist(), thumbnails.column.tolist(), strict=True
    ):
        x = column * CELL + MARGIN
        y = (ROWS - 1 - row) * CELL + MARGIN
        sheet.paste(Image.fromarray(image).resize((side, side)), (x, y))
    figure, axes = new_figure(MAP_HEIGHT)
    # With "none", an SVG has all pixels of the sheet.
    axes.imshow(np.asarray(sheet), interpolation="none")
    axes.set_axis_off()
    return figure
