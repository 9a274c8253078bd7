"""Training on image files with `--image-cache off`: they are decoded in each epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from simsiam.config.options import DataOptions
from simsiam.data import image_folder, load_dataset, prepare_dataset
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.files import file_states
from simsiam.data.files.cache_choice import choose_mode
from simsiam.data.files.lazy_images import LazyImages
from tests.at_steps import start_with_events
from tests.helpers import TINY, Program, read_rows, same_weights
from tests.images import patterns, smooth_image, write_images
from tests.processes import start

OFF = ("--image-cache", "off")


@pytest.fixture(scope="module")
def wide_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of several shapes in two classes: 40 in train/ and 12 in val/."""
    folder = tmp_path_factory.mktemp("wide_photos")
    for split, n in (("train", 40), ("val", 12)):
        for i in range(n):
            file = folder / split / "ab"[i % 2] / f"{i:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            smooth_image((60 + i, 50)).rotate(30 * i, expand=i % 3 == 0).save(file)
    return folder


def open_data(folder: Path, cache: Path, **options: object) -> ViewsDataModule:
    data = ViewsDataModule(
        "folder", str(folder), batch_size=10, image_size=32, cache_dir=str(cache), **options
    )
    data.prepare_data()
    data.setup()
    return data


# ---------------------------------------------------------------- views and clean images


