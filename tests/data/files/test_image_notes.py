"""files/image_notes.py: files that are not one RGB picture, and messages about them."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.config.options import DataOptions
from simsiam.config.value_types import PixelConversion
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import make_options
from simsiam.data.files.image_notes import ImageNotes
from simsiam.data.files.reading import DecodedImage, silence_pillow, try_to_read
from tests.helpers import Program
from tests.images import patterns, smooth_image, write_images
from utils.errors import UserError

Printed = pytest.CaptureFixture[str]
RED = (200, 40, 10)
BLUE = (0, 0, 255)
SIDE = 16


def read(path: Path, conversion: PixelConversion = PixelConversion()) -> DecodedImage:
    with silence_pillow():
        result = try_to_read(path, SIDE, conversion)
    assert not isinstance(result, str), result
    return result


def half_transparent(mode: str = "RGBA") -> Image.Image:
    """Return an image whose left half is opaque, and whose right half is transparent."""
    opacity = np.zeros((SIDE, SIDE), np.uint8)
    opacity[:, : SIDE // 2] = 255
    image = Image.new("RGB", (SIDE, SIDE), RED)
    image.putalpha(Image.fromarray(opacity))
    return image.quantize() if mode == "P" else image.convert(mode)


def write_tiff(path: Path, bands: int) -> None:
    """Write a TIFF of 8 bits, with bands that are called red, green, blue and unknown."""
    pixels = bytes(range(bands)) * SIDE**2
    entries = [(256, 4, 1, SIDE), (257, 4, 1, SIDE), (262, 3, 1, 2), (273, 4, 1, 8)]
    entries += [(277, 3, 1, bands), (278, 4, 1, SIDE), (279, 4, 1, len(pixels))]
    after = 8 + len(pixels)
    entries += [(258, 3, bands, after), (338, 3, bands - 3, after + 2 * bands)]
    arrays = struct.pack(f"<{bands}H", *[8] * bands) + bytes(2 * (bands - 3))
    if bands - 3 <= 2:  # such a short array is part of its entry
        entries[-1] = (338, 3, bands - 3, 0)
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    header = struct.pack("<2sHI", b"II", 42, after + len(arrays))
    path.write_bytes(
        header + pixels + arrays + struct.pack("<H", len(entries)) + directory + bytes(4)
    )


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.webp", "RGBA"),
        ("a.tif", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.gif", "RGBA"),
    ],
)
def test_transparent_pixels_have_the_colour_of_the_background(
    name: str, mode: str, background: tuple[int, int, int], tmp_path: Path
) -> None:
    half_transparent(mode).save(tmp_path / name, lossless=True)
    image = read(tmp_path / name, PixelConversion(background=background))
    assert image.notes.transparent
    right = image.pixels[:, :, SIDE // 2 :]
    assert torch.equal(right, torch.tensor(background).byte()[:, None, None].expand_as(right))
    # The left half is as in an image without transparency.
    opaque = Image.new("RGB", (SIDE, SIDE), RED).convert("L" if mode == "LA" else "RGB")
    expected = torch.from_numpy(np.array(opaque.convert("RGB"))).permute(2, 0, 1)
    difference = image.pixels[:, :, : SIDE // 2].int() - expected[:, :, : SIDE // 2].int()
    assert difference.abs().max() <= 3  # a palette does not have every colour


def test_half_opaque_pixels_are_mixed_with_the_background(tmp_path: Path) -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (*RED, 128))
    image.save(tmp_path / "a.png")
    canvas = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(canvas, image).convert("RGB").getpixel((0, 0))
    pixels = read(tmp_path / "a.png").pixels[:, 0, 0].int()
    assert (pixels - torch.tensor(expected)).abs().max() <= 1


def test_a_transparent_value_of_16_bits_is_composited(tmp_path: Path) -> None:
    values = np.full((SIDE, SIDE), 30000, np.uint16)
    values[:, SIDE // 2 :] = 5
    Image.fromarray(values).save(tmp_path / "a.png", transparency=5)
    for conversion in (PixelConversion(), PixelConversion(pixel_range=(0, 60000))):
        image = read(tmp_path / "a.png", conversion)
        assert image.notes.transparent
        assert bool((image.pixels[:, :, SIDE // 2 :] == 255).all())
        assert int(image.pixels[0, 0, 0]) in (116, 128)


def test_scaled_pixels_keep_their_transparency(tmp_path: Path) -> None:
    half_transparent().save(tmp_path / "a.png")
    image = read(tmp_path / "a.png", PixelConversion(pixel_range=(0, 200)))
    assert image.pixels[:, 0, 0].tolist() == [255, 51, 13]
    assert image.pixels[:, 0, -1].tolist() == [255, 255, 255]


def test_an_opaque_alpha_channel_is_no_transparency(tmp_path: Path) -> None:
    image = smooth_image((SIDE, SIDE))
    image.save(tmp_path / "rgb.png")
    image.convert("RGBA").save(tmp_path / "rgba.png")
    opaque = read(tmp_path / "rgba.png")
    assert opaque.notes == ImageNotes()
    assert torch.equal(opaque.pixels, read(tmp_path / "rgb.png").pixels)


def test_the_background_is_a_flag_that_later_commands_keep(
    train_on_folder: Program, program: Program, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, patterns(59), "{i}.png")
    half_transparent().resize((32, 32)).save(photos / "alpha.png")
    status, out, err = train_on_folder(photos, "--background", "#ff0000")
    assert (status, err) == (0, "")
    line = "1 of 60 images have transparency, which is composited on 255,0,0. --background"
    assert line in out
    run = tmp_path / "runs" / "simsiam_folder"
    status, out, err = program("embed", str(run))
    assert (status, err) == (0, "") and line in out and "decoded" not in out
    status, out, err = program("embed", str(run), "--images", str(photos), "--overwrite")
    assert (status, err) == (0, "") and line in out
    flags = ("--images", str(photos), "--overwrite", "--background", "black")
    assert "composited on black" in program("embed", str(run), *flags)[1]


def test_another_background_is_another_cache(tmp_path: Path) -> None:
    half_transparent().save(tmp_path / "a.png")
    corners = []
    for background in ("white", "black", "0,0,255", "white"):
        options = DataOptions(
            "folder", tmp_path, image_size=16, cache_dir=tmp_path / "cache", background=background
        )
        prepare_dataset(options)
        corners.append(load_dataset(options)[0].images[0, :, 0, -1].tolist())
    assert corners == [[255, 255, 255], [0, 0, 0], [0, 0, 255], [255, 255, 255]]
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("text", ["red", "#12345", "1,2", "1,2,300", "#gggggg", "white "])
def test_malformed_backgrounds_are_refused(text: str, program: Program) -> None:
    status, _, err = program("--dataset", "folder", "--background", text)
    assert status == 2 and err.count("\n") == 1 and "white, black, R,G,B" in err


def test_a_background_is_refused_for_cifar10() -> None:
    with pytest.raises(UserError, match="--background black: not for cifar10"):
        make_options(background="black")


# ---------------------------------------------------------------- frames, bands and small images


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.avif"])
def test_further_frames_and_pages_are_noted(name: str, tmp_path: Path) -> None:
    first = Image.new("RGB", (SIDE, SIDE), RED)
    second = Image.new("RGB", (SIDE, SIDE), BLUE)
    first.save(tmp_path / name)
    assert not read(tmp_path / name).notes.several_frames
    first.save(tmp_path / name, save_all=True, append_images=[second])
    image = read(tmp_path / name)
    assert image.notes.several_frames
    assert image.pixels[0].float().mean() > 150 and image.pixels[2].float().mean() < 60


def test_the_preview_in_a_cameras_jpeg_is_no_frame(tmp_path: Path) -> None:
    smooth_image().save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[smooth_image((8, 8))]
    )
    assert read(tmp_path / "a.jpg").notes == ImageNotes()


def test_bands_that_are_not_rgb_are_named(tmp_path: Path) -> None:
    smooth_image().convert("CMYK").save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").notes.bands == "CMYK, converted to RGB"
    Image.new("LAB", (SIDE, SIDE), (100, 20, 30)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").notes.bands == "LAB, converted to RGB"


@pytest.mark.parametrize("bands", [4, 5, 6])
def test_further_bands_of_a_tiff_are_named(bands: int, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", bands)
    image = read(tmp_path / "a.tif")
    assert image.notes.bands == f"{bands} bands, of which the first 3 are used"
    assert not image.notes.transparent
    assert image.pixels[:, 0, 0].tolist() == [0, 1, 2]


def test_a_tiff_with_too_many_bands_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiff(tmp_path / "a.tif", 9)
    with silence_pillow():
        assert "a TIFF of 9 bands" in str(try_to_read(tmp_path / "a.tif", 8))
    assert not caplog.records
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:100])
    with silence_pillow():
        assert try_to_read(tmp_path / "b.tif", 8) == "not an image"


def test_each_kind_is_counted_in_a_line(tmp_path: Path, capsys: Printed) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    smooth_image().save(photos / "plain.png")
    for i in range(2):
        half_transparent().resize((40, 40 + i)).save(photos / f"alpha{i}.png")
    smooth_image().save(photos / "pages.tif", save_all=True, append_images=[smooth_image()])
    smooth_image().convert("CMYK").save(photos / "cmyk.jpg")
    smooth_image((30, 12)).save(photos / "small.png")
    smooth_image((24, 24)).save(photos / "not so small.png")
    options = DataOptions("folder", photos, image_size=32, cache_dir=tmp_path / "cache")
    lines = [
        "2 of 7 images have transparency, which is composited on white. --background sets another "
        "colour.",
        "1 of 7 images have several frames or pages, of which the first is used.",
        "1 of 7 images: CMYK, converted to RGB.",
        "2 of 7 images are smaller than the views of 32 pixels, and are enlarged. The shorter side "
        "of the smallest has 12 pixels.",
    ]
    for _ in range(2):  # The second call finds the images in the cache.
        prepare_dataset(options)
        out = capsys.readouterr().out
        for line in lines:
            assert f"photos: {line}\n" in out


def test_plain_images_cause_no_message(tmp_path: Path, capsys: Printed) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    smooth_image().save(photos / "a.png")
    smooth_image().convert("L").save(photos / "b.png")
    prepare_dataset(DataOptions("folder", photos, image_size=8, cache_dir=tmp_path / "cache"))
    assert capsys.readouterr().out.count("\n") == 2  # "2 images are decoded once", "decoded 2"
