"""Text from outside the program, such as names of files, in a form that is safe to print."""

import unicodedata

UNPRINTABLE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}  # controls, lone surrogates, line separators
BIDI_CONTROLS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}  # reorder a whole line


def printable(value: object) -> str:
    """Return `value` as text in one line, with a backslash escape for what cannot be printed.

    Letters, marks, spaces and emoji of every script stay as they are. A byte of a file name that is
    not UTF-8, which Python holds as a lone surrogate, becomes its hexadecimal code: `caf\\xe9.jpg`.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(map(_escape_unprintable, text))


def _escape_unprintable(char: str) -> str:
    if unicodedata.category(char) not in UNPRINTABLE_CATEGORIES and char not in BIDI_CONTROLS:
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
