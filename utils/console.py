"""Printing: lines, progress and tables, on a terminal and in a file."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Chunk = TypeVar("Chunk", bound=Sized)
MANY_CLASSES = 20  # of more, a table shows the extremes
PROGRESS_SECONDS = 5  # between lines of progress, if there is no terminal
TIME_LEFT = 8  # columns of "0:00:01" and a space
UNKNOWN_DIGITS = 12  # room for the count of items whose number is not known
NARROWEST_BAR, WIDEST_BAR = 8, 40  # columns
GAP, EDGES = 3, 2  # columns between two columns of a table, and at its edges
NARROWEST_NAMES = 12  # columns of a table's first column, before its names are wrapped


class _Console(Console):
    @property
    def draws_bars(self) -> bool:
        """Whether lines can be drawn over. FORCE_COLOR, which satisfies rich, is not enough."""
        return self.is_interactive and self.file.isatty()

    def on_broken_pipe(self) -> None:  # rich would exit with status 1, which Lightning takes for Ctrl-C
        self.quiet = True
        raise BrokenPipeError


console = _Console(highlight=False, soft_wrap=True)
# Some shells and tools export COLUMNS=0 or LINES=0, where rich would draw nothing.
console.width = console.width or 80
console.height = console.height or 25


def plural(count: int, noun: str) -> str:
    """ "1 epoch", "2 epochs"; "2 classes"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def print_line(line: str) -> None:
    """Print a line at once; where there is a bar, above it."""
    print(line, flush=True)


def track_progress(chunks: Iterable[Chunk], total: int, what: str, lines: bool = True) -> Iterator[Chunk]:
    """Yield `chunks`, `total` items in all, and show the progress: a bar, or `lines` where there is no terminal."""
    text, columns = choose_bar_columns(what, total, console.width)
    terminal, due = console.draws_bars, time.monotonic() + PROGRESS_SECONDS
    with Progress(*columns, console=console, transient=True, disable=not terminal) as bar:
        task = bar.add_task(text, total=total)
        done = 0
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            bar.update(task, completed=done)
            if lines and not terminal and time.monotonic() >= due and done < total:
                print_line(f"{what}: {done:,} of {total:,}")
                due = time.monotonic() + PROGRESS_SECONDS


def choose_bar_columns(text: str, total: int, width: int) -> tuple[str, list[ProgressColumn]]:
    """Return the text of a progress bar and the columns that fit without cutting a figure.

    The count is worth most, then the time left, the text, which may be shortened, and the bar.
    """
    digits = len(str(total)) if total > 0 else UNKNOWN_DIGITS
    room = width - 2 * digits - 1
    columns: list[ProgressColumn] = [MofNCompleteColumn()]
    if room >= TIME_LEFT:
        columns.append(TimeRemainingColumn())
        room -= TIME_LEFT
    room -= 1  # between the text and the count
    if room < 2:
        return "", columns
    if cell_len(text) > room:
        text = set_cell_size(text, room - 1) + "\u2026"
    columns.insert(0, TextColumn("{task.description}", markup=False))
    room -= cell_len(text) + 1
    if room >= NARROWEST_BAR:
        columns.insert(1, BarColumn(min(WIDEST_BAR, room)))
    return text, columns


def print_table(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    names: int = 1,
) -> None:
    """Print a table: the columns of names to the left, the others to the right.

    No cell is cut. A table wider than the terminal is printed in parts, each with the names.

    Args:
        title: a line above the table; may be empty.
        head: names of the columns.
        rows: the cells of each row.
        names: how many of the first columns say what a row is.
    """
    rows = [list(row) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    room = find_columns()
    if room is not None and len(widths) > names:
        needed = sum(widths[1:names]) + max(widths[names:]) + GAP * names + EDGES
        widths[0] = min(widths[0], max(NARROWEST_NAMES, room - needed))
    if title:
        print_line(title)
    for part in split_columns(widths, names, room):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i in part:
            if i == 0:
                table.add_column(head[i], width=widths[i], overflow="fold")
            else:
                table.add_column(head[i], justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(row[i]) for i in part))  # as text: [brackets] are rich's markup
        _Console(highlight=False, width=measure_width(widths, part), height=1).print(table)


def split_columns(widths: Sequence[int], names: int, room: int | None) -> list[list[int]]:
    """Return the columns of each part: the names, and as many others as fit, at least one."""
    first = list(range(min(names, len(widths))))
    parts = [first]
    for i in range(len(first), len(widths)):
        longer = [*parts[-1], i]
        if parts[-1] == first or room is None or measure_width(widths, longer) <= room:
            parts[-1] = longer
        else:
            parts.append([*first, i])
    return parts


def measure_width(widths: Sequence[int], part: Sequence[int]) -> int:
    """Return the width of a table that has these columns."""
    return sum(widths[i] for i in part) + GAP * (len(part) - 1) + EDGES


def find_columns() -> int | None:
    """Return the width of the terminal, or COLUMNS; None for a file, where any line fits."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return console.width if console.is_terminal else None
