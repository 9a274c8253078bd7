"""utils/console.py: no figure is cut, however narrow the terminal; bars only on a real one."""

import io
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from utils import console as module
from utils.console import print_table, split_columns, track_progress

HEAD = ("features", "k", "T 0.07", "T 0.1", "T 0.2")
ROWS = [
    ("backbone", "1", "76.12", "77.00", "76.99"),
    ("projector", "200", "7.00", "100.00", "1.00"),
]


@pytest.mark.parametrize("columns", ["", "0", "120", "80", "40", "25", "5", "nonsense"])
def test_no_cell_of_a_table_is_cut(columns: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_table("kNN", HEAD, ROWS, names=2)
    out = capsys.readouterr().out
    assert "\u2026" not in out
    words = out.split()
    assert all(words.count(cell) >= 1 for row in ROWS for cell in row), out
    parts = out.count("features")
    assert parts == {"40": 2, "25": 3, "5": 3}.get(columns, 1)
    assert words.count("backbone") == words.count("200") == parts  # names are in each part
    if columns in ("40", "80", "120"):
        assert max(map(len, out.splitlines())) <= int(columns)


def test_a_long_name_is_wrapped_beside_its_figure(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "a very long name of a class that is more than forty letters long"
    print_table("", ("class", "accuracy %"), [(name, "76.12"), ("short", "1.00")])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 40 for line in lines) and any("76.12" in line for line in lines)
    assert " ".join(" ".join(lines).replace("76.12", "").split()).find(name) > 0


def test_a_name_in_brackets_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ("class", "accuracy %"), [("[red]", "1.00"), ("[/x]", "2.00")])
    out = capsys.readouterr().out
    assert "[red]" in out and "[/x]" in out


def test_every_column_is_in_a_part() -> None:
    parts = split_columns([10, 3, 6, 6, 40, 6], names=2, room=30)
    assert parts == [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]
    assert split_columns([10], names=1, room=5) == [[0]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["xterm", "dumb", "unknown"])
def test_a_dumb_terminal_gets_lines_instead_of_a_bar(term: str, monkeypatch) -> None:
    monkeypatch.setenv("TERM", term)
    screen = Terminal()
    terminal = module._Console(file=screen, width=80)
    monkeypatch.setattr(module, "console", terminal)
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0)
    lines: list[str] = []
    monkeypatch.setattr(module, "print_line", lines.append)
    assert list(track_progress([[0], [1], [2]], 3, "[/a] of [b]")) == [[0], [1], [2]]
    if term == "xterm":
        assert "[/a] of [b]" in screen.getvalue() and lines == []
    else:
        assert screen.getvalue().strip() == "" and lines == [
            "[/a] of [b]: 1 of 3",
            "[/a] of [b]: 2 of 3",
        ]


@pytest.mark.parametrize("columns", [120, 80, 40, 30, 20])
def test_the_figures_of_a_bar_are_not_cut(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(module, "console", module._Console(file=screen, width=columns))
    url = "downloading https://example.org/a/long/path/to/an/archive-of-images.tar.gz, bytes"
    list(track_progress([range(85_249_035)] * 2, 170_498_070, url))
    drawn = screen.getvalue()
    assert "170498070/170498070" in drawn and not re.search(r"\d\u2026", drawn)
    assert ("0:00:00" in drawn) == (columns >= 30)
    assert ("\u2501" in drawn) == (columns >= 120)


def test_forced_colours_make_no_bar_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not module._Console(file=io.StringIO()).draws_bars


def test_columns_of_zero_are_those_of_a_usual_terminal() -> None:
    code = "from utils.console import console; print(console.width, console.height)"
    environment = {"COLUMNS": "0", "LINES": "0", "PATH": ""}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout == "80 25\n", done.stderr
