"""Printing: lines, progress and tables, on a terminal and in a file."""

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Chunk = TypeVar("Chunk", bound=Sized)
MANY_CLASSES = 20  # of more, a table shows the extremes
WIDEST_TABLE = 1000  # columns
TIME_LEFT = 8  # columns of "0:00:01" and a space
UNKNOWN_DIGITS = 12  # room for the count of items whose number is not known
NARROWEST_BAR = 8  # columns
WIDEST_BAR = 40
PROGRESS_SECONDS = 5  # between lines of progress, if there is no terminal


class _Console(Console):
    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows; COLUMNS=0 and a terminal that does not tell them mean 80 x 25."""
        width, height = super().size
        return ConsoleDimensions(width or 80, height or 25)

    @property
    def draws_bars(self) -> bool:
        """Whether lines can be drawn over: on a terminal that is not dumb.

        FORCE_COLOR makes rich take a file for a terminal.
        """
        return self.is_interactive and self.file.isatty()

    def on_broken_pipe(
        self,
    ) -> None:  # rich would exit with status 1, which Lightning takes for Ctrl-C
        self.quiet = True
        raise BrokenPipeError


# Names of classes may look like rich's markup or its codes for emoji.
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def plural(count: int, noun: str) -> str:
    """ "1 epoch", "2 epochs"; "2 classes"."""
    return (
        f"{count:,} {noun}"
        if count == 1
        else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"
    )


def print_line(line: str) -> None:
    """Print a line at once; where there is a bar, above it."""
    print(line, flush=True)


def track_progress(
    chunks: Iterable[Chunk], total: int, what: str, lines: bool = True
) -> Iterator[Chunk]:
    """Yield `chunks`, `total` items in all, and show the progress: a bar, or `lines` where there is no terminal."""
    text, columns = choose_bar_columns(what, total, console.width)
    terminal = console.draws_bars
    due = time.monotonic() + PROGRESS_SECONDS
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
    """Return the text of a progress bar and the columns that fit a terminal, so that no figure is cut.

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


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others, which are figures, to the right.

    On a terminal that is too narrow, its lines are longer than the screen: no figure is cut.
    """
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    without_limit = console.options.update(max_width=WIDEST_TABLE)
    table.width = Measurement.get(console, without_limit, table).maximum
    console.print(table, crop=False)
