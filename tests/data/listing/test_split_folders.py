"""simsiam/data/listing/split_folders.py: which folders hold the splits, and messages about them."""

import os
import unicodedata
from pathlib import Path

import pytest

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import Splits
from tests.helpers import Program, read_summary
from tests.images import patterns, smooth_image, write_images

Printed = pytest.CaptureFixture[str]


def put(folder: Path, *names: str) -> None:
    """Save an image under each of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        smooth_image((8, 8)).save(folder / name)


def load(folder: Path) -> Splits:
    """Decode a folder and load it."""
    options = DataOptions("folder", folder, image_size=8, cache_dir=folder.parent / "cache")
    prepare_dataset(options)
    return load_dataset(options)


@pytest.mark.parametrize(
    ("train_folder", "test_folder", "unused"),
    [
        ("train", "valid", ["test"]),
        ("train", "validation", []),
        ("training", "testing", []),
        ("Train", "Valid", ["Test"]),
        ("train", "val", ["valid"]),
        ("train", None, ["bus", "car"]),
        ("train", None, ["Training"]),
    ],
)
def test_splits_may_have_any_usual_name(
    train_folder: str, test_folder: str | None, unused: list[str], tmp_path: Path, capsys: Printed
) -> None:
    photos = tmp_path / "photos"
    put(photos, f"{train_folder}/a/0.png")
    message = f"training on {train_folder}/"
    if test_folder is not None:
        put(photos, f"{test_folder}/a/0.png", f"{test_folder}/a/1.png")
        message += f", testing on {test_folder}/"
    for folder in unused:
        put(photos, *(f"{folder}/a/{i}.png" for i in range(3)))
    if unused:
        message += f"; not used: {', '.join(f'{folder}/' for folder in unused)}"

    train, test = load(photos)
    assert len(train) == 1
    assert len(test) == (0 if test_folder is None else 2)
    assert f"photos: {message}\n" in capsys.readouterr().out


def test_images_next_to_the_splits_are_reported(tmp_path: Path, capsys: Printed) -> None:
    put(tmp_path / "photos", "train/0.png", "loose.png", ".hidden/0.png", "@eaDir/0.png")
    load(tmp_path / "photos")
    assert "not used: 1 image next to these folders\n" in capsys.readouterr().out


def test_a_class_named_like_a_split_is_refused(train_on_folder: Program, tmp_path: Path) -> None:
    put(tmp_path / "photos", "Val/a/0.png", "test/a/0.png")
    status, _, err = train_on_folder(tmp_path / "photos")
    assert status == 2 and err.count("\n") == 1
    assert "Val, test in" in err and "looks like a split" in err and "there is no train/" in err


def test_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "école") for form in ("NFC", "NFD"))
    put(tmp_path / "photos", f"train/{composed}/0.png", "train/zoo/0.png")
    put(tmp_path / "photos", "val/zoo/0.png", f"val/{decomposed}/0.png")
    train, test = load(tmp_path / "photos")
    assert train.classes == test.classes == ("zoo", composed)
    assert sorted(train.names(train.labels.tolist())) == sorted(train.classes)
    assert sorted(test.names(test.labels.tolist())) == sorted(train.classes)


def test_each_start_prints_what_is_left_out(train_on_folder: Program, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", patterns(60))
    (tmp_path / "photos" / "train" / "dots" / "x.heic").write_text("")
    for flags in (("--dry-run",), (), ("--overwrite",)):
        status, out, err = train_on_folder(tmp_path / "photos", *flags)
        assert (status, err) == (0, "") and "left out 1 .heic" in out


def test_names_of_bad_images_are_escaped(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", patterns(60), "new\nline {i}.png")
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg"):
        with open(os.fsencode(tmp_path) + b"/photos/" + name, "wb") as file:
            file.write(b"no image")
    listed = "2 of 62 images in {} cannot be read: caf\\xe9.jpg (not an image); two\\nlines.jpg"
    status, _, err = train_on_folder(tmp_path / "photos")
    assert status == 2 and err.count("\n") == 1 and listed.format(tmp_path / "photos") in err
    status, out, err = train_on_folder(tmp_path / "photos", "--skip-bad-images")
    assert (status, err) == (0, "") and listed.format(tmp_path / "photos") in out
    run = tmp_path / "runs" / "simsiam_folder"
    flags = ("--images", str(tmp_path / "photos"), "--skip-bad-images")
    for command in ("embed", "neighbours"):
        status, out, err = program(command, str(run), *flags)
        assert (status, err) == (0, "") and "caf\\xe9.jpg (not an image)" in out


def test_folder_names_may_be_any_bytes(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    classes = {"dots": os.fsdecode(b"\xff"), "zigzag": "[bold]", "rings": "new\nline"}
    classes["net"] = ":cat:"  # this and [bold] mean something else to what prints tables
    for split, n in (("train", 60), ("val", 20)):
        write_images(odd, patterns(n), split=split)
        for old, new in classes.items():
            if (odd / split / old).exists():
                (odd / split / old).rename(odd / split / new)
    assert train_on_folder(odd)[0] == 0
    run = tmp_path / "runs" / "simsiam_folder"
    for command in ("knn", "linear", "embed", "neighbours", "report"):
        status, out, err = program(command, str(run))
        assert (status, err) == (0, "")
        if command == "knn":
            assert all(f" {name} " in out for name in ("\\xff", "[bold]", "new\\nline", ":cat:"))
    assert {"\\xff", "[bold]", "new\\nline"} <= read_summary(run / "results" / "knn")[
        "per_class"
    ].keys()
