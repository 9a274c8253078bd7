"""The map of images without labels shows the images."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsiam.report import thumbnails
from simsiam.report.thumbnails import choose_thumbnails, draw_thumbnails
from tests.helpers import Program
from tests.images import patterns, write_images
from tests.report.conftest import charts, page_text


def test_no_two_thumbnails_share_a_cell_and_each_is_where_its_point_is() -> None:
    points = np.random.default_rng(0).normal(size=(2000, 2)) * [5, 0.1] + [3, -1]
    chosen = choose_thumbnails(points)
    cells = list(zip(chosen.row.tolist(), chosen.column.tolist(), strict=True))
    assert len(cells) == len(set(cells)) > 100
    assert max(chosen.row) == thumbnails.ROWS - 1 and max(chosen.column) == thumbnails.COLUMNS - 1
    x, y = points[chosen.index].T
    for column in range(thumbnails.COLUMNS - 1):
        assert x[chosen.column == column].max() <= x[chosen.column == column + 1].min()
    for row in range(thumbnails.ROWS - 1):
        assert y[chosen.row == row].max() <= y[chosen.row == row + 1].min()


def test_one_outlier_does_not_push_the_others_together() -> None:
    points = np.random.default_rng(0).normal(size=(500, 2))
    points[7] = (1e6, 1e6)
    assert len(choose_thumbnails(points).index) > 80


@pytest.mark.parametrize("n", [1, 50])
def test_equal_points_show_one_image(n: int) -> None:
    assert len(choose_thumbnails(np.zeros((n, 2))).index) == 1


def test_images_are_drawn_in_their_cells() -> None:
    chosen = choose_thumbnails(np.array([[0.0, 0.0], [1.0, 1.0]]))
    red_and_blue = np.zeros((2, 8, 8, 3), np.uint8)
    red_and_blue[chosen.index == 0, ..., 0] = 255  # lower left
    red_and_blue[chosen.index == 1, ..., 2] = 255  # upper right
    figure = draw_thumbnails(chosen._replace(images=red_and_blue))
    (image,) = figure.axes[0].images
    pixels = np.asarray(image.get_array())
    assert pixels.shape == (13 * 56, 14 * 56, 4)
    assert pixels[-28, 28].tolist() == [255, 0, 0, 255]
    assert pixels[28, -28].tolist() == [0, 0, 255, 255]
    assert pixels[28, 28, 3] == 0  # transparent, for light and dark pages
    assert (pixels[..., 3] > 0).sum() == 2 * 52**2


def test_a_report_of_images_without_labels(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", patterns(60), "no \u5199 {i}.png")
    assert train_on_folder(tmp_path / "photos")[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    assert program("report", str(run))[0] == 0
    page = run / "report" / "index.html"
    text = page_text(page)
    assert "0 classes" not in text and "If train and test images have labels" in text
    assert "no \u5199 0.png" in text  # the first query
    (name,) = [name for name in charts(page) if name.startswith("Map of the features")]
    assert "60 train images" in name
    (image,) = [e for e in charts(page)[name].iter() if e.tag.endswith("image")]
    content = next(value for key, value in image.items() if key.endswith("href"))
    with Image.open(io.BytesIO(base64.b64decode(content.split(",")[1]))) as sheet:
        assert sheet.size == (14 * 56, 13 * 56)  # all pixels of the thumbnails
        opaque = np.array(sheet)[..., 3] > 0
    assert opaque.sum() == 52**2 * int(name.split()[-3])
