"""The commands of docs/tutorial.md, typed one after the other on tiles of real photographs.

The photographs are files of the packages scikit-learn and scikit-image. Nothing is downloaded.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage
import sklearn
import torch
import torchvision
from PIL import Image

import main
from tests.helpers import read_rows, read_summary
from tests.pages import TUTORIAL, arguments_of_main, blocks, shell_lines

OF_SKIMAGE = Path(skimage.__file__).parent / "data"
OF_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
PHOTOGRAPHS = [
    OF_SKLEARN / "china.jpg",
    OF_SKLEARN / "flower.jpg",
    OF_SKIMAGE / "chelsea.png",  # a cat
    OF_SKIMAGE / "coffee.png",
    OF_SKIMAGE / "grass.png",
    OF_SKIMAGE / "hubble_deep_field.jpg",
    OF_SKIMAGE / "ihc.png",  # stained tissue
    OF_SKIMAGE / "motorcycle_left.png",
]
TILE = 64  # pixels; the page has larger tiles, for larger photographs
SIZE = (5 * TILE, 4 * TILE)  # of the part of a photograph that is used: the centre
NEW_SIZE = (5 * TILE, TILE)  # the lowest row of tiles is for new images
TILES = 8 * 15
NEW_TILES = 8 * 5

# These flags are added to each training. The views are small, and the network is that of the page.
SMALLER = "--image-size 32 --stem imagenet --accelerator cpu --precision 32 --no-compile"
SHORT = f"{SMALLER} --backbone resnet10 --width 16 --out-dim 128 --h-dim 32 --epochs 24"
FROM_IMAGENET = f"{SMALLER} --epochs 1"

COMMANDS = arguments_of_main(shell_lines(blocks("sh", [TUTORIAL])))
CUT, FIND_SIMILAR = blocks("python", [TUTORIAL])


class Typed(NamedTuple):
    """A command of the page, and what it gave."""

    flags: str
    status: int
    out: str
    err: str


class Session(NamedTuple):
    """What a user has who typed all commands of the page."""

    folder: Path
    typed: list[Typed]

    def output_of(self, part: str) -> str:
        """Return what the one command that contains `part` printed."""
        (found,) = [command for command in self.typed if part in command.flags]
        return found.out


def save_scenes(folder: Path) -> None:
    """Save the centre of each photograph: its lowest tiles as a new scene, the rest as a scene."""
    for name in ("scenes", "new_scenes"):
        (folder / name).mkdir()
    for file in PHOTOGRAPHS:
        photograph = Image.open(file).convert("RGB")
        left = (photograph.width - SIZE[0]) // 2
        top = (photograph.height - SIZE[1]) // 2
        lowest = top + SIZE[1] - TILE
        right = left + SIZE[0]
        scene = photograph.crop((left, top, right, lowest))
        scene.save(folder / "scenes" / f"{file.stem}.png")
        new_scene = photograph.crop((left, lowest, right, lowest + TILE))
        new_scene.save(folder / "new_scenes" / f"{file.stem}.png")


def type_command(flags: str, cache: Path) -> Typed:
    words = shlex.split(flags)
    if flags.startswith("-"):
        words += (FROM_IMAGENET if "--model-path" in flags else SHORT).split()
        words += ["--cache-dir", str(cache)]
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(words)
    return Typed(flags, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Cut tiles as the page says, and type all of its commands."""
    folder = tmp_path_factory.mktemp("tutorial")
    save_scenes(folder)
    # The page downloads trained weights. The test has random weights with the same names.
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    code = CUT.replace("SIDE = 256", f"SIDE = {TILE}")
    assert code != CUT
    with contextlib.chdir(folder):
        exec(code, {})
        typed = [type_command(flags, folder / "cache") for flags in COMMANDS]
    return Session(folder, typed)


def test_the_page_trains_and_uses_every_command_for_images_without_labels() -> None:
    commands = [flags.split()[0] for flags in COMMANDS]
    assert commands.count("--dataset") == 2
    assert {"neighbours", "report", "embed"} < set(commands)


