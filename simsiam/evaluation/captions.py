"""Write short texts below pictures, such as names of files, in any script that a font has."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from utils.text import ELLIPSIS, cut_middle, printable

FONT_SIZE = 11  # pixels
SPECIAL_STYLES = ("bold", "black", "heavy", "italic", "light", "oblique", "thin")

Run = tuple[str, ImageFont.FreeTypeFont]  # successive characters that one font draws


class CaptionWriter:
    """Writes texts with DejaVu Sans. Another installed font draws what DejaVu Sans lacks.

    Characters that are in neither of the two fonts are escaped, as in `\\u4e2d`: a box in their
    place would not tell one name from another.

    Args:
        pen: draws on the picture.
        texts: all texts that will be written. They decide which other font is chosen.
    """

    def __init__(self, pen: ImageDraw.ImageDraw, texts: Iterable[str]) -> None:
        self.pen = pen
        file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self.font = ImageFont.truetype(file, FONT_SIZE)
        characters = {char for text in texts for char in printable(text)}
        self.lacking = characters - find_glyphs(str(file), characters)
        self.other_font = None
        self.in_other_font: set[str] = set()
        if self.lacking:
            self._choose_other_font()

    def _choose_other_font(self) -> None:
        """Choose the installed font that has the most of the lacking characters."""
        for file in list_font_files():
            found = find_glyphs(file, self.lacking)
            if len(found) <= len(self.in_other_font):
                continue
            try:
                self.other_font = ImageFont.truetype(file, FONT_SIZE)
                self.in_other_font = found
            except OSError:
                continue  # a font of bitmaps, which has no letters of this size

    def write(self, x: int, y: int, text: str, width: float | None = None) -> None:
        """Write a text whose upper left corner is at (x, y).

        Args:
            width: shorten a text that is wider than this number of pixels.
        """
        if width is not None:
            text = self.shorten(text, width)
        baseline = y + self.font.getmetrics()[0]
        position = float(x)
        for run, font in self._split_by_font(text):
            self.pen.text((position, baseline), run, "black", font, anchor="ls")
            position += self.pen.textlength(run, font)

    def shorten(self, text: str, width: float) -> str:
        """Return a text that is at most `width` pixels wide, with "…" in place of its middle."""
        if self.measure(text) <= width:
            return text
        for kept in range(len(text) - 2, 0, -1):
            shortened = cut_middle(text, kept)
            if self.measure(shortened) <= width:
                return shortened
        return ELLIPSIS

    def measure(self, text: str) -> float:
        """Return the width of a text in pixels."""
        return sum(self.pen.textlength(run, font) for run, font in self._split_by_font(text))

    def _split_by_font(self, text: str) -> list[Run]:
        runs: list[Run] = []
        for char in printable(text):
            font = self.font
            drawn = char
            if self.other_font is not None and char in self.in_other_font:
                font = self.other_font
            elif char in self.lacking:
                drawn = char.encode("unicode_escape").decode()
            if runs and runs[-1][1] is font:
                runs[-1] = (runs[-1][0] + drawn, font)
            else:
                runs.append((drawn, font))
        return runs


@cache
def list_font_files() -> tuple[str, ...]:
    """Return the files of the fonts of the system, upright and regular ones first."""
    # This import is slow if matplotlib has no list of fonts yet, and few pictures need it.
    from matplotlib.font_manager import findSystemFonts

    def sort_key(file: str) -> tuple[bool, str]:
        name = os.path.basename(file).lower()
        return any(style in name for style in SPECIAL_STYLES), file

    return tuple(sorted(findSystemFonts(), key=sort_key))


def find_glyphs(file: str, characters: Iterable[str]) -> set[str]:
    """Return those of the characters that a font has. A file that cannot be read has none."""
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return set()
    return {char for char in characters if font.get_char_index(ord(char)) != 0}
