"""utils/console.py: numbers are never cut, however narrow the terminal is."""

import io
import re

import pytest

from utils import console as module
from utils.console import console, print_table, show_progress

HEAD = ("features", "k", "T 0.07", "T 0.1", "T 0.2")
ROWS = [
    ("backbone", "200", "76.31", "75.22", "74.10"),
    ("projector", "1", "66.31", "65.22", "64.10"),
]


@pytest.mark.parametrize("columns", ["0", "1", "20", "40", "80", "200"])
def test_table_has_all_its_numbers(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_table("accuracy in %", HEAD, ROWS)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-3:-1] == [" ".join(row) for row in ROWS]
    assert [line for line in lines if "T 0.1" in line] == [" ".join(HEAD)]


def test_terminal_with_0_columns_counts_as_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert console.width == 80


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# The environment of `!command` in a notebook, which runs on a terminal without a screen.
IN_A_NOTEBOOK = {"TERM": "xterm-color", "PAGER": "cat", "JPY_PARENT_PID": "1", "FORCE_COLOR": "1"}
ON_A_SCREEN = [
    {"TERM": "xterm"},
    {"TERM": "xterm-256color", "PAGER": "less"},
    {"TERM": "xterm-color"},  # as in some terminals of macOS
    {**IN_A_NOTEBOOK, "TERM": "tmux-256color"},  # tmux that a notebook has started
]
ON_NO_SCREEN = [
    {},
    {"TERM": ""},
    {"TERM": "dumb"},
    {"TERM": "unknown"},
    IN_A_NOTEBOOK,
    {"TERM": "xterm-color", "PAGER": "cat"},
    {"TERM": "xterm-color", "JPY_PARENT_PID": "1"},
]


@pytest.mark.parametrize("environment", [*ON_A_SCREEN, *ON_NO_SCREEN], ids=str)
def test_only_a_screen_gets_a_bar_and_others_get_lines(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "PAGER", "JPY_PARENT_PID", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    terminal = module._Console(file=screen, width=80)
    monkeypatch.setattr(module, "console", terminal)
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0)
    lines: list[str] = []
    monkeypatch.setattr(module, "print_line", lines.append)
    assert list(show_progress([[0], [1], [2]], 3, "[/a] of [b]")) == [[0], [1], [2]]
    if environment in ON_A_SCREEN:
        assert "[/a] of [b]" in screen.getvalue()
        assert lines == []
    else:
        assert screen.getvalue().strip() == ""
        assert lines == ["[/a] of [b]: 1 of 3", "[/a] of [b]: 2 of 3"]


@pytest.mark.parametrize("columns", [120, 80, 40, 30, 20])
def test_numbers_of_a_bar_are_not_cut(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "console", module._Console(file=screen, width=columns))
    url = "downloading https://example.org/a/long/path/to/an/archive-of-images.tar.gz, bytes"
    list(show_progress([range(85_249_035)] * 2, 170_498_070, url))
    drawn = screen.getvalue()
    assert "170498070/170498070" in drawn and not re.search(r"\d\u2026", drawn)
    assert ("0:00:00" in drawn) == (columns >= 30)
    assert ("\u2501" in drawn) == (columns >= 120)


def test_force_color_draws_no_bar_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not module._Console(file=io.StringIO()).draws_bars
