"""Make text from outside of the program, such as names of files, safe to print."""

import unicodedata
from collections.abc import Sequence

UNPRINTABLE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}  # controls, lone surrogates, line separators
# Characters that reorder the rest of a line, so that it reads differently than it is.
BIDI_CONTROLS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}
ELLIPSIS = "\u2026"
MIN_DROPPED = 3  # letters that `drop_common_ends` replaces by an ellipsis


def printable(value: object) -> str:
    """Return a value as text in one line, with backslash escapes for what cannot be printed.

    Letters, marks, spaces and emoji of every script stay as they are. Python represents a byte of a
    file name that is not UTF-8 by a lone surrogate. Such a byte is shown by its hexadecimal code:
    `caf\\xe9.jpg`.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(_escape_unprintable(char) for char in text)


def cut_middle(text: str, kept: int) -> str:
    """Return a text with "…" in place of its middle, or the text itself if it is short enough.

    Twice as much stays of the end as of the beginning, because the names of files often end in a
    number.

    Args:
        kept: the number of characters that stay.
    """
    if len(text) <= kept + 1:
        return text
    end = 2 * kept // 3
    return text[: kept - end] + ELLIPSIS + text[len(text) - end :]


def drop_common_ends(names: Sequence[str]) -> list[str]:
    """Return names with "…" in place of the beginning and of the ending that all of them share.

    What is left tells one name from another. A shared part of one or two letters stays.
    """
    if len(set(names)) < 2:
        return list(names)
    start = _count_common_letters(names)
    # The ending must not reach into the beginning: "a1" and "a11" share both their "a1" and "1".
    reversed_rests = [name[start:][::-1] for name in names]
    end = _count_common_letters(reversed_rests)
    shortened: list[str] = []
    for name in names:
        beginning = name[:start] if start < MIN_DROPPED else ELLIPSIS
        ending = name[len(name) - end :] if end < MIN_DROPPED else ELLIPSIS
        shortened.append(beginning + name[start : len(name) - end] + ending)
    return shortened


def _count_common_letters(names: Sequence[str]) -> int:
    """Return how many letters at the beginning are the same in all names."""
    count = 0
    # The shortest name ends the comparison.
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        count += 1
    return count


def _escape_unprintable(char: str) -> str:
    category = unicodedata.category(char)
    if category not in UNPRINTABLE_CATEGORIES and char not in BIDI_CONTROLS:
        return char
    if "\udc80" <= char <= "\udcff":  # Python's surrogates for the bytes 0x80 to 0xff
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