def test_every_command_succeeds(session: Session) -> None:
    for command in session.typed:
        assert (command.status, command.err) == (0, ""), command


def test_the_named_files_are_written(session: Session) -> None:
    run = session.folder / "runs" / "tiles"
    for name in ("views.png", "results/neighbours/neighbours.png", "report/index.html"):
        assert (run / name).stat().st_size > 0, name
    for picture in (run / "report/figures/map.png", session.folder / "new_neighbours.png"):
        with Image.open(picture) as image:
            assert image.width > 500, picture


def names_in(line: str) -> list[str]:
    return re.findall("[a-z_/]{2,}", line)


def test_what_the_page_says_is_printed_is_printed(session: Session) -> None:
    out = session.output_of("--epochs 200")
    assert f"{TILES} train and 0 test images, no labels: kNN is off" in out
    (shown,) = [
        line
        for block in blocks("", [TUTORIAL])
        for line in block.splitlines()
        if line.startswith("epoch ")
    ]
    printed = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert names_in(printed[-1]) == names_in(shown)
    rows = read_rows(session.folder / "runs" / "tiles")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] < 0.1
    for row in rows:
        assert 0.8 < row["z_std"] < 1.1 and row["rankme"] > 1
    starting = session.output_of("--model-path")
    assert "the backbone of resnet18.pth" in starting and "left out fc.weight, fc.bias" in starting


def load_features(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised features (N, 128), and the name of each tile's photograph (N,)."""
    arrays = np.load(file)
    features = arrays["features"] / np.linalg.norm(arrays["features"], axis=1, keepdims=True)
    photographs = [path.rsplit("_", 2)[0] for path in arrays["paths"].tolist()]
    return features, np.array(photographs)


def test_tiles_of_one_photograph_are_nearest_neighbours(session: Session) -> None:
    features, photographs = load_features(session.folder / "tiles.npz")
    assert features.shape == (TILES, 128)
    cosines = features @ features.T
    np.fill_diagonal(cosines, -1)
    same = photographs == photographs[cosines.argmax(axis=1)]
    assert same.mean() > 0.3  # by chance: 14 of 119, 0.12


def test_new_tiles_are_next_to_those_of_their_photograph(session: Session) -> None:
    features, photographs = load_features(session.folder / "tiles.npz")
    new_features, new_photographs = load_features(session.folder / "new_tiles.npz")
    assert new_features.shape == (NEW_TILES, 128)
    nearest = (new_features @ features.T).argmax(axis=1)
    same = new_photographs == photographs[nearest]
    assert same.mean() > 0.3  # by chance: 0.125

    # The command `neighbours` finds the same.
    file = session.folder / "runs/tiles/results/neighbours_new_neighbours_png/summary.json"
    paths = np.load(session.folder / "tiles.npz")["paths"]
    new_paths = np.load(session.folder / "new_tiles.npz")["paths"].tolist()
    rows = read_summary(file.parent)["neighbours"]
    assert len(rows) == 10
    for row in rows:
        assert row["nearest"][0] == paths[nearest[new_paths.index(row["query"])]]


def test_both_files_of_features_are_equal(session: Session) -> None:
    arrays = np.load(session.folder / "tiles.npz")
    table = pq.read_table(session.folder / "tiles.parquet")
    features = np.array(table.column("features").to_pylist(), np.float32)
    np.testing.assert_array_equal(features, arrays["features"])
    assert table.column("path").to_pylist() == arrays["paths"].tolist()


def test_the_code_names_the_most_similar_tiles(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.chdir(session.folder):
        exec(FIND_SIMILAR, {})
    first, similar = capsys.readouterr().out.split(" is most similar to ")
    assert (session.folder / "tiles" / first).exists()
    assert len(set(similar.split()) - {first}) == 5
    for name in similar.split():
        assert (session.folder / "tiles" / name).exists()
