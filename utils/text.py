"""Make text from outside of the program, such as names of files, safe to print."""

import unicodedata

UNPRINTABLE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}  # controls, lone surrogates, line separators
# Characters that reorder the rest of a line, so that it reads differently than it is.
BIDI_CONTROLS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}
ELLIPSIS = "\u2026"


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


def _escape_unprintable(char: str) -> str:
    category = unicodedata.category(char)
    if category not in UNPRINTABLE_CATEGORIES and char not in BIDI_CONTROLS:
        return char
    if "\udc80" <= char <= "\udcff":  # Python's surrogates for the bytes 0x80 to 0xff
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
