"""files/images.py: each kind of image file, and each way in which a file may be bad."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.data.files.images import FORMATS
from simsiam.data.files.reading import read_image, silence_pillow, try_to_read
from simsiam.data.listing.folder import ImageFolder
from tests.images import smooth_image, write_bad_images
from tests.processes import Started
from utils.errors import UserError

RED = (200, 40, 10)


def saved(image: Image.Image, path: Path, **options: object) -> torch.Tensor:
    image.save(path, **options)
    return read_image(path, 40).float()


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "tif", "ppm", "jp2", "jpg", "jfif", "jpe", "webp", "avif"]
)
def test_every_format_gives_the_same_picture(suffix: str, tmp_path: Path) -> None:
    options = {"quality": 95} if suffix in ("jpg", "jfif", "jpe", "webp", "avif") else {}
    pixels = saved(smooth_image(), tmp_path / f"a.{suffix}", **options)
    central_square = np.array(smooth_image())[:, 4:44].copy()
    expected = torch.from_numpy(central_square).permute(2, 0, 1).float()
    tolerance = 6 if options else 0
    assert pixels.shape == (3, 40, 40)
    assert (pixels - expected).abs().max() <= tolerance


def test_an_image_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    Image.fromarray(noise.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", 32), noise)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    for mode in ("L", "1", "LA"):
        pixels = saved(smooth_image().convert("L").convert(mode), tmp_path / f"{mode}.png")
        assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
        assert pixels.std() > 10


def test_16_bits_are_scaled_to_8(tmp_path: Path) -> None:
    grey = np.array(smooth_image().convert("L"))
    eight = saved(Image.fromarray(grey), tmp_path / "8.png")
    for suffix in ("png", "tif"):
        sixteen = saved(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / f"16.{suffix}")
        assert torch.equal(sixteen, eight) and eight.max() > 150


def test_cmyk_and_palette_become_rgb(tmp_path: Path) -> None:
    plain = Image.new("RGB", (40, 40), RED)
    for name, image, options in (
        ("cmyk.jpg", plain.convert("CMYK"), {"quality": 95}),
        ("palette.png", plain.convert("P", palette=Image.Palette.ADAPTIVE), {}),
        ("palette.gif", plain.convert("P", palette=Image.Palette.ADAPTIVE), {}),
    ):
        pixels = saved(image, tmp_path / name, **options)
        expected = torch.tensor(RED).float()[:, None, None].expand(3, 40, 40)
        assert (pixels - expected).abs().max() <= 4, name


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 40), RED), Image.new("RGB", (40, 40), "blue")
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        pixels = saved(first, tmp_path / name, save_all=True, append_images=[second])
        assert pixels[0].mean() > 150 and pixels[2].mean() < 60, name


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = smooth_image((40, 40)).transpose(Image.Transpose.ROTATE_90)
    upright = saved(smooth_image((40, 40)), tmp_path / "a.png")
    assert torch.equal(saved(turned, tmp_path / "b.png", exif=exif), upright)


def tiff_entry(tag: int, kind: int, value: int | bytes) -> bytes:
    """Return an entry of EXIF data: text of three letters (kind 2), or a number."""
    if isinstance(value, bytes):
        return struct.pack("<HHI4s", tag, 2, 4, value)
    return struct.pack("<HHII", tag, kind, 1, value)


# For each case the entries, and whether they ask to turn the image.
BROKEN_EXIF = {
    "text for a resolution": (tiff_entry(0x0112, 3, 6) + tiff_entry(0x011A, 2, b"dpi"), True),
    "a float for a pointer": (tiff_entry(0x0112, 3, 6) + tiff_entry(0x8769, 11, 7), True),
    "a pointer to nowhere": (tiff_entry(0x0112, 3, 6) + tiff_entry(0x8769, 4, 99_999), True),
    "a number as text": (tiff_entry(0x0112, 2, b"6"), True),
    "a word for a number": (tiff_entry(0x0112, 2, b"top"), False),
    "no such number": (tiff_entry(0x0112, 3, 99), False),
    "cut off": (tiff_entry(0x0112, 3, 6)[:7], False),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damage", BROKEN_EXIF)
def test_broken_exif_data_are_ignored(damage: str, suffix: str, tmp_path: Path) -> None:
    entries, turned = BROKEN_EXIF[damage]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, max(1, len(entries) // 12)) + entries + bytes(4)
    image = smooth_image((40, 40))
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True}
    image.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    image.save(tmp_path / f"b.{suffix}", **options)
    with silence_pillow():
        result = try_to_read(tmp_path / f"a.{suffix}", 40)
    assert not isinstance(result, str), result
    expected = read_image(tmp_path / f"b.{suffix}", 40)
    if turned:
        expected = expected.rot90(-1, (1, 2))
    assert torch.equal(result.pixels, expected)


def test_garbage_instead_of_exif_data_is_ignored(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp"):
        smooth_image((40, 40)).save(tmp_path / name, exif=b"Exif\0\0garbage")
        assert not isinstance(try_to_read(tmp_path / name, 40), str), name


def test_warnings_of_pillow_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """In this test suite, a warning is an error."""
    palette = smooth_image().convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    smooth_image().save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01")
    assert [chunk.shape for chunk in ImageFolder(tmp_path).read(8)] == [(2, 3, 8, 8)]


def test_a_heic_image_under_another_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert try_to_read(tmp_path / "a.jpg", 8) == "a HEIC image: convert it"


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in (
        "b/2 é.png",
        "b/1.PNG",
        "a/x/deep.jpg",
        "top.webp",
        "c/notes.txt",
        ".hidden/a.png",
        "a/.b.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        smooth_image().save(tmp_path / name, "PNG" if name.endswith("txt") else None)
    folder = ImageFolder(tmp_path)
    assert [str(file) for file in folder.files] == [
        "a/x/deep.jpg",
        "b/1.PNG",
        "b/2 é.png",
        "top.webp",
    ]
    assert folder.classes == ("a", "b") and folder.labels.tolist() == [0, 1, 1, -1]
    assert [chunk.shape for chunk in folder.read(8)] == [(4, 3, 8, 8)]


def test_bad_images_are_reported_or_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_bad_images(tmp_path)
    with pytest.raises(
        UserError, match=rf"{len(bad)} of {len(bad) + 1} images .*--skip-bad-images"
    ) as error:
        list(ImageFolder(tmp_path).read(8))
    assert "dangling.png (No such file" in str(error.value) and "\n" not in str(error.value)
    folder = ImageFolder(tmp_path)
    assert torch.cat(list(folder.read(8, skip_unreadable=True))).shape == (1, 3, 8, 8)
    assert [str(file) for file in folder.files] == ["good.png"] and len(folder.labels) == 1
    assert f"left out: {len(bad)} of" in capsys.readouterr().out


@pytest.mark.parametrize("number", range(7))
def test_each_bad_image_says_why(number: int, tmp_path: Path) -> None:
    name, reason = list(write_bad_images(tmp_path).items())[number]
    for file in tmp_path.iterdir():
        if file.name != name and not file.is_dir():
            file.unlink()
    # If no image is left, to skip bad images is an error too.
    for skip in (False, True):
        with pytest.raises(UserError, match=rf"1 of 1 images .*{name} \(.*{reason}"):
            list(ImageFolder(tmp_path).read(8, skip_unreadable=skip))


# The image has 1920 pixels. Pillow itself refuses twice its limit, and below that only warns.
@pytest.mark.parametrize("limit", [900, 1900])
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_huge_image_is_not_decoded(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth_image().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"too large|exceeds limit"):
        list(ImageFolder(tmp_path).read(8))


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no image in it"):
        ImageFolder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(tmp_path / "notes.txt")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png \(not a file\)"):
        list(ImageFolder(tmp_path).read(8))


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    smooth_image().save(tmp_path / "photos" / "cats" / "a.png")
    (tmp_path / "photos" / "cats" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "photos" / "cats")
    for folder in ("photos", "set"):
        assert [str(file) for file in ImageFolder(tmp_path / folder).files] == ["cats/a.png"]


def read_as_nobody(args: list[str]) -> int:
    os.setresuid(65534, 65534, 65534)
    print(try_to_read(Path(args[0]), 8))
    return 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as somebody else")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    smooth_image().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    tmp_path.chmod(0o755)
    out, err = Started(read_as_nobody, [str(tmp_path / "a.png")]).communicate()
    assert out == "Permission denied\n", err


def test_no_format_that_runs_another_program_is_read() -> None:
    assert not {"EPS", "WMF", "FPX", "MIC", "PDF"} & {*FORMATS}
