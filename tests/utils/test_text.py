"""utils/text.py: names that people and other programs have chosen are safe to print."""

import os

import pytest

from utils.text import drop_common_ends, printable

READABLE = ("cat", "école", "a\u3000b", "a\u200cb", "a\u00a0b", "数据", "e\u0301", "")
READABLE += ("\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
ESCAPED = {
    "a\nb": "a\\nb",
    "\x1b[31mred": "\\x1b[31mred",
    "a\u2028b": "a\\u2028b",
    "a\u202eb": "a\\u202eb",
    os.fsdecode(b"caf\xe9.jpg"): "caf\\xe9.jpg",
    "a\ud800b": "a\\ud800b",
}


@pytest.mark.parametrize("name", READABLE)
def test_letters_and_spaces_of_every_script_stay_as_they_are(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize("name", ESCAPED)
def test_characters_that_would_break_a_terminal_are_escaped(name: str) -> None:
    assert printable(name) == ESCAPED[name]
    printable(name).encode()


@pytest.mark.parametrize(
    ("names", "shortened"),
    [
        (["a long DSC01 edit.jpg", "a long DSC27 edit.jpg"], ["…01…", "…27…"]),
        (["cat1.png", "dog22.png"], ["cat1…", "dog22…"]),
        (["same.png", "same.png"], ["same.png", "same.png"]),
        (["image1", "image11"], ["…", "…1"]),
        (["a1b", "a2b"], ["a1b", "a2b"]),
        ([], []),
    ],
)
def test_names_lose_the_ends_that_they_share(names: list[str], shortened: list[str]) -> None:
    assert drop_common_ends(names) == shortened
