"""Pictures show images from all over a set, and name their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from simsiam.data.file_paths import FilePaths
from simsiam.evaluation import captions
from simsiam.evaluation.captions import CaptionWriter
from simsiam.evaluation.gallery import (
    Tile,
    draw_gallery,
    find_nearest,
    gallery_rows,
    select_over_classes,
)
from tests.helpers import Program, read_summary
from tests.images import patterns

WIDTH = 96
ONLY_IN_STIX = "\u2ae0"  # DejaVu Sans does not have it; STIX, which comes with matplotlib, has
CJK = "\u5199\u771f"


def write_caption(text: str) -> np.ndarray:
    picture = Image.new("RGB", (200, 20), "white")
    pen = ImageDraw.Draw(picture)
    CaptionWriter(pen, [text]).write(0, 0, text)
    return np.array(picture)


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "list_font_files", lambda: ())


@pytest.mark.usefixtures("no_other_fonts")
def test_characters_without_a_font_are_escaped() -> None:
    assert np.array_equal(write_caption(f"a{CJK}.png"), write_caption("a\\u5199\\u771f.png"))
    assert not np.array_equal(write_caption("caf\u00e9"), write_caption("caf\\xe9"))


def test_another_font_draws_what_the_first_one_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = Path(captions.matplotlib.get_data_path(), "fonts", "ttf")
    files = (str(fonts / "nowhere.ttf"), str(fonts / "cmr10.ttf"), str(fonts / "STIXGeneral.ttf"))
    monkeypatch.setattr(captions, "list_font_files", lambda: files)
    picture = Image.new("RGB", (200, 20), "white")
    writer = CaptionWriter(ImageDraw.Draw(picture), [f"a{ONLY_IN_STIX}", CJK])
    assert writer.other_font is not None and writer.other_font.getname()[0] == "STIXGeneral"
    drawn = write_caption(f"a{ONLY_IN_STIX}b")
    assert not np.array_equal(drawn, write_caption("a\\u2ae0b"))
    assert np.array_equal(drawn[:, :6], write_caption("a")[:, :6])
    assert np.array_equal(write_caption(CJK), write_caption("\\u5199\\u771f"))


@pytest.mark.usefixtures("no_other_fonts")
def test_long_names_are_shortened_in_the_middle() -> None:
    writer = CaptionWriter(ImageDraw.Draw(Image.new("RGB", (9, 9))), [CJK])
    for name in ("IMG_2023_07_14_holiday_in_norway_00791.jpg", "W" * 99, "i" * 99, CJK * 20):
        short = writer.shorten(name, WIDTH)
        start, end = short.split("\u2026")
        assert name.startswith(start) and name.endswith(end) and end
        assert writer.measure(short) <= WIDTH < writer.measure(name)
    assert writer.shorten("00791.jpg", WIDTH) == "00791.jpg"


def test_galleries_write_the_names_of_files() -> None:
    train = replace(patterns(20), paths=FilePaths(f"train/a/{i}.png" for i in range(20)))
    queries = replace(patterns(2, split=1), paths=FilePaths(["val/b/x.png", "val/\udcff.png"]))
    rows = gallery_rows(train, queries, torch.tensor([[3, 4], [5, 6]]), torch.full((2, 2), 0.5))
    assert [tile.path for tile in rows[0]] == ["val/b/x.png", "train/a/3.png", "train/a/4.png"]
    assert rows[1][0].path == "val/\\xff.png"
    names = train.names(train.labels.tolist())
    assert rows[1][2].lines == [f"{names[6]} 0.50", "6.png"]
    # Each of the two lines adds 16 pixels.
    assert draw_gallery(rows).height == 36 + 2 * (106 + 2 * 16)
    without = [[Tile(tile.image, tile.text) for tile in row] for row in rows]
    assert draw_gallery(without).height == 36 + 2 * (106 + 16)


def test_a_gallery_without_rows_is_blank() -> None:
    assert draw_gallery([]).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_no_image_is_its_own_neighbour(k: int) -> None:
    """Copies of an image have the same cosine to it as itself."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(10, 8, generator=generator))
    bank[2:7] = bank[2]
    queries = torch.tensor([0, 2, 6, 9])
    similarity, index = find_nearest(bank[queries], bank, k, queries)
    assert index.shape == similarity.shape == (4, min(k, 9))
    for r, query in enumerate(queries.tolist()):
        others = [i for i in range(10) if i != query]
        expected = sorted((bank[others] @ bank[query]).tolist(), reverse=True)[:k]
        assert similarity[r].tolist() == pytest.approx(expected, abs=1e-6)
        assert query not in index[r] and len(set(index[r].tolist())) == min(k, 9)


@pytest.mark.parametrize("order", ["sorted", "alternating", "mostly one class"])
def test_the_views_are_of_images_of_different_classes(order: str) -> None:
    images = patterns(200)
    classes = torch.arange(10)
    labels = {
        "sorted": classes.repeat_interleave(20),
        "alternating": classes.repeat(20),
        "mostly one class": torch.cat([torch.zeros(191, dtype=torch.int64), classes[1:]]),
    }[order]
    chosen = select_over_classes(replace(images, labels=labels), 8)
    assert len(chosen.unique()) == 8 and len(labels[chosen].unique()) == 8
    two_classes = replace(images, labels=labels // 5, classes=("a", "b"))
    chosen = select_over_classes(two_classes, 8)
    assert (labels[chosen] // 5).bincount().tolist() == [4, 4]
    assert len(chosen.unique()) == 8


def test_without_labels_the_views_are_of_images_from_all_over_the_set() -> None:
    unlabelled = replace(patterns(200), labels=torch.full((200,), -1), classes=())
    chosen = select_over_classes(unlabelled, 8)
    assert (chosen // 25).tolist() == list(range(8))
    assert len(select_over_classes(unlabelled.first(3), 8)) == 3


def test_the_summary_names_queries_and_neighbours(
    photos: Path, folder_run: Path, trained: Path, program: Program, tmp_path: Path
) -> None:
    flags = ("--queries", "4", "--k", "3", "--results-dir")
    assert program("neighbours", str(folder_run), *flags, str(tmp_path / "files"))[0] == 0
    summary = read_summary(tmp_path / "files" / "neighbours")
    assert summary["query_source"] == "test images" and len(summary["neighbours"]) == 4
    for entry in summary["neighbours"]:
        assert entry["query"].startswith("val/") and (photos / entry["query"]).is_file()
        assert len(entry["nearest"]) == len(entry["cosine"]) == 3
        for path in entry["nearest"]:
            assert path.startswith("train/") and (photos / path).is_file()
    assert program("neighbours", str(trained), *flags, str(tmp_path / "indices"))[0] == 0
    summary = read_summary(tmp_path / "indices" / "neighbours")
    assert [entry["query"] for entry in summary["neighbours"]] == [0, 26, 52, 78]
    assert all(0 <= i < 200 for entry in summary["neighbours"] for i in entry["nearest"])
