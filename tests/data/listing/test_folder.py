"""simsiam/data/listing/folder.py: which files are images, and messages about the others."""

import os
import unicodedata
from pathlib import Path

import pytest

from simsiam.data.listing.folder import ImageFolder
from tests.images import smooth_image
from utils.errors import UserError

SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff")
SUFFIXES += ("ppm", "pgm", "pbm", "pnm", "avif", "jp2", "j2k")


def put(folder: Path, *names: str) -> ImageFolder:
    """Save an image under each of these names, whatever its suffix. Return the listed folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        smooth_image((8, 8)).save(folder / name, "PNG")
    return ImageFolder(folder)


def test_all_suffixes_of_formats_that_are_read_count(tmp_path: Path) -> None:
    folder = put(tmp_path, *(f"a.{suffix}" for suffix in SUFFIXES), "B.JPG")
    assert len(folder) == len(SUFFIXES) + 1 and folder.describe_skipped() == ""


def test_other_suffixes_are_counted_and_named(tmp_path: Path) -> None:
    names = [f"a/{i}.heic" for i in range(3)] + ["a/x.txt", "a/no suffix"]
    skipped = put(tmp_path, "a/0.png", *names).describe_skipped()
    assert skipped == (
        "3 .heic (not a format that is read here: convert them), 1 without a suffix, 1 .txt"
    )


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path, "cats/0.png", "dogs/0.heic")
    assert folder.classes == ("cats",)
    assert "1 folder (dogs) without an image" in folder.describe_skipped()
    folder.keep([])  # The message stays the same if fewer images are used later.
    assert "1 folder (dogs) without an image" in folder.describe_skipped()


def test_system_folders_and_files_are_skipped(tmp_path: Path) -> None:
    names = ["@eaDir/0.png", "a/@eaDir/0.png", "__MACOSX/a/._0.png", "$RECYCLE.BIN/0.png"]
    names += ["a/._0.png", "a/Thumbs.db", "a/.DS_Store", "a/desktop.ini"]
    folder = put(tmp_path, "a/0.png", *names)
    assert [str(file) for file in folder.files] == ["a/0.png"] and folder.classes == ("a",)
    listed = "$RECYCLE.BIN, @eaDir, __MACOSX, a/@eaDir"
    assert folder.describe_skipped() == f"4 system folders ({listed})"


def test_hidden_folders_and_images_are_counted(tmp_path: Path) -> None:
    names = (".trash/0.png", "a/.ipynb_checkpoints/0.png", "a/.0.png", "a/.gitkeep")
    folder = put(tmp_path, "a/0.png", *names)
    assert len(folder) == 1
    hidden = "1 hidden image; 2 hidden folders (.trash, a/.ipynb_checkpoints)"
    assert folder.describe_skipped() == hidden


def test_a_folder_without_images_lists_what_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image in it, but 1 \.heic .*; 1 hidden folder"):
        put(tmp_path, "0.heic", ".old/0.png")


def test_each_link_to_a_folder_is_its_own_class(tmp_path: Path) -> None:
    put(tmp_path / "photos", "0.png", "deep/1.png")
    (tmp_path / "set").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "photos")
    folder = ImageFolder(tmp_path / "set")
    assert folder.classes == ("cats", "dogs") and folder.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("target", [".", "..", "../a"])
def test_a_link_to_a_parent_folder_is_not_followed(target: str, tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "b/1.png")
    (tmp_path / "b" / "loop").symlink_to(target)
    files = {str(file) for file in ImageFolder(tmp_path).files}
    assert {"a/0.png", "b/1.png"} <= files and len(files) <= 3


def test_class_names_of_every_script_are_kept(tmp_path: Path) -> None:
    names = ("a\u3000b", "c\u200cd", "e\u00a0f", "\U0001f469\u200d\U0001f467", "[bold]", "-x")
    assert set(put(tmp_path, *(f"{name}/0.png" for name in names)).classes) == {*names}


def test_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "école") for form in ("NFC", "NFD")]
    folder = put(tmp_path, *(f"{name}/0.png" for name in names))
    assert folder.classes == (names[0],) and folder.labels.tolist() == [0, 0]


def test_unprintable_class_names_are_escaped(tmp_path: Path) -> None:
    for name in (b"a\nb", b"caf\xe9"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        smooth_image().save(tmp_path / os.fsdecode(name) / "0.png")
    assert ImageFolder(tmp_path).classes == ("a\\nb", "caf\\xe9")
