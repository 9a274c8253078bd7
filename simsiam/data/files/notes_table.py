"""Keep the notes about many images in little memory, and make messages of them (`NotesTable`)."""

from collections.abc import Iterable, Sequence

import numpy as np

from simsiam.config.value_types import PixelConversion, name_colour
from simsiam.data.files.image_notes import ImageNotes
from utils.console import format_count

# The fields of `ImageNotes`. Instead of the text `bands`, a row has its index in a list of texts.
NOTES = np.dtype(
    [
        ("has_range", np.bool_),
        ("lowest", np.int32),
        ("highest", np.int32),
        ("transparent", np.bool_),
        ("several_frames", np.bool_),
        ("bands", np.int32),
        ("small_side", np.int32),
    ]
)
RowValues = tuple[bool, int, int, bool, bool, int, int]


class BandTexts:
    """The different texts about bands. There are few of them.

    Args:
        texts: the first texts, of which the first must be "".
    """

    def __init__(self, texts: Iterable[str] = ("",)) -> None:
        self._index_of_text = {text: i for i, text in enumerate(texts)}

    def index(self, text: str) -> int:
        """Return the index of a text, which is added if it is new."""
        return self._index_of_text.setdefault(text, len(self._index_of_text))

    def as_tuple(self) -> tuple[str, ...]:
        return tuple(self._index_of_text)


def pack_notes(notes: ImageNotes, bands: BandTexts) -> RowValues:
    """Return the values of a row of NOTES."""
    lowest, highest = notes.range_16_bit or (0, 0)
    return (
        notes.range_16_bit is not None,
        lowest,
        highest,
        notes.transparent,
        notes.several_frames,
        bands.index(notes.bands),
        notes.small_side,
    )


def unpack_notes(values: RowValues, bands: Sequence[str]) -> ImageNotes:
    """Return the notes of a row."""
    has_range, lowest, highest, transparent, several_frames, bands_index, small_side = values
    return ImageNotes(
        range_16_bit=(lowest, highest) if has_range else None,
        transparent=transparent,
        several_frames=several_frames,
        bands=bands[bands_index],
        small_side=small_side,
    )


class NotesTable:
    """The notes about all images of a list.

    Args:
        rows: (N,) NOTES.
        bands: the texts to which the rows refer.
    """

    def __init__(self, rows: np.ndarray, bands: Sequence[str]) -> None:
        self._rows = rows
        self._bands = bands

    @classmethod
    def of(cls, notes: Sequence[ImageNotes]) -> "NotesTable":
        """Return the table of a sequence of notes."""
        bands = BandTexts()
        rows = np.array([pack_notes(image, bands) for image in notes], NOTES)
        return cls(rows, bands.as_tuple())

    def __len__(self) -> int:
        return len(self._rows)

    def range_16_bit(self) -> tuple[int, int] | None:
        """Return the lowest and the highest value of all 16-bit images, or None if there are none.

        Images for which a pixel range was given do not count.
        """
        rows = self._rows[self._rows["has_range"]]
        if len(rows) == 0:
            return None
        return int(rows["lowest"].min()), int(rows["highest"].max())

    def count_16_bit(self) -> int:
        """Return the number of images that `range_16_bit` counts."""
        return int(self._rows["has_range"].sum())

    def describe(self, view_size: int, conversion: PixelConversion) -> list[str]:
        """Return a sentence for each kind of image that is not used just as it is in its file.

        Args:
            view_size: the side of the views in pixels.
            conversion: with which the images were decoded.
        """
        rows = self._rows
        lines = []
        num_transparent = int(rows["transparent"].sum())
        if num_transparent > 0:
            lines.append(
                f"{self._count(num_transparent)} have transparency, which is composited on "
                f"{name_colour(conversion.background)}. --background sets another colour."
            )
        num_with_frames = int(rows["several_frames"].sum())
        if num_with_frames > 0:
            lines.append(
                f"{self._count(num_with_frames)} have several frames or pages, of which the first "
                "is used."
            )
        counts = np.bincount(rows["bands"], minlength=len(self._bands)).tolist()
        for bands, count in sorted(zip(self._bands, counts, strict=True)):
            if bands and count > 0:
                lines.append(f"{self._count(count)}: {bands}.")

        small_sides = rows["small_side"]
        small_sides = small_sides[(small_sides > 0) & (small_sides < view_size)]
        if len(small_sides) > 0:
            smallest = format_count(int(small_sides.min()), "pixel")
            lines.append(
                f"{self._count(len(small_sides))} are smaller than the views of {view_size} "
                f"pixels, and are enlarged. The shorter side of the smallest has {smallest}."
            )
        return lines

    def _count(self, count: int) -> str:
        return f"{count:,} of {len(self):,} images"
