"""utils/console.py: figures are never cut, however narrow the terminal is said to be."""

import pytest

from utils.console import console, print_table

HEAD = ("features", "k", "T 0.07", "T 0.1", "T 0.2")
ROWS = [("backbone", "200", "76.31", "75.22", "74.10"), ("projector", "1", "66.31", "65.22", "64.10")]


@pytest.mark.parametrize("columns", ["0", "1", "20", "40", "80", "200"])
def test_a_table_has_all_its_figures(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_table("accuracy in %", HEAD, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[-3:-1]] == [" ".join(row) for row in ROWS]
    assert [" ".join(HEAD)] == [line for line in (" ".join(x.split()) for x in lines) if "T 0.1" in line]


def test_a_terminal_of_no_columns_counts_as_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert console.width == 80
