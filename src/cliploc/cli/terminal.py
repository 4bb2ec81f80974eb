"""Where the command line writes: data on stdout, everything else on stderr, nothing read as markup."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

from cliploc.errors import CliplocError

if TYPE_CHECKING:  # rich is imported where it prints: a refusal or a command's help does not need it
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from cliploc.support.reporter import Reporter

GAP = 2  # columns between those of a table
LEAST_BESIDE = 40  # columns in which a last column of words is wrapped beside the others, not below them
WIDE = 10_000  # columns when nobody looks at them: lines stay whole for grep and cut


class OutputError(CliplocError):
    """What was found cannot be written to stdout, such as to a full disk."""


def write_out(text: str = "") -> None:
    """Writes to stdout, and whatever waits there, at once: who reads along sees each picture when it is done."""
    try:
        # Under PYTHONUNBUFFERED a write is cut off without an error, and the next one fails: also an empty one.
        sys.stdout.writelines([*text.splitlines(keepends=True), ""])
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}: free space, or redirect it elsewhere") from error


class Terminal:
    """The streams of one command; on one screen progress and data share a console, else data goes to stdout alone."""

    def __init__(self) -> None:
        from rich.console import Console

        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal's encoding does not
                stream.reconfigure(errors="backslashreplace")
        self.err = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self.one_screen = False
        with suppress(OSError):
            same = os.fstat(1).st_rdev == os.fstat(2).st_rdev
            self.one_screen = self.err.is_terminal and sys.stdout.isatty() and same
        width = None if sys.stdout.isatty() else WIDE
        self.out = self.err if self.one_screen else Console(markup=False, highlight=False, emoji=False, width=width)

    def data(self, what: RenderableType) -> None:
        """A line or table of results."""
        what = styled(what) if isinstance(what, str) else what
        if self.out.is_terminal:
            self.out.print(what)
            return
        with self.out.capture() as captured:  # tables are padded to their width: noise in a file
            self.out.print(what)
        write_out("\n".join(line.rstrip() for line in captured.get().split("\n")))

    def listing(
        self, rows: Sequence[Sequence[str | Text]], narrow: Sequence[Sequence[str | Text]] | None = None
    ) -> None:
        """A table with titles; on a narrow screen `narrow`, or a wrapped last column, or columns below each line."""
        from rich.cells import cell_len
        from rich.measure import Measurement
        from rich.padding import Padding

        table = grid(rows)
        if Measurement.get(self.out, self.out.options.update(width=WIDE), table).maximum <= self.out.width:
            self.data(table)
            return
        if narrow is not None:
            self.listing(narrow)
            return
        widths = [max(cell_len(str(row[i])) for row in rows) for i in range(len(rows[0]) - 1)]
        if self.out.width - sum(widths) - GAP * len(widths) >= LEAST_BESIDE:
            self.data(table)
            return
        while len(widths) > 1 and sum(widths) + GAP * (len(widths) - 1) > self.out.width:
            widths.pop()
        titles, beside = rows[0], len(widths)
        alone = len(titles) == beside + 1  # its title then stands once, below the others
        for row in rows:
            line = styled(" " * GAP).join(
                styled(str(cell) + " " * (width - cell_len(str(cell))), getattr(cell, "style", ""))
                for cell, width in zip(row, widths, strict=False)
            )
            self.data(line)
            below = [str(cell) if alone else f"{title}: {cell}" for title, cell in zip(titles, row, strict=True)]
            for cell, text in zip(row[beside:], below[beside:], strict=True):
                if alone or (row is not titles and str(cell) != "–"):
                    self.data(Padding(styled(text, "bold" if row is titles else "dim"), (0, 0, 0, 4)))

    def say(self, line: str, style: str = "") -> None:
        """One line for the person who waits."""
        with suppress(OSError):  # a full disk under stderr must not end the run
            self.err.print(styled(printable(line), style), soft_wrap=True)

    @contextmanager
    def progress(self, label: str, *, speed: bool = False) -> Iterator[Reporter]:
        """Shows on stderr what long work reports: lines, and on a terminal a bar, with its speed if asked for."""
        from cliploc.support.reporter import Reporter, halved_note  # here: help needs neither

        lines = Reporter(
            failed=lambda _, error: self.say(f"failed: {error}", style="red"),
            halved=lambda count: self.say(halved_note(count), style="yellow"),
            note=cache(lambda line: self.say(line, style="yellow")),  # once: several runs of a command say the same
        )
        if not self.err.is_terminal:
            yield lines
            return
        from rich import progress as rich

        class Speed(rich.ProgressColumn):
            """How many a second, be it pictures or names."""

            def render(self, task: rich.Task) -> Text:
                return styled("" if task.speed is None else f"{task.speed:.1f}/s")

        class Done(rich.MofNCompleteColumn):
            """How many of how many, where that is known."""

            def render(self, task: rich.Task) -> Text:
                return styled() if task.total is None else super().render(task)

        columns: list[rich.ProgressColumn] = [
            rich.SpinnerColumn(),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(24),
            Done(),
            *([Speed()] if speed else []),
            rich.TimeRemainingColumn(compact=True),
        ]
        with rich.Progress(*columns, console=self.err, transient=True) as progress:
            bar = _Bar(progress, label)
            yield replace(lines, phase=bar.phase, start=bar.start, images=bar.images, masked=bar.masked, bank=bar.bank)


class _Bar:
    """A progress bar that shows the parts of a `Reporter` that count; see there."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label, self._masked = progress, label, 0
        self._task = progress.add_task(label, total=None)
        self._bank: TaskID | None = None

    def phase(self, label: str) -> None:
        self._progress.remove_task(self._task)  # rich cannot take a total away from a task that has one
        self._label, self._masked = label, 0
        self._task = self._progress.add_task(label, total=None)

    def start(self, todo: int, total: int) -> None:
        self._progress.reset(self._task, total=total, completed=total - todo)

    def images(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def masked(self, done: int, left: int) -> None:
        self._masked += done
        beside = f", masked {self._masked:,} of {self._masked + left:,}" if left else ""
        self._progress.update(self._task, description=f"{self._label}{beside}")
        if not left:
            self._masked = 0

    def bank(self, done: int, left: int) -> None:
        """A bar of its own, below the other, for as long as it goes on."""
        if self._bank is None:
            from cliploc.support.reporter import BANK

            self._bank = self._progress.add_task(BANK, total=done + left)
        self._progress.advance(self._bank, done)
        if not left:
            self._progress.remove_task(self._bank)
            self._bank = None


def styled(text: str = "", style: str = "") -> Text:
    """A text as rich prints it, with a style such as "bold"."""
    from rich.text import Text

    return Text(text, style)


def printable(text: str) -> str:
    """Control characters written out: a file's name must not move the cursor or break a line in two."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def grid(rows: Sequence[Sequence[str | Text]], indent: int = 0) -> RenderableType:
    """Columns without lines around them; long cells are wrapped, never cut."""
    return _Grid([[styled(printable(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows], indent)


class _Grid:
    """A table by rich; but where no cell is wrapped, lines are written at once: rich takes seconds for 10,000 rows."""

    def __init__(self, rows: Sequence[Sequence[Text]], indent: int) -> None:
        from rich.cells import cell_len

        self._rows, self._indent = rows, indent
        self._lengths = [[cell_len(cell.plain) for cell in row] for row in rows]
        self._widths = [max(column) for column in zip_longest(*self._lengths, fillvalue=0)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        whole = self._indent + sum(self._widths) + GAP * (len(self._widths) - 1) <= options.max_width
        if not whole or any(cell.spans or not cell.plain.isprintable() for row in self._rows for cell in row):
            yield self._table()
            return
        for row, lengths in zip(self._rows, self._lengths, strict=True):
            gap = self._indent
            for cell, length, width in zip(row, lengths, self._widths, strict=False):
                yield Segment(" " * gap)
                yield Segment(cell.plain, console.get_style(cell.style))
                gap = width - length + GAP
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement.get(console, options, self._table())

    def _table(self) -> RenderableType:
        from rich.padding import Padding
        from rich.table import Table

        table = Table.grid(padding=(0, GAP))
        for index in range(len(self._widths)):
            table.add_column(overflow="fold", no_wrap=index == 0 and max(len(row[0]) for row in self._rows) <= 24)
        for row in self._rows:
            table.add_row(*row)
        return Padding(table, (0, 0, 0, self._indent), expand=False)
