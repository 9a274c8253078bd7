"""Printing: lines, progress and tables, on a terminal and in a file."""

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from rich import box
from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Chunk = TypeVar("Chunk", bound=Sized)
MANY_CLASSES = 20  # of more, a table shows the extremes
WIDEST_TABLE = 1000  # columns
PROGRESS_SECONDS = 5  # between lines of progress, if there is no terminal


class _Console(Console):
    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows; COLUMNS=0 and a terminal that does not tell them mean 80 x 25."""
        width, height = super().size
        return ConsoleDimensions(width or 80, height or 25)

    def on_broken_pipe(self) -> None:  # rich would exit with status 1, which Lightning takes for Ctrl-C
        self.quiet = True
        raise BrokenPipeError


# Names of classes may look like rich's markup or its codes for emoji.
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def plural(count: int, noun: str) -> str:
    """ "1 epoch", "2 epochs"; "2 classes"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def print_line(line: str) -> None:
    """Print a line at once; where there is a bar, above it."""
    print(line, flush=True)


def track_progress(chunks: Iterable[Chunk], total: int, what: str, lines: bool = True) -> Iterator[Chunk]:
    """Yield `chunks`, `total` items in all, and show the progress: a bar, or `lines` where there is no terminal."""
    title = TextColumn("{task.description}", markup=False)
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    terminal, due = console.is_terminal, time.monotonic() + PROGRESS_SECONDS
    with Progress(*columns, console=console, transient=True, disable=not terminal) as bar:
        task = bar.add_task(what, total=total)
        done = 0
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            bar.update(task, completed=done)
            if lines and not terminal and time.monotonic() >= due and done < total:
                print_line(f"{what}: {done:,} of {total:,}")
                due = time.monotonic() + PROGRESS_SECONDS


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
