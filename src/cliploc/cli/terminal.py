"""Where the command line writes: data on stdout, everything else on stderr, nothing read as markup."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from cliploc.errors import CliplocError

if TYPE_CHECKING:  # rich is imported where it prints: a refusal or a command's help does not need it
    from rich.console import RenderableType
    from rich.progress import Progress
    from rich.text import Text

    from cliploc.support.reporter import Reporter

GAP = 2  # columns between those of a table
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
        """A table with titles; on a screen that it does not fit `narrow`, or its cells are wrapped."""
        from rich.measure import Measurement

        table = grid(rows)
        width = Measurement.get(self.out, self.out.options.update(width=WIDE), table).maximum
        self.data(grid(narrow) if narrow is not None and width > self.out.width else table)

    def say(self, line: str, style: str = "") -> None:
        """One line for the person who waits."""
        with suppress(OSError):  # a full disk under stderr must not end the run
            self.err.print(styled(printable(line), style), soft_wrap=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Reporter]:
        """Shows on stderr what long work reports: lines, and on a terminal a bar."""
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

        columns: list[rich.ProgressColumn] = [
            rich.SpinnerColumn(),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(24),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(compact=True),
        ]
        with rich.Progress(*columns, console=self.err, transient=True) as progress:
            bar = _Bar(progress, label)
            yield replace(lines, phase=bar.phase, start=bar.start, images=bar.images, masked=bar.masked, bank=bar.bank)


class _Bar:
    """A progress bar that has the parts of a `Reporter` that count; see there."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label
        self._counts: dict[str, int] = {}  # what is counted beside pictures → how many are done
        self._task = progress.add_task(label, total=None)

    def phase(self, label: str) -> None:
        self._progress.remove_task(self._task)  # rich cannot take a total away from a task that has one
        self._label, self._counts = label, {}
        self._task = self._progress.add_task(label, total=None)

    def start(self, todo: int, total: int) -> None:
        self._progress.reset(self._task, total=total, completed=total - todo)

    def images(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def masked(self, done: int, left: int) -> None:
        self._beside("masked", done, left)

    def bank(self, done: int, left: int) -> None:
        self._beside("comparison names", done, left)

    def _beside(self, what: str, done: int, left: int) -> None:
        self._counts[what] = done + self._counts.get(what, 0)
        count = self._counts[what] if left else self._counts.pop(what)
        beside = f", {what} {count:,} of {count + left:,}" if left else ""
        self._progress.update(self._task, description=f"{self._label}{beside}")


def styled(text: str = "", style: str = "") -> Text:
    """A text as rich prints it, with a style such as "bold"."""
    from rich.text import Text

    return Text(text, style)


def printable(text: str) -> str:
    """Control characters written out: a file's name must not move the cursor or break a line in two."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def grid(rows: Sequence[Sequence[str | Text]], indent: int = 0) -> RenderableType:
    """Columns without lines around them; long cells are wrapped, never cut."""
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, GAP))
    for index in range(max(map(len, rows))):
        table.add_column(overflow="fold", no_wrap=index == 0 and max(len(row[0]) for row in rows) <= 24)
    for row in rows:
        table.add_row(*(styled(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return Padding(table, (0, 0, 0, indent), expand=False)
