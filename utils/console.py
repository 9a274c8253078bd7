"""Print lines, progress bars and tables, on a terminal or into a file."""

import os
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

# With more classes than this, tables and bar charts show only the best and the worst ones. Other
# charts then leave the names of the classes out.
MANY_CLASSES = 20
MAX_TABLE_WIDTH = 1000  # columns
TERMS_WITHOUT_SCREEN = ("", "dumb", "unknown")  # values of TERM
PROGRESS_SECONDS = 5  # between lines of progress where there is no bar

# Widths of the parts of a progress bar, in columns.
TIME_LEFT_WIDTH = 8  # "0:00:01" and a space
UNKNOWN_TOTAL_DIGITS = 12  # digits of the count that are reserved if the total is not known
MIN_BAR_WIDTH = 8
MAX_BAR_WIDTH = 40


class _Console(Console):
    @property
    def size(self) -> ConsoleDimensions:
        """Return columns and rows: 80 and 25 where rich finds 0.

        rich finds 0 if COLUMNS=0 is set or the terminal does not know its size.
        """
        width, height = super().size
        return ConsoleDimensions(width or 80, height or 25)

    @property
    def draws_bars(self) -> bool:
        """Whether progress bars can be drawn. They need a screen that can overwrite lines."""
        # rich also counts a file as interactive if FORCE_COLOR is set.
        return self.is_interactive and self.file.isatty() and is_terminal_a_screen()

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError.

        rich itself would raise SystemExit(1), which Lightning takes for a Ctrl-C.
        """
        self.quiet = True
        raise BrokenPipeError


def is_terminal_a_screen() -> bool:
    """Return whether the terminal of this process, if it has one, shows what bars draw.

    A notebook's `!command` runs on a terminal that nobody sees. Each frame of a bar would be added
    to the output of the cell.
    """
    term = os.environ.get("TERM", "")
    if term.lower() in TERMS_WITHOUT_SCREEN:
        return False
    # ipykernel sets these for its commands. Jupyter sets the variable JPY_PARENT_PID for kernels.
    has_variables_of_kernel = "JPY_PARENT_PID" in os.environ or os.environ.get("PAGER") == "cat"
    return not (term == "xterm-color" and has_variables_of_kernel)


# Markup and emoji codes are off because names of classes and folders may look like them.
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def format_count(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 epoch", "2,000 epochs" or "2 classes"."""
    if count == 1:
        return f"{count:,} {noun}"
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def print_line(line: str) -> None:
    """Print a line without delay; if there is a progress bar, the line appears above it."""
    print(line, flush=True)


def show_progress(
    chunks: Iterable[Chunk], total: int, label: str, lines: bool = True
) -> Iterator[Chunk]:
    """Yield `chunks` and show the progress: a bar, or lines where there is no terminal.

    Args:
        chunks: sequences of items.
        total: the number of items in all chunks; 0 if it is not known.
        label: what makes progress, such as "features of test images".
        lines: whether to print a line every PROGRESS_SECONDS where there is no terminal.
    """
    text, columns = choose_bar_columns(label, total, console.width)
    has_bar = console.draws_bars
    next_line = time.monotonic() + PROGRESS_SECONDS
    with Progress(*columns, console=console, transient=True, disable=not has_bar) as bar:
        task = bar.add_task(text, total=total)
        done = 0
        for chunk in chunks:
            yield chunk
            # The caller asks for the next chunk, so it has finished this one.
            done += len(chunk)
            bar.update(task, completed=done)
            is_due = time.monotonic() >= next_line and done < total
            if lines and not has_bar and is_due:
                print_line(f"{label}: {done:,} of {total:,}")
                next_line = time.monotonic() + PROGRESS_SECONDS


def choose_bar_columns(text: str, total: int, width: int) -> tuple[str, list[ProgressColumn]]:
    """Return the text of a progress bar and the columns that fit a terminal.

    Numbers are never cut. Room goes first to the count, then to the time left, then to the text,
    which may be shortened, and last to the bar.

    Args:
        text: the full text.
        total: the number of items; 0 if it is not known.
        width: columns of the terminal.
    """
    digits = len(str(total)) if total > 0 else UNKNOWN_TOTAL_DIGITS
    room = width - 2 * digits - 1  # the count is "done/total"
    columns: list[ProgressColumn] = [MofNCompleteColumn()]
    if room >= TIME_LEFT_WIDTH:
        columns.append(TimeRemainingColumn())
        room -= TIME_LEFT_WIDTH

    room -= 1  # the space between the text and the count
    if room < 2:  # no room for a character and an ellipsis
        return "", columns
    if cell_len(text) > room:
        text = set_cell_size(text, room - 1) + "\u2026"
    columns.insert(0, TextColumn("{task.description}", markup=False))

    room -= cell_len(text) + 1  # the space between the text and the bar
    if room >= MIN_BAR_WIDTH:
        columns.insert(1, BarColumn(min(MAX_BAR_WIDTH, room)))
    return text, columns


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with the first column aligned to the left, and the numbers to the right.

    No number is cut: on a terminal that is too narrow, the lines of the table are longer than the
    screen is wide.
    """
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    without_limit = console.options.update(max_width=MAX_TABLE_WIDTH)
    table.width = Measurement.get(console, without_limit, table).maximum
    console.print(table, crop=False)
