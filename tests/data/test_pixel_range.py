"""`--pixel-range`: a warning names images that use few of their bits, and the flag scales them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import make_options
from simsiam.data.files.reading import read_image
from tests.helpers import Program, read_summary
from tests.images import smooth_image
from utils.errors import UserError

Printed = pytest.CaptureFixture[str]
GREY = np.array(smooth_image((40, 40)).convert("L"))
COLOURS = np.array(smooth_image((40, 40)))


def of_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Return the pixels (0 to 255) scaled to values of `bits` bits, as 16-bit integers."""
    return np.round(pixels / 255 * (2**bits - 1)).astype(np.uint16)


def colour_png(pixels: np.ndarray) -> bytes:
    """Return a PNG of 16-bit colours (H, W, 3). Pillow cannot write one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def colour_tiff(pixels: np.ndarray, order: str) -> bytes:
    """Return a TIFF of 16-bit colours (H, W, 3), whose bytes have the order "<" or ">"."""
    height, width, _ = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    long = [(256, width), (257, height), (258, 8), (273, 14), (278, height), (279, len(data))]
    short = [(259, 1), (262, 2), (277, 3)]  # no compression, RGB, three values a pixel
    fields = {}
    for tag, value in long:
        kind, count = 4, 1  # one long
        if tag == 258:  # The bits of each colour are three shorts. They start at byte 8.
            kind, count = 3, 3
        fields[tag] = struct.pack(f"{order}HHII", tag, kind, count, value)
    for tag, value in short:
        fields[tag] = struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    directory = struct.pack(f"{order}H", len(fields))
    directory += b"".join(fields[tag] for tag in sorted(fields))
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    magic = b"II" if order == "<" else b"MM"
    start = magic + struct.pack(f"{order}HI", 42, 14 + len(data))
    return start + bits + data + directory + bytes(4)


def prepare(folder: Path, **options: object) -> torch.Tensor:
    """Decode the images of a folder, and return them."""
    cache = folder.parent / "cache"
    data_options = make_options(
        dataset="folder", data_dir=folder, image_size=40, cache_dir=cache, **options
    )
    prepare_dataset(data_options)
    return load_dataset(data_options)[0].images[:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


# ---------------------------------------------------------------- warnings


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_few_bits_in_16_are_named_with_the_flag(
    bits: int, suffix: str, folder: Path, capsys: Printed
) -> None:
    for i in range(3):
        Image.fromarray(of_bits(GREY, bits)).save(folder / f"{i}.{suffix}")
    advice = f"--pixel-range 0:{2**bits - 1} makes 0 black and {2**bits - 1} white"
    highest = of_bits(GREY, bits).max()
    for _ in range(2):  # The second time, the images are already decoded.
        dark = prepare(folder)
        out = capsys.readouterr().out
        assert "3 of 3 images" in out and f"to {highest}, " in out and advice in out
    scaled = prepare(folder, pixel_range=f"0:{2**bits - 1}")
    assert "warning" not in capsys.readouterr().out
    assert torch.equal(scaled[0], read_image_of(GREY, folder)) and dark.max() < 64


def read_image_of(pixels: np.ndarray, folder: Path) -> torch.Tensor:
    """Return pixels (H, W) or (H, W, 3) uint8 after they were saved to a file and read."""
    Image.fromarray(pixels).save(folder.parent / "8.png")
    return read_image(folder.parent / "8.png", 40)


def test_images_of_16_bits_are_ordinary(folder: Path, capsys: Printed) -> None:
    Image.fromarray(of_bits(GREY, 16)).save(folder / "0.png")
    Image.fromarray(of_bits(GREY, 12)).save(folder / "1.png")  # a dark one among others
    prepare(folder)
    assert "warning" not in capsys.readouterr().out


def test_a_narrow_range_anywhere_is_named(folder: Path, capsys: Printed) -> None:
    values = 32_000 + of_bits(GREY, 10)  # as of computed tomography with an offset
    Image.fromarray(values.astype(np.uint16)).save(folder / "0.png")
    prepare(folder)
    assert f"--pixel-range {values.min()}:{values.max()} makes" in capsys.readouterr().out


def test_few_bits_among_ordinary_images_are_named(folder: Path, capsys: Printed) -> None:
    smooth_image((40, 40)).save(folder / "0.jpg")
    Image.fromarray(of_bits(GREY, 12)).save(folder / "1.png")
    prepare(folder)
    assert "1 of 2 images" in capsys.readouterr().out
    scaled = prepare(folder, pixel_range="0:4095")
    assert torch.equal(scaled[0], read_image(folder / "0.jpg", 40))  # 8 bits stay as they are
    assert torch.equal(scaled[1], read_image_of(GREY, folder))


def test_dark_images_of_8_bits_are_named(folder: Path, capsys: Printed) -> None:
    dark = np.round(GREY / GREY.max() * 15).astype(np.uint8)
    Image.fromarray(dark).save(folder / "0.png")
    assert prepare(folder).max() < 16
    out = capsys.readouterr().out
    assert f"only the values {dark.min()} to 15. Pass --pixel-range {dark.min()}:15 to" in out
    assert prepare(folder, pixel_range="0:15").max() == 255
    assert "warning" not in capsys.readouterr().out
    prepare(folder, pixel_range="0:200")
    assert "Check whether --pixel-range 0:200 is right." in capsys.readouterr().out


# ---------------------------------------------------------------- scaling


@pytest.mark.parametrize("kind", ["png", "<tif", ">tif"])
def test_colours_of_16_bits_are_scaled_from_all_bits(
    kind: str, folder: Path, capsys: Printed
) -> None:
    pixels = of_bits(COLOURS, 12)
    content = colour_png(pixels) if kind == "png" else colour_tiff(pixels, kind[0])
    (folder / f"0.{kind[-3:]}").write_bytes(content)
    prepare(folder)
    assert "--pixel-range 0:4095" in capsys.readouterr().out
    scaled = prepare(folder, pixel_range="0:4095")
    assert torch.equal(scaled[0], read_image_of(COLOURS, folder))


@pytest.mark.parametrize(
    ("pixels", "limits"),
    [(GREY.astype(np.float32) / 255, (0, 1)), (GREY.astype(np.int32) * 16 - 1000, (-1000, 3080))],
)
def test_floats_and_negative_values_need_a_range(
    pixels: np.ndarray, limits: tuple[int, int], folder: Path
) -> None:
    Image.fromarray(pixels).save(folder / "0.tif")
    with pytest.raises(UserError, match="have no known scale: pass --pixel-range LOW:HIGH"):
        prepare(folder)
    scaled = prepare(folder, pixel_range=limits)
    assert torch.equal(scaled[0], read_image_of(GREY, folder))


def test_arrays_of_other_numbers_are_scaled(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, x_train=of_bits(GREY, 12)[None], x_test=of_bits(GREY, 12)[None])
    with pytest.raises(UserError, match=r"is uint16, but images are uint8.*--pixel-range LOW:HIGH"):
        load_dataset(DataOptions("arrays", file))
    for split in load_dataset(DataOptions("arrays", file, pixel_range="0:4095")):
        assert torch.equal(split.images[0, 0], torch.from_numpy(GREY))
    np.savez(file, x_train=(GREY % 17)[None])  # as scikit-learn's digits
    load_dataset(DataOptions("arrays", file))
    assert ":16 to make" in capsys.readouterr().out


def test_a_run_and_what_follows_use_one_range(
    train_on_folder: Program, program: Program, folder: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for i in range(50):
        noise = rng.integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
    assert train_on_folder(folder, "--pixel-range", "0:4095")[0] == 0
    run = str(tmp_path / "runs" / "simsiam_folder")
    features = []
    for name, flags in (("a", []), ("b", ["--images", str(folder)])):
        status, out, err = program("embed", run, "--results-dir", str(tmp_path / name), *flags)
        assert (status, err) == (0, "") and "decoded" not in out and "warning" not in out
        features.append(np.load(tmp_path / name / "embed" / "features.npz")["features"])
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)
    # None means the range of the run.
    assert read_summary(tmp_path / "a" / "embed")["settings"]["pixel_range"] is None


@pytest.mark.parametrize("text", ["0", "3:2", "a:b", "0:inf", "nan:1", "1:1", "1:2:3", ":"])
def test_malformed_pixel_ranges_are_refused(
    text: str, train_on_folder: Program, folder: Path
) -> None:
    smooth_image().save(folder / "0.png")
    status, _, err = train_on_folder(folder, f"--pixel-range={text}")
    assert status == 2 and err.count("\n") == 1 and f"--pixel-range {text}: must be LOW:HIGH" in err


def test_pixel_range_is_refused_for_cifar10(program: Program) -> None:
    status, _, err = program("--pixel-range", "0:4095")
    assert status == 2 and "--pixel-range 0:4095: not for cifar10" in err