def test_files_give_the_same_images_as_a_cache_of_full_size(
    wide_photos: Path, tmp_path: Path
) -> None:
    cached = open_data(wide_photos, tmp_path, image_cache="on", stored_side=1000)
    files = open_data(wide_photos, tmp_path, image_cache="off")
    assert (cached.train.image_cache, files.train.image_cache) == ("on", "off")
    assert torch.equal(cached.mean, files.mean) and torch.equal(cached.std, files.std)
    for ours, theirs in zip(files.train_dataloader(), cached.train_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    everything = torch.arange(12)
    assert torch.equal(files.test.images_at(everything), cached.test.images_at(everything))
    assert list(files.test.paths or []) == list(cached.test.paths or [])


def test_views_show_more_than_the_central_square(tmp_path: Path) -> None:
    """The ends of a panorama are red and blue, and its middle is green."""
    picture = Image.new("RGB", (300, 60), (0, 255, 0))
    picture.paste((255, 0, 0), (0, 0, 100, 60))
    picture.paste((0, 0, 255), (200, 0, 300, 60))
    picture.paste((9, 9, 9), (148, 28, 152, 32))  # The clean images must not be of one colour.
    (tmp_path / "photos").mkdir()
    for i in range(10):
        picture.save(tmp_path / "photos" / f"{i}.png")
    data = open_data(tmp_path / "photos", tmp_path / "cache")
    data.mean = torch.zeros(3)
    data.std = torch.ones(3)
    views = torch.cat([torch.cat(data.make_views(torch.arange(10), epoch)) for epoch in range(10)])
    dominant = views.mean((2, 3)).argmax(dim=1).bincount(minlength=3)
    assert (dominant > 0).all()


def test_views_have_96_pixels_by_default(wide_photos: Path, tmp_path: Path) -> None:
    data = ViewsDataModule("folder", str(wide_photos), batch_size=10, cache_dir=str(tmp_path))
    data.prepare_data()
    data.setup()
    views = next(iter(data.train_dataloader()))
    assert [view.shape for view in views] == [(10, 3, 96, 96)] * 2
    assert data.size == 96 and data.train.side == 96


def test_statistics_are_of_a_fixed_number_of_files(
    wide_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    index_select = LazyImages.index_select

    def count(self: LazyImages, dim: int, indices: torch.Tensor) -> torch.Tensor:
        read.extend(indices.tolist())
        return index_select(self, dim, indices)

    monkeypatch.setattr(LazyImages, "index_select", count)
    monkeypatch.setattr("simsiam.data.datamodule.STATISTICS_FILES", 8)
    open_data(wide_photos, tmp_path, image_cache="off")
    assert read == [0, 5, 10, 15, 20, 25, 30, 35]


# ---------------------------------------------------------------- runs


def test_a_run_on_files_cut_off_within_an_epoch_resumes_exactly(
    wide_photos: Path, tmp_path: Path
) -> None:
    flags = [*TINY, "--dataset", "folder", "--data-dir", str(wide_photos), "--image-size", "32"]
    flags += [*OFF, "--cache-dir", str(tmp_path / "cache"), "--batch-size", "10", "--epochs", "3"]
    flags += ["--knn-k", "5", "--save-dir", str(tmp_path / "runs")]
    alone = start(*flags, "--exp-name", "alone")
    cut = start_with_events({6: ["SIGTERM"]}, *flags, "--exp-name", "cut")
    cut.communicate()
    assert cut.returncode == 143
    assert alone.communicate()[1] == ""
    out, err = start(*flags, "--exp-name", "cut").communicate()
    assert err == "" and "resumed from" in out
    runs = [tmp_path / "runs" / name for name in ("alone", "cut")]
    assert read_rows(runs[0]) == read_rows(runs[1]) and same_weights(*runs)


@pytest.mark.parametrize("command", ["knn", "linear --augment --epochs 1", "embed", "neighbours"])
def test_commands_read_the_files_of_a_run(
    command: str, wide_photos: Path, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    flags = ("--batch-size", "10", "--knn-k", "5")
    assert train_on_folder(wide_photos, *OFF, *flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    status, out, err = program(*command.split(), str(run))
    assert (status, err) == (0, "") and "decoded in each epoch" in out
    assert not list((tmp_path / "cache").rglob("*.uint8"))


def test_a_resumed_run_makes_its_views_as_before(
    wide_photos: Path, train_on_folder: Program, tmp_path: Path
) -> None:
    flags = ("--batch-size", "10", "--knn-k", "5")
    assert train_on_folder(wide_photos, *flags)[0] == 0  # auto, which is on
    run = tmp_path / "runs" / "simsiam_folder"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["settings"]["image_cache"] == "auto"
    assert config["resolved"]["image_cache"] == "on"
    config["resolved"]["image_cache"] = "off"
    config["resolved"]["images"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "summary.json").unlink()
    status, out, err = train_on_folder(wide_photos, *flags)
    assert (status, err) == (0, "") and "the files are decoded in each epoch" in out


def test_an_unfinished_run_on_squares_is_refused(
    wide_photos: Path, train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    flags = ("--batch-size", "10", "--knn-k", "5")
    assert train_on_folder(wide_photos, *flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["settings"]["image_cache"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    # A finished run of an earlier version stays as it is.
    assert "finished already" in train_on_folder(wide_photos, *flags)[1]
    assert program("knn", str(run))[0] == 0

    (run / "summary.json").unlink()
    status, _, err = train_on_folder(wide_photos, *flags)
    assert status == 2 and err.count("\n") == 1
    assert "only the central squares" in err and f"--model-path {run} --exp-name NAME" in err
    new = ("--model-path", str(run), "--exp-name", "new")
    assert train_on_folder(wide_photos, *flags, *new)[0] == 0


# ---------------------------------------------------------------- unreadable files


@pytest.fixture
def with_bad_file(tmp_path: Path) -> Path:
    """Return a folder of twelve images, of which one is cut short."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        smooth_image().rotate(30 * i).save(folder / f"{i:02d}.png")
    content = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(content[: len(content) // 2])
    return folder


def test_an_unreadable_file_ends_the_run_in_one_line(
    with_bad_file: Path, train_on_folder: Program
) -> None:
    status, _, err = train_on_folder(with_bad_file, *OFF, "--batch-size", "6")
    assert status == 2 and err.count("\n") == 1
    assert f"{with_bad_file / '07.png'} cannot be read" in err and "--skip-bad-images" in err


def test_the_next_image_takes_the_place_of_an_unreadable_one(
    with_bad_file: Path, train_on_folder: Program, tmp_path: Path
) -> None:
    flags = (*OFF, "--batch-size", "6", "--skip-bad-images", "--epochs", "2")
    status, out, err = train_on_folder(with_bad_file, *flags)
    assert (status, err) == (0, "") and out.count("07.png cannot be read") == 1
    data = open_data(with_bad_file, tmp_path, image_cache="off", skip_bad_images=True)
    images = data.train.images_at(torch.arange(12))
    assert torch.equal(images[7], images[8]) and not torch.equal(images[6], images[7])


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("num_files", "free", "mode", "reason"),
    [
        (1000, 2**40, "on", "1,000 images are decoded once, into 0.10 GiB"),
        (10**6, 2**50, "off", "a cache would take 100 GiB, more than 64"),
        (10**5, 2**35, "off", "a cache would take 10 GiB, and only 32 GiB are free"),
    ],
)
def test_auto_depends_on_the_size_of_the_cache(
    num_files: int,
    free: int,
    mode: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simsiam.data.files.cache_choice.free_space", lambda _: free)
    choice = choose_mode("auto", tmp_path, num_files, num_files, 0.1 * 2**20 * 1.024)
    assert choice.mode == mode and reason in choice.reason
    assert choose_mode("on", tmp_path, num_files, num_files, 1e5).mode == "on"
    assert choose_mode("off", tmp_path, num_files, num_files, 1e5).mode == "off"


def test_a_cache_that_exists_is_used_however_little_space_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.data.files.cache_choice.free_space", lambda _: 0)
    assert choose_mode("auto", tmp_path, 0, 1000, 1e5).mode == "on"


def test_a_start_looks_at_the_sizes_of_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "SIZED_FILES", 5)
    photos = tmp_path / "photos"
    write_images(photos, patterns(20), "{i:02}.png")
    looked_at: list[str] = []

    def read_states(root: Path, files: list[str]) -> np.ndarray:
        looked_at.extend(files)
        return file_states.read_states(root, files)

    monkeypatch.setattr(image_folder, "read_states", read_states)
    options = DataOptions(
        "folder", str(photos), image_size=8, cache_dir=str(tmp_path / "cache"), image_cache="off"
    )
    prepare_dataset(options)
    digest = load_dataset(options)[0].digest
    assert looked_at == [f"{i:02}.png" for i in (0, 4, 8, 12, 16)]

    (photos / "08.png").write_bytes((photos / "08.png").read_bytes() + b"more")
    prepare_dataset(options)
    assert load_dataset(options)[0].digest != digest
