"""What an image file has beyond one RGB picture: transparency, pages, further bands, few pixels."""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from simsiam.config.value_types import Colour
from utils.console import format_count

SAMPLES_PER_PIXEL = 277  # the tag of a TIFF that has the number of its bands
CONVERTED_MODES = ("CMYK", "HSV", "LAB", "YCbCr")  # colours that are neither grey nor RGB


class ImageNotes(NamedTuple):
    """What messages say about an image file.

    Attributes:
        range_16_bit: the lowest and the highest value of 16-bit pixels. It is None if the pixels
            have 8 bits, or if a pixel range was given.
        transparent: whether a pixel is not opaque.
        several_frames: whether there are further frames or pages, which are not used.
        bands: what happens to bands that are neither grey nor RGB, or "".
        small_side: the shorter side in pixels, or 0 if the image need not be enlarged.
    """

    range_16_bit: tuple[int, int] | None = None
    transparent: bool = False
    several_frames: bool = False
    bands: str = ""
    small_side: int = 0


def describe_bands(image: ImageFile.ImageFile) -> str:
    """Return what happens to the bands of an image that is not loaded yet, or "" for grey and RGB.

    For example "CMYK, converted to RGB" or "5 bands, of which the first 3 are used".
    """
    if image.mode in CONVERTED_MODES:
        return f"{image.mode}, converted to RGB"
    if isinstance(image, TiffImageFile):
        in_file = image.tag_v2.get(SAMPLES_PER_PIXEL, 1)
        loaded = len(image.getbands())
        if in_file > loaded:
            return f"{in_file} bands, of which the first {loaded} are used"
    return ""


def has_several_frames(image: ImageFile.ImageFile) -> bool:
    """Return whether a loaded image has further frames or pages."""
    if image.format == "MPO":
        return False  # A camera's JPEG: the other pictures in the file are previews of the first.
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001  (for damaged frames Pillow raises any exception)
        # The image is loaded, so its first frame is sound: the damaged one is a further frame.
        return True


def read_alpha(image: Image.Image) -> Image.Image | None:
    """Return the opacity (L, 0 to 255) of a loaded image, or None if all pixels are opaque."""
    if image.mode in ("LA", "PA", "RGBA"):
        alpha = image.getchannel("A")
    elif "transparency" not in image.info:
        return None
    elif image.mode.startswith("I"):
        # One of the 65536 values stands for transparent pixels.
        is_opaque = np.asarray(image) != image.info["transparency"]
        alpha = Image.fromarray(is_opaque.astype(np.uint8) * 255)
    else:
        # A colour, or some colours of the palette, stand for transparent pixels.
        alpha = image.convert("RGBA").getchannel("A")
    lowest = int(np.asarray(alpha).min())
    return alpha if lowest < 255 else None


def composite(image: Image.Image, alpha: Image.Image, background: Colour) -> Image.Image:
    """Return an RGB image on a background, where `alpha` (L) is its opacity."""
    result = Image.new("RGB", image.size, background)
    result.paste(image, mask=alpha)
    return result


def describe_unidentified(path: Path) -> str:
    """Return what a file is that Pillow cannot identify, whatever its name."""
    with open(path, "rb") as file:
        header = file.read(12)
        # Phones often call their HEIC images .jpg.
        if header[4:8] == b"ftyp" and header[8:11] in (b"hei", b"hev", b"mif", b"msf"):
            return "a HEIC image: convert it"
        bands = _count_bands_of_tiff(file)
    if bands > 0:
        return (
            f"a TIFF of {format_count(bands, 'band')} in a form that is not read here: convert it"
        )
    return "not an image"


def _count_bands_of_tiff(file: BinaryIO) -> int:
    """Return the number of bands of a TIFF, or 0 if the file is none."""
    try:
        file.seek(0)
        directory = ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        return int(directory.get(SAMPLES_PER_PIXEL, 0))
    except Exception:  # noqa: BLE001  (for a damaged file Pillow raises any exception)
        return 0
